"""A layer of neurons over all time steps, and backpropagation through time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snnkern._layout import empty_spikes, empty_step
from snnkern.reference.neuron import DELAYED_SOFT, HARD, NO_SYNAPSE, SOFT, Neuron
from snnkern.reference.parameters import broadcast, state_dtype, sum_to
from snnkern.reference.spikes import in_memory_order, pack_bits
from snnkern.reference.surrogate import KINDS, SPIKE_TIME, SURROGATES

SPIKE_FORMATS = ("input", "uint8", "bits")
INPUT_DTYPE, UINT8, BITS = range(len(SPIKE_FORMATS))
# Membranes before reset in place of spikes, in the dtype of the state: for rules, see lif_backward.
MEMBRANES = len(SPIKE_FORMATS)


def _neuron(
    x: Tensor,
    decay: Tensor,
    threshold: Tensor,
    synapse_decay: Tensor | None,
    charge: int,
    v_rest: float,
    gain: float,
    synapse: int,
    reset: int,
    v_reset: float,
    strict: bool,
) -> Neuron:
    return Neuron(
        broadcast(decay, x),
        broadcast(threshold, x),
        None if synapse_decay is None or synapse == NO_SYNAPSE else broadcast(synapse_decay, x),
        charge,
        v_rest,
        gain,
        synapse,
        reset,
        v_reset,
        strict,
    )


def _start(init: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros_like(x[0], dtype=state_dtype(x.dtype)) if init is None else init


def lif_forward(
    x: Tensor,
    timesteps: int,
    decay: Tensor,
    threshold: Tensor,
    synapse_decay: Tensor | None,
    v_init: Tensor | None,
    current_init: Tensor | None,
    charge: int,
    v_rest: float,
    gain: float,
    synapse: int,
    reset: int,
    v_reset: float,
    strict: bool,
    delayed_spike: bool,
    spike_format: int,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Conduct, charge, fire and reset over all time steps: ``(spikes, state, synaptic current)``.

    ``timesteps`` is 0 where ``x`` has them all, and their number where its one step is held. The
    final state and current are empty unless ``return_state``, the current also where there is no
    synapse. A delayed spike leaves one step after the membrane reached the threshold; as
    ``MEMBRANES``, each is that of its own step.
    """
    dtype = state_dtype(x.dtype)
    neuron = _neuron(
        x, decay, threshold, synapse_decay, charge, v_rest, gain, synapse, reset, v_reset, strict
    )
    u, c = _start(v_init, x), _start(current_init, x)
    timesteps = timesteps or x.shape[0]
    membranes = spike_format == MEMBRANES
    spikes = empty_spikes(x, dtype if membranes else x.dtype, timesteps)
    fired = neuron.fires(u)
    for x_t, out in zip(x.expand(timesteps, *x.shape[1:]).unbind(0), spikes.unbind(0), strict=True):
        if delayed_spike and not membranes:
            out.copy_(fired)
        current, c = neuron.conduct(c, x_t.to(dtype))
        v = neuron.charge(u, current)
        fired = neuron.fires(v)
        u = neuron.carry(v, fired)
        if membranes:
            out.copy_(v)
        elif not delayed_spike:
            out.copy_(fired)
    if spike_format == UINT8:
        spikes = empty_spikes(x, torch.uint8, timesteps).copy_(spikes)
    elif spike_format == BITS:
        spikes = pack_bits(in_memory_order(spikes))
    none = x.new_empty(0, dtype=dtype)
    with_current = return_state and synapse != NO_SYNAPSE
    return (
        spikes,
        empty_step(x, dtype).copy_(u) if return_state else none,
        empty_step(x, dtype).copy_(c) if with_current else none.clone(),
    )


def looks_at_start(reset: int, delayed_spike: bool) -> bool:
    """Whether the state before the first step may fire: for a delayed reset or a delayed spike."""
    return reset == DELAYED_SOFT or delayed_spike


def lif_backward(
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
    charge: int,
    v_rest: float,
    gain: float,
    synapse: int,
    reset: int,
    v_reset: float,
    strict: bool,
    delayed_spike: bool,
    detach_reset: bool,
    surrogate: int,
    surrogate_args: list[float],
    normalized: bool,
    surrogate_table: Tensor | None,
    derivatives: Tensor | None,
    parameter_gradients: bool,
) -> tuple[Tensor, ...]:
    """Backpropagation through time.

    Gradients of ``x`` (summed over time where it is held), ``decay``, ``threshold``,
    ``synapse_decay``, ``v_init`` and ``current_init``. The membrane is recomputed from ``x``.
    Gradients of parameters are empty unless ``parameter_gradients``, those of what is not there are
    empty too. ``surrogate_table`` gives every sample a surrogate of its own: rows of
    ``(kind, arg, arg, normalized)``. ``derivatives`` ``[T, N, ...]``, in the dtype of the state,
    are ds/dz in place of a surrogate's; where ``looks_at_start`` they are ``[T + 1, N, ...]``,
    those of the state before the first step in front.
    """
    dtype = state_dtype(x.dtype)
    neuron = _neuron(
        x, decay, threshold, synapse_decay, charge, v_rest, gain, synapse, reset, v_reset, strict
    )
    start = _start(v_init, x)
    held, timesteps = timesteps > 0, timesteps or x.shape[0]
    states, synapses = [start], [_start(current_init, x)]
    membranes, currents, inputs = [], [], []
    for x_t in x.expand(timesteps, *x.shape[1:]).unbind(0):
        inputs.append(x_t.to(dtype))
        current, c = neuron.conduct(synapses[-1], inputs[-1])
        v = neuron.charge(states[-1], current)
        currents.append(current)
        synapses.append(c)
        membranes.append(v)
        states.append(neuron.carry(v, neuron.fires(v)))

    grad_x = empty_spikes(x, x.dtype, x.shape[0])
    empty = x.new_empty(0, dtype=dtype)

    def gradients(
        steps: list[Tensor], parameters: dict[str, Tensor], of_state: Tensor, of_current: Tensor
    ) -> tuple[Tensor, ...]:
        if held:
            grad_x[0].copy_(torch.stack(steps).flip(0).sum(0))
        else:
            for out, step in zip(grad_x.unbind(0), steps, strict=True):
                out.copy_(step)
        owners = {"decay": decay, "threshold": threshold, "synapse_decay": synapse_decay}
        of_parameters = [
            empty.clone()
            if owner is None or not parameter_gradients or (name == "synapse_decay" and not synapse)
            else sum_to(owner, parameters[name])
            for name, owner in owners.items()
        ]
        return (
            grad_x,
            *of_parameters,
            empty.clone() if v_init is None else empty_step(x, dtype).copy_(of_state),
            empty.clone() if current_init is None else empty_step(x, dtype).copy_(of_current),
        )

    # What each step's spikes get: of a delayed spike, the gradient of the step after.
    zero = torch.zeros_like(start)
    given = [gs.to(dtype) for gs in grad_spikes.unbind(0)]
    at_start = given[0] if delayed_spike else zero
    grads = [*given[1:], zero] if delayed_spike else given
    sums = {"decay": zero, "threshold": zero, "synapse_decay": zero}
    if surrogate_table is None:
        choices = [(surrogate, *surrogate_args, float(normalized))]
    else:
        choices = surrogate_table.tolist()
    is_normalized = torch.tensor([choice[3] for choice in choices], dtype=dtype, device=x.device)
    is_normalized = is_normalized.reshape(-1, *(1,) * (x.dim() - 2))
    inverse = 1 / neuron.threshold
    scale = torch.where(is_normalized != 0, inverse, 1)
    shift = torch.where(is_normalized != 0, 1, neuron.threshold)
    with_start = looks_at_start(reset, delayed_spike)
    if derivatives is not None:
        expected = (timesteps + with_start, *start.shape)
        if surrogate_table is not None or (derivatives.dtype, derivatives.shape) != (
            dtype,
            expected,
        ):
            raise ValueError(
                f"derivatives are {derivatives.dtype} {list(derivatives.shape)}, expected {dtype} "
                f"{list(expected)} and no surrogate_table"
            )
    ds_dv: list[Tensor] = []
    if derivatives is not None:
        ds_dv = [*([] if with_start else [zero]), *(derivatives * scale).unbind(0)]
    since = torch.full_like(start, math.inf)
    for number, v in enumerate([start, *membranes] if derivatives is None else []):
        z = v * scale - shift
        since = since + 1
        parts = []
        for sample, (kind, first, second, _) in enumerate(choices):
            argument = since if int(kind) == SPIKE_TIME else z
            part = argument if surrogate_table is None else argument[sample : sample + 1]
            derivative = SURROGATES[KINDS[int(kind)]]
            parts.append(derivative(part, first, second))
        ds_dv.append(torch.cat(parts) * scale)
        if number > 0 or with_start:
            since = torch.where(neuron.fires(v), 0, since)
        else:
            since = torch.full_like(start, math.inf)

    def spike_step(
        v: Tensor, ds_dv: Tensor, gs: Tensor, g_next: Tensor, du: Tensor, delayed: float
    ) -> Tensor:
        """One step back, to dL/dv[t] from dL/dv[t+1]; the threshold's share is added up.

        ``du`` is dv[t+1]/du[t], ``delayed`` is 1 if the next step subtracts what a delayed reset
        owes.
        """
        s = neuron.fires(v)
        by_spike, by_state, by_threshold = zero, du, zero
        if reset == HARD:
            by_spike = du * ((v_reset - v) * ds_dv)
            by_state = torch.where(s, 0, du)
        elif reset == SOFT:
            by_spike = -du * (neuron.threshold * ds_dv)
            by_threshold = torch.where(s, -du, 0)
        elif reset == DELAYED_SOFT:
            by_spike = -delayed * (neuron.threshold * ds_dv)
            by_threshold = torch.where(s, -delayed, zero)
        if detach_reset:
            by_spike = zero
        from_above = gs * ds_dv
        minus_dthreshold = torch.where(is_normalized != 0, v * inverse, 1)
        through_spike = from_above + g_next * by_spike
        share = g_next * by_threshold - through_spike * minus_dthreshold
        sums["threshold"] = sums["threshold"] + share
        return from_above + g_next * (by_spike + by_state)

    # At the end of time stands the final state instead of a next step.
    g = zero if grad_state is None else grad_state
    du, delayed = torch.ones_like(zero), 0.0
    gc = zero if grad_current is None else grad_current
    steps: list[Tensor] = []
    for t in reversed(range(timesteps)):
        g = spike_step(membranes[t], ds_dv[t + 1], grads[t], g, du, delayed)
        du, dx, ddecay = neuron.charge_derivatives(states[t], currents[t])
        delayed = 1.0
        sums["decay"] = sums["decay"] + g * ddecay
        step, gc, synapse_share = neuron.conduct_gradient(dx * g, gc, synapses[t], inputs[t])
        sums["synapse_decay"] = sums["synapse_decay"] + synapse_share
        steps.append(step)
    of_start = spike_step(start, ds_dv[0], at_start, g, du, delayed) if with_start else du * g
    return gradients(steps[::-1], sums, of_start, gc)
