"""The layers of torch.nn between neurons, which keep the spikes they see as bits for backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkern import functional
from snnkern.autograd import (
    POINT,
    Geometry,
    PackedConv2d,
    PackedLinear,
    PackedMaxPool2d,
    sums_gradients_of_weights,
)
from snnkern.autograd import AvgPool2d as AvgPool2dFunction
from snnkern.nn import events


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
        if self.spike_input is False or x.numel() == 0 or events.is_transformed():
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


class Look(NamedTuple):
    """What a layer keeps of its input, and how it multiplies."""

    packed: Tensor | None = None  # bits: of spikes or, where these are graded, of all but zeros
    graded: bool = False
    by_events: bool = False

    def density(self, x: Tensor) -> float:
        """The share of ``x`` that are events."""
        assert self.packed is not None
        return events.density_of(self.packed, x.numel())

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        """The convolution of maps ``x`` by their events."""
        assert self.packed is not None
        return functional.convolve_packed(
            x, self.packed, weight, bias, geometry, graded=self.graded
        )


class EventDriven(SpikeInput):
    """What convolutions and linear layers share: the choice how to multiply.

    On the CPU, rows of the weight are summed where a sparse input is not zero, in less time than
    dense products take. Spikes are such an input, and so is what pooling or a sum makes of them.
    The layer measures the density, in a few images first and where it is low there in all of them,
    and goes by events where that pays; ``snnkern.info(model)`` tells what was measured and chosen.
    What comes out is then equal up to rounding, for weights and inputs that are finite, and
    channels last in memory. The weight stands a second time in memory, in the order that events
    read. For backward what is not spikes is kept as it is, its events beside it as bits.

    Args:
        args, options: as the layer of torch takes them, and ``spike_input``.
        event_driven: None chooses. True insists: what cannot go by events raises a ValueError.
            False never does. Under torch.compile, which cannot look at values, and in transforms of
            torch.func None is like False.
    """

    weight: Tensor

    def __init__(self, *args: Any, event_driven: bool | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        if event_driven is not None and not isinstance(event_driven, bool):
            raise TypeError(
                f"event_driven is {event_driven!r} of type {type(event_driven).__name__}, expected "
                "a bool or None"
            )
        if event_driven and self.spike_input is False:
            raise ValueError(
                "event_driven is True and spike_input is False, which makes it the layer of torch, "
                "expected one of them to be None"
            )
        self.event_driven = event_driven
        self.choice = events.Choice()

    def _may_choose(self) -> bool:
        if self.event_driven is None:
            return self.spike_input is not False and not events.is_watched()
        return self.event_driven

    def _look(
        self, x: Tensor, weight: Tensor, groups: int, positions: int, geometry: Geometry
    ) -> Look:
        """What of maps ``x`` somebody needs; ``positions``: of the output, in all images."""
        learns = torch.is_grad_enabled() and weight.requires_grad
        if not self._may_choose() or x.numel() == 0:
            return Look(self._pack(x) if learns else None)
        reason = events.why_never(x, weight, groups, insists=bool(self.event_driven))
        if self.event_driven:
            if reason:
                raise ValueError(f"event_driven is True, which cannot be: {reason}")
            compiles = torch.compiler.is_compiling()
            if self.spike_input:
                look = Look(functional.pack_spikes(x.detach()), by_events=True)
            else:
                look = self._events_of(x, may_be_spikes=not compiles)
            if not compiles:
                self.choice.decide(look.density(x), torch.inf, graded=look.graded)
            return look
        if not reason and positions * weight.numel() < events.LEAST_PRODUCTS:
            reason = f"fewer than {events.LEAST_PRODUCTS} products"
        if not reason and functional.maps_in_order(x) is not x:
            reason = "channels neither first nor last in memory"
        if reason:
            self.choice.never(reason)
            return Look(self._pack(x) if learns else None)
        # The mode, not `learns`, and the same images: a checkpoint's passes are to choose alike.
        trains = self.training and weight.requires_grad
        limit = partial(
            events.limit,
            x,
            weight,
            positions,
            trains=trains,
            sums_weights=sums_gradients_of_weights(geometry),
        )
        packed = self._pack(x) if learns else None
        some = events.Sample.of(x)
        below = limit(graded=some.graded)
        if some.density >= below:
            self.choice.decide(
                some.density, below, graded=some.graded, what="density of some images"
            )
            return Look(packed)
        if packed is not None:
            look = Look(packed, by_events=True)
        else:
            look = self._events_of(x, may_be_spikes=not some.graded)
        below = limit(graded=look.graded)
        if self.choice.decide(look.density(x), below, graded=look.graded):
            return look
        return Look(packed)

    def _events_of(self, x: Tensor, *, may_be_spikes: bool) -> Look:
        """The events of ``x``, whatever it is."""
        packed = functional.pack_if_spikes(x) if may_be_spikes else None
        if packed is not None:
            return Look(packed, by_events=True)
        return Look(functional.pack_nonzero(x), graded=True, by_events=True)

    def _run(self, layer: Callable[[], Tensor], by_events: bool) -> Tensor:
        return layer() if torch.compiler.is_compiling() else self.choice.timed(layer, by_events)

    def extra_repr(self) -> str:
        """That of torch, and the options of this file where they are set."""
        shown = super().extra_repr()
        return shown if self.event_driven is None else f"{shown}, event_driven={self.event_driven}"


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


class Conv2d(EventDriven, nn.Conv2d):
    """``torch.nn.Conv2d`` for spikes, ``[N, C, H, W] -> [N, K, H', W']``.

    Output and gradients are those of ``torch.nn.Conv2d``, where it goes by events up to rounding,
    and so are parameters and state_dict.
    Where the weight wants a gradient and the input is spikes, they are kept for backward as bits,
    1/32 of float32; where it wants none, nothing of the input is kept. What was padded by other
    than zeros is kept padded. Second derivatives are refused where bits were kept or events were
    summed.

    Args:
        args, options: as ``torch.nn.Conv2d`` takes them.
        spike_input: see ``snnkern.nn.packed.SpikeInput``.
        event_driven: see ``snnkern.nn.packed.EventDriven``.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        records = torch.is_grad_enabled()
        if self.spike_input is False or not (records or self._may_choose()):
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
        geometry = (self.stride, padding, self.dilation)
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        if self.event_driven:
            batch = functional.maps_in_order(batch)
        positions = self._positions(batch, padding)
        look = self._look(batch, weight, self.groups, positions, geometry)

        def run() -> Tensor:
            if look.by_events:
                return look.convolve(batch, weight, bias, geometry)
            packed = look.packed
            if packed is None and (weight.requires_grad or not records or events.is_transformed()):
                return F.conv2d(batch, weight, bias, *geometry, self.groups)
            dense: Tensor = PackedConv2d.apply(batch, packed, weight, bias, *geometry, self.groups)
            return dense

        result = self._run(run, look.by_events)
        return result if x.dim() == 4 else result.squeeze(0)

    def _positions(self, x: Tensor, padding: tuple[int, ...]) -> int:
        if x.dim() != 4:
            return 0  # torch refuses it
        count = x.shape[0]
        for extent, p, k, s, d in zip(
            x.shape[2:], padding, self.kernel_size, self.stride, self.dilation, strict=True
        ):
            count *= (extent + 2 * p - d * (k - 1) - 1) // s + 1
        return count


class Linear(EventDriven, nn.Linear):
    """``torch.nn.Linear`` for spikes, ``[N, ..., features] -> [N, ..., K]``.

    Output and gradients are those of ``torch.nn.Linear``, where it goes by events up to rounding,
    and so are parameters and state_dict.
    Spikes are kept for the gradient of the weight as bits, 1/32 of float32. Second derivatives are
    refused where they were, or events were summed.

    Args:
        args, options: as ``torch.nn.Linear`` takes them.
        spike_input: see ``snnkern.nn.packed.SpikeInput``.
        event_driven: see ``snnkern.nn.packed.EventDriven``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[N, ..., features] -> [N, ..., K]``."""
        if self.spike_input is False:
            return super().forward(input)
        weight = self.weight  # read once: a parametrization makes it anew
        learns = torch.is_grad_enabled() and weight.requires_grad
        if not (learns or self._may_choose()):
            return F.linear(input, weight, self.bias)
        x, weight, bias = _autocast(input, weight, self.bias)
        batch = x if x.dim() > 1 else x.unsqueeze(0)
        if self.event_driven:
            batch = batch.contiguous()
        maps, positions = batch, 0
        if batch.is_contiguous() and batch.numel():
            maps = functional.features_as_maps(batch)
            positions = maps.shape[0] * maps.shape[2]
        look = self._look(maps, weight, 1, positions, POINT)

        def run() -> Tensor:
            if look.by_events:
                out = look.convolve(maps, weight, bias, POINT)
                return functional.maps_as_features(out, batch.shape)
            if look.packed is None:
                return F.linear(batch, weight, bias)
            dense: Tensor = PackedLinear.apply(batch, look.packed, weight, bias)
            return dense

        result = self._run(run, look.by_events)
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
        if events.is_transformed():
            return super().forward(input)
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
