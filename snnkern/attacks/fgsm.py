"""Single-step attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from snnkern._checks import check_number
from snnkern.attacks.attack import Attack, Norm, Victim, random_like


@dataclass(frozen=True)
class FGSM(Attack):
    """Fast gradient sign method, Goodfellow et al. 2015: ``x + eps sign(grad)``, clipped.

    For l_2 the gradient's unit vector instead of its sign.
    """

    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """One step of full size."""
        return self.project(x + self.eps * self.direction(victim.input_gradient(x)), x)


@dataclass(frozen=True)
class RFGSM(Attack):
    """FGSM after a random step, Tramer et al. 2018.

    ``x' = clip(x + alpha sign(randn))``, then ``x' + (eps - alpha) sign(grad)``, projected.

    Args:
        alpha: size of the random step; ``eps / 2`` unless given, as in Ding et al. 2022.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    alpha: float | None = None

    def __post_init__(self) -> None:
        """Refuses a random step larger than the whole."""
        super().__post_init__()
        if self.alpha is not None:
            check_number("RFGSM: alpha", self.alpha, low=0, high=self.eps)

    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """A random step, then the step of the gradient there."""
        alpha = self.eps / 2 if self.alpha is None else self.alpha
        start = (x + alpha * random_like(x, torch.randn, generator).sign()).clamp(0, 1)
        step = (self.eps - alpha) * victim.input_gradient(start).sign()
        return self.project(start + step, x)
