"""The ops: schemas, fakes and the reference kernels. The only torch.library code.

Every op exists three times with one schema: the default overload, for which the dispatcher picks
the compiled kernel of the tensor's device and, where there is none, the reference; ``.reference``;
and ``.triton``, which torch.compile looks through to the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._library.triton import set_wrap_triton_enabled
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

from snnkern import (
    _load,
    _triton,
    reference,
)
from snnkern._layout import empty_rows, empty_spikes, empty_step, empty_steps, empty_steps_of

TENSORS = (
    "Tensor decay, Tensor threshold, Tensor? synapse_decay, Tensor? v_init, Tensor? current_init"
)
OPTIONS = (
    "int charge, float v_rest, float gain, int synapse, int reset, float v_reset, bool strict, "
    "bool delayed_spike"
)
GRADIENTS = "Tensor grad_spikes, Tensor? grad_state, Tensor? grad_current"
SURROGATE = (
    "bool detach_reset, int surrogate, float[] surrogate_args, bool normalized, "
    "Tensor? surrogate_table, Tensor? derivatives"
)
NEURON_GRADIENTS = (
    "Tensor grad_decay, Tensor grad_threshold, Tensor grad_synapse_decay, Tensor grad_v_init, "
    "Tensor grad_current_init"
)
BOUNDED = "Tensor decay, Tensor threshold, float v_init, int reset, float v_reset, bool strict"
SCHEMAS = {
    "lif_forward": f"(Tensor x, int timesteps, {TENSORS}, {OPTIONS}, int spike_format, "
    "bool return_state) -> (Tensor spikes, Tensor state, Tensor current)",
    "lif_backward": f"({GRADIENTS}, Tensor x, int timesteps, {TENSORS}, {OPTIONS}, {SURROGATE}, "
    f"bool parameter_gradients) -> (Tensor grad_x, {NEURON_GRADIENTS})",
    "norm_lif_forward": f"(Tensor x, Tensor scale, Tensor shift, {TENSORS}, {OPTIONS}, "
    "int spike_format, bool return_state) -> (Tensor spikes, Tensor state, Tensor current)",
    "norm_lif_backward": f"({GRADIENTS}, Tensor x, Tensor scale, Tensor shift, Tensor mean, "
    f"{TENSORS}, {OPTIONS}, {SURROGATE}, bool parameter_gradients, bool sums) "
    f"-> (Tensor grad_x, Tensor sum, Tensor dot, {NEURON_GRADIENTS})",
    "norm_backward_": "(Tensor(a!) g, Tensor x, Tensor mean, Tensor from_g, Tensor from_x, "
    "Tensor constant) -> ()",
    "channel_moments": "(Tensor x, Tensor centre) -> (Tensor sum, Tensor square)",
    "pack_spikes": "(Tensor spikes) -> (Tensor packed, Tensor stray)",
    "unpack_spikes": "(Tensor packed, SymInt[] size, SymInt[] stride, ScalarType dtype) -> Tensor",
    "count_spikes": "(Tensor packed) -> Tensor",
    "fingerprint": "(Tensor words) -> Tensor",
    "spike_rows": "(Tensor weight, int block) -> Tensor",
    "spike_conv2d": "(Tensor packed, Tensor? values, SymInt[] size, SymInt[] strides, Tensor rows, "
    "Tensor? bias, SymInt out_channels, int[] stride, int[] padding, int[] dilation) -> Tensor",
    "spike_conv2d_lif": "(Tensor packed, int timesteps, int[] size, int[] pool, Tensor rows, "
    f"Tensor bias, Tensor? current, int[] stride, int[] padding, int[] dilation, {TENSORS}, "
    f"{OPTIONS}) -> Tensor",
    "spike_conv2d_weight": "(Tensor grad, Tensor packed, Tensor? values, SymInt[] size, "
    "SymInt[] strides, SymInt[] kernel, int[] padding, int block) -> Tensor",
    "rate_code": "(Tensor x, Tensor seed, int timesteps, int coding) -> Tensor",
    "interval_lif_forward": f"(Tensor lower, Tensor upper, {BOUNDED}, bool return_membranes) -> "
    "(Tensor spikes_lower, Tensor spikes_upper, Tensor v_lower, Tensor v_upper)",
    "interval_lif_backward": "(Tensor grad_spikes_lower, Tensor grad_spikes_upper, "
    f"Tensor? grad_v_lower, Tensor? grad_v_upper, Tensor lower, Tensor upper, {BOUNDED}, "
    "int surrogate, float[] surrogate_args, bool normalized, bool parameter_gradients) -> "
    "(Tensor grad_lower, Tensor grad_upper, Tensor grad_decay, Tensor grad_threshold)",
    "relax_lif": f"(Tensor rows, Tensor v_lower, Tensor v_upper, {BOUNDED}, int slope, "
    "Tensor? slopes, Tensor? after) -> (Tensor lines, Tensor bias)",
    "relax_lif_backward": "(Tensor grad_lines, Tensor grad_bias, Tensor rows, Tensor lines, "
    f"Tensor v_lower, Tensor v_upper, {BOUNDED}, int slope, Tensor? slopes, Tensor? after, "
    "bool parameter_gradients) -> (Tensor grad_rows, Tensor grad_v_lower, Tensor grad_v_upper, "
    "Tensor grad_decay, Tensor grad_threshold, Tensor grad_slopes, Tensor grad_after)",
}
# Compiled for the CPU; on a GPU the reference runs.
WITHOUT_GPU_KERNEL = (
    "count_spikes",
    "fingerprint",
    "spike_rows",
    "spike_conv2d",
    "spike_conv2d_lif",
    "spike_conv2d_weight",
)
OVERLOADS = ("", ".reference", ".triton")


def _empty_bits(x: Tensor, timesteps: int) -> Tensor:
    return x.new_empty((timesteps, (x[0].numel() + 7) // 8), dtype=torch.uint8)


def _lif_forward_fake(x: Tensor, timesteps: int, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    synapse, spike_format, return_state = rest[8], rest[-2], rest[-1]
    timesteps = timesteps or x.shape[0]
    dtype = reference.state_dtype(x.dtype)
    if spike_format == reference.BITS:
        spikes = _empty_bits(x, timesteps)
    else:
        other = {reference.UINT8: torch.uint8, reference.MEMBRANES: dtype}
        spikes = empty_spikes(x, other.get(spike_format, x.dtype), timesteps)
    return (
        spikes,
        empty_step(x, dtype) if return_state else x.new_empty(0, dtype=dtype),
        empty_step(x, dtype) if return_state and synapse else x.new_empty(0, dtype=dtype),
    )


def _lif_backward_fake(
    grad_spikes: Tensor,
    grad_state: Tensor | None,
    grad_current: Tensor | None,
    x: Tensor,
    timesteps: int,
    decay: Tensor,
    threshold: Tensor,
    synapse_decay: Tensor | None,
    v_init: Tensor | None,
    current_init: Tensor | None,
    *options: Any,
) -> tuple[Tensor, ...]:
    dtype = reference.state_dtype(x.dtype)
    synapse, parameter_gradients = options[3], options[-1]

    def like(parameter: Tensor | None, wanted: bool) -> Tensor:
        if parameter is None or not wanted or not parameter_gradients:
            return x.new_empty(0, dtype=dtype)
        return torch.empty_like(parameter)

    def state_like(state: Tensor | None) -> Tensor:
        return x.new_empty(0, dtype=dtype) if state is None else empty_step(x, dtype)

    return (
        empty_spikes(x, x.dtype, x.shape[0]),
        like(decay, True),
        like(threshold, True),
        like(synapse_decay, synapse != reference.NO_SYNAPSE),
        state_like(v_init),
        state_like(current_init),
    )


def _norm_lif_forward_fake(
    x: Tensor, scale: Tensor, shift: Tensor, *neuron: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _lif_forward_fake(empty_steps(x, x.dtype, x.shape[0]), 0, *neuron)


def _norm_lif_backward_fake(
    grad_spikes: Tensor,
    grad_state: Tensor | None,
    grad_current: Tensor | None,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    *neuron_and_sums: Any,
) -> tuple[Tensor, ...]:
    *neuron, sums = neuron_and_sums
    steps = empty_steps(x, x.dtype, x.shape[0])
    grad_x, *rest = _lif_backward_fake(grad_spikes, grad_state, grad_current, steps, 0, *neuron)
    of_channels = [torch.empty_like(scale) if sums else scale.new_empty(0) for _ in range(2)]
    return grad_x, *of_channels, *rest


def _channel_moments_fake(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(centre), torch.empty_like(centre)


def _pack_spikes_fake(spikes: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_bits(spikes, spikes.shape[0]), spikes.new_empty((), dtype=torch.float64)


def _unpack_spikes_fake(
    packed: Tensor, size: list[int], stride: list[int], dtype: torch.dtype
) -> Tensor:
    return empty_steps_of(packed, size, stride, dtype)


def _spike_rows_fake(weight: Tensor, block: int) -> Tensor:
    out_channels, channels, height, width = weight.shape
    blocks = (out_channels + block - 1) // block
    return weight.new_empty((blocks, height, channels, width, block))


def _spike_conv2d_fake(
    packed: Tensor,
    values: Tensor | None,
    size: list[int],
    strides: list[int],
    rows: Tensor,
    bias: Tensor | None,
    out_channels: int,
    *geometry: list[int],
) -> Tensor:
    return reference.empty_maps(rows, size, out_channels, *geometry)


def _spike_conv2d_lif_fake(
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
    *neurons: Any,
) -> Tensor:
    pooled = reference.pooled_size(size, pool)
    maps = reference.empty_maps(rows, pooled, len(bias), stride, padding, dilation)
    return _empty_bits(maps, len(packed))


def _spike_conv2d_weight_fake(
    grad: Tensor,
    packed: Tensor,
    values: Tensor | None,
    size: list[int],
    strides: list[int],
    kernel: list[int],
    *options: Any,
) -> Tensor:
    return grad.new_empty((grad.shape[1], size[1], *kernel))


def _rate_code_fake(x: Tensor, seed: Tensor, timesteps: int, coding: int) -> Tensor:
    return empty_steps(x.unsqueeze(0), x.dtype, timesteps)


def _interval_lif_forward_fake(
    lower: Tensor, upper: Tensor, *neuron_and_membranes: Any
) -> tuple[Tensor, ...]:
    dtype = reference.state_dtype(lower.dtype)

    def membranes() -> Tensor:
        if neuron_and_membranes[-1]:
            return empty_steps(lower, dtype, lower.shape[0])
        return lower.new_empty(0, dtype=dtype)

    spikes = [empty_steps(lower, lower.dtype, lower.shape[0]) for _ in range(2)]
    return (*spikes, membranes(), membranes())


def _interval_lif_backward_fake(
    grad_spikes_lower: Tensor,
    grad_spikes_upper: Tensor,
    grad_v_lower: Tensor | None,
    grad_v_upper: Tensor | None,
    lower: Tensor,
    upper: Tensor,
    decay: Tensor,
    threshold: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    dtype = reference.state_dtype(lower.dtype)
    of_parameters = (
        torch.empty_like(p) if options[-1] else lower.new_empty(0, dtype=dtype)
        for p in (decay, threshold)
    )
    of_ends = (empty_steps(lower, lower.dtype, lower.shape[0]) for _ in range(2))
    return (*of_ends, *of_parameters)


def _relax_lif_fake(rows: Tensor, v_lower: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    bias = empty_rows(rows[:, :1], v_lower, torch.float64)[:, 0]
    return empty_rows(rows, v_lower, rows.dtype), bias


def _relax_lif_backward_fake(
    grad_lines: Tensor,
    grad_bias: Tensor,
    rows: Tensor,
    lines: Tensor,
    v_lower: Tensor,
    v_upper: Tensor,
    decay: Tensor,
    threshold: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    *_, slopes, after, parameter_gradients = options
    like, dtype, none = empty_rows(rows, v_lower, rows.dtype), rows.dtype, v_lower.new_empty(0)
    return (
        like,
        *(empty_steps(v_lower, dtype, v_lower.shape[0]) for _ in range(2)),
        *(torch.empty_like(p) if parameter_gradients else none.clone() for p in (decay, threshold)),
        none.clone() if slopes is None else torch.empty_like(like),
        none if after is None else empty_rows(rows[:, :1], v_lower, dtype)[:, 0],
    )


FAKES: dict[str, Callable[..., Any]] = {
    "lif_forward": _lif_forward_fake,
    "lif_backward": _lif_backward_fake,
    "norm_lif_forward": _norm_lif_forward_fake,
    "norm_lif_backward": _norm_lif_backward_fake,
    "norm_backward_": lambda *_: None,
    "channel_moments": _channel_moments_fake,
    "pack_spikes": _pack_spikes_fake,
    "unpack_spikes": _unpack_spikes_fake,
    "count_spikes": lambda packed: packed.new_empty((), dtype=torch.int64),
    "fingerprint": lambda words: words.new_empty((), dtype=torch.int64),
    "spike_rows": _spike_rows_fake,
    "spike_conv2d": _spike_conv2d_fake,
    "spike_conv2d_lif": _spike_conv2d_lif_fake,
    "spike_conv2d_weight": _spike_conv2d_weight_fake,
    "rate_code": _rate_code_fake,
    "interval_lif_forward": _interval_lif_forward_fake,
    "interval_lif_backward": _interval_lif_backward_fake,
    "relax_lif": _relax_lif_fake,
    "relax_lif_backward": _relax_lif_backward_fake,
}


def _refuse_to_differentiate(name: str) -> Callable[..., NoReturn]:
    def backward(ctx: object, *grads: Tensor) -> NoReturn:
        function = next(
            (f for f in ("interval_lif", "relax_lif", "spike_conv2d") if name.startswith(f)), "lif"
        )
        if name.endswith("backward") or name == "spike_conv2d_weight":
            wanted = f"a second derivative of snnkern.functional.{function}"
        else:
            wanted = f"the derivative of torch.ops.snnkern.{name}"
            if "pack" not in name and name not in ("spike_rows", "count_spikes", "fingerprint"):
                wanted += f"; call snnkern.functional.{function} instead"
        raise NotImplementedError(
            f"asked for {wanted}: a spike has a surrogate for its first derivative, nothing beyond"
        )

    return backward


def _run_triton(name: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        first = next(a for a in arguments if isinstance(a, Tensor))
        if reason := _triton.why_not(first.device):
            raise RuntimeError(f"torch.ops.snnkern.{name}.triton cannot run here: {reason}")
        # A call that is not traced need not be recorded; Triton launches on the current device.
        with set_wrap_triton_enabled(False), torch.cuda.device_of(first):
            return getattr(_triton.load(), name)(*arguments)

    return run


def _trace_triton(name: str) -> Callable[..., Any]:
    """What ``torch.library.triton_op`` registers, which knows no overloads."""

    def trace(mode: Any, op: Any, types: Any, arguments: Any, keywords: Any) -> Any:
        from torch.export._trace import custom_triton_ops_decomposition_disabled  # slow

        if _triton.INTERPRETED or custom_triton_ops_decomposition_disabled():
            return mode.__torch_dispatch__(op, types, arguments, keywords)
        if not all(issubclass(t, FakeTensor) or t in (Tensor, FunctionalTensor) for t in types):
            return NotImplemented
        with mode:
            return getattr(_triton.load(), name)(*arguments)

    return trace


for _name, _schema in SCHEMAS.items():
    for _overload in OVERLOADS[: 2 if _name in WITHOUT_GPU_KERNEL else 3]:
        _qualified = f"snnkern::{_name}{_overload}"
        torch.library.define(_qualified, _schema, tags=(torch.Tag.flexible_layout,))
        if _overload == ".triton":
            torch.library.impl(_qualified, ("cpu", "cuda"), _run_triton(_name))
            torch.library.register_torch_dispatch(
                _qualified, FunctionalTensorMode, _trace_triton(_name)
            )
        else:
            torch.library.impl(_qualified, "default", getattr(reference, _name))
        torch.library.register_fake(_qualified, FAKES[_name])
        if not _name.endswith("_"):  # an op in place has no formula to refuse by
            torch.library.register_autograd(_qualified, _refuse_to_differentiate(_name))
    # On a GPU the compiled kernels serve backend=None, and Triton where there are none.
    has_triton = _triton.INSTALLED and _name not in WITHOUT_GPU_KERNEL
    if torch.version.cuda is not None and not _load.has_cuda and has_triton:
        torch.library.impl(f"snnkern::{_name}", "cuda", _run_triton(_name))
