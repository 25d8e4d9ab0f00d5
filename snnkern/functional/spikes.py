"""Spikes as bits, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snnkern.functional import backends
from snnkern.functional.backends import Backend
from snnkern.functional.checks import SPIKE_DTYPES, captured, check_x


def pack_spikes(spikes: Tensor, *, backend: Backend | None = None) -> Tensor:
    """Spikes as bits: 1/32 of the memory of float32. ``unpack_spikes`` gives them back.

    The format is that of ``lif(..., spike_format="bits")``.

    Args:
        spikes: ``[T, N, ...]``, all 0 or 1, in any layout; floating point, uint8 or bool.
        backend: see ``lif``.

    Returns:
        uint8 ``[T, ceil(neurons / 8)]``. The neurons of a step stand in the order in which they lie
        in memory (that of the dimensions where a step is not dense), the first in the lowest bit of
        the first byte; what is left of the last byte is 0.

    Raises:
        TypeError: ``spikes`` is no such tensor.
        ValueError: a value other than 0 and 1 (a RuntimeError of the running graph under
            torch.compile and in a CUDA graph, which cannot look at values), a tensor without a
            batch or without elements, or one that requires a gradient.
        RuntimeError: ``backend`` cannot run here.
    """
    check_x(spikes, "spikes", SPIKE_DTYPES)
    if spikes.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "spikes requires a gradient, expected spikes.detach(): bits cannot be differentiated"
        )
    packed, stray = getattr(torch.ops.snnkern.pack_spikes, backends.overload_for(backend, spikes))(
        spikes
    )
    if torch.compiler.is_compiling() or captured(spikes):
        torch._assert_async(stray == 0, "spikes has a value other than 0 and 1")
    elif (value := stray.item()) != 0:
        raise ValueError(f"spikes has the value {value:g}, expected 0 and 1 alone")
    result: Tensor = packed
    return result


def pack_if_spikes(x: Tensor) -> Tensor | None:
    """``pack_spikes(x)``, or None where ``x`` has a value other than 0 and 1.

    Looks at values: on a GPU it waits for them, and torch.compile cannot trace it.
    """
    check_x(x, dtypes=SPIKE_DTYPES)
    with torch.no_grad():
        packed, stray = torch.ops.snnkern.pack_spikes(x)
    return packed if stray.item() == 0 else None


def pack_nonzero(x: Tensor) -> Tensor:
    """Where ``x`` is not zero, as bits; see ``pack_spikes``."""
    return pack_spikes(x.detach() != 0)


def unpack_spikes(
    packed: Tensor,
    like: Tensor | Sequence[int],
    dtype: torch.dtype | None = None,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Spikes ``[T, N, ...]`` from the bits of ``pack_spikes`` or ``lif(spike_format="bits")``.

    Args:
        packed: uint8 ``[T, ceil(neurons / 8)]``.
        like: a tensor of the shape and layout of the spikes, such as the input of ``lif``; or their
            shape, for contiguous ones.
        dtype: floating point, uint8 or bool; by default that of ``like``, float32 for a shape.
        backend: see ``lif``.

    Returns:
        Zeros and ones; the steps lie as those of ``like`` do.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: ``packed`` has another shape or device than the bits of ``like``.
        RuntimeError: ``backend`` cannot run here.
    """
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
        kind = f"dtype {packed.dtype}" if isinstance(packed, Tensor) else repr(packed)
        raise TypeError(f"packed is {kind}, expected a uint8 tensor [T, ceil(neurons / 8)]")
    if not isinstance(like, Tensor):
        like = torch.empty(tuple(like), dtype=torch.float32, device="meta")
    elif like.device != packed.device:
        raise ValueError(f"packed is on {packed.device}, expected {like.device} like `like`")
    dtype = like.dtype if dtype is None else dtype
    if dtype not in SPIKE_DTYPES:
        raise TypeError(f"dtype is {dtype}, expected a floating-point type, uint8 or bool")
    check_x(like, "like", (like.dtype,))
    neurons = like[0].numel()
    if packed.shape != (like.shape[0], (neurons + 7) // 8):
        raise ValueError(
            f"packed has shape {list(packed.shape)}, expected "
            f"{[like.shape[0], (neurons + 7) // 8]} for spikes {list(like.shape)}"
        )
    op = getattr(torch.ops.snnkern.unpack_spikes, backends.overload_for(backend, packed))
    spikes: Tensor = op(packed.contiguous(), like.shape, like.stride(), dtype)
    return spikes
