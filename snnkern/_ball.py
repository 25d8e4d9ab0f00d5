"""Distances between images: what lies within ``eps`` of one, exactly, in every dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inward(x: Tensor, step: Tensor | float) -> Tensor:
    """``x + step`` where it can be had, else the number next to it on the side of ``x``.

    The result is never further from ``x`` than ``step`` is long, to the last bit. ``step`` has
    the dtype of ``x``, or is a number that it holds exactly.
    """
    moved = x + step
    # What the addition rounded off, itself without error, in any binary format that rounds to
    # nearest (Knuth's TwoSum; for addition that holds for subnormal numbers too).
    made = moved - x
    lost = (x - (moved - made)) + (step - made)
    # `moved` is the number nearest to the sum, so where it lies beyond the sum, the next one
    # towards x does not; and x itself is a number, so the next one does not lie beyond x either.
    beyond = (lost < 0) & (moved > x) | (lost > 0) & (moved < x)
    return torch.where(beyond, torch.nextafter(moved, x), moved)


def rounded_down(value: float, dtype: torch.dtype) -> float:
    """The largest number of ``dtype`` that is not above ``value``."""
    nearest = torch.tensor(value, dtype=dtype)
    if nearest.item() > value:
        nearest = torch.nextafter(nearest, torch.zeros_like(nearest))
    return nearest.item()


def lengths(x: Tensor) -> Tensor:
    """The l_2 norm of every sample, in float64, of a shape that ``[N, ...]`` is multiplied by."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64)
    return norms.view(-1, *(1,) * (x.dim() - 1))


def unit(x: Tensor) -> Tensor:
    """Every sample of ``x`` ``[N, ...]`` at l_2 length 1; zeros stay. What is NaN counts as 0."""
    # In its own dtype: the square of what stands for infinity there is a number in float64.
    wide = x.nan_to_num(0.0).double()
    norms = lengths(wide)
    return (wide / torch.where(norms > 0, norms, 1)).to(x.dtype)


def project_linf(images: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest images within ``eps`` of ``x`` in every pixel and in ``[0, 1]``, as ``x`` is.

    ``eps`` acts as the largest number of the dtype that is not above it.
    """
    size = rounded_down(min(eps, 1.0), x.dtype)
    # Clamping to [0, 1] comes last: it moves towards x.
    return images.clamp(inward(x, -size), inward(x, size)).clamp(0, 1)


def project_l2(images: Tensor, x: Tensor, eps: float) -> Tensor:
    """Images within l_2 distance ``eps`` of ``x``, each scaled back on its way, and in [0, 1]."""
    if eps < 1e-140:  # whose square would be lost among the numbers that underflow
        return x.clone()
    way = images.double() - x.double()
    norms = lengths(way)
    # Differences, norm, quotient and product are off by a relative 2^-53 each, and a sum of
    # squares of D numbers by at most D of that: no norm is longer than eps that passes here.
    allowed = eps * (1 - (math.prod(x.shape[1:]) + 8) * torch.finfo(torch.float64).eps)
    shorter = way * (allowed / torch.where(norms > 0, norms, 1))
    step = shorter.to(x.dtype)
    longer = step.double().abs() > shorter.abs()
    step = torch.where(longer, torch.nextafter(step, torch.zeros_like(step)), step)
    # Every pixel moves by no more than `shorter` says, and clamping moves it towards x.
    return torch.where(norms <= allowed, images, inward(x, step)).clamp(0, 1)
