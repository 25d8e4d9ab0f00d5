"""The Function of ``interval_lif``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnkern.autograd.engine import run


class IntervalConfig(NamedTuple):
    """Everything about bounds of a LIF layer that is not a tensor; options as in LIFConfig."""

    v_init: float
    reset: int
    v_reset: float
    strict: bool
    surrogate: int
    surrogate_args: tuple[float, float]
    normalized: bool
    return_membranes: bool
    overload: str


class IntervalLIF(torch.autograd.Function):
    """``interval_lif_forward`` with ``interval_lif_backward`` as its derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        lower: Tensor,
        upper: Tensor,
        decay: Tensor,
        threshold: Tensor,
        config: IntervalConfig,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bounds of spikes and of membranes."""
        ctx.set_materialize_grads(False)
        ctx.config = config
        ctx.save_for_backward(lower, upper, decay, threshold)
        op = getattr(torch.ops.snnkern.interval_lif_forward, config.overload)
        outputs: tuple[Tensor, Tensor, Tensor, Tensor] = run(
            op, lower, upper, decay, threshold, *config[:4], config.return_membranes
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors that went in."""
        lower, upper, decay, threshold = ctx.saved_tensors
        config: IntervalConfig = ctx.config
        needs = ctx.needs_input_grad
        none = lower.new_zeros(()).expand(lower.shape)
        op = getattr(torch.ops.snnkern.interval_lif_backward, config.overload)
        gradients = run(
            op,
            *(none if g is None else g for g in grads[:2]),
            *(grads[2:] if config.return_membranes else (None, None)),
            lower,
            upper,
            decay,
            threshold,
            *config[:-2],
            any(needs[2:4]),
        )
        return (*(g if need else None for g, need in zip(gradients, needs, strict=False)), None)
