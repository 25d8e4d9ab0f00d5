"""Networks that others begin with: read from the folder of a run, and converted where they must."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from snnkern.attacks import evaluate
from snnkern.data import Samples, Split, loader
from snnkern.models import SpikingNetwork
from snnkern.nn import LIF
from snnkern.training.checkpoint import load_checkpoint
from snnkern.training.ranks import usable_device
from snnkern.training.recipe import STAND_INS, Recipe, Table
from snnkern.training.run import RunFolder, check_free

# Makes a user's own network, whose weights a checkpoint then replaces, and gives the samples that
# it is tested with.
Own = Callable[[], tuple[nn.Module, Samples]]
# What stands in a command for a function that has no such name.
OWN_NAME = "MODULE:FUNCTION"
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
    """

    title: str
    dataset: str
    model: nn.Module
    eps: float
    threads: int | None
    test: Callable[[], Samples]


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
    model, test = _made(own(), name)
    _load(model, path)
    return Trained(folder.resolve().name, name, model, DEFAULT_EPS, None, lambda: test)


def own_name(own: Own) -> str:
    """``MODULE:FUNCTION``, by which ``named_network`` finds it; that placeholder where it has none.

    A function of the script that runs is one of the module that its file is.
    """
    if isinstance(own, _Named):
        return own.name
    module, function = own.__module__, getattr(own, "__qualname__", "")
    try:
        if attrgetter(function)(sys.modules[module]) != own:
            return OWN_NAME
    except (AttributeError, KeyError):
        return OWN_NAME
    if module == "__main__":
        main = sys.modules[module]
        file = getattr(main, "__file__", None) or ""
        module = Path(file).stem if main.__spec__ is None else main.__spec__.name
    return f"{module}:{function}" if _are_names(module, function) else OWN_NAME


def _are_names(*paths: str) -> bool:
    """Whether all are identifiers with dots between."""
    return all(part.isidentifier() for path in paths for part in path.split("."))


def _made(given: Any, name: str) -> tuple[nn.Module, Samples]:
    """What a function of the user's gave, if that is a network and its samples."""
    match given:
        case (nn.Module() as model, Dataset() as test) if isinstance(test, Sized):
            if len(test) == 0:
                raise ValueError(f"model is {name}, which gives no samples, expected at least one")
            try:
                first = test[0]
            except Exception as error:
                raise _raised(name, error) from error
            match first:
                case (_, _):
                    return model, test
            raise ValueError(
                f"model is {name}, whose samples are {_kinds(first)}, expected pairs: an image "
                "and its label"
            )
    raise ValueError(
        f"model is {name}, which gives {_kinds(given)}, expected (network, samples): an nn.Module, "
        "and a torch Dataset of images and labels with a length, such as TensorDataset(x, y)"
    )


def _kinds(given: object) -> str:
    """The types of what a tuple holds, or of what is none."""
    parts = given if isinstance(given, tuple) else (given,)
    return ", ".join(type(part).__name__ for part in parts)


@dataclass(frozen=True)
class _Named:
    """A function of the user's, by the name that was given for it; says whose its errors are."""

    name: str
    function: Own

    def __call__(self) -> tuple[nn.Module, Samples]:
        try:
            return self.function()
        except Exception as error:
            raise _raised(self.name, error) from error


def named_network(text: str) -> Own:
    """The function that ``MODULE:FUNCTION`` names; the working directory is searched too.

    Importing it runs the code of that module.

    Raises:
        ValueError: it is not of that form, there is no such module or function, or the module
            raises an error, as calling the function will where that does.
    """
    module, _, function = text.partition(":")
    if not _are_names(module, function) or module.endswith(".py"):
        raise ValueError(
            f"model is {text!r}, expected MODULE:FUNCTION, such as train:network for the function "
            "network in ./train.py"
        )
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109  sys.path has strings
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            raise ValueError(f"model is {text!r}, which cannot be found: {error}") from error
        raise _raised(text, error) from error
    try:
        found = attrgetter(function)(found)
    except AttributeError as error:
        raise ValueError(f"model is {text!r}, which cannot be found: {error}") from error
    if not callable(found):
        raise ValueError(f"model is {text!r}, which is {found!r}, expected a function")
    return _Named(text, found)


def _raised(name: str, error: Exception) -> ValueError:
    """What a user's code raised, and at which line of the file that was entered first."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__)
        and not frame.filename.startswith("<frozen ")
    ]
    where = [f"{f.filename}, line {f.lineno}" for f in frames if f.filename == frames[0].filename]
    at = f" ({where[-1]})" if where else ""
    return ValueError(f"model is {name}, which raises {type(error).__name__}: {error}{at}")


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


@dataclass(frozen=True)
class Converted:
    """What became of a ReLU network.

    Args:
        folder: of the spiking network's run.
        timesteps: its T.
        thresholds: its thresholds, by the names of their layers.
        before: accuracy of the ReLU network on the test images.
        after: accuracy of the spiking network.
    """

    folder: Path
    timesteps: int
    thresholds: dict[str, list[float]]
    before: float
    after: float


def convert_run(
    path: Path,
    recipe: Recipe | None = None,
    *,
    timesteps: int | None = None,
    options: Table | None = None,
    folder: Path | None = None,
    data: Path | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Converted:
    """Converts the network of a run, and keeps the result as a run of its own.

    Other runs can begin with that: it holds thresholds, and is not converted again.

    Args:
        path: the run; see ``load_run``.
        recipe: has a table ``convert``, which says how; without one it is the recipe of the run
            that does, with these ``timesteps`` and ``options``.
        timesteps: T of the spiking network; 8 unless given.
        options: a table ``convert``.
        folder: of the result; that of the run with ``_converted`` behind unless given.
        data: where data sets lie.
        seed: of the order of the images that balance thresholds.
        device: where to convert; a GPU where there is one.
        progress: show progress bars.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: its network spikes, the folder holds a run, or ``convert`` refuses.
    """
    run = run_folder(path)
    run = run if run.name else run.resolve()  # "."
    ann_recipe, ann = load_run(path)
    if ann_recipe.spikes:
        raise ValueError(f"run is {path}, whose network spikes, expected a ReLU network")
    if recipe is None:
        timesteps = 8 if timesteps is None else timesteps
        recipe = _converting(ann_recipe, run.name, timesteps, options or {})
    elif options or timesteps is not None:
        given = {"timesteps": timesteps} if timesteps is not None else {}
        raise ValueError(
            f"options are {given | (options or {})} and there is a recipe, expected one of the two"
        )
    elif "convert" not in recipe.settings:
        raise ValueError(f"recipe is {recipe.name}, expected one with a table convert")
    folder = folder or run.with_name(f"{run.name}_converted")
    check_free(folder)
    where = usable_device(device)
    split = recipe.split(data)
    with threads(recipe.settings.get("threads")):
        model = begin(recipe, recipe.model().to(where), path, split, seed, progress)
        timesteps = recipe.settings["model"]["timesteps"]
        before, after = (
            evaluate(network, loader(split.test, size), progress=progress).accuracy()
            for network, size in ((ann.to(where), 256), (model, _batch_size(recipe, timesteps)))
        )
    result = Converted(folder, timesteps, thresholds(model), before, after)
    settings = {"command": "convert", "start": str(path), "seed": seed} | asdict(result)
    kept = RunFolder(folder, settings | {"folder": str(folder)}, recipe.text_on(data), True, False)
    kept.begin()
    kept.save({"model": model.state_dict()}, best=False)
    return result


def thresholds(model: nn.Module) -> dict[str, list[float]]:
    """The thresholds of all layers of neurons, by name."""
    return {
        name: module.threshold.flatten().tolist()
        for name, module in model.named_modules()
        if isinstance(module, LIF)
    }


def _converting(ann: Recipe, start: str, timesteps: int, options: Table) -> Recipe:
    """The recipe of a ReLU network, made that of a spiking one which begins with it."""
    model = ann.settings["model"] | {"timesteps": timesteps}
    return Recipe.of(ann.name, ann.settings | {"start": start, "model": model, "convert": options})


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within the block torch computes with so many threads; None leaves it as it is."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


def _batch_size(recipe: Recipe, timesteps: int) -> int:
    """Of test images: 256, or as many steps of images as were looked at at once, if that is less.

    More may not fit: a recipe of thousands of steps looks at few images at a time.
    """
    table = recipe.settings["convert"]
    steps: int = table.get("batch_size", 64) * table.get("calibration_timesteps", timesteps)
    return min(256, max(1, steps // timesteps))


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
