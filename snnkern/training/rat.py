"""Regularised adversarial training of spiking networks, SNN-RAT (Ding et al. 2022)."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkern._checks import check_int, check_number
from snnkern.attacks import FGSM, RFGSM, Attack
from snnkern.training.method import Losses, Memory, Method


@torch.no_grad()
def orthogonal_retraction(
    model: nn.Module, beta: float, wide: int, share: float, generator: torch.Generator
) -> None:
    """``W <- W - beta (W W^T W - W)`` for every convolution and linear layer (eq. 20).

    Rows are output channels. Of linear layers with at least ``wide`` rows a random ``share`` of the
    rows is drawn, and only these are used and changed. Layers of one shape are retracted together.
    """
    alike = defaultdict[tuple[object, ...], list[tuple[Tensor, Tensor | None]]](list)
    for module in model.modules():
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            continue
        weight, rows = module.weight, None
        count = len(weight)
        if isinstance(module, nn.Linear) and count >= wide:
            order = torch.randperm(count, generator=generator, device=generator.device)
            rows = order[: math.floor(share * count)].to(weight.device)
            count = len(rows)
        alike[count, weight[0].numel(), weight.dtype, weight.device].append((weight, rows))
    for layers in alike.values():
        taken = [(weight if rows is None else weight[rows]).flatten(1) for weight, rows in layers]
        w = torch.stack(taken)
        with torch.autocast(w.device.type, enabled=False):
            smaller = (w @ w.mT, w) if w.shape[1] <= w.shape[2] else (w, w.mT @ w)
            retracted = torch.baddbmm(w, *smaller, beta=1 + beta, alpha=-beta)
        for (weight, rows), new in zip(layers, retracted, strict=True):
            if rows is None:
                weight.copy_(new.view_as(weight))
            else:
                weight[rows] = new


def simplex_projection(x: Tensor) -> Tensor:
    """The nearest point of the probability simplex, along the last dimension.

    ``[..., K] -> [..., K]``, numbers of at least 0 whose sum is 1. By sorting, as Duchi et al.
    2008 do it.
    """
    ordered = x.sort(dim=-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, device=x.device)
    excess = (ordered.cumsum(-1) - 1) / counts
    above = (ordered > excess).sum(-1, keepdim=True)
    return (x - excess.gather(-1, above - 1)).clamp(min=0)


@torch.no_grad()
def project_branch_weights(model: nn.Module) -> None:
    """Projects on the simplex the ``branch_weights`` of every module that has this parameter."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "branch_weights":
            parameter.copy_(simplex_projection(parameter))


@dataclass(frozen=True)
class RAT(Method):
    """Adversarial training on a mix of single-step attacks, with orthogonal weights.

    For every batch one of {FGSM, RFGSM} x {BPTT, BPTR} is drawn and crafted in evaluation mode;
    after every step of the optimiser the weights are drawn towards orthogonal rows, and those that
    join the branches of residual blocks are projected on the simplex. The paper trains without
    weight decay.

    Args:
        eps: size of the perturbation.
        beta: strength of the retraction; 0 leaves it out. The paper: 0.001 for VGG11, 0.004 for
            WideResNet.
        wide: linear layers with at least so many rows are retracted on a random share of them.
        share: that share.
        mix: attacks to draw from, instead of the paper's four of size ``eps``; none of them,
            ``()``, trains on the images as they are.
        simplex: project branch weights.
    """

    eps: float = 2 / 255
    beta: float = 0.001
    wide: int = 200
    share: float = 0.3
    mix: tuple[Attack, ...] | None = None
    simplex: bool = True

    def __post_init__(self) -> None:
        """Refuses sizes that mean nothing."""
        check_number("RAT: eps", self.eps, low=0)
        check_number("RAT: beta", self.beta, low=0)
        check_int("RAT: wide", self.wide, 1)
        check_number("RAT: share", self.share, low=0, high=1, open_low=True)

    def attacks(self) -> tuple[Attack, ...]:
        """The attacks to draw from."""
        if self.mix is not None:
            return self.mix
        return (
            FGSM(self.eps),
            RFGSM(self.eps),
            FGSM(self.eps, gradient="rate"),
            RFGSM(self.eps, gradient="rate"),
        )

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        """Cross entropy on images attacked by one of the mix, then orthogonal weights."""
        generator = memory.generator
        if mix := self.attacks():
            drawn = torch.randint(len(mix), (), generator=generator, device=generator.device)
            x = mix[int(drawn)](model, x, y, memory.noise)
        logits = model(x)
        yield F.cross_entropy(logits, y), logits
        if self.beta:
            orthogonal_retraction(model, self.beta, self.wide, self.share, generator)
        if self.simplex:
            project_branch_weights(model)
