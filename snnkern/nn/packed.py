"""The layers of torch.nn between neurons, which keep the spikes they see as bits for backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkern import functional
from snnkern.autograd import AvgPool2d as AvgPool2dFunction
from snnkern.autograd import PackedConv2d, PackedLinear, PackedMaxPool2d


class SpikeInput(nn.Module):
    """What the layers of this file share: the choice what to keep of their input.

    Args:
        args, options: as the layer of torch takes them.
        spike_input: whether the input is spikes, all 0 or 1, which are kept as bits. None finds out
            at every call that has to keep something, and keeps the input itself where it is not;
            on a GPU that waits for the device. True insists: other values raise a ValueError (under
            torch.compile a RuntimeError of the running graph). False makes it the layer of torch.
            Under torch.compile, which cannot look at values, None is like False: say True there to
            save memory.
    """

    def __init__(self, *args: Any, spike_input: bool | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        if spike_input is not None and not isinstance(spike_input, bool):
            raise TypeError(
                f"spike_input is {spike_input!r} of type {type(spike_input).__name__}, expected a "
                "bool or None"
            )
        self.spike_input = spike_input

    def _pack(self, x: Tensor) -> Tensor | None:
        """The bits of ``x``, None where it is to be kept as it is."""
        if self.spike_input is False or x.numel() == 0:
            return None
        if self.spike_input:
            return functional.pack_spikes(x.detach())
        if torch.compiler.is_compiling() or x.is_meta or not x.is_floating_point():
            return None
        return functional.pack_if_spikes(x)

    def extra_repr(self) -> str:
        """That of torch, and ``spike_input`` where it is set."""
        shown = super().extra_repr()
        return shown if self.spike_input is None else f"{shown}, spike_input={self.spike_input}"


def _autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors as autocast hands them to a convolution or a linear layer, where it is on."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype)
        if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64
        else tensor
        for tensor in tensors
    )


class Conv2d(SpikeInput, nn.Conv2d):
    """``torch.nn.Conv2d`` for spikes, ``[N, C, H, W] -> [N, K, H', W']``.

    Output and gradients are those of ``torch.nn.Conv2d``, and so are parameters and state_dict.
    Where the weight wants a gradient and the input is spikes, they are kept for backward as bits,
    1/32 of float32; where it wants none, nothing of the input is kept. What was padded by other
    than zeros is kept padded. Second derivatives are refused where bits were kept.

    Args:
        args, options: as ``torch.nn.Conv2d`` takes them.
        spike_input: see ``snnkern.nn.packed.SpikeInput``.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not torch.is_grad_enabled() or self.spike_input is False:
            unpacked: Tensor = super()._conv_forward(input, weight, bias)
            return unpacked
        x = input
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        else:
            left, right, top, bottom = self._reversed_padding_repeated_twice
            padding = (top, left)
            if (top, left) != (bottom, right):  # padding="same" of an even kernel
                x = F.pad(x, (0, right - left, 0, bottom - top))
        x, weight, bias = _autocast(x, weight, bias)
        geometry = (self.stride, padding, self.dilation, self.groups)
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        packed = None
        if weight.requires_grad:
            packed = self._pack(batch)
        if weight.requires_grad and packed is None:
            return F.conv2d(x, weight, bias, *geometry)
        result: Tensor = PackedConv2d.apply(batch, packed, weight, bias, *geometry)
        return result if x.dim() == 4 else result.squeeze(0)


class Linear(SpikeInput, nn.Linear):
    """``torch.nn.Linear`` for spikes, ``[N, ..., features] -> [N, ..., K]``.

    Output and gradients are those of ``torch.nn.Linear``, and so are parameters and state_dict.
    Spikes are kept for the gradient of the weight as bits, 1/32 of float32. Second derivatives are
    refused where they were.

    Args:
        args, options: as ``torch.nn.Linear`` takes them.
        spike_input: see ``snnkern.nn.packed.SpikeInput``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[N, ..., features] -> [N, ..., K]``."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(input)
        x, weight, bias = _autocast(input, self.weight, self.bias)
        batch = x if x.dim() > 1 else x.unsqueeze(0)
        packed = self._pack(batch)
        if packed is None:
            return F.linear(x, weight, bias)
        result: Tensor = PackedLinear.apply(batch, packed, weight, bias)
        return result if x.dim() > 1 else result.squeeze(0)


class MaxPool2d(SpikeInput, nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` for spikes, ``[N, C, H, W] -> [N, C, H', W']``.

    Output and gradients are those of ``torch.nn.MaxPool2d``. Instead of the input and an int64
    index per output, spikes are kept as bits, and backward finds the largest of them anew. Second
    derivatives are refused where they were.

    Args:
        args, options: as ``torch.nn.MaxPool2d`` takes them.
        spike_input: see ``snnkern.nn.packed.SpikeInput``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H', W']``."""
        packed = None
        if torch.is_grad_enabled() and input.requires_grad and not self.return_indices:
            packed = self._pack(input)
        if packed is None:
            unpacked: Tensor = super().forward(input)
            return unpacked
        result: Tensor = PackedMaxPool2d.apply(
            input,
            packed,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
        )
        return result


class AvgPool2d(nn.AvgPool2d):
    """``torch.nn.AvgPool2d`` that keeps nothing for backward, ``[N, C, H, W] -> [N, C, H', W']``.

    Output and gradients are those of ``torch.nn.AvgPool2d``, for any input.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H', W']``."""
        result: Tensor = AvgPool2dFunction.apply(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )
        return result
