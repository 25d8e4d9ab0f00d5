"""Recipes: a training as a TOML file, from the data to the schedule."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from snnkern import attacks, data, models, recipes, surrogate
from snnkern._checks import check_int, check_number
from snnkern.attacks import Attack
from snnkern.convert import convert
from snnkern.data import Samples, Split, loader
from snnkern.models import SpikingNetwork
from snnkern.surrogate import Surrogate
from snnkern.training.adversarial_training import AdversarialTraining
from snnkern.training.certified import Certified
from snnkern.training.hire import HIRE
from snnkern.training.mart import MART
from snnkern.training.method import Method, Natural
from snnkern.training.rat import RAT
from snnkern.training.robust_finetune import RobustFinetune
from snnkern.training.spike_time_finetune import SpikeTimeFinetune
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
    """Multiplies the rate by ``factor`` after each of the shares ``at`` of all epochs.

    Rounded to an epoch, and never before the first.
    """
    check_number("factor", factor, low=0, open_low=True)
    for share in at:
        check_number("at", share, low=0, high=1)
    return MultiStepLR(optimizer, [max(1, round(share * epochs)) for share in at], factor)


def constant(optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """The optimiser's rate throughout."""


def shipped() -> list[str]:
    """The names of the recipes that ship with snnkern."""
    return sorted(file.stem for file in SHIPPED.glob("*.toml"))


def _named(module: Any, base: type) -> dict[str, Any]:
    kinds = {name: kind for name, kind in vars(module).items() if isinstance(kind, type)}
    return {name: kind for name, kind in kinds.items() if issubclass(kind, base)}


# What --data may name instead of a folder, and the images that stand in for those of any data set.
STAND_INS = {Path("digits"): "enlarged_digits", Path("synthetic"): "synthetic"}
DATA: Kinds = {name: getattr(data, name) for name in (*data.FORMATS, *STAND_INS.values())}
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
        Certified,
    )
}
OPTIMIZERS: Kinds = {name: getattr(torch.optim, name) for name in ("SGD", "Adam", "AdamW")}
SCHEDULES: Kinds = {kind.__name__: kind for kind in (constant, cosine, multistep)}
# Tables within an option: attacks to mix, the surrogate of a network's neurons.
PARTS: Kinds = {**_named(attacks, Attack), **_named(surrogate, Surrogate)}
# What a recipe says of ``snnkern.convert``; timesteps stand in its model. And of its batches.
CONVERT = (*list(inspect.signature(convert).parameters)[3:-2], "batch_size")
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
    "convert": dict,
    "method": dict,
    "optimizer": dict,
    "schedule": dict,
}
REQUIRED = ("title", "data", "model")
# Required too, unless there are none of them, but a conversion.
OF_TRAINING = ("epochs", "batch_size", "method", "optimizer", "schedule")


@dataclass(frozen=True)
class Recipe:
    """A training, read and checked.

    Args:
        name: of the file, without its ending.
        text: of the file; of one with a ``base`` all that it comes to.
        settings: what stands in it.
    """

    name: str
    text: str
    settings: Table

    @classmethod
    def load(cls, recipe: str | Path) -> Recipe:
        """Reads a file, or the recipe of that name that ships with snnkern.

        A number may be written as a fraction, ``"8/255"``. With ``base``, the name of a recipe
        beside it or of one that ships with snnkern, a file has what stands there and changes some
        of it: tables key by key, or as a whole where they name something else.

        Raises:
            FileNotFoundError: there is neither.
            ValueError: a key that is missing, unknown, or has a value that it cannot have.
        """
        path = Path(recipe)
        if not path.is_file() and len(path.parts) == 1:
            path = SHIPPED / f"{path.name.removesuffix('.toml')}.toml"
        if not path.is_file():
            like = ", ".join(get_close_matches(path.stem, shipped()))
            raise FileNotFoundError(
                f"recipe is {str(recipe)!r}, expected a file or one of those that ship with snnkern"
                f"{like and f', such as {like}'}; snnkern train --list names all"
            )
        return cls.read(path.stem, path.read_text(encoding="utf-8"), path.parent)

    @classmethod
    def read(cls, name: str, text: str, folder: Path = SHIPPED) -> Recipe:
        """Reads the text of a file of that name in that folder; see ``load``."""
        settings = _parsed(text, f"{name}.toml")
        if "base" in settings:
            comments = re.match(r"(#.*\n)*", text)
            assert comments is not None  # it may be empty
            settings = _with_base(settings, folder, (name,))
            return cls._checked(name, comments[0] + _toml(settings), settings)
        return cls._checked(name, text, settings)

    @classmethod
    def of(cls, name: str, settings: Table) -> Recipe:
        """The recipe that these settings make."""
        return cls._checked(name, _toml(settings), settings)

    @classmethod
    def _checked(cls, name: str, text: str, settings: Table) -> Recipe:
        _check_keys(settings, f"{name}.toml")
        read = cls(name, text, settings)
        for table, kinds in (("data", DATA), ("model", MODELS)):
            name = settings[table].get("name")
            if name not in kinds:
                raise ValueError(_unknown(f"{table}.name", name, kinds))
        if read.trains:
            read.method()
            read.schedule(read.optimizer(nn.Linear(1, 1)), 1)
        return read

    def text_on(self, folder: Path | None) -> str:
        """What a run on the data in ``folder`` keeps of the recipe; see ``split``."""
        if folder not in STAND_INS:
            return self.text
        return f"# Made with --data {folder}, instead of the data set named below.\n{self.text}"

    def split(self, folder: Path | None = None) -> Split[Samples]:
        """The data.

        Args:
            folder: where data sets lie that do not come with a package; ``Path("digits")``
                gives handwritten digits and ``Path("synthetic")`` generated images instead, of
                their size, for as many classes.

        Raises:
            FileNotFoundError: a file of the data set is missing.
            ImportError: the package that reads it is.
            ValueError: a file is corrupt, an option unknown, or ``folder`` missing.
        """
        table, given = self.settings["data"], {}
        name = table["name"]
        if folder in STAND_INS and name in data.FORMATS:
            shape, classes = data.FORMATS[name]
            augment = {"augment": table["augment"]} if "augment" in table else {}
            table = {"name": STAND_INS[folder], "shape": list(shape), "classes": classes, **augment}
        elif folder is not None:
            given["folder"] = folder
        elif "folder" in inspect.signature(DATA[name]).parameters and "folder" not in table:
            raise ValueError(
                f"data.name is {name!r} and the folder with its files is missing, expected "
                "--data FOLDER, or --data digits or synthetic for other images instead"
            )
        split: Split[Samples] = _build("data", table, DATA, **given)
        return split

    def model(self) -> nn.Module:
        """The network, with new weights."""
        model: nn.Module = _build("model", self.settings["model"], MODELS)
        return model

    def convert(
        self, ann: SpikingNetwork, split: Split[Samples], seed: int, progress: bool
    ) -> SpikingNetwork:
        """The network of this recipe, from the ReLU network that it begins with.

        Args:
            ann: that network, with the neurons of this one.
            split: whose training images, shuffled, balance the thresholds.
            seed: of their order, and of what an encoder draws.
            progress: show a progress bar.
        """
        table = dict(self.settings["convert"])
        images = loader(split.train, table.pop("batch_size", 64), shuffle=True, seed=seed)
        timesteps = self.settings["model"]["timesteps"]
        kinds = {"convert": convert}
        given = {"seed": seed, "progress": progress}
        converted: SpikingNetwork = _build(
            "convert", {"name": "convert"} | table, kinds, ann, images, timesteps, **given
        )
        return converted

    @property
    def trains(self) -> bool:
        """Whether there is a training; otherwise a conversion is all."""
        return "method" in self.settings

    @property
    def spikes(self) -> bool:
        """Whether the network does; otherwise it is a ReLU network."""
        return bool(self.settings["model"].get("timesteps", 1))

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


def _parsed(text: str, file: str) -> Table:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not TOML: {error}") from error


def _with_base(settings: Table, folder: Path, names: tuple[str, ...]) -> Table:
    """The settings of a recipe in ``folder``, the last of ``names``, on top of its base's."""
    if "base" not in settings:
        return settings
    name = settings["base"]
    paths = (place / f"{name}.toml" for place in (folder, SHIPPED))
    path = next((path for path in paths if path.is_file()), None)
    if path is None or name in names:
        raise ValueError(
            f"{names[-1]}.toml: base is {name!r}, expected the name of another recipe, beside it "
            "or shipped with snnkern, that is not made of it in turn"
        )
    under = _parsed(path.read_text(encoding="utf-8"), path.name)
    base = _with_base(under, path.parent, (*names, name))
    merged = base | {key: value for key, value in settings.items() if key != "base"}
    for key, table in settings.items():
        before = base.get(key)
        if isinstance(table, dict) and isinstance(before, dict):
            same = table.get("name", before.get("name")) == before.get("name")
            merged[key] = before | table if same else table
    return merged


def _toml(settings: Table) -> str:
    """Settings as the text of a file."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return f"{{ {', '.join(f'{key} = {text(part)}' for key, part in value.items())} }}"
        if isinstance(value, list):
            return f"[{', '.join(map(text, value))}]"
        return json.dumps(value)

    lines = [f"{key} = {text(v)}\n" for key, v in settings.items() if not isinstance(v, dict)]
    for key, table in settings.items():
        if isinstance(table, dict):
            lines.append(f"\n[{key}]\n")
            lines += [f"{name} = {text(value)}\n" for name, value in table.items()]
    return "".join(lines)


def _check_keys(settings: Table, file: str) -> None:
    for key, value in settings.items():
        if key not in KEYS:
            raise ValueError(f"{file}: {key} is not a key, expected one of {', '.join(KEYS)}")
        kind = KEYS[key]
        right = isinstance(value, kind | int if kind is float else kind)
        if not right or isinstance(value, bool):
            expected = "a table" if kind is dict else f"a value of type {kind.__name__}"
            raise ValueError(f"{file}: {key} is {value!r}, expected {expected}")
    converts_only = "convert" in settings and not any(key in settings for key in OF_TRAINING)
    required = REQUIRED if converts_only else (*REQUIRED, *OF_TRAINING)
    missing = [key for key in required if key not in settings]
    if missing:
        raise ValueError(f"{file}: {', '.join(missing)} missing, expected in every recipe")
    for key in settings.get("convert", {}):
        if key not in CONVERT:
            expected = ", ".join(CONVERT)
            raise ValueError(f"{file}: convert.{key} is not a key, expected one of {expected}")
    if "convert" in settings and not ("start" in settings and settings["model"].get("timesteps")):
        raise ValueError(
            f"{file}: convert says how a ReLU network becomes this one, expected start with the "
            "name of its recipe, and model.timesteps of at least 1"
        )
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
