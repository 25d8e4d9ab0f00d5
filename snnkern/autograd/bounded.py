"""A parameter within bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Bounded(torch.autograd.Function):
    """Clamps a parameter; stops its gradient only where a descent step would lead further out."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        """The value within its bounds."""
        ctx.save_for_backward(value)
        ctx.bounds = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, or zero where it points outwards."""
        (value,) = ctx.saved_tensors
        low, high = ctx.bounds
        (grad,) = grads
        outwards = ((value >= high) & (grad < 0)) | ((value <= low) & (grad > 0))
        return torch.where(outwards, 0, grad), None, None
