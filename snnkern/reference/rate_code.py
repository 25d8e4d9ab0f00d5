"""Rate coding: spikes drawn at the rate of a value."""

from __future__ import annotations

import torch
from torch import Tensor

from snnkern._layout import empty_steps

CODINGS = ("poisson", "signed_poisson", "bernoulli")
POISSON, SIGNED_POISSON, BERNOULLI = range(len(CODINGS))


def code(x: Tensor, draws: Tensor, coding: int) -> Tensor:
    """Spikes ``[T, N, ...]`` of values ``[N, ...]`` from uniform draws ``[T, N, ...]``."""
    if coding == SIGNED_POISSON:
        return x.sign() * (draws <= x.abs())
    return (draws < x if coding == BERNOULLI else draws <= x).to(x.dtype)


def rate_code(x: Tensor, seed: Tensor, timesteps: int, coding: int) -> Tensor:
    """Rate coding of values ``[N, ...]`` with draws of its own; ``seed`` is one int64.

    Backends draw differently: the same seed gives the same spikes on the same backend alone.
    """
    generator = torch.Generator(x.device).manual_seed(int(seed))
    steps = x.unsqueeze(0)
    draws = torch.rand((timesteps, *x.shape), dtype=x.dtype, device=x.device, generator=generator)
    return empty_steps(steps, x.dtype, timesteps).copy_(code(x, draws, coding))
