"""Attacks on the network of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from snnkern._checks import check_int
from snnkern._files import write_atomically
from snnkern._table import eps_text
from snnkern.attacks import (
    APGD,
    FGSM,
    PGD,
    SAPGD,
    SURROGATE_ENSEMBLE,
    Attack,
    Cascade,
    Ensemble,
    Evaluation,
    Square,
    check,
    evaluate,
    strongest,
)
from snnkern.attacks.evaluate import gradient_words
from snnkern.certify import Certificate, verify
from snnkern.certify.bounds import Method
from snnkern.data import Samples, loader
from snnkern.models import SpikingNetwork
from snnkern.nn import RateCoding
from snnkern.training.own import Own
from snnkern.training.ranks import Ranks, usable_device
from snnkern.training.start import Trained, trained

# By name: the attack on a network, of images like these and of a size, with so many draws for a
# gradient.
ATTACKS: dict[str, Callable[[nn.Module, Tensor, float, int], Attack]] = {
    "fgsm": lambda _, __, eps, eot: FGSM(eps, eot=eot),
    "pgd20": lambda _, __, eps, eot: PGD(eps, steps=20, eot=eot),
    "apgd100": lambda _, __, eps, eot: APGD(eps, steps=100, stop=True, eot=eot),
    "ensemble19": lambda _, __, eps, eot: Ensemble(PGD(eps, steps=20, eot=eot)),
    "strongest": lambda model, x, eps, eot: strongest(model, x, eps, eot=eot),
    "square": lambda _, __, eps, eot: Square(eps, 1000, rescale=True, eot=eot),
}
# Each gradient of the ensemble by itself, on all images.
MEMBERS = "members19"
DEFAULT_ATTACKS = ("fgsm", "pgd20", "strongest")
# Draws of an encoder that a gradient is the mean of.
DRAWS = 10


def attack_run(
    path: Path,
    *,
    eps: float | Sequence[float] | None = None,
    certificates: Method | None = None,
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    data: Path | None = None,
    model: Own | None = None,
    images: int | None = None,
    batch_size: int = 100,
    checks: bool = True,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Evaluates the network of a run, and writes ``evaluation.json`` and ``.md`` into its folder.

    Under ``torchrun`` the processes share the work, and the first one writes.

    Args:
        path: of the run; see ``load_run``.
        eps: size of the perturbations, l_inf, or several; that of the run's training unless given,
            or 8/255 where that has none. With several, the names of attacks end in theirs, and the
            checks are of the first.
        certificates: also certify by this method, within every eps; see ``snnkern.certify.verify``.
        attacks: their names in ``ATTACKS``; ``"members19"`` is PGD-20 through each gradient of
            ``SURROGATE_ENSEMBLE`` by itself, at the size of the training, or else the middle one.
        data: where data sets lie.
        model: gives the network and the test samples of a run that has no recipe; see
            ``snnkern.training.start.trained``.
        images: how many of the test images, from the first; all unless given.
        batch_size: images that are attacked at once.
        checks: also check the strongest of the attacks that can be; see ``snnkern.attacks.check``.
        seed: of the attacks' random choices.
        device: where to run; a GPU where there is one.
        progress: show progress bars.

    Raises:
        FileNotFoundError: there is no such run, or data is missing.
        ValueError: an unknown attack, an impossible size or number, or certificates of a network
            that cannot be bounded.
        ContradictionError: an attack breaks what is certified.
    """
    for name in attacks:
        if name not in (*ATTACKS, MEMBERS):
            known = ", ".join((*ATTACKS, MEMBERS))
            raise ValueError(f"attacks has {name!r}, expected some of {known}")
    run = trained(path, data, model)
    where = usable_device(device)
    ranks = Ranks(where)
    network = run.model.to(where)
    check_int("batch_size", batch_size, 1)
    batches = loader(first_images(run.test(), images), batch_size)
    if eps is None:
        eps = run.eps
    if certificates is not None and draws(network):
        raise ValueError(
            f"certificates is {certificates!r} and run is {path}, whose network draws its input "
            "spikes, expected none: they hold for one draw, and attacks see others"
        )
    sizes = [eps] if isinstance(eps, int | float) else sorted(set(eps))
    members_at = middle_size(sizes, run.eps)
    one = next(iter(batches))[0][:1].to(where)
    eot = DRAWS if draws(network) else 1
    chosen: dict[str, Attack] = {}
    checked: list[PGD | APGD | SAPGD | Ensemble] = []
    with run.running():
        for size in sizes:
            here = [name for name in attacks if name != MEMBERS or size == members_at]
            named = _chosen(here, network, one, size, eot)
            if not chosen:
                firsts = (a.attacks[0] if isinstance(a, Cascade) else a for a in named.values())
                checked = [a for a in firsts if isinstance(a, PGD | APGD | SAPGD | Ensemble)]
            more = f" {eps_text(size)}" if len(sizes) > 1 else ""
            chosen |= {f"{name}{more}": attack for name, attack in named.items()}
        found = (
            check(network, batches, checked[-1], seed=seed, progress=progress)
            if checks and checked
            else ()
        )
        proved = []
        if certificates is not None:
            try:
                proved = [
                    certified(network, batches, size, certificates, progress) for size in sizes
                ]
            except TypeError as error:
                raise ValueError(f"run is {path}, which cannot be certified: {error}") from error
        result = evaluate(
            network,
            batches,
            chosen,
            certificates=proved,
            checks=found,
            seed=seed,
            progress=progress,
        )
    if ranks.rank == 0:
        write_evaluation(result, path, run, "evaluation")
    return result


def write_evaluation(result: Evaluation, path: Path, run: Trained, name: str) -> None:
    """Writes ``name.json`` and ``name.md`` into the folder of a run."""
    folder = path if path.is_dir() else path.parent
    text = result.to_json(name=run.title, dataset=run.dataset)
    write_atomically(folder / f"{name}.json", f"{text}\n".encode())
    markdown = f"# {run.title}\n\n{result.to_markdown()}\n"
    write_atomically(folder / f"{name}.md", markdown.encode())


def first_images(test: Samples, images: int | None) -> Samples:
    """So many of the test images, from the first; all where that is None."""
    if images is None:
        return test
    check_int("images", images, 1)
    assert isinstance(test, Sized)
    return Subset(test, range(min(images, len(test))))


def certified(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    eps: float,
    method: Method | Literal["exact"],
    progress: bool,
    time_limit: float = 60.0,
) -> Certificate:
    """Of all samples, in their order; arguments as for ``snnkern.certify.verify``."""
    if not isinstance(model, SpikingNetwork):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a snnkern.models.SpikingNetwork, "
            "which can be bounded"
        )
    where = next(model.parameters()).device
    bar = tqdm(batches, desc=f"certify {eps_text(eps)}", disable=not progress, delay=1)
    parts = [
        verify(model, x.to(where), y.to(where), eps, method, time_limit=time_limit) for x, y in bar
    ]
    sure, margin = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("certified", "margin")
    )
    return replace(parts[0], certified=sure, margin=margin, broken=None, counterexamples=None)


def _chosen(
    attacks: Sequence[str], model: nn.Module, x: Tensor, size: float, eot: int
) -> dict[str, Attack]:
    """The attacks of these names, from the weakest to the strongest and each once."""
    chosen = {name: kind(model, x, size, eot) for name, kind in ATTACKS.items() if name in attacks}
    if MEMBERS not in attacks:
        return chosen
    return {
        f"pgd20 by {gradient_words(g)}": PGD(size, steps=20, gradient=g, eot=eot)
        for g in SURROGATE_ENSEMBLE
    } | chosen


def middle_size(sizes: Sequence[float], trained_for: float) -> float:
    """Of sizes in rising order the one that a run was trained for, or else the middle one."""
    return trained_for if trained_for in sizes else sizes[len(sizes) // 2]


def draws(model: nn.Module) -> bool:
    """Whether a network draws its input spikes."""
    return any(isinstance(m, RateCoding) and not m.is_relu for m in model.modules())
