"""Certificates for the network of a run."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from pathlib import Path

import torch
from tqdm import tqdm

from snnkern._checks import check_int
from snnkern.attacks import Evaluation, evaluate
from snnkern.certify import Certificate, verify
from snnkern.data import loader
from snnkern.models import SpikingNetwork
from snnkern.training.attack import draws, first_images, write_evaluation
from snnkern.training.ranks import usable_device
from snnkern.training.start import load_run, threads

METHODS = ("ibp", "crown", "best", "tight", "exact")


def certify_run(
    path: Path,
    *,
    eps: Sequence[float],
    method: str = "best",
    data: Path | None = None,
    images: int | None = None,
    batch_size: int = 100,
    time_limit: float = 60.0,
    device: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Certifies the network of a run, and writes ``certification.json`` and ``.md`` into it.

    Args:
        path: of the run; see ``load_run``.
        eps: radii, l_inf.
        method: one of ``METHODS``; see ``snnkern.certify.verify``.
        data: where data sets lie.
        images: how many of the test images, from the first; all unless given.
        batch_size: images that are certified at once.
        time_limit: seconds for a margin, for ``"exact"``.
        device: where to run; a GPU where there is one.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: there is no such run, or data is missing.
        ValueError: an unknown method, an impossible radius, a layer that cannot be bounded, or a
            network that draws its input spikes: ``snnkern.certify.verify`` certifies one draw.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    check_int("batch_size", batch_size, 1)
    recipe, model = load_run(path)
    if not isinstance(model, SpikingNetwork) or draws(model):
        raise ValueError(
            f"run is {path}, whose network draws its input spikes, expected one with direct "
            "coding: a certificate holds for one draw alone (snnkern.certify.verify with an "
            "encoding_seed, or snnkern.certify.smooth)"
        )
    where = usable_device(device)
    model = model.to(where)
    batches = loader(first_images(recipe.split(data).test, images), batch_size)
    sizes = sorted(set(eps))
    found: dict[float, list[Certificate]] = {size: [] for size in sizes}
    assert isinstance(batches, Sized)
    with (
        threads(recipe.settings.get("threads")),
        tqdm(
            total=len(batches) * len(sizes),
            desc="certify",
            unit="batch",
            disable=not progress,
            delay=1,
        ) as bar,
    ):
        for x, y in batches:
            for size in sizes:
                try:
                    certificate = verify(
                        model,
                        x.to(where),
                        y.to(where),
                        size,
                        method,  # type: ignore[arg-type]
                        time_limit=time_limit,
                    )
                except TypeError as error:
                    raise ValueError(
                        f"run is {path}, which cannot be certified: {error}"
                    ) from error
                found[size].append(certificate)
                bar.update()
        certificates = [
            Certificate(
                torch.cat([part.certified for part in parts]),
                torch.cat([part.margin for part in parts]),
                size,
                method,
                model.timesteps,
            )
            for size, parts in found.items()
        ]
        # Clean images alone: what is certified and wrong would be told as a contradiction.
        result = evaluate(model, batches, certificates=certificates, progress=progress)
    write_evaluation(result, path, recipe, data, "certification")
    return result
