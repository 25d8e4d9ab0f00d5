"""Bounds of spikes and membranes over all time steps, and their derivative."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from snnkern._layout import empty_steps
from snnkern.reference.interval import (
    Interval,
    bounded_neuron,
    carry_interval,
    charge_interval,
)
from snnkern.reference.neuron import DELAYED_SOFT, HARD, NONE, SOFT, Neuron
from snnkern.reference.parameters import state_dtype, sum_to
from snnkern.reference.surrogate import KINDS, SURROGATES


class _EndGradient(NamedTuple):
    """Derivatives of one end of the next membrane: by the same end of this one, and parameters."""

    v: Tensor
    threshold: Tensor
    decay: Tensor


def _transition(neuron: Neuron, v: Interval, x: Interval) -> tuple[_EndGradient, _EndGradient]:
    """Derivatives from a membrane to that of the step after, whose current is ``x``.

    Of what was selected; what selected it is constant.
    """
    decay, threshold = neuron.decay, neuron.threshold
    zero = torch.zeros_like(v.lower)
    one = zero + 1
    surely, maybe = v.map(neuron.fires)
    if neuron.reset == DELAYED_SOFT:
        rest = neuron._replace(reset=NONE)
        low, high = rest.charge(v.lower, x.lower), rest.charge(v.upper, x.upper)
        met = rest.charge(threshold, x.lower) - threshold
        at_met = maybe & ~surely & (met < low)
        below = rest.charge(threshold, x.upper)
        owing = maybe & (surely | (high - threshold > below))
        at_below = maybe & ~owing
        return (
            _EndGradient(
                torch.where(at_met, 0, decay + zero),
                torch.where(surely, -one, torch.where(at_met, decay - 1, zero)),
                torch.where(at_met, threshold, v.lower),
            ),
            _EndGradient(
                torch.where(at_below, 0, decay + zero),
                torch.where(owing, -one, torch.where(at_below, decay, zero)),
                torch.where(at_below, threshold, v.upper),
            ),
        )
    state = carry_interval(neuron, v)
    low = high = one
    low_threshold = high_threshold = zero
    if neuron.reset == HARD:
        reset = torch.full_like(v.lower, neuron.v_reset)
        low = torch.where(surely, 0, torch.where(maybe & (reset < v.lower), 0, one))
        high = torch.where(maybe, 0, one)
        high_threshold = torch.where(maybe & ~surely & ~(reset > threshold), 1, zero)
    elif neuron.reset == SOFT:
        low = torch.where(maybe & ~surely & (zero < v.lower), 0, one)
        low_threshold = torch.where(surely, -1, zero)
        subtracted = maybe & (surely | (v.upper - threshold > threshold))
        high = torch.where(maybe & ~subtracted, 0, one)
        high_threshold = torch.where(subtracted, -1, torch.where(maybe, 1, zero))
    return (
        _EndGradient(decay * low, decay * low_threshold, state.lower),
        _EndGradient(decay * high, decay * high_threshold, state.upper),
    )


def interval_lif_forward(
    lower: Tensor,
    upper: Tensor,
    decay: Tensor,
    threshold: Tensor,
    v_init: float,
    reset: int,
    v_reset: float,
    strict: bool,
    return_membranes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S-IBP over all time steps (Liang et al. 2022, eq. 7 to 9), for charge by leak.

    Bounds of the spikes and, unless they are empty, of the membranes before reset, for all currents
    between ``lower`` and ``upper``. Charge, fire and reset are monotone in floating point: bounds
    hold for the spikes of ``lif_forward`` bit for bit.
    """
    dtype = state_dtype(lower.dtype)
    neuron = bounded_neuron(lower, decay, threshold, reset, v_reset, strict)
    timesteps = lower.shape[0]
    state = Interval(*(torch.full_like(lower[0], v_init, dtype=dtype),) * 2)
    spikes = Interval(*(empty_steps(lower, lower.dtype, timesteps) for _ in range(2)))
    kept = timesteps if return_membranes else 0
    membranes = Interval(
        *(
            empty_steps(lower, dtype, timesteps) if kept else lower.new_empty(0, dtype=dtype)
            for _ in range(2)
        )
    )
    for t in range(timesteps):
        x = Interval(lower[t].to(dtype), upper[t].to(dtype))
        v = charge_interval(neuron, state, x)
        for end, fired in zip(spikes, v.map(neuron.fires), strict=True):
            end[t].copy_(fired)
        for end, membrane in zip(membranes, v, strict=True):
            if kept:
                end[t].copy_(membrane)
        state = carry_interval(neuron, v)
    return (*spikes, *membranes)


def interval_lif_backward(
    grad_spikes_lower: Tensor,
    grad_spikes_upper: Tensor,
    grad_v_lower: Tensor | None,
    grad_v_upper: Tensor | None,
    lower: Tensor,
    upper: Tensor,
    decay: Tensor,
    threshold: Tensor,
    v_init: float,
    reset: int,
    v_reset: float,
    strict: bool,
    surrogate: int,
    surrogate_args: list[float],
    normalized: bool,
    parameter_gradients: bool,
) -> tuple[Tensor, ...]:
    """Backpropagation through time of the bounds: ``lower``, ``upper``, decay, threshold.

    The surrogate at either end of the membrane; of the reset, what was selected is differentiated
    and what selected it is not, as in the code of Liang et al. 2022. Gradients of parameters are
    empty unless ``parameter_gradients``.
    """
    dtype = state_dtype(lower.dtype)
    neuron = bounded_neuron(lower, decay, threshold, reset, v_reset, strict)
    start = Interval(*(torch.full_like(lower[0], v_init, dtype=dtype),) * 2)
    currents = [
        Interval(low.to(dtype), high.to(dtype)) for low, high in zip(lower, upper, strict=True)
    ]
    membranes, state = [], start
    for x in currents:
        membranes.append(charge_interval(neuron, state, x))
        state = carry_interval(neuron, membranes[-1])
    inverse = 1 / neuron.threshold
    scale = inverse if normalized else torch.ones_like(inverse)
    shift = torch.ones_like(inverse) if normalized else neuron.threshold
    derivative = SURROGATES[KINDS[surrogate]]
    from_above = (grad_spikes_lower, grad_spikes_upper)
    from_membranes = (grad_v_lower, grad_v_upper)
    grads = tuple(empty_steps(lower, lower.dtype, lower.shape[0]) for _ in range(2))
    zero = torch.zeros_like(start.lower)
    of_decay, of_threshold = zero, zero
    for end in range(2):
        g = zero  # dL/dv of the step after
        for t in reversed(range(len(currents))):
            v = membranes[t][end]
            if t + 1 < len(currents):
                step = _transition(neuron, membranes[t], currents[t + 1])[end]
                of_decay = of_decay + g * step.decay
                of_threshold = of_threshold + g * step.threshold
                g = g * step.v
            ds_dv = derivative(v * scale - shift, *surrogate_args) * scale
            through_spike = from_above[end][t].to(dtype) * ds_dv
            minus_dthreshold = v * inverse if normalized else 1
            of_threshold = of_threshold - through_spike * minus_dthreshold
            g = g + through_spike
            of_membrane = from_membranes[end]
            if of_membrane is not None:
                g = g + of_membrane[t]
            grads[end][t].copy_(g)
        # Into the first step nothing was reset, but a delayed reset looks at what it started from.
        if reset == DELAYED_SOFT:
            of_threshold = of_threshold - torch.where(neuron.fires(start[end]), g, 0)
        of_decay = of_decay + g * start[end]
    if not parameter_gradients:
        return (*grads, *(lower.new_empty(0, dtype=dtype) for _ in range(2)))
    return (*grads, sum_to(decay, of_decay), sum_to(threshold, of_threshold))
