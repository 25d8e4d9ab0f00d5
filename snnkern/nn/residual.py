"""Branches that are added up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnkern.autograd import Forked, Joined
from snnkern.nn.gradient import GradientMode


class Residual(GradientMode):
    """What a branch makes of its input, added to what a shortcut makes of it.

    Where ``snnkern.gradient`` asks for BPTR, a gradient that is constant in time stays one step.

    Args:
        branch: takes ``[T, N, ...]``.
        shortcut: takes the same, and gives the shape that ``branch`` gives; without one the input
            itself is added.
        weighted: multiply both by learnt numbers before, the parameter ``branch_weights`` of shape
            ``[2]``: first that of the shortcut. Both are 0.5 at the start (Ding et al. 2022,
            Ozdenizci & Legenstein 2023).
    """

    branch_weights: Tensor | None

    def __init__(
        self, branch: nn.Module, shortcut: nn.Module | None = None, *, weighted: bool = False
    ) -> None:
        super().__init__()
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.branch = branch
        self.branch_weights = nn.Parameter(torch.full((2,), 0.5)) if weighted else None

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, ...] -> [T, N, ...]``."""
        past, through = Forked.apply(x) if self.through_rate else (x, x)
        # The shortcut first: who counts operations sees it before the spikes of the branch.
        past = self.shortcut(past)
        through = self.branch(through)
        weights = self.branch_weights
        if weights is None:
            total: Tensor = past + through
        elif self.through_rate:
            total = Joined.apply(past, through, weights)
        else:
            total = weights[0] * past + weights[1] * through
        return total
