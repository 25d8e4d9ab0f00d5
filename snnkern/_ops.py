"""The ops: schemas, fakes and the reference kernels. The only torch.library code.

Every op exists twice with one schema: the default overload, for which the dispatcher picks the
compiled kernel of the tensor's device and, where there is none, the reference; and ``.reference``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from snnkern import (
    _load,  # noqa: F401  registers the compiled kernels
    reference,
)
from snnkern._layout import empty_step, empty_steps

NEURON = "Tensor leak, Tensor threshold, Tensor? v_init, float v_reset, int reset, bool strict"
SCHEMAS = {
    "lif_forward": f"(Tensor x, {NEURON}, bool return_state) -> (Tensor spikes, Tensor state)",
    "lif_backward": f"(Tensor grad_spikes, Tensor? grad_state, Tensor x, {NEURON}, "
    "bool detach_reset, int surrogate, float[] surrogate_args, bool normalized, "
    "bool parameter_gradients) "
    "-> (Tensor grad_x, Tensor grad_leak, Tensor grad_threshold, Tensor grad_v_init)",
}
OVERLOADS = ("", ".reference")


def _lif_forward_fake(
    x: Tensor,
    leak: Tensor,
    threshold: Tensor,
    v_init: Tensor | None,
    v_reset: float,
    reset: int,
    strict: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    dtype = reference.state_dtype(x.dtype)
    state = empty_step(x, dtype) if return_state else x.new_empty(0, dtype=dtype)
    return empty_steps(x, x.dtype), state


def _lif_backward_fake(
    grad_spikes: Tensor,
    grad_state: Tensor | None,
    x: Tensor,
    leak: Tensor,
    threshold: Tensor,
    v_init: Tensor | None,
    v_reset: float,
    reset: int,
    strict: bool,
    detach_reset: bool,
    surrogate: int,
    surrogate_args: list[float],
    normalized: bool,
    parameter_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = reference.state_dtype(x.dtype)
    none = x.new_empty(0, dtype=dtype)
    return (
        empty_steps(x, x.dtype),
        torch.empty_like(leak) if parameter_gradients else none,
        torch.empty_like(threshold) if parameter_gradients else x.new_empty(0, dtype=dtype),
        x.new_empty(0, dtype=dtype) if v_init is None else empty_step(x, dtype),
    )


FAKES: dict[str, Callable[..., Any]] = {
    "lif_forward": _lif_forward_fake,
    "lif_backward": _lif_backward_fake,
}


def _refuse_to_differentiate(name: str) -> Callable[..., NoReturn]:
    def backward(ctx: object, *grads: Tensor) -> NoReturn:
        wanted = (
            "a second derivative of snnkern.functional.lif"
            if name.endswith("backward")
            else (
                f"the derivative of torch.ops.snnkern.{name}; call snnkern.functional.lif instead"
            )
        )
        raise NotImplementedError(
            f"asked for {wanted}: a spike has a surrogate for its first derivative, nothing beyond"
        )

    return backward


for _name, _schema in SCHEMAS.items():
    for _overload in OVERLOADS:
        _qualified = f"snnkern::{_name}{_overload}"
        torch.library.define(_qualified, _schema, tags=(torch.Tag.flexible_layout,))
        torch.library.impl(_qualified, "default", getattr(reference, _name))
        torch.library.register_fake(_qualified, FAKES[_name])
        torch.library.register_autograd(_qualified, _refuse_to_differentiate(_name))
