"""Attacks on the network of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from snnkern._checks import check_int
from snnkern._files import write_atomically
from snnkern.attacks import (
    APGD,
    FGSM,
    PGD,
    SAPGD,
    Attack,
    Cascade,
    Ensemble,
    Evaluation,
    Square,
    check,
    evaluate,
    strongest,
)
from snnkern.certify import Certificate, verify
from snnkern.certify.bounds import Method
from snnkern.data import Samples, loader
from snnkern.models import SpikingNetwork
from snnkern.nn import RateCoding
from snnkern.report.table import eps_text
from snnkern.training.ranks import Ranks, usable_device
from snnkern.training.recipe import STAND_INS, Recipe
from snnkern.training.start import load_run, run_folder, threads

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
DEFAULT_ATTACKS = ("fgsm", "pgd20", "strongest")
DEFAULT_EPS = 8 / 255
# Draws of an encoder that a gradient is the mean of.
DRAWS = 10


def attack_run(
    path: Path,
    *,
    eps: float | Sequence[float] | None = None,
    certificates: Method | None = None,
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    data: Path | None = None,
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
        attacks: their names in ``ATTACKS``.
        data: where data sets lie.
        images: how many of the test images, from the first; all unless given.
        batch_size: images that are attacked at once.
        checks: also check the strongest of the attacks that can be; see ``snnkern.attacks.check``.
        seed: of the attacks' random choices.
        device: where to run; a GPU where there is one.
        progress: show progress bars.

    Raises:
        FileNotFoundError: there is no such run, or data is missing.
        TypeError: certificates of a network that cannot be bounded.
        ValueError: an unknown attack, or an impossible size or number.
    """
    for name in attacks:
        if name not in ATTACKS:
            raise ValueError(f"attacks has {name!r}, expected some of {', '.join(ATTACKS)}")
    recipe, model = load_run(path)
    where = usable_device(device)
    ranks = Ranks(where)
    model = model.to(where)
    test: Samples = recipe.split(data).test
    if images is not None:
        check_int("images", images, 1)
        assert isinstance(test, Sized)
        test = Subset(test, range(min(images, len(test))))
    check_int("batch_size", batch_size, 1)
    batches = loader(test, batch_size)
    sizes = eps if isinstance(eps, Sequence) else (_trained_eps(recipe) if eps is None else eps,)
    eot = DRAWS if _draws(model) else 1
    one = next(iter(batches))[0][:1].to(where)
    # From the weakest to the strongest, and each once.
    chosen = {
        name if len(sizes) == 1 else f"{name} {eps_text(size)}": kind(model, one, size, eot)
        for size in sizes
        for name, kind in ATTACKS.items()
        if name in attacks
    }
    of_first = [a.attacks[0] if isinstance(a, Cascade) else a for a in chosen.values()]
    of_first = of_first[: len(of_first) // len(sizes)]
    checked = [a for a in of_first if isinstance(a, PGD | APGD | SAPGD | Ensemble)]
    with threads(recipe.settings.get("threads")):
        found = (
            check(model, batches, checked[-1], seed=seed, progress=progress)
            if checks and checked
            else ()
        )
        proved = []
        if certificates is not None:
            common = (certificates, where, progress)
            proved = [_certified(model, batches, size, *common) for size in sizes]
        result = evaluate(
            model,
            batches,
            chosen,
            certificates=proved,
            checks=found,
            seed=seed,
            progress=progress,
        )
    if ranks.rank == 0:
        folder = run_folder(path)
        title = recipe.settings["title"]
        dataset = str(data) if data in STAND_INS else recipe.settings["data"]["name"]
        text = result.to_json(name=title, dataset=dataset)
        write_atomically(folder / "evaluation.json", f"{text}\n".encode())
        markdown = f"# {title}\n\n{result.to_markdown()}\n"
        write_atomically(folder / "evaluation.md", markdown.encode())
    return result


def _certified(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    eps: float,
    method: Method,
    device: torch.device,
    progress: bool,
) -> Certificate:
    """Of all samples, in their order."""
    if not isinstance(model, SpikingNetwork):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a snnkern.models.SpikingNetwork, "
            "which can be bounded"
        )
    bar = tqdm(batches, desc=f"certify {eps_text(eps)}", disable=not progress, delay=1)
    parts = [verify(model, x.to(device), y.to(device), eps, method) for x, y in bar]
    certified, margin = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("certified", "margin")
    )
    return replace(parts[0], certified=certified, margin=margin)


def _trained_eps(recipe: Recipe) -> float:
    eps = getattr(recipe.method(), "eps", None) if recipe.trains else None
    return eps if isinstance(eps, float) else DEFAULT_EPS


def _draws(model: nn.Module) -> bool:
    return any(isinstance(m, RateCoding) and not m.is_relu for m in model.modules())
