"""Spiking networks made of the ReLU network of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from snnkern.attacks import evaluate
from snnkern.data import loader
from snnkern.training.ranks import usable_device
from snnkern.training.recipe import Recipe, Table
from snnkern.training.run import RunFolder, check_free
from snnkern.training.start import begin, load_run, run_folder, threads, thresholds


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


def _converting(ann: Recipe, start: str, timesteps: int, options: Table) -> Recipe:
    """The recipe of a ReLU network, made that of a spiking one which begins with it."""
    model = ann.settings["model"] | {"timesteps": timesteps}
    return Recipe.of(ann.name, ann.settings | {"start": start, "model": model, "convert": options})


def _batch_size(recipe: Recipe, timesteps: int) -> int:
    """Of test images: 256, or as many steps of images as were looked at at once, if that is less.

    More may not fit: a recipe of thousands of steps looks at few images at a time.
    """
    table = recipe.settings["convert"]
    steps: int = table.get("batch_size", 64) * table.get("calibration_timesteps", timesteps)
    return min(256, max(1, steps // timesteps))
