"""How sharp the adaptive surrogate has to be on a network: its share, found by trying."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from snnkern._checks import check_int
from snnkern.attacks.attack import Attack
from snnkern.attacks.chance import follow
from snnkern.attacks.losses import decide
from snnkern.attacks.stateless import stateless
from snnkern.nn import evaluation_mode
from snnkern.surrogate import ASSG


def fitted_assg(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    low: float = 0.35,
    high: float = 0.49,
    rounds: int = 8,
    seed: int = 0,
) -> ASSG:
    """The ``ASSG`` through which ``attack`` leaves the fewest of these samples right.

    Its share is sought by ternary search, as Wang et al. 2025 seek A; of shares that leave as many,
    the first that was tried. Choose samples other than those of the verdict, or count the search as
    a part of the attack.

    Args:
        model: what is attacked.
        x: images ``[N, ...]``.
        y: labels ``[N]``.
        attack: what is run, each time with the same random choices.
        low: the least share.
        high: the largest, below 0.5.
        rounds: of the search, two attacks each.
        seed: of the attack's random choices.

    Raises:
        ValueError: ``low`` above ``high``, or what no ``ASSG`` can have.
    """
    check_int("rounds", rounds, 1)
    if low > high:
        raise ValueError(f"low is {low} and high is {high}, expected low <= high")
    left: dict[float, int] = {}

    def right(share: float) -> int:
        if share not in left:
            generator = torch.Generator(x.device).manual_seed(seed)
            images = replace(attack, gradient=ASSG(share))(model, x, y, generator)
            with torch.no_grad(), evaluation_mode(model), follow(generator, x.device):
                found = decide(stateless(model)(images), y)
            left[share] = int((found == y).sum().item())
        return left[share]

    for _ in range(rounds):
        third = (high - low) / 3
        one, other = low + third, high - third
        if right(one) <= right(other):
            high = other
        else:
            low = one
    return ASSG(min(left, key=lambda share: left[share]))
