"""Robust finetuning of converted networks (Ozdenizci & Legenstein 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnkern._checks import check_number
from snnkern.attacks import RFGSM, Attack
from snnkern.nn import LIF
from snnkern.training.method import Losses, Memory, Method
from snnkern.training.trades import Divergence, check_divergence, trades_loss


@torch.no_grad()
def clamp_thresholds(model: nn.Module) -> None:
    """Raises learnt thresholds to the ``min_threshold`` of their neurons, where they act anyway."""
    for module in model.modules():
        if isinstance(module, LIF) and isinstance(module.threshold, nn.Parameter):
            module.threshold.clamp_(min=module.min_threshold)


@dataclass(frozen=True)
class RobustFinetune(Method):
    """``CE(clean) + beta KL(p_clean || p_adv)`` on single-step adversaries (eq. 9).

    For every batch: a forward pass of the images in training mode; RFGSM on the divergence, crafted
    in evaluation mode; a forward pass of what it found, again in training mode. The gradient flows
    into both, and to the thresholds of neurons that learn them (``learn_threshold=True``), which do
    not sink below ``min_threshold``. Batch norm whose running statistics were just reset makes the
    adversaries of the first batches meaningless; the authors train through that.

    Args:
        eps: size of the perturbation.
        alpha: size of RFGSM's random step; ``eps / 2`` unless given, as for CIFAR-10 and SVHN. The
            paper: ``eps / 5`` for CIFAR-100 and TinyImageNet, ``eps / 4`` after AT with larger eps.
        beta: weight of the divergence; the paper: 2 for CIFAR-10, else 4.
        divergence: which way round, in the loss and in the attack; see ``trades_loss``.
        attack: what crafts the images, instead of that RFGSM.
    """

    eps: float = 2 / 255
    alpha: float | None = None
    beta: float = 2.0
    divergence: Divergence = "kl"
    attack: Attack | None = None

    def __post_init__(self) -> None:
        """Refuses what means nothing."""
        check_number("RobustFinetune: eps", self.eps, low=0)
        if self.alpha is not None:
            check_number("RobustFinetune: alpha", self.alpha, low=0, high=self.eps)
        check_number("RobustFinetune: beta", self.beta, low=0)
        check_divergence("RobustFinetune", self.divergence)

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        """The objective; its logits are those of the attacked images."""
        clamp_thresholds(model)
        clean = model(x)
        attack = self.attack or RFGSM(self.eps, self.alpha, loss=self.divergence)
        adversarial = model(attack(model, x, y, memory.noise))
        yield trades_loss(clean, adversarial, y, self.beta, self.divergence), adversarial
