"""How far the verdicts of attacks lie apart, and the strongest one from the truth.

    python -m benchmarks.verdicts --save-results

trains convolutional networks on the digits of scikit-learn by the recipes digits_natural,
digits_rat and digits_ibp, and attacks them by every single attack, by the 19 surrogates of
Ozdenizci & Legenstein, by the standard version of AutoAttack (pyautoattack) and by our own
strongest, which should be at or below all of them. On networks of 32 hidden neurons, by the recipes
digits_fc_*, mixed-integer programming says what is true. Every training keeps a run folder: the
same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.comparison import Findings, command, listed
from benchmarks.robustness import trained
from snnkern import data
from snnkern._table import Cell, Table, percent
from snnkern.attacks import (
    APGD,
    FGSM,
    PGD,
    SAPGD,
    Attack,
    Ensemble,
    Patterns,
    Square,
    evaluate,
    strongest,
)
from snnkern.attacks.losses import decide
from snnkern.certify import verify
from snnkern.models import SpikingNetwork
from snnkern.training.recipe import Recipe

STRONGEST, AUTOATTACK = "strongest (snnkern.attacks.strongest)", "AutoAttack, standard"
EPS = 0.05
CONVOLUTIONAL = {"natural": "digits_natural", "SNN-RAT": "digits_rat", "certified": "digits_ibp"}
SMALL = {
    "natural": "digits_fc_natural",
    "adversarial": "digits_fc_at",
    "certified": "digits_fc_ibp",
}
# Seconds for one margin of the exact verifier.
TIME_LIMIT = 30.0


def recipe_of_small(name: str) -> Recipe:
    """A recipe for 64-32-10 with T = 3: small enough for the exact verifier."""
    settings = Recipe.load(name).settings
    changed = {"model": settings["model"] | {"timesteps": 3}}
    if "timesteps" in settings["method"]:
        changed["method"] = settings["method"] | {"timesteps": 3}
    return Recipe.of(f"{name}_t3", settings | changed)


def network_of(recipe: Recipe, seed: int, epochs: int | None, folder: Path) -> SpikingNetwork:
    """The trained network of a recipe."""
    model = trained(recipe, seed, epochs, folder)
    assert isinstance(model, SpikingNetwork)
    return model


def single_attacks(eps: float) -> dict[str, Attack]:
    """Each by itself, through the network's own surrogate, and the ensemble of 19."""
    return {
        "FGSM": FGSM(eps),
        "PGD-20": PGD(eps, steps=20),
        "APGD-100, cross entropy": APGD(eps),
        "APGD-100, DLR": APGD(eps, loss="dlr"),
        "APGD-100, targeted DLR": APGD(eps, loss="targeted-dlr", stop=True),
        "SA-PGD-100": SAPGD(eps),
        "Square, 1000 queries": Square(eps, 1000, rescale=True),
        "PGD-20 through 19 surrogates": Ensemble(PGD(eps, steps=20)),
    }


def autoattacked(model: SpikingNetwork, x: Tensor, y: Tensor, eps: float, seed: int) -> float:
    """The share that the standard version of AutoAttack leaves right, ties counted against it."""
    from pyautoattack.autoattack import AutoAttack

    attack = AutoAttack(model, norm="Linf", eps=eps, version="standard", seed=seed)
    images = attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
    with torch.no_grad():
        right = (decide(model(x), y) == y) & (decide(model(images), y) == y)
    return right.double().mean().item()


def compared(
    model: SpikingNetwork, x: Tensor, y: Tensor, eps: float, seed: int, bar: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """What every attack leaves right, the strongest last, and the seconds per image of each."""

    def through(attack: Attack) -> float:
        return evaluate(model, [(x, y)], {"it": attack}, seed=seed, progress=False).accuracy("it")

    runs = {name: partial(through, attack) for name, attack in single_attacks(eps).items()}
    runs[AUTOATTACK] = partial(autoattacked, model, x, y, eps, seed)
    runs[STRONGEST] = partial(through, strongest(model, x, eps))
    found = {"clean": evaluate(model, [(x, y)], seed=seed, progress=False).accuracy()}
    seconds = {}
    for name, run in runs.items():
        bar.set_postfix_str(name)
        start = perf_counter()
        found[name] = run()
        seconds[name] = (perf_counter() - start) / len(x)
        bar.update()
    return found, seconds


def against_the_truth(
    model: SpikingNetwork, x: Tensor, y: Tensor, eps: float, seed: int, bar: Any
) -> dict[str, float]:
    """From the best certificate up to a single attack; the exact value where it could be proved.

    What the strongest attack breaks is broken; the verifier decides the others.
    """
    bar.set_postfix_str("attacks on the small network")
    attacks: dict[str, Attack] = {
        "PGD-20": PGD(eps, steps=20),
        "PGD-20 through 19 surrogates": Ensemble(PGD(eps, steps=20)),
    }
    cascade = strongest(model, x, eps)
    attacks |= {
        f"{STRONGEST}, without Patterns": type(cascade)(
            [a for a in cascade.attacks if not isinstance(a, Patterns)]
        ),
        STRONGEST: cascade,
    }
    certificate = verify(model, x, y, eps)
    result = evaluate(model, [(x, y)], attacks, certificates=certificate, seed=seed, progress=False)
    bar.update()
    bar.set_postfix_str("exact verifier")
    left = result.correct(STRONGEST)
    solved = verify(model, x[left], y[left], eps, "exact", time_limit=TIME_LIMIT)
    bar.update()
    assert solved.broken is not None
    certified = (certificate.certified & result.correct()).double().mean().item()
    shares = {"clean": result.accuracy()} | {name: result.accuracy(name) for name in attacks}
    undecided = int((~solved.certified & ~solved.broken).sum())
    of = "exact" if undecided == 0 else f"exact ({undecided} of {len(x)} undecided, as robust)"
    exact = (left.sum().item() - solved.broken.sum().item()) / len(x)
    return shares | {of: exact, "certified (best bounds)": certified}


def table(
    caption: str,
    columns: dict[str, dict[str, float]],
    seconds: dict[str, dict[str, float]] | None = None,
) -> Table:
    """One row per attack, one column per network; small print has the seconds, where given."""
    names = dict.fromkeys(name for shares in columns.values() for name in shares)

    def cell(network: str, name: str) -> Cell:
        share = columns[network].get(name)
        took = (seconds or {}).get(network, {}).get(name)
        return Cell(
            "" if share is None else percent(share), "" if took is None else f"{took:.3g} s"
        )

    rows = tuple((Cell(name), *(cell(network, name) for network in columns)) for name in names)
    return Table(caption, tuple(map(Cell, ("through", *columns))), rows)


def sentences(large: dict[str, dict[str, float]], little: dict[str, dict[str, float]]) -> list[str]:
    """What was to be shown, and whether the figures show it."""
    lines = []
    for network, shares in large.items():
        lower = [name for name, share in shares.items() if share < shares[STRONGEST]]
        verdict = f"no: {', '.join(lower)} is lower" if lower else "yes"
        lines.append(f"The strongest is at or below all on the {network} network: {verdict}.")
    for network, shares in little.items():
        exact = next(share for name, share in shares.items() if name.startswith("exact"))
        above = round(shares[STRONGEST] - exact, 9)
        verdict = "yes" if above <= 0.02 else "no"
        lines.append(
            f"Within 2 points of the exact value on the small {network} network: {verdict} "
            f"({100 * above:+.1f})."
        )
    return lines


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of weights and attacks (default: 0)")
    add("--epochs", type=int, help="of every training, instead of the recipes'")
    add("--images", type=int, default=100, help="test images to attack (default: 100)")
    add("--small-images", type=int, default=60, help="those of the small network (default: 60)")
    add("--eps", type=float, default=EPS, help=f"size of the attacks (default: {EPS})")


def measured(options: argparse.Namespace) -> Findings:
    eps, seed = options.eps, options.seed
    x, y = data.digits().test.tensors
    large, seconds, little = {}, {}, {}
    steps = len(CONVOLUTIONAL) * (len(single_attacks(eps)) + 3) + 3 * len(SMALL)
    with tqdm(total=steps, unit="step", disable=options.quiet) as bar:
        for name, recipe in CONVOLUTIONAL.items():
            bar.set_postfix_str(f"train {name}")
            model = network_of(Recipe.load(recipe), seed, options.epochs, options.folder)
            bar.update()
            count = options.images
            large[name], seconds[name] = compared(model, x[:count], y[:count], eps, seed, bar)
        for name, recipe in SMALL.items():
            bar.set_postfix_str(f"train small {name}")
            model = network_of(recipe_of_small(recipe), seed, options.epochs, options.folder)
            bar.update()
            count = options.small_images
            little[name] = against_the_truth(model, x[:count], y[:count], eps, seed, bar)
    tables = [
        table(
            f"Convolutional networks, T = 8: percent of {options.images} digits right clean and "
            f"attacked, eps {eps:g}, and seconds per image (one thread). Single attacks go "
            "through the network's own surrogate.",
            large,
            seconds,
        ),
        table(
            f"64-32-10, T = 3: the same of {options.small_images} digits, and what is true.",
            little,
        ),
    ]
    cases = [
        {
            "network": network,
            "kind": kind,
            "through": name,
            "robust": share,
            "seconds_per_image": seconds[network].get(name) if columns is large else None,
        }
        for kind, columns in (("convolutional", large), ("small", little))
        for network, shares in columns.items()
        for name, share in shares.items()
    ]
    return Findings((*tables, listed(sentences(large, little))), cases)


def main(arguments: Sequence[str] | None = None) -> int:
    return command("verdicts", __doc__, add_options, measured, arguments, trains=True)


if __name__ == "__main__":
    sys.exit(main())
