"""Regularised adversarial training of spiking networks, SNN-RAT (Ding et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkern._checks import check_int, check_number
from snnkern.attacks import FGSM, RFGSM, Attack
from snnkern.training.method import Method


@torch.no_grad()
def orthogonal_retraction(
    model: nn.Module, beta: float, wide: int, share: float, generator: torch.Generator
) -> None:
    """``W <- W - beta (W W^T W - W)`` for every convolution and linear layer (eq. 20).

    Rows are output channels. Of linear layers with at least ``wide`` rows a random ``share`` of the
    rows is drawn, and only these are used and changed.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            continue
        weight = module.weight.flatten(1)
        count = weight.shape[0]
        rows = None
        if isinstance(module, nn.Linear) and count >= wide:
            order = torch.randperm(count, generator=generator, device=generator.device)
            rows = order[: math.floor(share * count)].to(weight.device)
            weight = weight[rows]
        retracted = weight - beta * (weight @ weight.T @ weight - weight)
        if rows is None:
            module.weight.copy_(retracted.view_as(module.weight))
        else:
            module.weight[rows] = retracted.view_as(module.weight[rows])


@dataclass(frozen=True)
class RAT(Method):
    """Adversarial training on a mix of single-step attacks, with orthogonal weights.

    For every batch one of {FGSM, RFGSM} x {BPTT, BPTR} is drawn and crafted in evaluation mode;
    after every step of the optimiser the weights are drawn towards orthogonal rows. The paper
    trains without weight decay.

    Args:
        eps: size of the perturbation.
        beta: strength of the retraction; 0 leaves it out. The paper: 0.001 for VGG11, 0.004 for
            WideResNet.
        wide: linear layers with at least so many rows are retracted on a random share of them.
        share: that share.
    """

    eps: float = 2 / 255
    beta: float = 0.001
    wide: int = 200
    share: float = 0.3

    def __post_init__(self) -> None:
        """Refuses sizes that mean nothing."""
        check_number("RAT: eps", self.eps, low=0)
        check_number("RAT: beta", self.beta, low=0)
        check_int("RAT: wide", self.wide, 1)
        check_number("RAT: share", self.share, low=0, high=1, open_low=True)

    def mix(self) -> tuple[Attack, ...]:
        """The attacks to draw from."""
        return (
            FGSM(self.eps),
            RFGSM(self.eps),
            FGSM(self.eps, gradient="rate"),
            RFGSM(self.eps, gradient="rate"),
        )

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy on images attacked by one of the mix."""
        mix = self.mix()
        drawn = torch.randint(len(mix), (), generator=generator, device=generator.device)
        logits = model(mix[int(drawn)](model, x, y, generator))
        return F.cross_entropy(logits, y), logits

    def after_step(self, model: nn.Module, generator: torch.Generator) -> None:
        """Draws the weights towards orthogonal rows."""
        if self.beta:
            orthogonal_retraction(model, self.beta, self.wide, self.share, generator)
