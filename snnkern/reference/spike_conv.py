"""Convolutions of spikes by rows of their weight, and the neurons behind one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnkern.reference.lif import INPUT_DTYPE, lif_forward
from snnkern.reference.spikes import pack_bits, unpack_spikes


def fingerprint(words: Tensor) -> Tensor:
    """A number that other words, int16 or int32, or these in another order have only by chance.

    Of each word and its place one number modulo 2^64, whose upper half is mixed into the lower, and
    the sum of these.
    """
    place = torch.arange(words.numel(), device=words.device)
    mixed = words.flatten().long() * _signed(0x9E3779B97F4A7C15) + place * _signed(
        0xC2B2AE3D27D4EB4F
    )
    return (mixed ^ ((mixed >> 32) & 0xFFFFFFFF)).sum()


def _signed(word: int) -> int:
    """64 bits as torch has them."""
    return word - 2**64


def spike_rows(weight: Tensor, block: int) -> Tensor:
    """A convolution's weight ``[K, C, H, W]`` as rows of ``block`` neighbouring outputs.

    ``[ceil(K / block), H, C, W, block]``, the columns of the kernel from the last to the first:
    what an active input adds to the outputs of a line that see it lies together. Zero beyond K.
    """
    padded = torch.nn.functional.pad(weight.flip(3), (0, 0) * 3 + (0, -len(weight) % block))
    rows: Tensor = padded.unflatten(0, (-1, block)).permute(0, 3, 2, 4, 1).contiguous()
    return rows


def empty_maps(
    rows: Tensor,
    size: list[int],
    out_channels: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """What spikes of this size convolved by these rows give, uninitialised, channels last."""
    kernel = rows.shape[1], rows.shape[3]
    height, width = (
        (extent + 2 * p - d * (k - 1) - 1) // s + 1
        for extent, k, s, p, d in zip(size[2:], kernel, stride, padding, dilation, strict=True)
    )
    strides = (height * width * out_channels, 1, width * out_channels, out_channels)
    return rows.new_empty_strided((size[0], out_channels, height, width), strides)


def spike_conv2d(
    packed: Tensor,
    values: Tensor | None,
    size: list[int],
    strides: list[int],
    rows: Tensor,
    bias: Tensor | None,
    out_channels: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """The convolution of spikes ``[N, C, H, W]``, given as bits, by the rows of ``spike_rows``.

    Graded spikes are given as ``values``, whose bits tell where they are not zero.
    """
    weight = rows.permute(0, 4, 2, 1, 3).flatten(0, 1)[:out_channels].flip(3)
    spikes = unpack_spikes(packed, size, strides, rows.dtype) if values is None else values
    maps = empty_maps(rows, size, out_channels, stride, padding, dilation)
    return maps.copy_(torch.nn.functional.conv2d(spikes, weight, bias, stride, padding, dilation))


def pooled_size(size: list[int], pool: list[int]) -> list[int]:
    """That of images ``[N, C, H, W]`` after pooling by windows of this height and width."""
    return [*size[:2], size[2] // pool[0], size[3] // pool[1]]


def spike_conv2d_lif(
    packed: Tensor,
    timesteps: int,
    size: list[int],
    pool: list[int],
    rows: Tensor,
    bias: Tensor,
    current: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    decay: Tensor,
    threshold: Tensor,
    synapse_decay: Tensor | None,
    v_init: Tensor | None,
    current_init: Tensor | None,
    *options: Any,
) -> Tensor:
    """Neurons behind a convolution: spikes ``[N * T, C, H, W]`` as bits, and so what they fire.

    All lies channels last, parameters and states of neurons too. What falls into one window of
    ``pool`` is added up; ``current`` ``[N * T, H, W, K]`` comes on top of the convolution.
    """
    weight = rows.permute(0, 4, 2, 1, 3).flatten(0, 1)[: len(bias)].flip(3)
    _, channels, height, width = size
    strides = [channels * height * width, 1, width * channels, channels]
    spikes = unpack_spikes(packed, size, strides, rows.dtype)
    window = torch.nn.functional.avg_pool2d(spikes, pool, divisor_override=1)
    x = torch.nn.functional.conv2d(window, weight, bias, stride, padding, dilation)
    x = x.permute(0, 2, 3, 1)
    x = (x if current is None else x + current).reshape(-1, timesteps, x[0].numel()).transpose(0, 1)

    def of_neurons(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.repeat(x.shape[2] // value.numel())

    arguments: list[Any] = [of_neurons(value) for value in (decay, threshold, synapse_decay)]
    arguments += [
        None if state is None else state.expand(x.shape[1:]).contiguous()
        for state in (v_init, current_init)
    ]
    arguments += [*options, INPUT_DTYPE, False]
    fired, _, _ = lif_forward(x.contiguous(), 0, *arguments)
    return pack_bits(fired.transpose(0, 1).flatten(0, 1))


def spike_conv2d_weight(
    grad: Tensor,
    packed: Tensor,
    values: Tensor | None,
    size: list[int],
    strides: list[int],
    kernel: list[int],
    padding: list[int],
    block: int,
) -> Tensor:
    """The gradient of a convolution's weight ``[K, C, H, W]``, of stride and dilation 1.

    ``values`` as for ``spike_conv2d``.
    """
    spikes = unpack_spikes(packed, size, strides, grad.dtype) if values is None else values
    weight = grad.new_empty((grad.shape[1], size[1], *kernel))
    _, of_weight, _ = torch.ops.aten.convolution_backward(
        grad, spikes, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [False, True, False]
    )
    return weight.copy_(of_weight)
