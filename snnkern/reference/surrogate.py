"""Surrogate derivatives ds/dz: each takes z and two numbers, unused ones included, like kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def triangle(z: Tensor, width: float, scale: float) -> Tensor:
    """``scale * max(0, width - |z|)``."""
    height = width - z.abs()
    return torch.where(height > 0, scale * height, 0)


def rectangle(z: Tensor, width: float, scale: float) -> Tensor:
    """``scale`` where ``|z| < width / 2``."""
    return scale * (z.abs() < width / 2).to(z.dtype)


def exponential(z: Tensor, scale: float, slope: float) -> Tensor:
    """``scale * exp(-slope |z|)``."""
    return scale * torch.exp(-(slope * z.abs()))


def atan(z: Tensor, alpha: float, _: float) -> Tensor:
    """``alpha / 2 / (1 + (pi / 2 alpha z)^2)``."""
    q = math.pi / 2 * alpha * z
    return 0.5 * alpha / (1 + q * q)


def sigmoid(z: Tensor, alpha: float, _: float) -> Tensor:
    """The derivative of ``sigmoid(alpha z)``, without cancellation for large z."""
    e = torch.exp(-(alpha * z.abs()))
    return alpha * e / ((1 + e) * (1 + e))


def fast_sigmoid(z: Tensor, slope: float, _: float) -> Tensor:
    """``1 / (1 + slope |z|)^2``."""
    d = 1 + slope * z.abs()
    return 1 / (d * d)


def erf(z: Tensor, alpha: float, _: float) -> Tensor:
    """``alpha / sqrt(pi) exp(-(alpha z)^2)``."""
    q = alpha * z
    return alpha / math.sqrt(math.pi) * torch.exp(-(q * q))


def straight_through(z: Tensor, _: float, __: float) -> Tensor:
    """1."""
    return torch.ones_like(z)


def spike_time(steps: Tensor, alpha: float, beta: float) -> Tensor:
    """``alpha exp(-beta steps)``, of the steps since the last spike instead of z."""
    return alpha * torch.exp(-(beta * steps))


Derivative = Callable[[Tensor, float, float], Tensor]
SURROGATES: dict[str, Derivative] = {
    "triangle": triangle,
    "rectangle": rectangle,
    "exponential": exponential,
    "atan": atan,
    "sigmoid": sigmoid,
    "fast_sigmoid": fast_sigmoid,
    "erf": erf,
    "straight_through": straight_through,
    "spike_time": spike_time,
}


def rate_gain(current: Tensor, leak: Tensor, threshold: Tensor, gamma: float) -> Tensor:
    """Slope of a neuron's rate at its mean current; see ``snnkern.surrogate.RGA``."""
    mean = current / threshold
    low = torch.where((mean >= 0) & (mean <= 1 - leak), gamma, 0)
    slope = (1 - gamma + gamma * leak) / (leak + 1)
    high = torch.where((mean >= 1 - leak) & (mean <= 2), slope, 0)
    return (low + high) / threshold


# The rate is no surrogate of the ops: see snnkern.autograd.rate.
KINDS = (*SURROGATES, "rate")
SPIKE_TIME = KINDS.index("spike_time")
RATE = KINDS.index("rate")
