"""Adversarial training (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from snnkern._checks import check_int, check_number
from snnkern.attacks import PGD, Attack
from snnkern.training.method import Losses, Memory, Method


@dataclass(frozen=True)
class AdversarialTraining(Method):
    """Cross entropy on adversarial images alone: AT of Ozdenizci & Legenstein 2023.

    They are crafted anew for every batch, in evaluation mode, by PGD from a uniform start with
    steps of ``2.5 eps / steps``.

    Args:
        eps: size of the perturbation.
        steps: of PGD.
        attack: what crafts the images, instead of that PGD.
    """

    eps: float = 2 / 255
    steps: int = 10
    attack: Attack | None = None

    def __post_init__(self) -> None:
        """Refuses sizes that mean nothing."""
        check_number("AdversarialTraining: eps", self.eps, low=0)
        check_int("AdversarialTraining: steps", self.steps, 1)

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        """Cross entropy on attacked images."""
        attack = self.attack or PGD(self.eps, steps=self.steps)
        logits = model(attack(model, x, y, memory.noise))
        yield F.cross_entropy(logits, y), logits
