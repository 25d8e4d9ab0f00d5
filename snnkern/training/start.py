"""Networks that others begin with: read from the folder of a run, and converted where they must."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from snnkern.data import Samples, Split
from snnkern.models import SpikingNetwork
from snnkern.nn import LIF
from snnkern.training.checkpoint import load_checkpoint
from snnkern.training.own import OWN_NAME, Own, made, own_name, told_by_name
from snnkern.training.recipe import STAND_INS, Recipe

DEFAULT_EPS = 8 / 255


def load_run(path: Path) -> tuple[Recipe, nn.Module]:
    """The recipe of a run, and its network with the weights of a checkpoint.

    Args:
        path: the folder of the run, for its last checkpoint, or one of its checkpoints:
            ``best.safetensors`` is the one of the highest accuracy on the test set, which that
            accuracy flatters.

    Raises:
        FileNotFoundError: there is no such run.
    """
    recipe = Recipe.load(run_folder(path) / "recipe.toml")
    model = recipe.model()
    _load(model, path)
    return recipe, model


@dataclass(frozen=True)
class Trained:
    """The network of a run, with what attacks, certificates and reports ask about it.

    Args:
        title: of the recipe; the name of the folder where there is none.
        dataset: the name of its data.
        model: with the weights of the checkpoint.
        eps: the size that it was trained for, or 8/255.
        threads: that torch computes with; None leaves them.
        test: reads the test samples.
        own: what gave the network, of a run without a recipe.
    """

    title: str
    dataset: str
    model: nn.Module
    eps: float
    threads: int | None
    test: Callable[[], Samples]
    own: Own | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """For the block that runs the network: as many threads, and errors of the own by name."""
        with threads(self.threads), told_by_name(self.own, self.model):
            yield


def trained(path: Path, data: Path | None = None, own: Own | None = None) -> Trained:
    """The network of a run.

    Args:
        path: the run; see ``load_run``.
        data: where data sets lie.
        own: network and samples of a run of ``fit``, which has no recipe that says them; ``data``
            is then of no use. The weights are those of the checkpoint.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: a run with a recipe and ``own``, or one without either; what ``own`` gives is no
            network with at least one sample and its label, or weights do not fit.
    """
    folder = path if path.is_dir() else path.parent
    has_recipe = (folder / "recipe.toml").is_file()
    if own is None:
        if not has_recipe and (folder / "run.json").is_file():
            raise ValueError(
                f"run is {path}, which has no recipe, expected model: a function of yours that "
                f"gives the network and its test samples (--model {OWN_NAME})"
            )
        recipe, model = load_run(path)
        settings = recipe.settings
        return Trained(
            settings["title"],
            str(data) if data in STAND_INS else settings["data"]["name"],
            model,
            trained_eps(recipe),
            settings.get("threads"),
            lambda: recipe.split(data).test,
        )
    name = own_name(own)
    if name == OWN_NAME:
        name = getattr(own, "__qualname__", type(own).__name__)
    if has_recipe:
        raise ValueError(
            f"model is {name} and run is {path}, expected none: its recipe says what it is"
        )
    if data is not None:
        raise ValueError(f"data is {data}, expected none: model is {name}, which gives the samples")
    if not _checkpoint(path).is_file():
        raise FileNotFoundError(
            f"run is {path}, expected the folder of a run of training.fit, or a checkpoint in it"
        )
    model, test = made(own(), name)
    _load(model, path)
    return Trained(folder.resolve().name, name, model, DEFAULT_EPS, None, lambda: test, own)


def trained_eps(recipe: Recipe) -> float:
    """The size that a run was trained for, or 8/255."""
    eps = getattr(recipe.method(), "eps", None) if recipe.trains else None
    return float(eps) if isinstance(eps, int | float) else DEFAULT_EPS


def begin(
    recipe: Recipe, model: nn.Module, path: Path, split: Split[Samples], seed: int, progress: bool
) -> nn.Module:
    """The network of a recipe that begins with that of another run.

    Where that is a ReLU network and this spikes, its weights become those of a ReLU network with
    the neurons of this recipe, which is converted. Otherwise all that it learnt is taken over, and
    its thresholds; a leak that neither learns is that of this recipe.

    Args:
        recipe: has a ``start``.
        model: of the recipe, with new weights.
        path: of the other run; see ``load_run``.
        split: the data of the recipe.
        seed: of the order of the images that balance thresholds.
        progress: show a progress bar while converting.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: its weights do not fit, it normalises images otherwise, or it would have to be
            converted and the recipe does not say how.
    """
    other = Recipe.load(run_folder(path, "start") / "recipe.toml")
    converted = recipe.spikes and not other.spikes
    if converted:
        own = {name for name, _ in _of_neurons(model)}
    else:
        with torch.device("meta"):  # what is learnt there, not the weights
            before = other.model()
        constant = set.intersection(
            *({name for name, _ in m.named_buffers()} for m in (model, before))
        )
        own = {name for name, kind in _of_neurons(model) if kind != "threshold"} & constant
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    _load(model, path, own)
    for name in ("normalize.mean", "normalize.std"):
        theirs, ours = model.get_buffer(name).flatten(), buffers[name].flatten()
        if not torch.equal(theirs, ours):
            raise ValueError(
                f"start is {path}, whose {name} is {theirs.tolist()}, expected {ours.tolist()}, "
                "that of the recipe"
            )
    if not converted:
        return model
    if "convert" not in recipe.settings:
        raise ValueError(
            f"start is {path}, a ReLU network, and the recipe has no table convert, expected one "
            "that says how it becomes a spiking network"
        )
    assert isinstance(model, SpikingNetwork)
    model.timesteps = 0
    return recipe.convert(model, split, seed, progress)


def thresholds(model: nn.Module) -> dict[str, list[float]]:
    """The thresholds of all layers of neurons, by name."""
    return {
        name: module.threshold.flatten().tolist()
        for name, module in model.named_modules()
        if isinstance(module, LIF)
    }


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within the block torch computes with so many threads; None leaves it as it is."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


def run_folder(path: Path, argument: str = "run") -> Path:
    """The folder of a run, from that or one of its checkpoints.

    Raises:
        FileNotFoundError: there is no run; the error calls ``path`` by the name of the argument.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / "recipe.toml").is_file():
        raise FileNotFoundError(
            f"{argument} is {path}, expected the folder of a run of snnkern train, or a checkpoint "
            "in it"
        )
    return folder


def _of_neurons(model: nn.Module) -> Iterator[tuple[str, str]]:
    """What stands in a checkpoint of neurons alone: its names, and what that is."""
    for name, module in model.named_modules():
        if isinstance(module, LIF):
            for kind in (module.decay_name, "threshold", "synapse_decay"):
                if getattr(module, kind) is not None:
                    yield f"{name}.{kind}", kind


def _checkpoint(path: Path) -> Path:
    """The last one of a run, or the one that was named."""
    return path / "last.safetensors" if path.is_dir() else path


def _load(model: nn.Module, path: Path, own: Collection[str] = ()) -> None:
    """Takes a checkpoint over, but for what the model has as its own."""
    file = _checkpoint(path)
    state = load_checkpoint(file)["model"]
    state |= {name: value for name, value in model.state_dict().items() if name in own}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        words = " ".join(str(error).split())
        raise ValueError(f"{file} holds other weights than the network has: {words}") from error
