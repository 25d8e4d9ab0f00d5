"""The Functions of ``encode``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnkern import reference
from snnkern.autograd.engine import run


class RateCode(torch.autograd.Function):
    """Spikes drawn at the rate of a value; backward passes straight through the draw.

    The gradient of the value is the sum over time of its spikes' gradients, which is what makes
    attacks crafted on the spiking network itself possible (Algorithm 1 of Sharmin et al. 2020).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, draws: Tensor, coding: int) -> Tensor:
        """``[N, ...]`` and draws ``[T, N, ...]`` to spikes ``[T, N, ...]``."""
        return reference.code(x, draws, coding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The sum over time."""
        return grads[0].sum(0), None, None


class KernelRateCode(torch.autograd.Function):
    """``RateCode`` with the draws made inside the kernel, from one number of the generator."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        generator: torch.Generator | None,
        timesteps: int,
        coding: int,
        overload: str,
    ) -> Tensor:
        """``[N, ...]`` to spikes ``[T, N, ...]``."""
        seed = torch.randint(2**63 - 1, (), generator=generator, device=x.device)
        spikes: Tensor = run(
            getattr(torch.ops.snnkern.rate_code, overload), x, seed, timesteps, coding
        )
        return spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The sum over time."""
        return grads[0].sum(0), None, None, None, None
