"""The torch.autograd.Functions, one per op.

They are written in the style where ``forward`` takes ``ctx``: half the overhead of an autograd
formula registered with the op, and traced whole by torch.compile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class LIFConfig(NamedTuple):
    """Everything about a LIF layer that is not a tensor."""

    v_reset: float
    reset: int
    strict: bool
    return_state: bool
    detach_reset: bool
    surrogate: int
    surrogate_args: tuple[float, float]
    normalized: bool
    overload: str


class LIFFunction(torch.autograd.Function):
    """``lif_forward`` with ``lif_backward`` as its derivative. Saves the input, no membrane."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        leak: Tensor,
        threshold: Tensor,
        v_init: Tensor | None,
        config: LIFConfig,
    ) -> tuple[Tensor, Tensor]:
        """Spikes and final state."""
        ctx.save_for_backward(x, leak, threshold, v_init)
        ctx.set_materialize_grads(False)
        ctx.config = config
        op = getattr(torch.ops.snnkern.lif_forward, config.overload)
        spikes, state = op(
            x,
            leak,
            threshold,
            v_init,
            config.v_reset,
            config.reset,
            config.strict,
            config.return_state,
        )
        return spikes, state

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of ``x``, ``leak``, ``threshold`` and ``v_init``."""
        grad_spikes, grad_state = grads
        x, leak, threshold, v_init = ctx.saved_tensors
        config: LIFConfig = ctx.config
        if grad_spikes is None:
            if grad_state is None:
                return None, None, None, None, None
            grad_spikes = x.new_zeros(()).expand(x.shape)
        _, needs_leak, needs_threshold, needs_init, _ = ctx.needs_input_grad
        op = getattr(torch.ops.snnkern.lif_backward, config.overload)
        grad_x, grad_leak, grad_threshold, grad_v_init = op(
            grad_spikes,
            grad_state if config.return_state else None,
            x,
            leak,
            threshold,
            v_init,
            config.v_reset,
            config.reset,
            config.strict,
            config.detach_reset,
            config.surrogate,
            config.surrogate_args,
            config.normalized,
            needs_leak or needs_threshold,
        )
        return (
            grad_x,
            grad_leak if needs_leak else None,
            grad_threshold if needs_threshold else None,
            grad_v_init if needs_init else None,
            None,
        )


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
