"""Bounds of a layer of neurons over all its time steps in Triton, forward and backward."""

import triton
import triton.language as tl

from snnkern._triton.interval import (
    carry_interval,
    charge_interval,
    greater,
    line_below,
    line_gradient,
    transition,
)
from snnkern._triton.memory import channels_of, load_or_zero, load_parameter, store_sums
from snnkern._triton.neuron import divide, fires, multiply
from snnkern._triton.surrogate import derivative


@triton.jit
def membrane_bounds(
    u_low,
    u_high,
    lower,
    upper,
    lanes,
    mask,
    decay,
    threshold,
    V_RESET: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
):
    """One step: bounds of the membrane, and of the state that it leaves."""
    x_low = tl.load(lower + lanes, mask=mask, other=0.0).to(u_low.dtype)
    x_high = tl.load(upper + lanes, mask=mask, other=0.0).to(u_low.dtype)
    low, high = charge_interval(u_low, u_high, x_low, x_high, decay, threshold, RESET, STRICT)
    u_low, u_high = carry_interval(low, high, threshold, V_RESET, RESET, STRICT)
    return low, high, u_low, u_high


@triton.jit(do_not_specialize=["timesteps", "channels"])
def interval_forward_kernel(
    spikes_lower,
    spikes_upper,
    v_lower,
    v_upper,
    lower,
    upper,
    decay,
    threshold,
    neurons,
    timesteps,
    lower_step,
    upper_step,
    channels,
    repeat,
    V_INIT: tl.constexpr,
    V_RESET: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
    DECAY_OF: tl.constexpr,
    THRESHOLD_OF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``BLOCK`` neurons over all steps; membranes that are None are not wanted."""
    STATE: tl.constexpr = decay.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    lanes = program * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < neurons
    channel = channels_of(program * BLOCK, channels, repeat, BLOCK)
    d = load_parameter(decay, lanes, channel, mask, DECAY_OF)
    th = load_parameter(threshold, lanes, channel, mask, THRESHOLD_OF)
    u_low = tl.full([BLOCK], V_INIT, STATE)
    u_high = u_low
    at = lanes
    for _ in range(timesteps):
        low, high, u_low, u_high = membrane_bounds(
            u_low, u_high, lower, upper, lanes, mask, d, th, V_RESET, RESET, STRICT
        )
        surely = tl.where(fires(low, th, STRICT), 1.0, 0.0)
        maybe = tl.where(fires(high, th, STRICT), 1.0, 0.0)
        tl.store(spikes_lower + at, surely.to(spikes_lower.dtype.element_ty), mask=mask)
        tl.store(spikes_upper + at, maybe.to(spikes_upper.dtype.element_ty), mask=mask)
        if v_lower is not None:
            tl.store(v_lower + at, low, mask=mask)
            tl.store(v_upper + at, high, mask=mask)
        lower += lower_step
        upper += upper_step
        at += neurons


@triton.jit
def end_gradient(g, of_end, of_threshold, of_decay, v, gs, ds_dv, minus_dthreshold):
    """One step of backpropagation through time at one end: dL/dv, and shares of the parameters."""
    through_spike = gs * ds_dv
    share = g * of_threshold - through_spike * minus_dthreshold
    return g * of_end + through_spike, share, g * of_decay


@triton.jit(do_not_specialize=["timesteps", "channels"])
def interval_backward_kernel(
    grad_lower,
    grad_upper,
    grad_decay,
    grad_threshold,
    membranes,
    grad_spikes_lower,
    grad_spikes_upper,
    grad_v_lower,
    grad_v_upper,
    lower,
    upper,
    decay,
    threshold,
    neurons,
    timesteps,
    lower_step,
    upper_step,
    spikes_lower_step,
    spikes_upper_step,
    v_lower_step,
    v_upper_step,
    channels,
    repeat,
    V_INIT: tl.constexpr,
    V_RESET: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
    DECAY_OF: tl.constexpr,
    THRESHOLD_OF: tl.constexpr,
    SURROGATE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    NORMALIZED: tl.constexpr,
    DECAY_GROUP: tl.constexpr,
    THRESHOLD_GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Backward of ``interval_forward_kernel``, whose membranes are computed again."""
    STATE: tl.constexpr = decay.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    lanes = program * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < neurons
    channel = channels_of(program * BLOCK, channels, repeat, BLOCK)
    d = load_parameter(decay, lanes, channel, mask, DECAY_OF)
    th = load_parameter(threshold, lanes, channel, mask, THRESHOLD_OF)
    zero = tl.zeros([BLOCK], STATE)
    u_low = tl.full([BLOCK], V_INIT, STATE)
    u_high = u_low
    all_neurons = tl.cast(neurons, tl.int64)
    to_upper = timesteps * all_neurons
    at = lanes
    for _ in range(timesteps):
        low, high, u_low, u_high = membrane_bounds(
            u_low, u_high, lower, upper, lanes, mask, d, th, V_RESET, RESET, STRICT
        )
        tl.store(membranes + at, low, mask=mask)
        tl.store(membranes + to_upper + at, high, mask=mask)
        lower += lower_step
        upper += upper_step
        at += neurons
    tl.debug_barrier()

    # The surrogate's argument is z = z_scale * v - z_shift.
    first = tl.full([], FIRST, STATE)
    second = tl.full([], SECOND, STATE)
    z_scale = tl.full([], 1.0, STATE)
    z_shift = th
    inverse = divide(1.0, th)
    if NORMALIZED:
        z_scale = inverse
        z_shift = tl.full([], 1.0, STATE)
    g_low = zero
    g_high = zero
    x_low = zero
    x_high = zero
    of_decay = zero
    of_threshold = zero
    for done in range(timesteps):
        t = tl.cast(timesteps - 1 - done, tl.int64)
        at = t * neurons + lanes
        low = tl.load(membranes + at, mask=mask, other=0.0)
        high = tl.load(membranes + to_upper + at, mask=mask, other=0.0)
        by_low, low_threshold, low_decay, by_high, high_threshold, high_decay = transition(
            low, high, x_low, x_high, d, th, V_RESET, RESET, STRICT
        )
        minus_low = zero + 1.0
        minus_high = zero + 1.0
        if NORMALIZED:
            minus_low = low * inverse
            minus_high = high * inverse
        gs = tl.load(grad_spikes_lower + t * spikes_lower_step + lanes, mask=mask, other=0.0)
        ds_dv = derivative(low * z_scale - z_shift, zero, first, second, SURROGATE) * z_scale
        g_low, share, of_leak = end_gradient(
            g_low, by_low, low_threshold, low_decay, low, gs.to(STATE), ds_dv, minus_low
        )
        of_threshold += share
        of_decay += of_leak
        gs = tl.load(grad_spikes_upper + t * spikes_upper_step + lanes, mask=mask, other=0.0)
        ds_dv = derivative(high * z_scale - z_shift, zero, first, second, SURROGATE) * z_scale
        g_high, share, of_leak = end_gradient(
            g_high, by_high, high_threshold, high_decay, high, gs.to(STATE), ds_dv, minus_high
        )
        of_threshold += share
        of_decay += of_leak
        if grad_v_lower is not None:
            g_low += tl.load(grad_v_lower + t * v_lower_step + lanes, mask=mask, other=0.0)
        if grad_v_upper is not None:
            g_high += tl.load(grad_v_upper + t * v_upper_step + lanes, mask=mask, other=0.0)
        tl.store(grad_lower + at, g_low.to(grad_lower.dtype.element_ty), mask=mask)
        tl.store(grad_upper + at, g_high.to(grad_upper.dtype.element_ty), mask=mask)
        lower -= lower_step
        upper -= upper_step
        x_low = tl.load(lower + lanes, mask=mask, other=0.0).to(STATE)
        x_high = tl.load(upper + lanes, mask=mask, other=0.0).to(STATE)
    start = tl.full([BLOCK], V_INIT, STATE)
    of_decay += (g_low + g_high) * start
    if RESET == "delayed_soft":
        of_threshold -= tl.where(fires(start, th, STRICT), g_low + g_high, 0.0)
    if grad_decay is not None:
        store_sums(grad_decay, of_decay, program, mask, neurons, DECAY_GROUP, BLOCK)
    if grad_threshold is not None:
        store_sums(grad_threshold, of_threshold, program, mask, neurons, THRESHOLD_GROUP, BLOCK)


@triton.jit(do_not_specialize=["timesteps", "channels", "programs"])
def relax_kernel(
    lines,
    bias,
    rows,
    v_lower,
    v_upper,
    slopes,
    after,
    decay,
    threshold,
    neurons,
    programs,
    timesteps,
    lower_step,
    upper_step,
    channels,
    repeat,
    V_INIT: tl.constexpr,
    V_RESET: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
    DECAY_OF: tl.constexpr,
    THRESHOLD_OF: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``BLOCK`` neurons of one row, from the last step to the first; ``programs`` to every row."""
    STATE: tl.constexpr = decay.dtype.element_ty
    number = tl.program_id(0).to(tl.int64)
    row = number // programs
    program = number - row * programs
    lanes = program * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < neurons
    channel = channels_of(program * BLOCK, channels, repeat, BLOCK)
    d = load_parameter(decay, lanes, channel, mask, DECAY_OF)
    th = load_parameter(threshold, lanes, channel, mask, THRESHOLD_OF)
    start = tl.full([BLOCK], V_INIT, STATE)
    of_row = row * neurons + lanes
    line = load_or_zero(after, of_row, mask, STATE)
    total = tl.zeros([BLOCK], tl.float64)
    rest = th.to(tl.float64) + tl.abs(tl.full([], V_RESET, tl.float64))
    last = tl.cast(timesteps - 1, tl.int64)
    low = tl.load(v_lower + last * lower_step + lanes, mask=mask, other=0.0)
    high = tl.load(v_upper + last * upper_step + lanes, mask=mask, other=0.0)
    for done in range(timesteps):
        t = last - done
        at = (row * timesteps + t) * neurons + lanes
        weights = tl.load(rows + at, mask=mask, other=0.0)
        given = load_or_zero(slopes, at, mask, STATE)
        earlier = mask & (t > 0)
        low_before = tl.load(v_lower + (t - 1) * lower_step + lanes, mask=earlier, other=0.0)
        high_before = tl.load(v_upper + (t - 1) * upper_step + lanes, mask=earlier, other=0.0)
        reach = greater(tl.abs(low_before.to(tl.float64)), tl.abs(high_before.to(tl.float64)))
        before = tl.where(t > 0, reach + rest, tl.abs(start.to(tl.float64)))
        line, intercept = line_below(
            weights, line, low, high, before, given, d, th, V_RESET, RESET, STRICT, SLOPE
        )
        total = total + intercept
        tl.store(lines + at, line, mask=mask)
        low = low_before
        high = high_before
    steep = line.to(tl.float64)
    total = total + multiply(steep, multiply(d.to(tl.float64), start.to(tl.float64)))
    if RESET == "delayed_soft":
        owed = multiply(steep, th.to(tl.float64))
        total = total - tl.where(fires(start, th, STRICT), owed, 0.0)
    tl.store(bias + of_row, total, mask=mask)


@triton.jit(do_not_specialize=["timesteps", "channels", "samples", "count"])
def relax_backward_kernel(
    grad_rows,
    sums_lower,
    sums_upper,
    grad_decay,
    grad_threshold,
    grad_slopes,
    grad_after,
    grad_lines,
    grad_bias,
    rows,
    lines,
    v_lower,
    v_upper,
    slopes,
    after,
    decay,
    threshold,
    neurons,
    count,
    timesteps,
    lower_step,
    upper_step,
    bias_step,
    channels,
    repeat,
    samples,
    sample_repeat,
    V_INIT: tl.constexpr,
    V_RESET: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
    DECAY_OF: tl.constexpr,
    THRESHOLD_OF: tl.constexpr,
    BIAS_OF: tl.constexpr,
    SLOPE: tl.constexpr,
    DECAY_GROUP: tl.constexpr,
    THRESHOLD_GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Backward of ``relax_kernel``: ``BLOCK`` neurons through all ``count`` rows, one by one.

    What the bounds get is added to the sums over the rows, which start as 0.
    """
    STATE: tl.constexpr = decay.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    lanes = program * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < neurons
    channel = channels_of(program * BLOCK, channels, repeat, BLOCK)
    sample = channels_of(program * BLOCK, samples, sample_repeat, BLOCK)
    d = load_parameter(decay, lanes, channel, mask, DECAY_OF)
    th = load_parameter(threshold, lanes, channel, mask, THRESHOLD_OF)
    start = tl.full([BLOCK], V_INIT, STATE)
    start_fires = fires(start, th, STRICT)
    of_decay = tl.zeros([BLOCK], tl.float64)
    of_threshold = tl.zeros([BLOCK], tl.float64)
    for number in range(count):
        row = tl.cast(number, tl.int64)
        upstream = load_parameter(grad_bias + row * bias_step, lanes, sample, mask, BIAS_OF)
        at = row * timesteps * neurons + lanes
        line = tl.load(lines + at, mask=mask, other=0.0)
        g = upstream * d.to(tl.float64) * start.to(tl.float64)
        of_decay += upstream * line.to(tl.float64) * start.to(tl.float64)
        if RESET == "delayed_soft":
            owed = tl.where(start_fires, upstream, 0.0)
            g -= owed * th.to(tl.float64)
            of_threshold -= owed * line.to(tl.float64)
        for step in range(timesteps):
            t = tl.cast(step, tl.int64)
            low = tl.load(v_lower + t * lower_step + lanes, mask=mask, other=0.0)
            high = tl.load(v_upper + t * upper_step + lanes, mask=mask, other=0.0)
            weights = tl.load(rows + at, mask=mask, other=0.0)
            given = load_or_zero(slopes, at, mask, STATE)
            g += tl.load(grad_lines + at, mask=mask, other=0.0).to(tl.float64)
            later = t + 1 < timesteps
            line_after = tl.load(lines + at + neurons, mask=mask & later, other=0.0)
            if after is not None:
                final = tl.load(after + row * neurons + lanes, mask=mask, other=0.0)
                line_after = tl.where(later, line_after, final)
            of_row, g, of_low, of_high, of_leak, share, of_given = line_gradient(
                g,
                upstream,
                weights,
                line_after,
                line,
                low,
                high,
                given,
                d,
                th,
                V_RESET,
                RESET,
                STRICT,
                SLOPE,
            )
            of_decay += of_leak
            of_threshold += share
            tl.store(grad_rows + at, of_row.to(STATE), mask=mask)
            if grad_slopes is not None:
                tl.store(grad_slopes + at, of_given.to(STATE), mask=mask)
            place = t * neurons + lanes
            of_low += tl.load(sums_lower + place, mask=mask, other=0.0)
            of_high += tl.load(sums_upper + place, mask=mask, other=0.0)
            tl.store(sums_lower + place, of_low, mask=mask)
            tl.store(sums_upper + place, of_high, mask=mask)
            line = line_after
            at += neurons
        if grad_after is not None:
            tl.store(grad_after + row * neurons + lanes, g.to(STATE), mask=mask)
    if grad_decay is not None:
        store_sums(grad_decay, of_decay, program, mask, neurons, DECAY_GROUP, BLOCK)
    if grad_threshold is not None:
        store_sums(grad_threshold, of_threshold, program, mask, neurons, THRESHOLD_GROUP, BLOCK)
