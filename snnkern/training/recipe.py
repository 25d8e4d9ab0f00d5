"""Recipes: a training as a TOML file, from the data to the schedule."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from snnkern import attacks, data, models, recipes, surrogate
from snnkern._checks import check_int, check_number
from snnkern.attacks import Attack
from snnkern.data import Split
from snnkern.surrogate import Surrogate
from snnkern.training.adversarial import AdversarialTraining
from snnkern.training.hire import HIRE
from snnkern.training.mart import MART
from snnkern.training.method import Method, Natural
from snnkern.training.rat import RAT
from snnkern.training.robust_finetune import RobustFinetune
from snnkern.training.spike_time import SpikeTimeFinetune
from snnkern.training.trades import TRADES

Table = dict[str, Any]
Kinds = Mapping[str, Callable[..., Any]]

SHIPPED = Path(recipes.__file__).parent


def cosine(optimizer: torch.optim.Optimizer, epochs: int) -> LRScheduler:
    """From the optimiser's rate along half a cosine to 0, per epoch."""
    return CosineAnnealingLR(optimizer, epochs)


def multistep(
    optimizer: torch.optim.Optimizer, epochs: int, at: Iterable[float], factor: float
) -> LRScheduler:
    """Multiplies the rate by ``factor`` after each of the shares ``at`` of all epochs."""
    check_number("factor", factor, low=0, open_low=True)
    for share in at:
        check_number("at", share, low=0, high=1)
    return MultiStepLR(optimizer, [round(share * epochs) for share in at], factor)


def constant(optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """The optimiser's rate throughout."""


def _named(module: Any, base: type) -> dict[str, Any]:
    kinds = {name: kind for name, kind in vars(module).items() if isinstance(kind, type)}
    return {name: kind for name, kind in kinds.items() if issubclass(kind, base)}


DATA: Kinds = {"digits": data.digits}
MODELS: Kinds = {name: getattr(models, name) for name in models.__all__ if name.islower()}
METHODS: Kinds = {
    kind.__name__: kind
    for kind in (
        Natural,
        AdversarialTraining,
        TRADES,
        MART,
        RobustFinetune,
        SpikeTimeFinetune,
        RAT,
        HIRE,
    )
}
OPTIMIZERS: Kinds = {name: getattr(torch.optim, name) for name in ("SGD", "Adam", "AdamW")}
SCHEDULES: Kinds = {kind.__name__: kind for kind in (constant, cosine, multistep)}
# Tables within an option: attacks to mix, the surrogate of a network's neurons.
PARTS: Kinds = {**_named(attacks, Attack), **_named(surrogate, Surrogate)}
# What recipes of the papers name, and this version may not have.
PLANNED = ("cifar10", "cifar100", "resnet12", "resnet20", "vgg5", "vgg11", "wrn16_4")
AUTOCAST = {"none": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
KEYS = {
    "title": str,
    "start": str,
    "epochs": int,
    "seed": int,
    "batch_size": int,
    "clip_norm": float,
    "autocast": str,
    "threads": int,
    "data": dict,
    "model": dict,
    "method": dict,
    "optimizer": dict,
    "schedule": dict,
}
REQUIRED = ("title", "epochs", "batch_size", "data", "model", "method", "optimizer", "schedule")


@dataclass(frozen=True)
class Recipe:
    """A training, read and checked.

    Args:
        name: of the file, without its ending.
        text: of the file.
        settings: what stands in it.
    """

    name: str
    text: str
    settings: Table

    @classmethod
    def load(cls, recipe: str | Path) -> Recipe:
        """Reads a file, or the recipe of that name that ships with snnkern.

        A number may be written as a fraction, ``"8/255"``.

        Raises:
            FileNotFoundError: there is neither.
            ValueError: a key that is missing, unknown, or has a value that it cannot have.
        """
        path = Path(recipe)
        if not path.is_file() and len(path.parts) == 1:
            path = SHIPPED / f"{path.name.removesuffix('.toml')}.toml"
        if not path.is_file():
            shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.toml")))
            raise FileNotFoundError(
                f"recipe is {str(recipe)!r}, expected a file or one of those that ship with "
                f"snnkern: {shipped}"
            )
        text = path.read_text(encoding="utf-8")
        try:
            settings = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not TOML: {error}") from error
        _check_keys(settings, path.name)
        read = cls(path.stem, text, settings)
        read.method()
        for table, kinds in (("data", DATA), ("model", MODELS)):
            name = settings[table].get("name")
            if name not in kinds and name not in PLANNED:
                raise ValueError(_unknown(f"{table}.name", name, kinds))
        read.schedule(read.optimizer(nn.Linear(1, 1)), 1)
        return read

    def split(self, folder: Path | None = None) -> Split:
        """The data; ``folder`` is where data sets lie that do not come with a package."""
        given = {"folder": folder} if folder is not None else {}
        split: Split = _build("data", self.settings["data"], DATA, **given)
        return split

    def model(self) -> nn.Module:
        """The network, with new weights."""
        if "start" in self.settings:
            raise ValueError(
                f"start is {self.settings['start']!r}: this recipe begins with the network of that "
                "one, converted, and this version of snnkern does not convert networks yet"
            )
        model: nn.Module = _build("model", self.settings["model"], MODELS)
        return model

    def method(self) -> Method:
        """The training method."""
        method: Method = _build("method", self.settings["method"], METHODS)
        return method

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a model's parameters."""
        optimizer: torch.optim.Optimizer = _build(
            "optimizer", self.settings["optimizer"], OPTIMIZERS, model.parameters()
        )
        return optimizer

    def schedule(self, optimizer: torch.optim.Optimizer, epochs: int) -> LRScheduler | None:
        """The schedule of an optimiser over so many epochs."""
        schedule: LRScheduler | None = _build(
            "schedule", self.settings["schedule"], SCHEDULES, optimizer, epochs
        )
        return schedule

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of mixed precision."""
        return AUTOCAST[self.settings.get("autocast", "none")]


def _check_keys(settings: Table, file: str) -> None:
    for key, value in settings.items():
        if key not in KEYS:
            raise ValueError(f"{file}: {key} is not a key, expected one of {', '.join(KEYS)}")
        kind = KEYS[key]
        right = isinstance(value, kind | int if kind is float else kind)
        if not right or isinstance(value, bool):
            expected = "a table" if kind is dict else f"a value of type {kind.__name__}"
            raise ValueError(f"{file}: {key} is {value!r}, expected {expected}")
    missing = [key for key in REQUIRED if key not in settings]
    if missing:
        raise ValueError(f"{file}: {', '.join(missing)} missing, expected in every recipe")
    for key in ("epochs", "batch_size", "threads"):
        check_int(f"{file}: {key}", settings.get(key, 1), 1)
    if settings.get("autocast", "none") not in AUTOCAST:
        raise ValueError(_unknown(f"{file}: autocast", settings["autocast"], AUTOCAST))


def _unknown(where: str, value: object, known: Iterable[str]) -> str:
    return f"{where} is {value!r}, expected one of {', '.join(sorted(known))}"


def _build(where: str, table: Table, kinds: Kinds, *given: Any, **more: Any) -> Any:
    """What ``table`` describes: ``name`` says which kind, all other keys are its options."""
    name = str(table.get("name"))
    if name not in kinds:
        if name in PLANNED:
            raise ValueError(
                f"{where}.name is {name!r}, which this version of snnkern does not have yet; it "
                f"has {', '.join(sorted(kinds))}"
            )
        raise ValueError(_unknown(f"{where}.name", name, kinds))
    kind = kinds[name]
    parameters = inspect.signature(kind).parameters.values()
    known = [p.name for p in parameters][len(given) :]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    options = {
        key: _value(f"{where}.{key}", value) for key, value in table.items() if key != "name"
    }
    for key, value in (options | more).items():
        if key not in known and not open_ended:
            raise ValueError(
                f"{where}.{key} is {value!r}, expected no such key: {name} has "
                f"{', '.join(known) or 'none'}"
            )
    try:
        return kind(*given, **options, **more)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _value(where: str, value: Any) -> Any:
    if isinstance(value, dict):
        return _build(where, value, PARTS)
    if isinstance(value, list):
        return tuple(_value(f"{where}[{i}]", part) for i, part in enumerate(value))
    if isinstance(value, str) and re.fullmatch(r"\d+/[1-9]\d*", value):
        return float(Fraction(value))
    return value
