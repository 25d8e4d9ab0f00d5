"""Lines below what neurons give, over all time steps, and their derivative."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from snnkern._layout import empty_rows, empty_steps
from snnkern.reference.interval import bounded_neuron, greater, lesser
from snnkern.reference.neuron import DELAYED_SOFT, HARD, SOFT, Neuron
from snnkern.reference.parameters import sum_to

SLOPES = ("edge", "paper", "given", "mixed")
EDGE, PAPER, GIVEN, MIXED = range(len(SLOPES))


class _Pieces(NamedTuple):
    """What a membrane fires and carries on, weighed: a line where it is silent, one where it fired.

    ``on_state * v`` and ``constant + fired_slope * v``, of a membrane between ``low`` and ``high``.
    """

    low: Tensor
    high: Tensor
    on_state: Tensor
    constant: Tensor
    fired_slope: Tensor
    surely: Tensor
    maybe: Tensor


def _pieces(
    neuron: Neuron, on_spike: Tensor, on_next: Tensor, v_lower: Tensor, v_upper: Tensor
) -> _Pieces:
    threshold = neuron.threshold.double()
    on_state = neuron.decay.double() * on_next
    if neuron.reset == HARD:
        constant, fired_slope = on_spike + on_state * neuron.v_reset, torch.zeros_like(on_state)
    elif neuron.reset == SOFT:
        constant, fired_slope = on_spike - on_state * threshold, on_state
    elif neuron.reset == DELAYED_SOFT:
        constant, fired_slope = on_spike - on_next * threshold, on_state
    else:
        constant, fired_slope = on_spike, on_state
    surely, maybe = neuron.fires(v_lower), neuron.fires(v_upper)
    low, high = v_lower.double(), v_upper.double()
    return _Pieces(low, high, on_state, constant, fired_slope, surely, maybe)


def relaxed(
    rows: Tensor,
    v_lower: Tensor,
    v_upper: Tensor,
    decay: Tensor,
    threshold: Tensor,
    v_init: float,
    reset: int,
    v_reset: float,
    strict: bool,
    slope: int,
    slopes: Tensor | None,
    after: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``relax_lif`` as a function that autograd can differentiate."""
    neuron = bounded_neuron(v_lower, decay, threshold, reset, v_reset, strict)
    unit = torch.finfo(v_lower.dtype).eps / 2
    decay, threshold = neuron.decay.double(), neuron.threshold.double()
    after = torch.zeros_like(rows[:, 0]) if after is None else after
    bias = torch.zeros_like(after, dtype=torch.float64)
    lines: list[Tensor] = []
    rest = threshold + abs(v_reset)
    for t in reversed(range(rows.shape[1])):
        on_spike, on_next = rows[:, t].double(), after.double()
        low, high, on_state, constant, fired_slope, surely, maybe = _pieces(
            neuron, on_spike, on_next, v_lower[t], v_upper[t]
        )
        below, above = threshold - low, high - threshold
        left, right = on_state * low, constant + fired_slope * high
        silent, fired = on_state * threshold, constant + fired_slope * threshold
        # Nothing is divided by 0, not even where nobody looks: the gradient would.
        either = maybe & ~surely
        rising, falling = (torch.where(either & (side > 0), side, 1) for side in (below, above))
        if slope in (EDGE, MIXED):
            middle = lesser(silent, fired)
            chord = (right - left) / torch.where(either, high - low, 1)
            one, other = (middle - left) / rising, (right - middle) / falling
            one, other = torch.where(below > 0, one, other), torch.where(above > 0, other, one)
            if slope == EDGE:
                edge = torch.where(below >= above, one, other)
            else:
                assert slopes is not None
                edge = one + slopes[:, t].double() * (other - one)
            line = torch.where(middle - left < chord * below, edge, chord)
        elif slope == PAPER:
            if reset == HARD:
                jump = constant - on_state * torch.where(on_state > 0, low, threshold)
            else:
                jump = constant
            up = torch.where(above >= below, jump / falling, 0)
            down = torch.where(above >= below, 0, jump / rising)
            line = torch.where(jump > 0, up, torch.where(jump < 0, down, 0)) + fired_slope
        else:
            assert slopes is not None
            line = slopes[:, t].double()
        line = torch.where(surely, fired_slope, torch.where(maybe, line, on_state))
        after = line.to(rows.dtype)
        line = after.double()
        lowest = lesser(
            lesser(left - line * low, silent - line * threshold),
            lesser(fired - line * threshold, right - line * high),
        )
        lowest = torch.where(
            surely,
            lesser(constant + (fired_slope - line) * low, constant + (fired_slope - line) * high),
            torch.where(maybe, lowest, lesser((on_state - line) * low, (on_state - line) * high)),
        )
        size = greater(low.abs(), high.abs())
        if t > 0:
            before = greater(v_lower[t - 1].double().abs(), v_upper[t - 1].double().abs()) + rest
        else:
            before = torch.full_like(size, abs(v_init))
        of_state = on_state.abs() * (size + rest)
        of_charge = line.abs() * (size + threshold + decay * before)
        slack = 2 * unit * (of_charge + of_state)
        own = (
            on_spike.abs() + of_state + on_next.abs() * threshold + line.abs() * (size + threshold)
        )
        bias = bias + (lowest - (slack + 2.0**-49 * own))
        lines.append(after)
    first = after.double()
    start = torch.full_like(v_lower[0], v_init)
    bias = bias + first * (decay * v_init)
    if reset == DELAYED_SOFT:
        bias = bias - torch.where(neuron.fires(start), first * threshold, 0)
    return torch.stack(lines[::-1], 1), bias


def relax_lif(
    rows: Tensor,
    v_lower: Tensor,
    v_upper: Tensor,
    decay: Tensor,
    threshold: Tensor,
    v_init: float,
    reset: int,
    v_reset: float,
    strict: bool,
    slope: int,
    slopes: Tensor | None,
    after: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """S-CROWN's step backward through fire and reset, over all time steps, for a stack of rows.

    ``rows[r, t]`` weighs the spikes of step t. Given is a function below them all: for spikes s and
    currents x of neurons whose membranes stay within ``v_lower`` and ``v_upper``, as computed,
    ``sum(rows[r] * s) >= sum(lines[r] * x) + sum(bias[r])``, rounding errors of the neurons and of
    this included. ``bias`` is float64, one per neuron. ``after`` ``[R, N, ...]`` weighs the
    membrane that would come after the last step, without the current and the rounding of that step.

    What a step carries on and what it fires are both functions of its one membrane; a line lies
    below their weighted sum where it does so at the ends of its two affine pieces, whatever its
    slope. ``slope`` says which: that of the longer edge of the lower hull, of eq. 8 and 10 of Liang
    et al. 2022, ``slopes`` themselves, which are shaped like ``rows``, or between the edges of the
    hull, with ``slopes`` as the share of the right one.
    """
    neuron = (decay, threshold, v_init, reset, v_reset, strict)
    lines, bias = relaxed(rows, v_lower, v_upper, *neuron, slope, slopes, after)
    return (
        empty_rows(rows, v_lower, rows.dtype).copy_(lines),
        empty_rows(rows[:, :1], v_lower, torch.float64)[:, 0].copy_(bias),
    )


def relax_lif_backward(
    grad_lines: Tensor,
    grad_bias: Tensor,
    rows: Tensor,
    lines: Tensor,
    v_lower: Tensor,
    v_upper: Tensor,
    decay: Tensor,
    threshold: Tensor,
    v_init: float,
    reset: int,
    v_reset: float,
    strict: bool,
    slope: int,
    slopes: Tensor | None,
    after: Tensor | None,
    parameter_gradients: bool,
) -> tuple[Tensor, ...]:
    """The derivative of ``relax_lif``, which gave ``lines``, from the first step to the last.

    Of rows, both bounds of the membranes, decay, threshold, ``slopes`` and ``after``; those of
    parameters are empty unless ``parameter_gradients``, and so are those of what is not given. What
    is subtracted for rounding errors is constant.
    """
    neuron = bounded_neuron(v_lower, decay, threshold, reset, v_reset, strict)
    leak, at = neuron.decay.double(), neuron.threshold.double()
    timesteps = rows.shape[1]
    of_rows: list[Tensor] = []
    of_slopes: list[Tensor] = []
    of_lower: list[Tensor] = []
    of_upper: list[Tensor] = []
    first = lines[:, 0].double()
    upstream = grad_bias.double()
    started = upstream * leak * v_init
    of_decay = upstream * first * v_init
    of_threshold = torch.zeros_like(first)
    if reset == DELAYED_SOFT:
        fired = neuron.fires(torch.full_like(v_lower[0], v_init))
        started = started - torch.where(fired, upstream * at, 0)
        of_threshold = of_threshold - torch.where(fired, upstream * first, 0)
    for t in range(timesteps):
        on_next = torch.zeros_like(first)
        if t + 1 < timesteps:
            on_next = lines[:, t + 1].double()
        elif after is not None:
            on_next = after.double()
        low, high, on_state, constant, fired_slope, surely, maybe = _pieces(
            neuron, rows[:, t].double(), on_next, v_lower[t], v_upper[t]
        )
        line, of_line = lines[:, t].double(), grad_lines[:, t].double() + started
        either = maybe & ~surely
        zero = torch.zeros_like(line)
        # Derivatives by the ends of both pieces: heights of the four, and places.
        ends = [on_state * low, on_state * at, constant + fired_slope * at]
        ends.append(constant + fired_slope * high)
        left, silent, fired, right = ends
        gaps = [y - line * x for y, x in zip(ends, (low, at, at, high), strict=True)]
        to_right = lesser(gaps[2], gaps[3]) < lesser(gaps[0], gaps[1])
        outer = torch.where(to_right, gaps[3] < gaps[2], ~(gaps[1] < gaps[0]))
        touches = [~to_right & outer, ~to_right & ~outer, to_right & ~outer, to_right & outer]
        g_left, g_silent, g_fired, g_right = (
            torch.where(either & touch, upstream, 0) for touch in touches
        )
        place = torch.where(outer, torch.where(to_right, high, low), at + zero)
        of_line = torch.where(either, of_line - upstream * place, of_line)
        g_low, g_at, g_high = -line * g_left, -line * (g_silent + g_fired), -line * g_right
        of_constant = torch.where(surely, upstream, 0)
        of_fired_slope = torch.where(surely, of_line, 0)
        of_on_state = torch.where(maybe, 0, of_line)
        of_line = torch.where(either, of_line, 0)
        below, above = at - low, high - at
        rising, falling = (torch.where(either & (side > 0), side, 1) for side in (below, above))
        if slope in (EDGE, MIXED):
            lower = fired < silent
            middle = torch.where(lower, fired, silent)
            wide = torch.where(either, high - low, 1)
            chord = (right - left) / wide
            hull = middle - left < chord * below
            one, other = (middle - left) / rising, (right - middle) / falling
            if slope == EDGE:
                share = (below < above).double()
            else:
                assert slopes is not None
                share = slopes[:, t].double()
                inner = hull & (below > 0) & (above > 0)
                of_slopes.append(torch.where(inner, of_line * (other - one), 0))
            share = torch.where(below > 0, torch.where(above > 0, share, 0), 1)
            g_one = torch.where(hull, of_line * (1 - share), 0) / rising
            g_other = torch.where(hull, of_line * share, 0) / falling
            g_chord = torch.where(hull, 0, of_line) / wide
            g_left = g_left - g_one - g_chord
            g_right = g_right + g_other + g_chord
            g_silent = g_silent + torch.where(lower, 0, g_one - g_other)
            g_fired = g_fired + torch.where(lower, g_one - g_other, 0)
            g_low = g_low + g_one * one + g_chord * chord
            g_at = g_at - g_one * one + g_other * other
            g_high = g_high - g_other * other - g_chord * chord
        elif slope == PAPER:
            wide = above >= below
            jump, past = constant, torch.where(on_state > 0, low, at)
            if reset == HARD:
                jump = constant - on_state * past
            steep = ((jump > 0) & wide) | ((jump < 0) & ~wide)
            span = torch.where(wide, falling, rising)
            g_jump = torch.where(steep, of_line, 0) / span
            g_span = -g_jump * jump / span
            g_high = g_high + torch.where(wide, g_span, 0)
            g_low = g_low - torch.where(wide, 0, g_span)
            g_at = g_at + torch.where(wide, -g_span, g_span)
            of_constant = of_constant + g_jump
            of_fired_slope = of_fired_slope + of_line
            if reset == HARD:
                of_on_state = of_on_state - g_jump * past
                g_low = g_low - torch.where(on_state > 0, g_jump * on_state, 0)
                g_at = g_at - torch.where(on_state > 0, 0, g_jump * on_state)
        else:
            of_slopes.append(of_line)
        of_on_state = of_on_state + g_left * low + g_silent * at
        of_constant = of_constant + g_fired + g_right
        of_fired_slope = of_fired_slope + g_fired * at + g_right * high
        of_lower.append((g_low + g_left * on_state).sum(0))
        of_upper.append((g_high + g_right * fired_slope).sum(0))
        of_threshold = of_threshold + (g_at + g_silent * on_state + g_fired * fired_slope)
        of_next = zero
        if reset == HARD:
            of_on_state = of_on_state + of_constant * v_reset
        elif reset == SOFT:
            of_on_state = of_on_state + (of_fired_slope - of_constant * at)
            of_threshold = of_threshold - of_constant * on_state
        else:
            of_on_state = of_on_state + of_fired_slope
            if reset == DELAYED_SOFT:
                of_next = -of_constant * at
                of_threshold = of_threshold - of_constant * on_next
        of_decay = of_decay + of_on_state * on_next
        of_rows.append(of_constant)
        started = of_next + of_on_state * leak
    grads = empty_rows(rows, v_lower, rows.dtype).copy_(torch.stack(of_rows, 1))
    ends_of_membranes = (
        empty_steps(v_lower, v_lower.dtype, timesteps).copy_(torch.stack(steps))
        for steps in (of_lower, of_upper)
    )
    empty = v_lower.new_empty(0)
    of_parameters = (
        sum_to(parameter, grad.sum(0)) if parameter_gradients else empty.clone()
        for parameter, grad in ((decay, of_decay), (threshold, of_threshold))
    )
    return (
        grads,
        *ends_of_membranes,
        *of_parameters,
        torch.empty_like(grads).copy_(torch.stack(of_slopes, 1)) if of_slopes else empty.clone(),
        empty if after is None else torch.empty_like(grads[:, 0]).copy_(started),
    )
