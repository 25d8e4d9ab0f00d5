"""The Function of ``relax_lif``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnkern.autograd.engine import run


class RelaxConfig(NamedTuple):
    """Everything about lines below a LIF layer that is not a tensor; options as in LIFConfig."""

    v_init: float
    reset: int
    v_reset: float
    strict: bool
    slope: int
    overload: str


class RelaxLIF(torch.autograd.Function):
    """``relax_lif`` with ``relax_lif_backward`` as its derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        v_lower: Tensor,
        v_upper: Tensor,
        decay: Tensor,
        threshold: Tensor,
        slopes: Tensor | None,
        after: Tensor | None,
        config: RelaxConfig,
    ) -> tuple[Tensor, Tensor]:
        """Lines and their bias."""
        op = getattr(torch.ops.snnkern.relax_lif, config.overload)
        tensors = (rows, v_lower, v_upper, decay, threshold)
        lines, bias = run(op, *tensors, *config[:-1], slopes, after)
        ctx.config = config
        ctx.save_for_backward(*tensors, slopes, after, lines)
        return lines, bias

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors that went in."""
        rows, *neurons, slopes, after, lines = ctx.saved_tensors
        needs, config = ctx.needs_input_grad, ctx.config
        op = getattr(torch.ops.snnkern.relax_lif_backward, config.overload)
        wanted = any(needs[3:5])
        given = (*config[:-1], slopes, after, wanted)
        gradients = run(op, *grads, rows, lines, *neurons, *given)
        return (*(g if need else None for g, need in zip(gradients, needs, strict=False)), None)
