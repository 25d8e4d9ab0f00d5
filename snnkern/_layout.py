"""How a tensor ``[T, N, ...]`` lies in memory, and tensors made to lie the same way.

The steps of a tensor may be in any dense permutation (channels last included); what a kernel makes
of it lies the same way, with time outermost. On the CPU, ``lif`` also reads and makes tensors that
lie batch first, ``[N, T, ...]``. ``csrc/layout.h`` says the same in C++.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def step_strides(x: Tensor) -> tuple[int, ...]:
    """Strides of one step of ``x``: its own where they are dense, else contiguous ones."""
    return dense_strides(x.shape[1:], x.stride()[1:])


def dense_strides(sizes: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """``strides`` where they are dense, else contiguous ones."""
    expected = 1
    for size, stride in sorted(
        ((size, stride) for size, stride in zip(sizes, strides, strict=True) if size != 1),
        key=lambda pair: pair[1],
    ):
        if stride != expected:
            break
        expected *= size
    else:
        return tuple(strides)
    contiguous = []
    expected = 1
    for size in reversed(sizes):
        contiguous.append(expected)
        expected *= size
    return tuple(reversed(contiguous))


# Samples of so many neurons or more are read in place where each lies with all its steps.
SAMPLE_APART = 1024


def samples_apart(x: Tensor) -> bool:
    """Whether ``x`` lies batch first in large contiguous samples, which the CPU's ``lif`` keeps."""
    if x.device.type != "cpu" or x.dim() < 3 or x.shape[0] < 2 or x.shape[1] < 2:
        return False
    numel = 1
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size != 1 and stride != numel:
            return False
        numel *= size
    apart: bool = x.stride(1) >= x.shape[0] * numel
    return numel >= SAMPLE_APART and x.stride(0) == numel and apart


def empty_spikes(x: Tensor, dtype: torch.dtype, timesteps: int) -> Tensor:
    """``empty_steps`` for what ``lif`` makes of ``x``, which may lie batch first."""
    if timesteps == x.shape[0] and samples_apart(x):
        size = (x.shape[1], timesteps, *x.shape[2:])
        return x.new_empty(size, dtype=dtype).transpose(0, 1)
    return empty_steps(x, dtype, timesteps)


def empty_steps(x: Tensor, dtype: torch.dtype, timesteps: int) -> Tensor:
    """An uninitialised tensor of ``timesteps`` steps like those of ``x``, in their layout."""
    return empty_steps_of(x, (timesteps, *x.shape[1:]), x.stride(), dtype)


def empty_steps_of(
    like: Tensor, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """The same for a tensor of this size and these strides, on the device of ``like``."""
    numel = 1
    for extent in size[1:]:
        numel *= extent
    strides = (numel, *dense_strides(size[1:], stride[1:]))
    return like.new_empty_strided(tuple(size), strides, dtype=dtype)


def empty_step(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor of the shape of ``x[0]``, in the layout of the steps of ``x``."""
    return x.new_empty_strided(x.shape[1:], step_strides(x), dtype=dtype)


# Numbers that a chain of operations works on at a time, so that they stay in the cache.
PIECE = 2**16


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of ``[T, N, ...]`` tensors of one shape: the same few steps and samples of each.

    For what is done in place number by number: large tensors go through memory once, not at every
    operation. A compiler sees them whole, and does that itself.
    """
    first = tensors[0]
    steps, samples = len(first), first.shape[1]
    if not torch.compiler.is_compiling():
        sample = max(1, math.prod(first.shape[2:]))
        steps, samples = max(1, PIECE // (sample * samples)), max(1, PIECE // sample)
    for some in zip(*(t.split(steps) for t in tensors), strict=True):
        yield from zip(*(t.split(samples, 1) for t in some), strict=True)


def empty_rows(rows: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor of the shape of ``rows`` ``[R, T, ...]``, its steps as in ``x``."""
    numel = x[0].numel()
    strides = (rows.shape[1] * numel, numel, *step_strides(x))
    return x.new_empty_strided(rows.shape, strides, dtype=dtype)
