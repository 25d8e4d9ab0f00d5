"""Iterated attacks by projected gradient steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnkern._checks import check_int, check_number
from snnkern.attacks.attack import Attack, Victim, random_like


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent, Madry et al. 2018.

    Args:
        step_size: size of one step; ``2.5 eps / steps`` unless given.
        steps: number of steps.
        random_start: start at ``x`` plus uniform noise of size ``eps``, clipped, instead of at
            ``x``.
        start_deviation: of normal noise for the random start, instead of the uniform: 0.001 in
            TRADES (Zhang et al. 2019) and MART (Wang et al. 2020).
    """

    step_size: float | None = None
    steps: int = 7
    random_start: bool = True
    start_deviation: float | None = None

    def __post_init__(self) -> None:
        """Refuses steps that mean nothing."""
        super().__post_init__()
        name = type(self).__name__
        if self.step_size is not None:
            check_number(f"{name}: step_size", self.step_size, low=0)
        check_int(f"{name}: steps", self.steps, 1)
        if self.start_deviation is not None:
            check_number(f"{name}: start_deviation", self.start_deviation, low=0)
            if not self.random_start:
                raise ValueError(
                    f"{name}: start_deviation is {self.start_deviation} and random_start is False, "
                    "expected None"
                )

    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Steps along the sign of the gradient, each projected."""
        step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        adversarial = x
        if self.random_start:
            if self.start_deviation is None:
                noise = self.eps * (random_like(x, torch.rand, generator) * 2 - 1)
            else:
                noise = self.start_deviation * random_like(x, torch.randn, generator)
            adversarial = (x + noise).clamp(0, 1)
        for _ in range(self.steps):
            step = step_size * victim.input_gradient(adversarial).sign()
            adversarial = self.project(adversarial + step, x)
        return adversarial


@dataclass(frozen=True)
class BIM(PGD):
    """Basic iterative method, Kurakin et al. 2017: PGD that starts at the image itself."""

    random_start: bool = False
