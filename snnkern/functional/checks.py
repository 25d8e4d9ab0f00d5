"""Checks of arguments: inputs, parameters and states, and the values of tensors."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, MutableMapping
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

from snnkern import reference
from snnkern._checks import check_number
from snnkern._layout import step_strides

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SPIKE_DTYPES = (*FLOAT_DTYPES, torch.uint8, torch.bool)


def _check_dense(name: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} has {kind}, expected a dense tensor (torch.strided)")


def check_x(x: Tensor, name: str = "x", dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES) -> None:
    """Raises unless ``x`` is a dense ``[T, N, ...]`` of one of the dtypes, and not empty."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} is of type {type(x).__name__}, expected a torch.Tensor [T, N, ...]"
        )
    if x.dtype not in dtypes:
        *most, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} has dtype {x.dtype}, expected {', '.join(most)} or {last}")
    _check_dense(name, x)
    if x.dim() < 2:
        raise ValueError(
            f"{name} has shape {list(x.shape)}, expected [T, N, ...]: time first, then the batch"
        )
    if 0 in x.shape:
        what = "time steps" if x.shape[0] == 0 else "samples" if x.shape[1] == 0 else "neurons"
        raise ValueError(
            f"{name} has shape {list(x.shape)} and so no {what}, expected at least one"
        )


RANGES: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "leak": ("in [0, 1]", lambda low, high: low >= 0 and high <= 1),
    "rate": ("in [0, 1]", lambda low, high: low >= 0 and high <= 1),
    "synapse_decay": ("in [0, 1]", lambda low, high: low >= 0 and high <= 1),
    "tau": ("finite and at least 1", lambda low, high: low >= 1 and high < math.inf),
    "threshold": ("finite and above 0", lambda low, high: low > 0 and high < math.inf),
}


def check_parameter(name: str, value: float | Tensor) -> None:
    """Raises ValueError unless a neuron can have every value of its parameter ``name``."""
    expected, fits = RANGES[name]
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(
                f"{name} is {value!r} of type {type(value).__name__}, expected a number or a tensor"
            )
        low = high = value
    elif value.numel() == 1:
        low = high = value.item()
    else:
        low, high = (bound.item() for bound in torch.aminmax(value.detach()))
    if not fits(low, high):
        shown = low if low == high or low != low else f"between {low} and {high}"
        raise ValueError(f"{name} is {shown}, expected {expected}")


# Names that tensors on a GPU were looked at for, and the version that was.
_seen: MutableMapping[Tensor, dict[str, int]] = WeakTensorKeyDictionary()


def waits_for_device(value: Tensor) -> bool:
    """Whether a look at the values of a tensor waits for its device."""
    return value.is_cuda


def captured(t: Tensor) -> bool:
    """Whether a CUDA graph captures what is done with a tensor."""
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def check_values(name: str, value: Tensor) -> None:
    """``check_parameter`` as often as values may have changed.

    On a GPU a look waits for the device. So a tensor is looked at once for every version of it, and
    not at all where a module keeps it within its bounds or a CUDA graph captures the call.
    """
    if not waits_for_device(value):
        check_parameter(name, value)
        return
    versions = _seen.setdefault(value, {})
    if (
        versions.get(name) == value._version
        or getattr(value, "within_bounds", False)
        or captured(value)
    ):
        return
    check_parameter(name, value)
    versions[name] = value._version


def check_representable(name: str, value: float, dtype: torch.dtype) -> None:
    """Raises ValueError where the state's dtype turns a number into infinity, or into 0."""
    limits = torch.finfo(dtype)
    if abs(value) > limits.max or 0 < abs(value) < limits.smallest_normal * limits.eps:
        raise ValueError(f"{name} is {value!r}, expected a number that {dtype} can hold")


@lru_cache(maxsize=256)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # kept for calls that save it for backward
        return torch.full((), value, dtype=dtype, device=device)


def as_parameter(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """A checked parameter of the neurons that see ``x``, as the op takes it."""
    dtype = reference.state_dtype(x.dtype)
    if not isinstance(value, Tensor):
        check_parameter(name, value)
        check_representable(name, value, dtype)
        # What is made in a trace, for a CUDA graph, or under a mode that makes its own is not kept.
        if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None or captured(x):
            return torch.full((), value, dtype=dtype, device=x.device)
        return _constant(float(value), dtype, x.device)
    _check_dense(name, value)
    if not value.is_floating_point():
        raise TypeError(f"{name} has dtype {value.dtype}, expected a floating-point tensor")
    if value.dtype == torch.float64 and dtype != torch.float64:
        raise TypeError(
            f"{name} has dtype float64 and x has {x.dtype}: pass {name} as float32, or x as float64"
        )
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, expected {x.device} like x")
    channels = x.shape[2] if x.dim() > 2 else None
    per_channel = value.dim() == 1 and value.shape[0] == channels
    per_neuron = value.shape == x.shape[2:] and value.dim() > 0
    if value.dim() > 0 and not per_channel and not per_neuron:
        allowed = "[]"
        if channels is not None:
            allowed += f" or [{channels}] (one per channel of x)"
        if x.dim() > 3:
            allowed += f" or {list(x.shape[2:])} (one per neuron)"
        raise ValueError(f"{name} has shape {list(value.shape)}, expected {allowed}")
    if not torch.compiler.is_compiling():
        check_values(name, value)
    value = value.to(dtype)
    if per_neuron and not per_channel:
        # One for every neuron of the batch, where the kernel finds it beside the neuron.
        value = value.expand(x.shape[1:])
        return torch.empty_strided(
            value.shape, step_strides(x), dtype=dtype, device=x.device
        ).copy_(value)
    return value.contiguous()


def as_state(name: str, value: float | Tensor | None, x: Tensor) -> Tensor | None:
    """A checked state before the first step, as the op takes it; None where all are 0."""
    if value is None:
        return None
    dtype = reference.state_dtype(x.dtype)
    if not isinstance(value, Tensor):
        check_number(name, value)
        check_representable(name, value, dtype)
        if value == 0:  # where they start without being told
            return None
        return torch.full(x.shape[1:], value, dtype=dtype, device=x.device)
    _check_dense(name, value)
    if value.dtype not in (dtype, x.dtype):
        raise TypeError(f"{name} has dtype {value.dtype}, expected {dtype}, the dtype of the state")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, expected {x.device} like x")
    if value.shape != x.shape[1:]:
        raise ValueError(
            f"{name} has shape {list(value.shape)}, expected {list(x.shape[1:])}, that of x[0]"
        )
    return value.to(dtype)
