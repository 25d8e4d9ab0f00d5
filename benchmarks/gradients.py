"""Which gradients an attack on a spiking network needs: all candidates, and who adds to whom.

    python -m benchmarks.gradients --save-results

trains small networks on the digits of scikit-learn, naturally, adversarially and by SNN-RAT,
attacks each through every candidate, and takes from these, again and again, the one that breaks
most of what is left. This is how DEFAULT_ENSEMBLE was chosen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.comparison import Findings, command
from snnkern import data
from snnkern._table import Table, percent
from snnkern.attacks import (
    APGD,
    DEFAULT_ENSEMBLE,
    PGD,
    SAPGD,
    SURROGATE_ENSEMBLE,
    Attack,
    evaluate,
)
from snnkern.models import conv_net, fc_net
from snnkern.nn import Gradient
from snnkern.surrogate import (
    ASSG,
    HART,
    PDSG,
    RGA,
    ATan,
    Erf,
    Exponential,
    FastSigmoid,
    Sigmoid,
    Triangle,
)
from snnkern.training import RAT, AdversarialTraining, Method, Natural, fit

EPS = 0.1
METHODS: dict[str, Method] = {
    "natural": Natural(),
    "adversarial": AdversarialTraining(EPS, steps=5),
    "SNN-RAT": RAT(eps=EPS),
}
ATTACKS: dict[str, Attack] = {
    "PGD-20": PGD(EPS, steps=20),
    "SA-PGD-100": SAPGD(EPS, steps=100, stop=True),
    "APGD-100": APGD(EPS, steps=100, stop=True),
}
CANDIDATES: tuple[Gradient, ...] = (
    *SURROGATE_ENSEMBLE,
    RGA(),
    *(HART(width) for width in (0.25, 1.0)),
    PDSG(),
    *(ASSG(share) for share in (0.35, 0.425, 0.49)),
    *(ATan(alpha) for alpha in (2.0, 10.0, 30.0, 100.0)),
    *(FastSigmoid(slope) for slope in (5.0, 10.0, 25.0, 50.0, 100.0)),
    Sigmoid(),
    Erf(),
    Triangle(0.1),
    Exponential(slope=5.0),
)


def trained(kind: str, method: Method, seed: int, epochs: int) -> nn.Module:
    """A network of 64-64-64 neurons, or of two convolutions and 64; T = 4."""
    torch.manual_seed(seed)
    shape = (1, 8, 8)
    model: nn.Module
    if kind == "fc":
        model = fc_net(timesteps=4, input_shape=shape, hidden=(64, 64, 64), leak=0.5, threshold=0.5)
    else:
        model = conv_net(
            timesteps=4, input_shape=shape, channels=(8, 16), hidden=(64,), threshold=0.5
        )
    batches = data.loader(data.digits().train, shuffle=True, seed=seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    fit(model, batches, method, epochs=epochs, optimizer=optimiser, progress=False)
    return model


def greedy(left: Tensor, robust: dict[str, Tensor]) -> list[tuple[str, float]]:
    """Members that break most of what is left, one after the other, and the share then left."""
    chosen = []
    end = torch.stack([left, *robust.values()]).all(0)
    while left.sum() > end.sum():
        name = min(robust, key=lambda one: int((left & robust[one]).sum()))
        left = left & robust[name]
        chosen.append((name, left.float().mean().item()))
    return chosen


def shown(g: Gradient | None) -> str:
    """A gradient as one writes it, without what is not set."""
    if not hasattr(g, "kind"):
        return str(g)
    return str(g).replace("normalized=False, ", "").replace("normalized=False", "")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    add("--epochs", type=int, default=12, help="of every training (default: 12)")
    add("--images", type=int, default=200, help="how many test images to attack (default: 200)")


def measured(options: argparse.Namespace) -> Findings:
    x, y = data.digits().test.tensors
    batch = [(x[: options.images], y[: options.images])]
    members = {shown(g): g for g in dict.fromkeys((*CANDIDATES, *DEFAULT_ENSEMBLE))}
    networks = [
        (kind, name, seed) for kind in ("fc", "conv") for name in METHODS for seed in options.seeds
    ]
    clean: list[Tensor] = []
    robust: dict[tuple[str, str], list[Tensor]] = {}
    for kind, name, seed in tqdm(networks, unit="network", disable=options.quiet):
        model = trained(kind, METHODS[name], seed, options.epochs)
        attacks = {
            f"{attack} {member}": replace(of, gradient=g)
            for attack, of in ATTACKS.items()
            for member, g in members.items()
        }
        result = evaluate(model, batch, attacks, seed=seed, progress=False)
        clean.append(result.correct())
        for attack in ATTACKS:
            for member in members:
                robust.setdefault((attack, member), []).append(result.correct(f"{attack} {member}"))
    cases, tables = [], []
    for attack in ATTACKS:
        of = {member: torch.cat(robust[attack, member]) for member in members}

        def together(gradients: Sequence[Gradient | None], of: dict[str, Tensor] = of) -> float:
            return torch.stack([of[shown(g)] for g in gradients]).all(0).float().mean().item()

        rows = [
            ("clean", torch.cat(clean).float().mean().item()),
            (
                "best single: " + min(of, key=lambda one: int(of[one].sum())),
                min(held.float().mean().item() for held in of.values()),
            ),
            ("the 19 of SURROGATE_ENSEMBLE", together(SURROGATE_ENSEMBLE)),
            (f"the {len(DEFAULT_ENSEMBLE)} of DEFAULT_ENSEMBLE", together(DEFAULT_ENSEMBLE)),
            (f"all {len(members)} candidates", together(list(members.values()))),
            *((f"+ {name}", share) for name, share in greedy(torch.cat(clean), of)),
        ]
        cases += [{"attack": attack, "through": name, "robust": share} for name, share in rows]
        caption = (
            f"{attack} at eps {EPS}: share of {options.images} images right under it, the mean of "
            f"{len(networks)} networks. From + on, members one after the other, each the one that "
            "breaks most of what is left."
        )
        body = ((name, percent(share)) for name, share in rows)
        tables.append(Table.of(caption, ("through", "right"), body))
    return Findings(tables, cases)


def main(arguments: Sequence[str] | None = None) -> int:
    return command("gradients", __doc__, add_options, measured, arguments)


if __name__ == "__main__":
    sys.exit(main())
