"""Attacks on the network of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from pathlib import Path

from torch import nn
from torch.utils.data import Subset

from snnkern._checks import check_int
from snnkern._files import write_atomically
from snnkern.attacks import (
    APGD,
    DEFAULT_ENSEMBLE,
    FGSM,
    PGD,
    SAPGD,
    Attack,
    Ensemble,
    Evaluation,
    Square,
    check,
    evaluate,
)
from snnkern.data import Samples, loader
from snnkern.nn import RateCoding
from snnkern.training.ranks import Ranks, usable_device
from snnkern.training.recipe import STAND_INS, Recipe
from snnkern.training.start import load_run, run_folder, threads

# By name: the attack of a size, with so many draws for a gradient.
ATTACKS: dict[str, Callable[[float, int], Attack]] = {
    "fgsm": lambda eps, eot: FGSM(eps, eot=eot),
    "pgd20": lambda eps, eot: PGD(eps, steps=20, eot=eot),
    "apgd100": lambda eps, eot: APGD(eps, steps=100, stop=True, eot=eot),
    "ensemble19": lambda eps, eot: Ensemble(PGD(eps, steps=20, eot=eot)),
    "strongest": lambda eps, eot: Ensemble(
        SAPGD(eps, steps=100, stop=True, eot=eot), DEFAULT_ENSEMBLE
    ),
    "square": lambda eps, eot: Square(eps, 1000, rescale=True, eot=eot),
}
DEFAULT_ATTACKS = ("fgsm", "pgd20", "strongest")
DEFAULT_EPS = 8 / 255
# Draws of an encoder that a gradient is the mean of.
DRAWS = 10


def attack_run(
    path: Path,
    *,
    eps: float | None = None,
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
        eps: size of the perturbations, l_inf; that of the run's training unless given, or 8/255
            where that has none.
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
    size = _trained_eps(recipe) if eps is None else eps
    eot = DRAWS if _draws(model) else 1
    # From the weakest to the strongest, and each once.
    chosen = {name: kind(size, eot) for name, kind in ATTACKS.items() if name in attacks}
    if not recipe.spikes and "strongest" in chosen:  # there is but one gradient
        chosen["strongest"] = SAPGD(size, steps=100, stop=True)
    checked = [a for a in chosen.values() if isinstance(a, PGD | APGD | SAPGD | Ensemble)]
    with threads(recipe.settings.get("threads")):
        found = (
            check(model, batches, checked[-1], seed=seed, progress=progress)
            if checks and checked
            else ()
        )
        result = evaluate(model, batches, chosen, checks=found, seed=seed, progress=progress)
    if ranks.rank == 0:
        folder = run_folder(path)
        title = recipe.settings["title"]
        dataset = str(data) if data in STAND_INS else recipe.settings["data"]["name"]
        text = result.to_json(name=title, dataset=dataset)
        write_atomically(folder / "evaluation.json", f"{text}\n".encode())
        markdown = f"# {title}\n\n{result.to_markdown()}\n"
        write_atomically(folder / "evaluation.md", markdown.encode())
    return result


def _trained_eps(recipe: Recipe) -> float:
    eps = getattr(recipe.method(), "eps", None) if recipe.trains else None
    return eps if isinstance(eps, float) else DEFAULT_EPS


def _draws(model: nn.Module) -> bool:
    return any(isinstance(m, RateCoding) and not m.is_relu for m in model.modules())
