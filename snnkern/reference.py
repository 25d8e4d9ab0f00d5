"""Every op in plain PyTorch: the definition that all backends are held to, and their fallback.

The spikes and membranes of a backend equal these bit for bit in float32, its gradients to 1e-6
relative. That fixes the arithmetic: multiply, then add, each rounded on its own; true division.

Shapes: ``x`` is ``[T, N, ...]``. The state is float32, and float64 for float64 input. A parameter
is a tensor of the dtype of the state, with one value, or one per channel (dimension 2 of ``x``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from snnkern._layout import empty_step, empty_steps

RESETS = ("hard", "soft", "delayed_soft", "none")
HARD, SOFT, DELAYED_SOFT, NONE = range(len(RESETS))


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the membrane for inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# Surrogate derivatives ds/dz. Each takes z and two numbers, unused ones included, like the kernels.


def triangle(z: Tensor, width: float, scale: float) -> Tensor:
    """``scale * max(0, width - |z|)``."""
    height = width - z.abs()
    return torch.where(height > 0, scale * height, 0)


def rectangle(z: Tensor, width: float, scale: float) -> Tensor:
    """``scale`` where ``|z| < width / 2``."""
    return torch.where(z.abs() < width / 2, scale, 0).to(z.dtype)


def exponential(z: Tensor, scale: float, slope: float) -> Tensor:
    """``scale * exp(-slope |z|)``."""
    return scale * torch.exp(-(slope * z.abs()))


def atan(z: Tensor, alpha: float, _: float) -> Tensor:
    """``alpha / 2 / (1 + (pi / 2 alpha z)^2)``."""
    q = math.pi / 2 * alpha * z
    return 0.5 * alpha / (1 + q * q)


def sigmoid(z: Tensor, alpha: float, _: float) -> Tensor:
    """The derivative of ``sigmoid(alpha z)``, without cancellation for large z."""
    e = torch.exp(-(alpha * z.abs()))
    return alpha * e / ((1 + e) * (1 + e))


def fast_sigmoid(z: Tensor, slope: float, _: float) -> Tensor:
    """``1 / (1 + slope |z|)^2``."""
    d = 1 + slope * z.abs()
    return 1 / (d * d)


def erf(z: Tensor, alpha: float, _: float) -> Tensor:
    """``alpha / sqrt(pi) exp(-(alpha z)^2)``."""
    q = alpha * z
    return alpha / math.sqrt(math.pi) * torch.exp(-(q * q))


def straight_through(z: Tensor, _: float, __: float) -> Tensor:
    """1."""
    return torch.ones_like(z)


Derivative = Callable[[Tensor, float, float], Tensor]

# "rate" has no derivative of its own: see lif_backward.
SURROGATES: dict[str, Derivative | None] = {
    "triangle": triangle,
    "rectangle": rectangle,
    "exponential": exponential,
    "atan": atan,
    "sigmoid": sigmoid,
    "fast_sigmoid": fast_sigmoid,
    "erf": erf,
    "straight_through": straight_through,
    "rate": None,
}


class Neuron(NamedTuple):
    """The parameters of the neurons of one layer, broadcastable to a step, and their reset."""

    leak: Tensor
    threshold: Tensor
    v_reset: float
    reset: int
    strict: bool

    def fires(self, v: Tensor) -> Tensor:
        """Fire."""
        return v > self.threshold if self.strict else v >= self.threshold

    def charge(self, u: Tensor, x: Tensor) -> Tensor:
        """The membrane before reset, from the carried state and the input current."""
        v = self.leak * u + x
        if self.reset == DELAYED_SOFT:
            v = v - torch.where(self.fires(u), self.threshold, 0)
        return v

    def carry(self, v: Tensor, s: Tensor) -> Tensor:
        """Reset: the state that the next step starts from."""
        if self.reset == HARD:
            return torch.where(s, self.v_reset, v)
        if self.reset == SOFT:
            return v - torch.where(s, self.threshold, 0)
        return v


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """A parameter, shaped to broadcast over one step of ``x``."""
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape(-1, *(1,) * (x.dim() - 3))


def lif_forward(
    x: Tensor,
    leak: Tensor,
    threshold: Tensor,
    v_init: Tensor | None,
    v_reset: float,
    reset: int,
    strict: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    """Charge, fire and reset over all time steps: ``(spikes, final state)``.

    The final state is empty unless ``return_state``.
    """
    dtype = state_dtype(x.dtype)
    neuron = Neuron(per_channel(leak, x), per_channel(threshold, x), v_reset, reset, strict)
    u = torch.zeros_like(x[0], dtype=dtype) if v_init is None else v_init
    spikes = empty_steps(x, x.dtype)
    for x_t, out in zip(x.unbind(0), spikes.unbind(0), strict=True):
        v = neuron.charge(u, x_t.to(dtype))
        s = neuron.fires(v)
        u = neuron.carry(v, s)
        out.copy_(s)
    return spikes, empty_step(x, dtype).copy_(u) if return_state else x.new_empty(0, dtype=dtype)


def lif_backward(
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
    """Backpropagation through time: gradients of ``(x, leak, threshold, v_init)``.

    The membrane is recomputed from ``x``. Gradients of the parameters are empty unless
    ``parameter_gradients``, that of ``v_init`` where there is none.

    With the surrogate ``"rate"`` (BPTR, Ding et al. 2022) the gradient of a spike passes to the
    current of its own step where the neuron fired at least once; nothing else gets any.
    """
    dtype = state_dtype(x.dtype)
    neuron = Neuron(per_channel(leak, x), per_channel(threshold, x), v_reset, reset, strict)
    start = torch.zeros_like(x[0], dtype=dtype) if v_init is None else v_init
    membranes, states = [], [start]
    for x_t in x.unbind(0):
        v = neuron.charge(states[-1], x_t.to(dtype))
        membranes.append(v)
        states.append(neuron.carry(v, neuron.fires(v)))

    grad_x = empty_steps(x, x.dtype)
    none = x.new_empty(0, dtype=dtype)
    derivative = tuple(SURROGATES.values())[surrogate]
    if derivative is None:
        fired = torch.stack([neuron.fires(v) for v in membranes]).any(0)
        grad_x.copy_(torch.where(fired, grad_spikes, 0))
        return (
            grad_x,
            torch.zeros_like(leak) if parameter_gradients else none,
            torch.zeros_like(threshold) if parameter_gradients else none,
            none if v_init is None else empty_step(x, dtype).zero_(),
        )

    scale = 1 / neuron.threshold if normalized else torch.ones_like(neuron.threshold)
    shift = torch.ones_like(neuron.threshold) if normalized else neuron.threshold
    g_leak = torch.zeros_like(start)
    g_threshold = torch.zeros_like(start)

    def step(v: Tensor, gs: Tensor, g_next: Tensor, g_state: Tensor | float) -> Tensor:
        """From dL/dv of the next step to dL/dv of this one."""
        nonlocal g_leak, g_threshold
        s = neuron.fires(v)
        gu = neuron.leak * g_next + g_state
        g_spike, g_membrane = gs, gu
        if reset == HARD:
            g_spike = gs if detach_reset else gs + gu * (v_reset - v)
            g_membrane = torch.where(s, 0, gu)
        elif reset == SOFT:
            g_spike = gs if detach_reset else gs - neuron.threshold * gu
            g_threshold = g_threshold - torch.where(s, gu, 0)
        elif reset == DELAYED_SOFT:
            g_spike = gs if detach_reset else gs - neuron.threshold * g_next
            g_threshold = g_threshold - torch.where(s, g_next, 0)
        ds_dv = derivative(v * scale - shift, surrogate_args[0], surrogate_args[1]) * scale
        through_spike = g_spike * ds_dv
        g_leak = g_leak + g_next * neuron.carry(v, s)
        g_threshold = g_threshold - through_spike * (v * scale if normalized else 1)
        return g_membrane + through_spike

    g = torch.zeros_like(start)
    g_state: Tensor | float = 0.0 if grad_state is None else grad_state
    for v, gs, out in zip(
        reversed(membranes),
        reversed(grad_spikes.unbind(0)),
        reversed(grad_x.unbind(0)),
        strict=True,
    ):
        g = step(v, gs.to(dtype), g, g_state)
        g_state = 0.0
        out.copy_(g)
    if reset == DELAYED_SOFT:  # the state before the first step is looked at by the first reset
        g_start = step(start, torch.zeros_like(start), g, 0.0)
    else:
        g_leak = g_leak + g * start
        g_start = neuron.leak * g

    return (
        grad_x,
        _sum_to(leak, g_leak) if parameter_gradients else none,
        _sum_to(threshold, g_threshold) if parameter_gradients else none,
        none if v_init is None else empty_step(x, dtype).copy_(g_start),
    )


def _sum_to(parameter: Tensor, neuron_grad: Tensor) -> Tensor:
    """Sums gradients per neuron to those of a parameter, in float64."""
    dims = [d for d in range(neuron_grad.dim()) if parameter.numel() == 1 or d != 1]
    total = neuron_grad.sum(dims, dtype=torch.float64)
    return total.to(parameter.dtype).reshape(parameter.shape)
