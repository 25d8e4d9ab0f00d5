"""What snnkern is measured against: the same neuron in plain PyTorch, as fast as that gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ALPHA = 2.0


class ATanSpike(torch.autograd.Function):
    """1 where ``v >= threshold``; derivative ``ALPHA / 2 / (1 + (pi / 2 ALPHA z)^2)``."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward(v)
        ctx.threshold = threshold
        # (v >= threshold).to(v.dtype) goes twice over memory.
        return torch.ge(v, threshold, out=torch.empty_like(v))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        (grad_spikes,) = grads
        q = math.pi / 2 * ALPHA * (v - ctx.threshold)
        return grad_spikes * (0.5 * ALPHA / (1 + q * q)), None


def lif_loop(x: Tensor, leak: float, threshold: float) -> Tensor:
    """A LIF layer with hard reset to 0, detached, and the ATan surrogate: one loop over time.

    ``x`` is ``[T, N, ...]`` and finite; the spikes have its shape.
    """
    u = torch.zeros_like(x[0])
    spikes = []
    # unbind, since the backward of x[t] fills a whole [T, N, ...] with zeros, at every step.
    for current in x.unbind(0):
        v = leak * u + current
        s = ATanSpike.apply(v, threshold)
        spikes.append(s)
        # Not torch.where, which takes several times as long on the CPU.
        u = v * (1 - s.detach())
    return torch.stack(spikes)


# One graph per shape, direction and number of threads: more than the usual limit, beyond which
# fullgraph raises. The overloads of torch.compile do not list that argument.
_compile: Any = torch.compile
compiled_lif_loop: Callable[[Tensor, float, float], Tensor] = _compile(
    lif_loop, fullgraph=True, dynamic=False, recompile_limit=64
)
