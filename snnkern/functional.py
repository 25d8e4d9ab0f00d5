"""Spiking neurons as functions. Every argument error is raised here, alike for every device."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, overload

import torch
from torch import Tensor

from snnkern import _load, reference
from snnkern._checks import check_number
from snnkern.autograd import LIFConfig, LIFFunction
from snnkern.surrogate import KINDS, Surrogate, Triangle

Reset = Literal["hard", "soft", "delayed_soft", "none"]
Backend = Literal["reference", "cpu", "cuda", "triton"]
BACKENDS = ("reference", "cpu", "cuda", "triton")
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@overload
def lif(
    x: Tensor,
    leak: float | Tensor = ...,
    threshold: float | Tensor = ...,
    *,
    reset: Reset = ...,
    v_reset: float = ...,
    v_init: float | Tensor | None = ...,
    surrogate: Surrogate = ...,
    detach_reset: bool = ...,
    strict: bool = ...,
    return_state: Literal[False] = ...,
    backend: Backend | None = ...,
) -> Tensor: ...
@overload
def lif(
    x: Tensor,
    leak: float | Tensor = ...,
    threshold: float | Tensor = ...,
    *,
    reset: Reset = ...,
    v_reset: float = ...,
    v_init: float | Tensor | None = ...,
    surrogate: Surrogate = ...,
    detach_reset: bool = ...,
    strict: bool = ...,
    return_state: Literal[True],
    backend: Backend | None = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def lif(
    x: Tensor,
    leak: float | Tensor = ...,
    threshold: float | Tensor = ...,
    *,
    reset: Reset = ...,
    v_reset: float = ...,
    v_init: float | Tensor | None = ...,
    surrogate: Surrogate = ...,
    detach_reset: bool = ...,
    strict: bool = ...,
    return_state: bool,
    backend: Backend | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...


def lif(
    x: Tensor,
    leak: float | Tensor = 1.0,
    threshold: float | Tensor = 1.0,
    *,
    reset: Reset = "hard",
    v_reset: float = 0.0,
    v_init: float | Tensor | None = None,
    surrogate: Surrogate = Triangle(),  # noqa: B008  frozen
    detach_reset: bool = False,
    strict: bool = False,
    return_state: bool = False,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """A layer of leaky integrate-and-fire neurons over all its time steps, as one op.

    At every step ``t``, with the carried state ``u`` starting at ``v_init``::

        v = leak * u + x[t]              charge
        s[t] = 1 if v >= threshold else 0    fire
        u = v_reset if s[t] else v       reset="hard"
        u = v - threshold * s[t]         reset="soft"
        u = v                            reset="none", and reset="delayed_soft", where the next
                                         charge is leak * u + x[t + 1] - threshold * s[t]

    Args:
        x: input currents ``[T, N, ...]``, float16, bfloat16, float32 or float64, with any dense
            layout of the dimensions after the first; a time axis of stride 0 (a constant current)
            is read in place.
        leak: share of the state that a step keeps, in ``[0, 1]``; a number, a 0-d tensor, or one
            value per channel ``[C]`` (dimension 2 of ``x``). Tensors get gradients.
        threshold: above 0; a number or a tensor like ``leak``.
        reset: what happens after a spike, see above.
        v_reset: the state after a hard reset.
        v_init: the state before the first step: a number or a tensor of the shape of ``x[0]``; None
            is rest, 0. A delayed reset takes a state at or above the threshold for one that has
            just fired. Tensors get gradients.
        surrogate: the derivative of a spike, see ``snnkern.surrogate``.
        detach_reset: no gradient through the spike in the reset; the threshold in it still gets
            one.
        strict: fire at ``v > threshold`` instead of ``v >= threshold``.
        return_state: also return the final state.
        backend: None takes the fastest that is there for the device of ``x`` (``snnkern.info()``
            says which); ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"`` insist on one.

    Returns:
        Spikes, 0 or 1, of the shape, dtype and layout of ``x``; with ``return_state`` also the
        final state, of the shape of ``x[0]``, float32 (float64 for float64 input).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a value, shape or device that does not fit.
        RuntimeError: ``backend`` cannot run here; the message says why.

    The state is float32 for half types too. The values of parameters that are tensors are not
    checked under torch.compile, which cannot look at them.

    NaN in ``x`` never fires; the neuron stays NaN until the end, its neighbours do not notice. An
    infinite current fires, and a hard reset brings the neuron back; with a soft reset it fires on.
    The gradient of a neuron that saw NaN or inf is not defined, nor that of a parameter it shares.
    """
    _check_x(x)
    if reset not in reference.RESETS:
        raise ValueError(f"reset is {reset!r}, expected one of {', '.join(reference.RESETS)}")
    if not isinstance(surrogate, Surrogate):
        raise TypeError(
            f"surrogate is {surrogate!r} of type {type(surrogate).__name__}, expected a "
            "snnkern.surrogate.Surrogate such as snnkern.surrogate.Triangle()"
        )
    for name, flag in (
        ("detach_reset", detach_reset),
        ("strict", strict),
        ("return_state", return_state),
    ):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is {flag!r} of type {type(flag).__name__}, expected a bool")
    check_number("v_reset", v_reset)
    config = LIFConfig(
        v_reset=float(v_reset),
        reset=reference.RESETS.index(reset),
        strict=strict,
        return_state=return_state,
        detach_reset=detach_reset,
        surrogate=KINDS.index(surrogate.kind),
        surrogate_args=surrogate.args,
        normalized=surrogate.normalized,
        overload=_overload(backend, x),
    )
    spikes, state = LIFFunction.apply(
        x,
        _parameter("leak", leak, x),
        _parameter("threshold", threshold, x),
        _state("v_init", v_init, x),
        config,
    )
    return (spikes, state) if return_state else spikes


def _check_x(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x is of type {type(x).__name__}, expected a torch.Tensor [T, N, ...]")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"x has dtype {x.dtype}, expected float16, bfloat16, float32 or float64")
    if x.layout != torch.strided:
        raise TypeError(f"x has layout {x.layout}, expected a dense tensor (torch.strided)")
    if x.dim() < 2:
        raise ValueError(
            f"x has shape {list(x.shape)}, expected [T, N, ...]: time first, then the batch"
        )
    if 0 in x.shape:
        what = "time steps" if x.shape[0] == 0 else "samples" if x.shape[1] == 0 else "neurons"
        raise ValueError(f"x has shape {list(x.shape)} and so no {what}, expected at least one")


RANGES: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "leak": ("in [0, 1]", lambda low, high: low >= 0 and high <= 1),
    "threshold": ("finite and above 0", lambda low, high: low > 0 and high < math.inf),
}


def check_parameter(name: str, value: float | Tensor) -> None:
    """Raises ValueError unless a neuron can have every value of its ``leak`` or ``threshold``."""
    expected, fits = RANGES[name]
    if not isinstance(value, Tensor):
        low = high = value
    elif value.numel() == 1:
        low = high = value.item()
    else:
        low, high = (bound.item() for bound in torch.aminmax(value.detach()))
    if not fits(low, high):
        shown = low if low == high or low != low else f"between {low} and {high}"
        raise ValueError(f"{name} is {shown}, expected {expected}")


@lru_cache(maxsize=256)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)


def _parameter(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    dtype = reference.state_dtype(x.dtype)
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(
                f"{name} is {value!r} of type {type(value).__name__}, expected a number or a tensor"
            )
        check_parameter(name, value)
        if torch.compiler.is_compiling():
            return torch.full((), value, dtype=dtype, device=x.device)
        return _constant(float(value), dtype, x.device)
    if not value.is_floating_point():
        raise TypeError(f"{name} has dtype {value.dtype}, expected a floating-point tensor")
    if value.dtype == torch.float64 and dtype != torch.float64:
        raise TypeError(
            f"{name} has dtype float64 and x has {x.dtype}: pass {name} as float32, or x as float64"
        )
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, expected {x.device} like x")
    channels = x.shape[2] if x.dim() > 2 else None
    if value.dim() > 1 or (value.dim() == 1 and value.shape[0] != channels):
        allowed = "[]" if channels is None else f"[] or [{channels}] (one value per channel of x)"
        raise ValueError(f"{name} has shape {list(value.shape)}, expected {allowed}")
    if not torch.compiler.is_compiling():
        check_parameter(name, value)
    return value.to(dtype).contiguous()


def _state(name: str, value: float | Tensor | None, x: Tensor) -> Tensor | None:
    if value is None:
        return None
    dtype = reference.state_dtype(x.dtype)
    if not isinstance(value, Tensor):
        check_number(name, value)
        return torch.full(x.shape[1:], value, dtype=dtype, device=x.device)
    if value.dtype not in (dtype, x.dtype):
        raise TypeError(f"{name} has dtype {value.dtype}, expected {dtype}, the dtype of the state")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, expected {x.device} like x")
    if value.shape != x.shape[1:]:
        raise ValueError(
            f"{name} has shape {list(value.shape)}, expected {list(x.shape[1:])}, that of x[0]"
        )
    return value.to(dtype)


def why_not(backend: str, device: torch.device) -> str:
    """Why ``backend`` cannot run on ``device``; empty where it can."""
    if backend == "reference":
        return ""
    if backend == "cpu":
        if device.type != "cpu":
            return f"the tensor is on {device}"
        return _load.why_not
    if backend == "cuda":
        return "this version has no CUDA kernels"
    return "this version has no Triton kernels"


def _overload(backend: str | None, x: Tensor) -> str:
    if backend is None:
        return "default"
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected None or one of {', '.join(BACKENDS)}")
    if reason := why_not(backend, x.device):
        raise RuntimeError(
            f"backend is {backend!r}, which cannot run here: {reason}. backend=None takes what is "
            "there"
        )
    return "reference" if backend == "reference" else "default"
