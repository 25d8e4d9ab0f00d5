"""What several test files share: golden data, backends, layouts, comparisons."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnkern import functional
from snnkern.surrogate import (
    ATan,
    Erf,
    Exponential,
    FastSigmoid,
    Rate,
    Rectangle,
    Sigmoid,
    StraightThrough,
    Surrogate,
    Triangle,
)

RESETS: tuple[functional.Reset, ...] = ("hard", "soft", "delayed_soft", "none")
BACKENDS: tuple[functional.Backend, ...] = ("reference", "cpu", "triton")
RUNNABLE = tuple(name for name in BACKENDS if not functional.why_not(name, torch.device("cpu")))
# Backends of the GPU, which `lif` and `norm_lif` below bring the tensors to and back from.
GPU_BACKENDS = tuple(
    name
    for name in ("cuda", "triton")
    if torch.cuda.is_available() and not functional.why_not(name, torch.device("cuda"))
)
# Where there is no GPU, the CUDA kernels are run on the host, see conftest.
ON_HOST = () if GPU_BACKENDS else ("cuda_on_host",)
COMPILED = (*(name for name in RUNNABLE if name != "reference"), *ON_HOST, *GPU_BACKENDS)
EVERY_BACKEND = ("reference", *COMPILED)


def _copy_to(t: Tensor, device: torch.device) -> Tensor:
    """A copy of ``t`` that lies in memory like it, whatever its strides."""
    elements = t.untyped_storage().nbytes() // t.element_size()
    storage = t.detach().as_strided((elements,), (1,), 0).to(device)
    return storage.as_strided(t.shape, t.stride(), t.storage_offset())


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, device: torch.device) -> Tensor:
        ctx.home = t.device
        return _copy_to(t, device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _copy_to(grads[0], ctx.home), None


def _on_gpu(call: Callable[..., Any], values: dict[str, Any]) -> Any:
    """The call with its tensors on the GPU, and its results brought back."""
    gpu = torch.device("cuda")
    moved = {n: _Moved.apply(t, gpu) for n, t in values.items() if isinstance(t, Tensor)}
    versions = {name: t._version for name, t in moved.items()}
    outputs = call(**values | moved)
    for name, t in moved.items():  # running statistics change in place
        if t._version != versions[name]:
            values[name].copy_(t)
    if isinstance(outputs, Tensor):
        return _Moved.apply(outputs, torch.device("cpu"))
    return tuple(_Moved.apply(t, torch.device("cpu")) for t in outputs)


def _everywhere(name: str) -> Callable[..., Any]:
    """A function of snnkern.functional that takes tensors on the CPU for every backend."""
    signature = inspect.signature(getattr(functional, name))

    def call(*arguments: Any, **options: Any) -> Any:
        function = getattr(functional, name)
        backend = options.get("backend")
        if backend in GPU_BACKENDS:
            return _on_gpu(function, signature.bind(*arguments, **options).arguments)
        return function(*arguments, **options)

    return call


# For tests: also with unpacked arguments, which no overload matches.
lif = _everywhere("lif")
norm_lif = _everywhere("norm_lif")
pack_spikes = _everywhere("pack_spikes")
unpack_spikes = _everywhere("unpack_spikes")
interval_lif = _everywhere("interval_lif")
relax_lif = _everywhere("relax_lif")


def through(layer: torch.nn.Module, x: Tensor) -> Any:
    """What the layer gives for an ``x`` on the CPU, for every backend."""
    if layer.backend not in GPU_BACKENDS:
        return layer(x)

    def call(x: Tensor, **parameters: Tensor) -> Any:
        return torch.func.functional_call(layer, parameters, (x,))

    return _on_gpu(call, {"x": x} | dict(layer.named_parameters()))


# With a derivative at a point, that is, all but Rate; narrow and wide, and of another height.
POINTWISE: tuple[Surrogate, ...] = (
    Triangle(),
    Triangle(0.5, scale=0.3),
    Rectangle(),
    Rectangle(2.0, scale=0.7),
    Exponential(),
    Exponential(0.3, slope=2.0),
    ATan(),
    Sigmoid(),
    Sigmoid(alpha=10.0),
    FastSigmoid(),
    Erf(),
    Erf(alpha=5.0),
    StraightThrough(),
)
SURROGATES = (*POINTWISE, Rate())

LAYOUTS = (
    "contiguous",
    "channels_last",
    "batch_last",
    "reversed",
    "padded",
    "constant",
    "constant padded",
    "every other step",
    "batch first",
    "time last",
    "one sample for all",
)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@lru_cache
def golden(name: str) -> dict[str, NDArray[Any]]:
    """The arrays of one file of golden data."""
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        return dict(file)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def raw_neuron(
    leak: Tensor,
    threshold: Tensor,
    v_init: Tensor | None = None,
    *,
    v_reset: float = 0.0,
    reset: int = 0,
    strict: bool = False,
) -> tuple[Any, ...]:
    """What describes a plain LIF layer to the raw ops, behind ``x``."""
    dynamics = (0, 0.0, 1.0, 0, reset, v_reset, strict, False)
    return (0, leak, threshold, None, v_init, None, *dynamics)


def state_like(x: Tensor, value: Tensor) -> Tensor:
    """``value`` in the dtype that the state has for ``x``."""
    return value.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """``x`` in another layout. A tensor that repeats itself keeps only its first part of ``x``."""
    if layout == "channels_last":
        return x.movedim(min(2, x.dim() - 1), -1).contiguous().movedim(-1, min(2, x.dim() - 1))
    if layout == "batch_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "reversed":
        order = (0, *range(x.dim() - 1, 0, -1))
        return x.permute(order).contiguous().permute(order)
    if layout == "padded":
        wider = x.new_zeros(*x.shape[:-1], x.shape[-1] + 3)
        wider[..., 1:-2] = x
        return wider[..., 1:-2]
    if layout == "constant":
        return x[:1].expand(x.shape)
    if layout == "constant padded":
        return laid_out(x, "padded")[:1].expand(x.shape)
    if layout == "every other step":
        return x.repeat_interleave(2, 0)[::2]
    if layout == "batch first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "time last":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "one sample for all":
        return x[:, :1].expand(x.shape)
    assert layout == "contiguous"
    return x.contiguous()


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Equal in every bit, the sign of zero included; what a NaN carries does not count."""
    assert actual.dtype == expected.dtype, what
    assert actual.shape == expected.shape, what
    bits = BITS[actual.element_size()]
    different = actual.contiguous().view(bits) != expected.contiguous().view(bits)
    different &= ~(actual.isnan() & expected.isnan())
    if different.any():
        first = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(different.sum())} of {different.numel()} differ, the first at {first}: "
            f"{actual[first].item()!r}, expected {expected[first].item()!r}"
        )


def assert_within(
    actual: Tensor, expected: Tensor, allowed: Tensor | float, what: str = ""
) -> None:
    """Every element no further off than ``allowed``, and none of them NaN."""
    assert actual.shape == expected.shape, what
    error = (actual.double() - expected.double()).abs()
    error = torch.where(actual == expected, 0, error)  # infinities too
    allowed = torch.as_tensor(allowed, dtype=torch.float64).expand(error.shape)
    wrong = ~(error <= allowed)
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} are off by more than allowed, "
            f"the first at {first}: {actual[first].item()!r}, expected "
            f"{expected[first].item()!r} within {allowed[first].item():.3g}"
        )


def lacks(what: str, why: str) -> NoReturn:
    """Skips what needs something that a developer's machine lacks, and fails in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have {what}: {why}")
    pytest.skip(f"{what} is not there: {why}", allow_module_level=True)


def need(module: str) -> Any:
    """A module of another package, whose warnings are its own; see ``lacks``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return import_module(module)
        except ImportError as error:
            lacks(module, f"{error}; make test installs requirements.txt and -peers.txt")


def leave() -> NoReturn:
    """Ends a process of a distributed test that went well.

    None leaves while another still talks to it. And none runs destructors: those of gloo's threads
    abort a process now and then.
    """
    torch.distributed.barrier()
    os._exit(0)
