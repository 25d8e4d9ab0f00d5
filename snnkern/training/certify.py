"""Certificates for the network of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from snnkern._checks import check_int
from snnkern.attacks import Evaluation, evaluate
from snnkern.data import loader
from snnkern.training.attack import certified, draws, first_images, write_evaluation
from snnkern.training.own import Own
from snnkern.training.ranks import Ranks, usable_device
from snnkern.training.start import trained

METHODS = ("ibp", "crown", "best", "tight", "split", "exact")


def certify_run(
    path: Path,
    *,
    eps: Sequence[float],
    method: str = "best",
    data: Path | None = None,
    model: Own | None = None,
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
        model: gives the network and the test samples of a run that has no recipe; see
            ``snnkern.training.start.trained``.
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
    run = trained(path, data, model)
    if draws(run.model):
        raise ValueError(
            f"run is {path}, whose network draws its input spikes, expected one with direct "
            "coding: a certificate holds for one draw alone (snnkern.certify.verify with an "
            "encoding_seed, or snnkern.certify.smooth)"
        )
    where = usable_device(device)
    ranks = Ranks(where)
    network = run.model.to(where)
    batches = loader(first_images(run.test(), images), batch_size)
    sizes = sorted(set(eps))
    with run.running():
        try:
            certificates = [
                certified(network, batches, size, method, progress, time_limit)  # type: ignore[arg-type]
                for size in sizes
            ]
        except TypeError as error:
            raise ValueError(f"run is {path}, which cannot be certified: {error}") from error
        # Clean images alone: what is certified and wrong would be told as a contradiction.
        result = evaluate(network, batches, certificates=certificates, progress=progress)
    if ranks.rank == 0:
        write_evaluation(result, path, run, "certification")
    return result
