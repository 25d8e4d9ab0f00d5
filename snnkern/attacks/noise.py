"""Noise that knows nothing of the model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from snnkern._ball import unit
from snnkern.attacks.attack import Attack, Loss, Victim, random_like
from snnkern.nn import Gradient


@dataclass(frozen=True)
class GaussianNoise(Attack):
    """Gaussian noise, clipped to ``[0, 1]``.

    ``norm="linf"``: noise of standard deviation ``eps`` in every pixel, as Ding et al. 2022 measure
    it (GN); it is the one attack that ``eps`` does not bound. ``norm="l2"``: noise in a random
    direction, of length ``eps``.
    """

    gradient: Gradient | None = field(default=None, init=False, repr=False)
    loss: Loss = field(default="ce", init=False, repr=False)
    eot: int = field(default=1, init=False, repr=False)

    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The images with noise on them."""
        noise = random_like(x, torch.randn, generator)
        if self.norm == "linf":
            return (x + self.eps * noise).clamp(0, 1)
        return self.project(x + self.eps * unit(noise), x)
