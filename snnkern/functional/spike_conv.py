"""Convolutions and linear layers of spikes by their events."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from snnkern._checks import check_int
from snnkern.autograd import POINT, Geometry, SpikeConv2d
from snnkern.functional import backends
from snnkern.functional.backends import Backend
from snnkern.functional.spikes import pack_spikes


def as_kernel(weight: Tensor) -> Tensor:
    """The weight of a convolution; that of a linear layer as one of 1x1."""
    return weight if weight.dim() == 4 else weight[:, :, None, None]


# Numbers of a row: their sums stay in registers, and 64 rows, for which one word of channels says
# whether they are active, in the first cache of a core.
ROW = 96


def spike_block(weight: Tensor, geometry: Geometry) -> int:
    """How many outputs of a convolution ``[K, C, H, W]`` have their weights in rows together.

    Where an input is seen by neighbouring outputs, a row has the weights of all columns of the
    kernel; else those of one.
    """
    stride, _, dilation = geometry
    together = weight.shape[3] if stride[1] == dilation[1] == 1 else 1
    most = max(16, ROW // together // 16 * 16)
    return min(most, -(-weight.shape[0] // 16) * 16)


# Weights as rows, beside what tells that they were made of other values.
_rows: MutableMapping[Tensor, tuple[tuple[int, ...], Tensor]] = WeakTensorKeyDictionary()


def _state_of(weight: Tensor) -> tuple[int, ...]:
    """Version, place, and what the bits of a tensor are known by.

    To look at them takes a hundredth of what a layer does. Without it fused optimisers, and whoever
    writes through ``weight.data``, would go unnoticed: they make no new version.
    """
    bits = weight.detach().view(torch.int32 if weight.dtype == torch.float32 else torch.int16)
    known_by = int(torch.ops.snnkern.fingerprint(bits.contiguous()))
    return weight._version, weight.data_ptr(), known_by


def spike_rows(weight: Tensor, geometry: Geometry, overload: str = "default") -> Tensor:
    """The weight of a convolution or linear layer as ``spike_conv2d`` reads it, in float32.

    Made when its values are others than before, and kept as long as it lives.
    """

    def make() -> Tensor:
        kernel = as_kernel(weight.detach()).float().contiguous()
        rows: Tensor = getattr(torch.ops.snnkern.spike_rows, overload)(kernel, block)
        return rows

    block = spike_block(as_kernel(weight), geometry)

    with torch.no_grad():
        if torch.compiler.is_compiling() or weight.is_inference():
            return make()
        state = *_state_of(weight), block
        kept = _rows.get(weight)
        if kept is None or kept[0] != state:
            kept = state, make()
            _rows[weight] = kept
    return kept[1]


def _pair(name: str, value: int | Sequence[int], at_least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise ValueError(f"{name} is {value!r}, expected an int or two of them")
    for one in pair:
        check_int(name, one, at_least)
    return pair


def spike_conv2d(
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    like: Tensor | Sequence[int] | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """``torch.nn.functional.conv2d`` of spikes, on the CPU by their events.

    Where an input is active, a row of the weight is added to the outputs that see it; nothing is
    done where it is not. The gradient of the weight is summed from rows of the output's gradient in
    the same way (where stride and dilation are 1, else densely); that of the input is dense. Sums
    are made in float32, in an order that does not depend on the number of threads. On a GPU it is
    the dense convolution.

    Args:
        spikes: ``[N, C, H, W]``, all 0 or 1, floating point, uint8 or bool; or with ``like`` their
            bits, as ``pack_spikes`` gives them, for which there is no gradient.
        weight: ``[K, C, kernel height, kernel width]``, float32 or bfloat16.
        bias: ``[K]``.
        stride: an int, or one for height and one for width.
        padding: zeros at each border, like ``stride``.
        dilation: like ``stride``.
        like: a tensor of the shape and layout of the spikes, or their shape.
        backend: ``"reference"`` for the dense convolution; see ``lif``.

    Returns:
        ``[N, K, H', W']`` of the dtype of ``weight``, channels last in memory.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a value other than 0 and 1, or shapes that do not fit.
        RuntimeError: ``backend`` cannot run here.
    """
    if isinstance(weight, Tensor) and (weight.dim() != 4 or 0 in weight.shape):
        raise ValueError(
            f"weight has shape {list(weight.shape)}, expected [K, C, height, width], none of them 0"
        )
    return _spike_conv2d(spikes, weight, bias, stride, padding, dilation, like, backend)


def _spike_conv2d(
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    like: Tensor | Sequence[int] | None,
    backend: Backend | None,
) -> Tensor:
    """The same for the weight of a linear layer too."""
    if not isinstance(weight, Tensor) or weight.dtype not in (torch.float32, torch.bfloat16):
        kind = f"dtype {weight.dtype}" if isinstance(weight, Tensor) else repr(weight)
        raise TypeError(f"weight is {kind}, expected a float32 or bfloat16 tensor")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {list(bias.shape)}, expected {[weight.shape[0]]}")
    geometry = (
        _pair("stride", stride, 1),
        _pair("padding", padding, 0),
        _pair("dilation", dilation, 1),
    )
    x = spikes if like is None else _like_of(spikes, like)
    if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != weight.shape[1]:
        shown = f"shape {list(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ValueError(
            f"spikes has {shown}, expected [N, {weight.shape[1]}, H, W] as weight "
            f"{list(weight.shape)} has it"
        )
    kernel = as_kernel(weight).shape[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, geometry[2], strict=True)]
    if any(
        extent + 2 * p < r for extent, p, r in zip(x.shape[2:], geometry[1], reach, strict=True)
    ):
        raise ValueError(
            f"spikes has maps of {list(x.shape[2:])} and padding is {list(geometry[1])}, expected "
            f"at least the {reach} that the kernel reaches over"
        )
    if like is None:
        x = maps_in_order(x)
        packed = pack_spikes(x.detach(), backend=backend)
    else:
        packed = spikes.contiguous()
    return convolve_packed(
        x, packed, weight, bias, geometry, backends.overload_for(backend, packed)
    )


def _like_of(packed: Tensor, like: Tensor | Sequence[int]) -> Tensor:
    """A tensor without values of the shape and layout of spikes that are given as bits."""
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
        kind = f"dtype {packed.dtype}" if isinstance(packed, Tensor) else repr(packed)
        raise TypeError(f"spikes is {kind}, expected the uint8 bits of pack_spikes beside like")
    shape = tuple(like.shape if isinstance(like, Tensor) else like)
    x = torch.empty(shape, dtype=torch.float32, device="meta")
    if isinstance(like, Tensor):
        x = torch.empty_strided(shape, like.stride(), dtype=torch.float32, device="meta")
    if maps_in_order(x) is not x:
        raise ValueError(
            f"like has strides {list(x.stride())} for shape {list(shape)}, expected channels first "
            "or last in memory"
        )
    expected = [shape[0], (x[0].numel() + 7) // 8]
    if list(packed.shape) != expected:
        raise ValueError(
            f"spikes has shape {list(packed.shape)}, expected {expected} for spikes {list(shape)}"
        )
    return x


def maps_in_order(x: Tensor) -> Tensor:
    """``[N, C, H, W]`` with channels first or last in memory: itself where it is, else a copy."""
    if any(
        x.is_contiguous(memory_format=order)
        for order in (torch.contiguous_format, torch.channels_last)
    ):
        return x
    return x.contiguous()


def convolve_packed(
    x: Tensor,
    packed: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    overload: str = "default",
    *,
    graded: bool = False,
) -> Tensor:
    """``spike_conv2d`` of ``x`` by its bits, past all checks, or ``spike_linear`` of maps.

    Where ``graded``, ``x`` has any values, and its bits are those of ``pack_nonzero``.
    """
    rows = spike_rows(weight, geometry, overload)
    result: Tensor = SpikeConv2d.apply(
        x, packed, graded, rows, as_kernel(weight), bias, geometry, overload
    )
    return result


def spike_linear(
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    like: Tensor | Sequence[int] | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """``torch.nn.functional.linear`` of spikes ``[N, ..., features]``, on the CPU by their events.

    A convolution by a kernel of 1x1; all else as for ``spike_conv2d``.

    Args:
        spikes: ``[N, ..., features]``, or with ``like`` their bits.
        weight: ``[K, features]``.
        bias: ``[K]``.
        like: their shape, or a contiguous tensor of it.
        backend: see ``spike_conv2d``.

    Returns:
        ``[N, ..., K]``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a value other than 0 and 1, or shapes that do not fit.
        RuntimeError: ``backend`` cannot run here.
    """
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        kind = f"shape {list(weight.shape)}" if isinstance(weight, Tensor) else repr(weight)
        raise ValueError(f"weight has {kind}, expected [K, features]")
    given = spikes if like is None else like
    shape = tuple(given.shape if isinstance(given, Tensor) else given)
    if len(shape) < 2 or shape[-1] != weight.shape[1] or 0 in (*shape, *weight.shape):
        raise ValueError(
            f"spikes has shape {list(shape)}, expected [N, ..., {weight.shape[1]}] as weight "
            f"{list(weight.shape)} has it, and neither empty"
        )
    if like is not None:
        like = features_as_maps(torch.empty(shape, dtype=torch.float32, device="meta"))
    maps = spikes if like is not None else features_as_maps(spikes)
    out = _spike_conv2d(maps, weight, bias, *POINT, like, backend)
    return maps_as_features(out, shape)


def features_as_maps(x: Tensor) -> Tensor:
    """``[N, ..., features]`` as ``[N, features, positions, 1]``, channels last."""
    return x.reshape(x.shape[0], -1, x.shape[-1], 1).transpose(1, 2)


def maps_as_features(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """``[N, K, positions, 1]`` as ``[N, ..., K]`` for features of this shape."""
    return maps.transpose(1, 2).reshape(*shape[:-1], maps.shape[1])
