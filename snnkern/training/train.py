"""What ``snnkern train`` does: a recipe, run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.data import DataLoader, DistributedSampler

from snnkern.data import Samples, loader
from snnkern.training.fit import fit
from snnkern.training.ranks import Ranks
from snnkern.training.recipe import SYNTHETIC, Recipe
from snnkern.training.run import EpochRecord

# The first line of the recipe that such a run keeps.
GENERATED = "# Trained on generated images, --data synthetic, instead of the data set named below."


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
    progress: bool = True,
) -> list[EpochRecord]:
    """Runs a recipe; ``folder`` keeps it, its metrics and checkpoints, as ``fit`` says.

    The accuracy that chooses the best checkpoint is that of the test set, as in the papers.

    Args:
        recipe: what to train.
        folder: of the run.
        data: where data sets lie; ``Path("synthetic")`` trains on generated images instead.
        epochs: instead of the recipe's.
        seed: of the weights, the split, the order of the samples and all random choices; instead
            of the recipe's.
        resume: see ``fit``.
        checkpoint_every: see ``fit``.
        tensorboard: see ``fit``.
        device: where to train; a GPU where there is one.
        progress: show a progress bar.

    Raises:
        ValueError: the recipe asks for what this version does not have, or ``fit`` refuses.
    """
    if device is None:
        local = os.environ.get("LOCAL_RANK", "0")
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    epochs = recipe.settings["epochs"] if epochs is None else epochs
    seed = recipe.settings.get("seed", 0) if seed is None else seed
    ranks = Ranks(torch.device(device))
    torch.manual_seed(seed)
    model = recipe.model().to(device)
    split = recipe.split(data)
    torch.manual_seed(seed + ranks.rank)  # dropout and augmentation differ, weights do not
    optimizer = recipe.optimizer(model)
    with _threads(recipe.settings.get("threads")):
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
            recipe=recipe.text if data != SYNTHETIC else f"{GENERATED}\n{recipe.text}",
            resume=resume,
            checkpoint_every=checkpoint_every,
            tensorboard=tensorboard,
            progress=progress,
        )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Within the block torch computes with so many threads; None leaves it as it is."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


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
