"""Steps and gradients that may be the same at every time step, and then are stored once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_constant(steps: Tensor) -> bool:
    """Whether ``[T, N, ...]`` is one step, seen T times."""
    return steps.shape[0] > 1 and steps.stride(0) == 0


def sum_over_time(steps: Tensor) -> Tensor:
    """``[N, ...]``, of one step where all are the same."""
    return steps.shape[0] * steps[0] if is_constant(steps) else steps.sum(0)


def mean_over_time(steps: Tensor) -> Tensor:
    """``[N, ...]``, one step where all are the same."""
    return steps[0] if is_constant(steps) else steps.mean(0)


class Held(torch.autograd.Function):
    """One step ``[N, ...]`` as all T, none of them a copy; for gradients that are constant too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, timesteps: int) -> Tensor:
        """``[T, N, ...]`` with stride 0."""
        return x.expand(timesteps, *x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The sum over time."""
        return sum_over_time(grads[0]), None


class Forked(torch.autograd.Function):
    """``[T, N, ...]`` for two readers, whose gradients are added up once if no step differs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` twice."""
        ctx.set_materialize_grads(False)
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:
        """The sum, constant in time where both are."""
        one, other = grads
        if one is None or other is None:
            return other if one is None else one
        if is_constant(one) and is_constant(other):
            return (one[0] + other[0]).expand(one.shape)
        return one + other


class Joined(torch.autograd.Function):
    """``weights[0] * one + weights[1] * other``; a gradient constant in time goes back once."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        """Two ``[T, N, ...]`` and ``[2]``."""
        ctx.dtypes = one.dtype, other.dtype
        ctx.save_for_backward(weights, *((one, other) if ctx.needs_input_grad[2] else ()))
        return weights[0] * one + weights[1] * other

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the two and of their weights."""
        (grad,) = grads
        weights, *values = ctx.saved_tensors
        constant = is_constant(grad)
        once = grad[:1] if constant else grad
        of_values = [
            (weight * once).to(dtype).expand(grad.shape) if needed else None
            for weight, dtype, needed in zip(
                weights, ctx.dtypes, ctx.needs_input_grad, strict=False
            )
        ]
        of_weights = None
        if values:
            seen = (value.sum(0) if constant else value for value in values)
            of_weights = torch.stack([(once * value).sum(dtype=weights.dtype) for value in seen])
        return *of_values, of_weights
