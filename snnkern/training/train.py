"""What ``snnkern train`` does: a recipe, run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.utils.data import DataLoader, DistributedSampler

from snnkern._checks import check_int
from snnkern._files import write_atomically
from snnkern.data import Samples, loader
from snnkern.training.fit import fit
from snnkern.training.ranks import Ranks, usable_device
from snnkern.training.recipe import Recipe
from snnkern.training.run import EpochRecord, check_free
from snnkern.training.start import begin, threads, thresholds


def train(
    recipe: Recipe,
    folder: Path,
    *,
    data: Path | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    tensorboard: bool = False,
    device: str | None = None,
    start: Path | None = None,
    progress: bool = True,
) -> list[EpochRecord]:
    """Runs a recipe; ``folder`` keeps it, its metrics and checkpoints, as ``fit`` says.

    The accuracy that chooses the best checkpoint is that of the test set, as in the papers.

    Args:
        recipe: what to train.
        folder: of the run.
        data: where data sets lie; ``Path("digits")`` and ``Path("synthetic")`` train on others.
        epochs: instead of the recipe's.
        seed: of the weights, the split, the order of the samples and all random choices; instead
            of the recipe's.
        resume: see ``fit``.
        checkpoint_every: see ``fit``.
        tensorboard: see ``fit``.
        device: where to train; a GPU where there is one.
        start: the run that the recipe begins with, where it does; one that is resumed needs none,
            or the same: its folder, for the last checkpoint, or one of its checkpoints. A ReLU
            network is converted; of one that spikes, what it learnt and its thresholds are taken
            over. Kept in ``start.json``, with the thresholds that training begins with.
        progress: show a progress bar.

    Raises:
        ValueError: the recipe begins with another run, which ``start`` does not name, or with none,
            and it does; it asks for what this version does not have, or ``fit`` refuses.
    """
    if not recipe.trains:
        raise ValueError(
            f"recipe is {recipe.name}, expected one with a method: it only converts the network of "
            f"{recipe.settings['start']} (snnkern convert RUN --recipe {recipe.name})"
        )
    where = usable_device(device)
    epochs = recipe.settings["epochs"] if epochs is None else epochs
    check_int("epochs", epochs, 1)  # now, not after the conversion
    seed = recipe.settings.get("seed", 0) if seed is None else seed
    begun = resume and (folder / "last.safetensors").exists()
    if begun:
        _check_same_start(folder, start)
    else:
        _check_start(recipe, folder, start)
    ranks = Ranks(where)
    torch.manual_seed(seed)
    model = recipe.model().to(where)
    split = recipe.split(data)
    with threads(recipe.settings.get("threads")):
        if start is not None and not begun:
            model = begin(recipe, model, start, split, seed, progress and ranks.rank == 0)
            if ranks.rank == 0:
                about = {"start": str(start), "thresholds": thresholds(model)}
                write_atomically(folder / "start.json", json.dumps(about, indent=1).encode())
        torch.manual_seed(seed + ranks.rank)  # dropout and augmentation differ, weights do not
        optimizer = recipe.optimizer(model)
        return fit(
            model,
            _loader(split.train, recipe.settings["batch_size"], seed, ranks),
            recipe.method(),
            epochs=epochs,
            optimizer=optimizer,
            scheduler=recipe.schedule(optimizer, epochs),
            val_loader=_loader(split.test, recipe.settings["batch_size"], None, ranks),
            clip_norm=recipe.settings.get("clip_norm"),
            autocast=recipe.autocast,
            seed=seed,
            folder=folder,
            recipe=recipe.text_on(data),
            resume=resume,
            checkpoint_every=checkpoint_every,
            tensorboard=tensorboard,
            progress=progress,
        )


def _check_start(recipe: Recipe, folder: Path, start: Path | None) -> None:
    needed = recipe.settings.get("start")
    if needed is None and start is not None:
        raise ValueError(f"start is {start}, expected none: {recipe.name} begins with new weights")
    if needed is not None and start is None:
        raise ValueError(
            f"start is missing, expected the folder of a run of {needed}, with whose network "
            f"{recipe.name} begins (snnkern train --start); snnkern train {needed} makes one"
        )
    check_free(folder)


def _check_same_start(folder: Path, start: Path | None) -> None:
    kept = folder / "start.json"
    before = json.loads(kept.read_text(encoding="utf-8"))["start"] if kept.exists() else None
    if start is not None and (before is None or start.resolve() != Path(before).resolve()):
        raise ValueError(
            f"start is {start}, expected {before}, with which the run in {folder} began, or none"
        )


def _loader(
    dataset: Samples, batch_size: int, seed: int | None, ranks: Ranks
) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Batches of this rank, shuffled where there is a seed, with ``batch_size`` on all together."""
    if batch_size % ranks.count:
        raise ValueError(
            f"batch_size is {batch_size} on {ranks.count} ranks, expected a multiple of them"
        )
    if ranks.count == 1:
        return loader(dataset, batch_size, shuffle=seed is not None, seed=seed or 0)
    generator = torch.Generator().manual_seed(seed or 0)
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(
        dataset, ranks.count, ranks.rank, shuffle=seed is not None, seed=seed or 0
    )
    return DataLoader(dataset, batch_size // ranks.count, sampler=sampler, generator=generator)
