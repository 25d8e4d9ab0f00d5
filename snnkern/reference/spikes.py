"""Spikes as bits."""

from __future__ import annotations

import torch
from torch import Tensor

from snnkern._layout import empty_steps, empty_steps_of


def pack_bits(spikes: Tensor) -> Tensor:
    """Spikes ``[T, neurons]`` as bits ``[T, ceil(neurons / 8)]`` uint8, first neuron lowest."""
    padded = torch.nn.functional.pad(spikes.bool().to(torch.uint8), (0, -spikes.shape[1] % 8))
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=spikes.device)
    return (padded.view(len(spikes), -1, 8) * weights).sum(2, dtype=torch.uint8)


def in_memory_order(spikes: Tensor) -> Tensor:
    """``[T, neurons]``: the neurons of a step in the order in which they lie in memory."""
    strides = spikes.stride()
    order = sorted(range(1, spikes.dim()), key=lambda d: -strides[d])
    return spikes.permute(0, *order).flatten(1)


def pack_spikes(spikes: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, ...]`` as bits, and the first value in memory that is neither 0 nor 1.

    That is a float64 number on its own, 0 where there is none; the bits mean nothing otherwise.
    """
    dense = empty_steps(spikes, spikes.dtype, spikes.shape[0]).copy_(spikes)
    rows = in_memory_order(dense)
    strays = ((rows != 0) & (rows != 1)).flatten()
    # Without a look at the values, for which a GPU would have to be waited for.
    first = rows.flatten()[strays.to(torch.uint8).argmax()].to(torch.float64)
    return pack_bits(rows), torch.where(strays.any(), first, 0)


def unpack_spikes(packed: Tensor, size: list[int], stride: list[int], dtype: torch.dtype) -> Tensor:
    """Bits as spikes, whose steps lie as those of a tensor of this size and these strides do."""
    spikes = empty_steps_of(packed, size, stride, dtype)
    rows = in_memory_order(spikes)  # a view, since the steps are dense
    bits = packed.unsqueeze(2) >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    rows.copy_((bits & 1).flatten(1)[:, : rows.shape[1]])
    return spikes


def count_spikes(packed: Tensor) -> Tensor:
    """How many bits are 1."""
    bits = packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (bits & 1).sum()
