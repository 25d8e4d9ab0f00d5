"""The layer of neurons over all its time steps in Triton, forward and backward."""

import triton
import triton.language as tl

from snnkern._triton.memory import (
    channels_of,
    load_or_zero,
    load_parameter,
    load_steps,
    seen_by_neurons,
    store_spikes,
    store_sums,
)
from snnkern._triton.neuron import (
    carried,
    charge_ddecay,
    charge_du,
    charge_dx,
    conduct_gradient,
    divide,
    fires,
    step_gradient,
    take_step,
)
from snnkern._triton.surrogate import derivative, mixed_derivative


@triton.jit(do_not_specialize=["blocks", "channels"])
def lif_forward_kernel(
    x,
    spikes,
    state,
    current,
    scale,
    shift,
    decay,
    threshold,
    synapse_decay,
    v_init,
    current_init,
    neurons,
    blocks,
    x_step,
    spikes_step,
    channels,
    repeat,
    V_REST: tl.constexpr,
    V_RESET: tl.constexpr,
    GAIN: tl.constexpr,
    CHARGE: tl.constexpr,
    SYNAPSE: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
    DECAY_OF: tl.constexpr,
    THRESHOLD_OF: tl.constexpr,
    SYNAPSE_DECAY_OF: tl.constexpr,
    DELAYED: tl.constexpr,
    FORMAT: tl.constexpr,
    CONSTANT: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``BLOCK`` neurons over ``blocks * STEPS`` time steps; tensors that are not there are None."""
    STATE: tl.constexpr = decay.dtype.element_ty
    AFFINE: tl.constexpr = scale is not None
    program = tl.program_id(0).to(tl.int64)
    lanes = program * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < neurons
    channel = channels_of(program * BLOCK, channels, repeat, BLOCK)
    d = load_parameter(decay, lanes, channel, mask, DECAY_OF)
    th = load_parameter(threshold, lanes, channel, mask, THRESHOLD_OF)
    sd = d
    if SYNAPSE != "none":
        sd = load_parameter(synapse_decay, lanes, channel, mask, SYNAPSE_DECAY_OF)
    a = d
    b = d
    if AFFINE:
        a = load_parameter(scale, lanes, channel, mask, "channel")
        b = load_parameter(shift, lanes, channel, mask, "channel")
    u = load_or_zero(v_init, lanes, mask, STATE)
    c = load_or_zero(current_init, lanes, mask, STATE)
    fired = fires(u, th, STRICT) & mask
    for _ in range(blocks):
        rows = load_steps(x + lanes, x_step, mask, STEPS, CONSTANT)
        for k in tl.static_range(STEPS):
            if DELAYED and FORMAT != "membranes":
                store_spikes(spikes, fired, program, lanes, spikes_step, FORMAT, BLOCK)
            u, c, v, _, spike = take_step(
                u,
                c,
                seen_by_neurons(rows[k], a, b, AFFINE, STATE),
                d,
                th,
                sd,
                V_REST,
                V_RESET,
                GAIN,
                CHARGE,
                SYNAPSE,
                RESET,
                STRICT,
            )
            fired = spike & mask
            if FORMAT == "membranes":
                tl.store(spikes + lanes, v, mask=mask)
            elif not DELAYED:
                store_spikes(spikes, fired, program, lanes, spikes_step, FORMAT, BLOCK)
            spikes += spikes_step
            x += x_step
    if state is not None:
        tl.store(state + lanes, u, mask=mask)
    if current is not None:
        tl.store(current + lanes, c, mask=mask)


@triton.jit(do_not_specialize=["blocks", "channels", "samples"])
def lif_backward_kernel(
    grad_x,
    grad_decay,
    grad_threshold,
    grad_synapse_decay,
    grad_v_init,
    grad_current_init,
    sums,
    dots,
    kept_state,
    kept_current,
    kept_since,
    grad_spikes,
    grad_state,
    grad_current,
    x,
    scale,
    shift,
    mean,
    decay,
    threshold,
    synapse_decay,
    v_init,
    current_init,
    surrogates,
    derivatives,
    neurons,
    blocks,
    x_step,
    grad_step,
    derivatives_step,
    channels,
    repeat,
    samples,
    sample_repeat,
    V_REST: tl.constexpr,
    V_RESET: tl.constexpr,
    GAIN: tl.constexpr,
    CHARGE: tl.constexpr,
    SYNAPSE: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
    DECAY_OF: tl.constexpr,
    THRESHOLD_OF: tl.constexpr,
    SYNAPSE_DECAY_OF: tl.constexpr,
    DELAYED: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    SURROGATE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    NORMALIZED: tl.constexpr,
    DECAY_GROUP: tl.constexpr,
    THRESHOLD_GROUP: tl.constexpr,
    SYNAPSE_DECAY_GROUP: tl.constexpr,
    CHANNEL_GROUP: tl.constexpr,
    HELD: tl.constexpr,
    CONSTANT: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Backward of ``lif_forward_kernel``, from the last block of ``STEPS`` steps to the first.

    A block's membranes are recomputed from ``x`` and stay in registers. Where one block is all
    (``WHOLE``), nothing is read twice; else a first pass keeps what the neurons carry into every
    block. Gradients that are None are not wanted.
    """
    STATE: tl.constexpr = decay.dtype.element_ty
    AFFINE: tl.constexpr = scale is not None
    TIMED: tl.constexpr = SURROGATE == "spike_time" or SURROGATE == "mixed"
    LOOKS_AT_START: tl.constexpr = RESET == "delayed_soft" or DELAYED
    program = tl.program_id(0).to(tl.int64)
    lanes = program * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < neurons
    zero = tl.zeros([BLOCK], STATE)
    channel = channels_of(program * BLOCK, channels, repeat, BLOCK)
    d = load_parameter(decay, lanes, channel, mask, DECAY_OF)
    th = load_parameter(threshold, lanes, channel, mask, THRESHOLD_OF)
    sd = d
    if SYNAPSE != "none":
        sd = load_parameter(synapse_decay, lanes, channel, mask, SYNAPSE_DECAY_OF)
    a = d
    b = d
    if AFFINE:
        a = load_parameter(scale, lanes, channel, mask, "channel")
        b = load_parameter(shift, lanes, channel, mask, "channel")

    # The surrogate's argument is z = z_scale * v - z_shift.
    first = tl.full([], FIRST, STATE)
    second = tl.full([], SECOND, STATE)
    kind = zero
    z_scale = tl.full([], 1.0, STATE)
    z_shift = th
    inverse = divide(1.0, th)
    normalized = tl.full([], NORMALIZED, tl.int1)
    if SURROGATE == "mixed":
        entry = surrogates + 4 * channels_of(program * BLOCK, samples, sample_repeat, BLOCK)
        kind = tl.load(entry)
        first = tl.load(entry + 1).to(STATE)
        second = tl.load(entry + 2).to(STATE)
        normalized = tl.load(entry + 3) != 0.0
        z_scale = tl.where(normalized, inverse, 1.0)
        z_shift = tl.where(normalized, 1.0, th)
    elif NORMALIZED:
        z_scale = inverse
        z_shift = tl.full([], 1.0, STATE)

    # Where the derivatives are given, those of the state before the first step come first.
    start_ds_dz = zero
    if derivatives is not None:
        derivatives += lanes
        if LOOKS_AT_START:
            start_ds_dz = tl.load(derivatives, mask=mask, other=0.0)
            derivatives += derivatives_step

    start = load_or_zero(v_init, lanes, mask, STATE)
    c_start = load_or_zero(current_init, lanes, mask, STATE)
    since_start = tl.full([BLOCK], float("inf"), STATE)
    if LOOKS_AT_START:
        since_start = tl.where(fires(start, th, STRICT), 0.0, since_start)

    # What is carried into the block at hand: after the first pass, into the last one.
    u_block = start
    c_block = c_start
    since_block = since_start
    if not WHOLE:
        # The last block is left to the second pass.
        for block in range(blocks - 1):
            place = tl.cast(block, tl.int64) * neurons + lanes
            tl.store(kept_state + place, u_block, mask=mask)
            if SYNAPSE != "none":
                tl.store(kept_current + place, c_block, mask=mask)
            if TIMED:
                tl.store(kept_since + place, since_block, mask=mask)
            rows = load_steps(x + lanes, x_step, mask, STEPS, CONSTANT)
            for k in tl.static_range(STEPS):
                u_block, c_block, _, _, spike = take_step(
                    u_block,
                    c_block,
                    seen_by_neurons(rows[k], a, b, AFFINE, STATE),
                    d,
                    th,
                    sd,
                    V_REST,
                    V_RESET,
                    GAIN,
                    CHARGE,
                    SYNAPSE,
                    RESET,
                    STRICT,
                )
                since_block = tl.where(spike, 0.0, since_block + 1.0)
            x += STEPS * tl.cast(x_step, tl.int64)
        tl.debug_barrier()

    steps_before = tl.cast(blocks - 1, tl.int64) * STEPS
    grad_spikes += steps_before * grad_step
    if derivatives is not None:
        derivatives += steps_before * derivatives_step
    if not HELD:
        grad_x += steps_before * neurons
    # At the end of time stands the final state instead of a next step.
    g = load_or_zero(grad_state, lanes, mask, STATE)
    du = tl.full([BLOCK], 1.0, STATE)
    delayed = zero
    gc = load_or_zero(grad_current, lanes, mask, STATE)
    gs_after = zero
    of_x = zero
    of_decay = zero
    of_threshold = zero
    of_synapse_decay = zero
    of_sum = zero
    of_dot = zero
    m = d
    if dots is not None:
        m = load_parameter(mean, lanes, channel, mask, "channel")
    # A loop of one round is none: nothing is then taken for invariant and kept in registers for it.
    for done in range(1 if WHOLE else blocks):
        rows = load_steps(x + lanes, x_step, mask, STEPS, CONSTANT)
        given = load_steps(grad_spikes + lanes, grad_step, mask, STEPS, False)
        slopes = given
        if derivatives is not None:
            slopes = load_steps(derivatives, derivatives_step, mask, STEPS, False)
        u = u_block
        c = c_block
        since = since_block
        membranes = ()
        reached = ()
        currents = ()
        times = ()
        for k in tl.static_range(STEPS):
            currents = currents + (c,)
            since = since + 1.0
            times = times + (since,)
            u, c, v, current, spike = take_step(
                u,
                c,
                seen_by_neurons(rows[k], a, b, AFFINE, STATE),
                d,
                th,
                sd,
                V_REST,
                V_RESET,
                GAIN,
                CHARGE,
                SYNAPSE,
                RESET,
                STRICT,
            )
            since = tl.where(spike, 0.0, since)
            membranes = membranes + (v,)
            reached = reached + (current,)
        for k in tl.static_range(STEPS - 1, -1, -1):
            gs = given[k].to(STATE)
            v = membranes[k]
            if k > 0:
                u = carried(
                    membranes[k - 1],
                    fires(membranes[k - 1], th, STRICT),
                    th,
                    V_RESET,
                    RESET,
                )
            else:
                u = u_block
            z = v * z_scale - z_shift
            if SURROGATE == "given":
                ds_dz = slopes[k]
            elif SURROGATE == "mixed":
                ds_dz = mixed_derivative(z, times[k], kind, first, second)
            else:
                ds_dz = derivative(z, times[k], first, second, SURROGATE)
            # What a step fires late gets the gradient of the step after.
            if DELAYED:
                gs_here = gs_after
            else:
                gs_here = gs
            gs_after = gs
            g, share = step_gradient(
                v,
                ds_dz * z_scale,
                gs_here,
                g,
                du,
                delayed,
                th,
                tl.where(normalized, v * inverse, 1.0),
                V_RESET,
                RESET,
                STRICT,
                DETACH_RESET,
            )
            of_threshold += share
            of_decay += g * charge_ddecay(u, reached[k], d, V_REST, CHARGE)
            y = seen_by_neurons(rows[k], a, b, AFFINE, STATE)
            gx, gc, share = conduct_gradient(
                charge_dx(d, CHARGE) * g, gc, currents[k], y, sd, GAIN, SYNAPSE
            )
            of_synapse_decay += share
            du = charge_du(d, CHARGE) + zero
            delayed = 1.0 + zero
            of_sum += gx
            of_dot += gx * (rows[k].to(STATE) - m)
            if HELD:
                of_x += gx
            else:
                row = grad_x + k * tl.cast(neurons, tl.int64)
                tl.store(row + lanes, gx.to(grad_x.dtype.element_ty), mask=mask)
        if not WHOLE:
            place = tl.cast(blocks - 2 - done, tl.int64) * neurons + lanes
            earlier = mask & (done + 1 < blocks)
            u_block = tl.load(kept_state + place, mask=earlier, other=0.0)
            if SYNAPSE != "none":
                c_block = tl.load(kept_current + place, mask=earlier, other=0.0)
            if TIMED:
                since_block = tl.load(kept_since + place, mask=earlier, other=0.0)
            x -= STEPS * tl.cast(x_step, tl.int64)
            grad_spikes -= STEPS * tl.cast(grad_step, tl.int64)
            if derivatives is not None:
                derivatives -= STEPS * tl.cast(derivatives_step, tl.int64)
            if not HELD:
                grad_x -= STEPS * tl.cast(neurons, tl.int64)

    if LOOKS_AT_START:
        z = start * z_scale - z_shift
        never = tl.full([BLOCK], float("inf"), STATE)
        if SURROGATE == "given":
            ds_dz = start_ds_dz
        elif SURROGATE == "mixed":
            ds_dz = mixed_derivative(z, never, kind, first, second)
        else:
            ds_dz = derivative(z, never, first, second, SURROGATE)
        gu, share = step_gradient(
            start,
            ds_dz * z_scale,
            gs_after if DELAYED else zero,
            g,
            du,
            delayed,
            th,
            tl.where(normalized, start * inverse, 1.0),
            V_RESET,
            RESET,
            STRICT,
            DETACH_RESET,
        )
        of_threshold += share
    else:
        gu = du * g
    if HELD:
        tl.store(grad_x + lanes, of_x.to(grad_x.dtype.element_ty), mask=mask)
    if grad_v_init is not None:
        tl.store(grad_v_init + lanes, gu, mask=mask)
    if grad_current_init is not None:
        tl.store(grad_current_init + lanes, gc, mask=mask)
    if grad_decay is not None:
        store_sums(grad_decay, of_decay, program, mask, neurons, DECAY_GROUP, BLOCK)
    if grad_threshold is not None:
        store_sums(grad_threshold, of_threshold, program, mask, neurons, THRESHOLD_GROUP, BLOCK)
    if grad_synapse_decay is not None:
        store_sums(
            grad_synapse_decay,
            of_synapse_decay,
            program,
            mask,
            neurons,
            SYNAPSE_DECAY_GROUP,
            BLOCK,
        )
    if sums is not None:
        store_sums(sums, of_sum, program, mask, neurons, CHANNEL_GROUP, BLOCK)
    if dots is not None:
        store_sums(dots, of_dot, program, mask, neurons, CHANNEL_GROUP, BLOCK)
