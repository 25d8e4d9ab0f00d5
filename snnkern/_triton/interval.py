"""Bounds through a spiking neuron in Triton: S-IBP, and lines of S-CROWN; see csrc/interval.h.

What the reference rounds goes through ``multiply``, in float64 too; derivatives need not.
"""

import triton
import triton.language as tl

from snnkern._triton.neuron import charge, fires, multiply

# What a line may round off: units of float32 and float64, and what is enough for float64 sums.
TWO_UNITS_32 = tl.constexpr(2.0**-23)
TWO_UNITS_64 = tl.constexpr(2.0**-52)
OF_SUMS = tl.constexpr(2.0**-49)


@triton.jit
def lesser(a, b):
    """As the reference selects, so that ties and signs of zero agree."""
    return tl.where(b < a, b, a)


@triton.jit
def greater(a, b):
    """See ``lesser``."""
    return tl.where(b > a, b, a)


@triton.jit
def charge_interval(
    u_low, u_high, x_low, x_high, decay, threshold, RESET: tl.constexpr, STRICT: tl.constexpr
):
    """Bounds of the membrane before reset, from those of the carried state and of the current."""
    low = charge(u_low, x_low, decay, threshold, 0.0, "leak", "none", STRICT)
    high = charge(u_high, x_high, decay, threshold, 0.0, "leak", "none", STRICT)
    if RESET == "delayed_soft":
        surely = fires(u_low, threshold, STRICT)
        maybe = fires(u_high, threshold, STRICT)
        # Both cases meet at the threshold, where one has fired and the other has not.
        at = threshold + tl.zeros_like(u_low)
        fired = charge(at, x_low, decay, threshold, 0.0, "leak", "none", STRICT) - threshold
        silent = charge(at, x_high, decay, threshold, 0.0, "leak", "none", STRICT)
        less = high - threshold
        low = tl.where(surely, low - threshold, tl.where(maybe, lesser(low, fired), low))
        high = tl.where(surely, less, tl.where(maybe, greater(silent, less), high))
    return low, high


@triton.jit
def carry_interval(
    low, high, threshold, V_RESET: tl.constexpr, RESET: tl.constexpr, STRICT: tl.constexpr
):
    """Bounds of the state after reset, around both cases of what may or may not fire."""
    if RESET == "hard" or RESET == "soft":
        surely = fires(low, threshold, STRICT)
        maybe = fires(high, threshold, STRICT)
        if RESET == "hard":
            low_fired = tl.full(low.shape, V_RESET, low.dtype)
            high_fired = low_fired
            least = low_fired
        else:
            low_fired = low - threshold
            high_fired = high - threshold
            least = tl.zeros_like(low)
        either = greater(threshold + tl.zeros_like(high), high_fired)
        low = tl.where(surely, low_fired, tl.where(maybe, lesser(low, least), low))
        high = tl.where(surely, high_fired, tl.where(maybe, either, high))
    return low, high


@triton.jit
def transition(
    low,
    high,
    x_low,
    x_high,
    decay,
    threshold,
    V_RESET: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
):
    """From a membrane to that of the step after: derivatives of either end of what is selected.

    By the same end of this membrane, by the threshold, and by the decay.
    """
    surely = fires(low, threshold, STRICT)
    maybe = fires(high, threshold, STRICT)
    zero = tl.zeros_like(low)
    a = decay + zero
    at = threshold + zero
    if RESET == "delayed_soft":
        next_low = charge(low, x_low, decay, threshold, 0.0, "leak", "none", STRICT)
        next_high = charge(high, x_high, decay, threshold, 0.0, "leak", "none", STRICT)
        met = charge(at, x_low, decay, threshold, 0.0, "leak", "none", STRICT) - threshold
        below = charge(at, x_high, decay, threshold, 0.0, "leak", "none", STRICT)
        at_met = maybe & (surely == 0) & (met < next_low)
        owing = maybe & (surely | (next_high - threshold > below))
        at_below = maybe & (owing == 0)
        of_low = tl.where(at_met, zero, a)
        low_threshold = tl.where(surely, zero - 1.0, tl.where(at_met, a - 1.0, zero))
        low_decay = tl.where(at_met, at, low)
        of_high = tl.where(at_below, zero, a)
        high_threshold = tl.where(owing, zero - 1.0, tl.where(at_below, a, zero))
        high_decay = tl.where(at_below, at, high)
    else:
        low_decay, high_decay = carry_interval(low, high, threshold, V_RESET, RESET, STRICT)
        of_low = a
        of_high = a
        low_threshold = zero
        high_threshold = zero
        unsure = maybe & (surely == 0)
        if RESET == "hard":
            reset = tl.full([], V_RESET, low.dtype)
            of_low = tl.where(surely | (maybe & (reset < low)), zero, a)
            of_high = tl.where(maybe, zero, a)
            high_threshold = tl.where(unsure & (reset <= at), a, zero)
        elif RESET == "soft":
            of_low = tl.where(unsure & (low > 0.0), zero, a)
            low_threshold = tl.where(surely, -a, zero)
            subtracted = maybe & (surely | (high - threshold > threshold))
            of_high = tl.where(maybe & (subtracted == 0), zero, a)
            high_threshold = tl.where(subtracted, -a, tl.where(maybe, a, zero))
    return of_low, low_threshold, low_decay, of_high, high_threshold, high_decay


@triton.jit
def pieces(
    row,
    after,
    low,
    high,
    decay,
    threshold,
    V_RESET: tl.constexpr,
    RESET: tl.constexpr,
):
    """What a membrane fires and carries on, weighed: a line where it is silent, one where it fired.

    ``on_state * v`` and ``constant + fired_slope * v``; their heights at the ends of both follow:
    left, silent, fired, right. All in float64.
    """
    on_state = multiply(decay, after)
    constant = row
    fired_slope = on_state
    if RESET == "hard":
        constant = row + multiply(on_state, tl.full([], V_RESET, tl.float64))
        fired_slope = tl.zeros_like(on_state)
    elif RESET == "soft":
        constant = row - multiply(on_state, threshold)
    elif RESET == "delayed_soft":
        constant = row - multiply(after, threshold)
    left = multiply(on_state, low)
    silent = multiply(on_state, threshold)
    fired = constant + multiply(fired_slope, threshold)
    right = constant + multiply(fired_slope, high)
    return on_state, constant, fired_slope, left, silent, fired, right


@triton.jit
def line_below(
    row,
    after,
    v_low,
    v_high,
    before,
    given,
    decay,
    threshold,
    V_RESET: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """A line in the membrane, below both of its pieces: its slope, and its intercept in float64.

    ``before`` is the largest magnitude of the state that the membrane was charged from, ``given``
    a slope or share; decay and threshold are those of the neuron.
    """
    surely = fires(v_low, threshold, STRICT)
    maybe = fires(v_high, threshold, STRICT)
    w = row.to(tl.float64)
    k = after.to(tl.float64)
    low = v_low.to(tl.float64)
    high = v_high.to(tl.float64)
    a = decay.to(tl.float64)
    th = threshold.to(tl.float64)
    on_state, constant, fired_slope, left, silent, fired, right = pieces(
        w, k, low, high, a, th, V_RESET, RESET
    )
    either = maybe & (surely == 0)
    below = th - low
    above = high - th
    # Nothing is divided by 0 where nobody looks.
    rising = tl.where(either & (below > 0.0), below, 1.0)
    falling = tl.where(either & (above > 0.0), above, 1.0)
    if SLOPE == "edge" or SLOPE == "mixed":
        middle = lesser(silent, fired)
        chord = (right - left) / tl.where(either, high - low, 1.0)
        first = (middle - left) / rising
        second = (right - middle) / falling
        one = tl.where(below > 0.0, first, second)
        other = tl.where(above > 0.0, second, first)
        if SLOPE == "edge":
            edge = tl.where(below >= above, one, other)
        else:
            edge = one + multiply(given.to(tl.float64), other - one)
        line = tl.where(middle - left < multiply(chord, below), edge, chord)
    elif SLOPE == "paper":
        jump = constant
        if RESET == "hard":
            jump = constant - multiply(on_state, tl.where(on_state > 0.0, low, th))
        wide = above >= below
        steep = jump / tl.where(wide, falling, rising)
        line = tl.where(tl.where(wide, jump, -jump) > 0.0, steep, 0.0) + fired_slope
    else:
        line = given.to(tl.float64)
    slope = tl.where(surely, fired_slope, tl.where(maybe, line, on_state)).to(v_low.dtype)
    line = slope.to(tl.float64)
    lowest = lesser(
        lesser(left - multiply(line, low), silent - multiply(line, th)),
        lesser(fired - multiply(line, th), right - multiply(line, high)),
    )
    turned = fired_slope - line
    always = lesser(constant + multiply(turned, low), constant + multiply(turned, high))
    never = lesser(multiply(on_state - line, low), multiply(on_state - line, high))
    lowest = tl.where(surely, always, tl.where(maybe, lowest, never))
    if v_low.dtype == tl.float64:
        two_units = tl.full([], TWO_UNITS_64, tl.float64)
    else:
        two_units = tl.full([], TWO_UNITS_32, tl.float64)
    size = greater(tl.abs(low), tl.abs(high))
    rest = th + tl.abs(tl.full([], V_RESET, tl.float64))
    of_state = multiply(tl.abs(on_state), size + rest)
    of_charge = multiply(tl.abs(line), size + th + multiply(a, before))
    slack = multiply(two_units, of_charge + of_state)
    own = tl.abs(w) + of_state + multiply(tl.abs(k), th)
    own = own + multiply(tl.abs(line), size + th)
    return slope, lowest - (slack + multiply(tl.full([], OF_SUMS, tl.float64), own))


@triton.jit
def line_gradient(
    g_line,
    g_bias,
    row,
    after,
    slope,
    v_low,
    v_high,
    given,
    decay,
    threshold,
    V_RESET: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """From derivatives by a line and its intercept to those by what they are made of, in float64.

    That is the row, the line after, both bounds, decay, threshold, and what was given.
    """
    surely = fires(v_low, threshold, STRICT)
    maybe = fires(v_high, threshold, STRICT)
    k = after.to(tl.float64)
    low = v_low.to(tl.float64)
    high = v_high.to(tl.float64)
    a = decay.to(tl.float64)
    th = threshold.to(tl.float64)
    on_state, constant, fired_slope, left, silent, fired, right = pieces(
        row.to(tl.float64), k, low, high, a, th, V_RESET, RESET
    )
    line = slope.to(tl.float64)
    zero = tl.zeros_like(line)
    either = maybe & (surely == 0)
    below = th - low
    above = high - th
    # The line touches one of the four ends.
    gap_left = left - multiply(line, low)
    gap_silent = silent - multiply(line, th)
    gap_fired = fired - multiply(line, th)
    gap_right = right - multiply(line, high)
    to_silent = gap_silent < gap_left
    to_outer = gap_right < gap_fired
    to_right = lesser(gap_fired, gap_right) < lesser(gap_left, gap_silent)
    touch = tl.where(either, g_bias, zero)
    touch_left = tl.where(to_right, zero, touch)
    touch_right = touch - touch_left
    g_left = tl.where(to_silent, zero, touch_left)
    g_silent = touch_left - g_left
    g_right = tl.where(to_outer, touch_right, zero)
    g_fired = touch_right - g_right
    turned = g_line - (g_left * low + (g_silent + g_fired) * th + g_right * high)
    turn = tl.where(either, turned, zero)
    g_low = -line * g_left
    g_high = -line * g_right
    g_th = -line * (g_silent + g_fired)
    g_constant = tl.where(surely, g_bias, zero)
    g_fired_slope = tl.where(surely, g_line, zero)
    g_on_state = tl.where(maybe, zero, g_line)
    g_given = zero
    rising = tl.where(either & (below > 0.0), below, 1.0)
    falling = tl.where(either & (above > 0.0), above, 1.0)
    if SLOPE == "edge" or SLOPE == "mixed":
        is_lower = fired < silent
        middle = tl.where(is_lower, fired, silent)
        wide = tl.where(either, high - low, 1.0)
        chord = (right - left) / wide
        one = (middle - left) / rising
        other = (right - middle) / falling
        hull = middle - left < multiply(chord, below)
        if SLOPE == "edge":
            share = tl.where(below < above, zero + 1.0, zero)
        else:
            share = given.to(tl.float64)
            inner = hull & (below > 0.0) & (above > 0.0)
            g_given = tl.where(inner, turn * (other - one), zero)
        share = tl.where(below > 0.0, tl.where(above > 0.0, share, zero), zero + 1.0)
        g_one = tl.where(hull, turn * (1.0 - share), zero) / rising
        g_other = tl.where(hull, turn * share, zero) / falling
        g_chord = tl.where(hull, zero, turn) / wide
        g_middle = g_one - g_other
        g_left = g_left - (g_one + g_chord)
        g_right = g_right + (g_other + g_chord)
        g_silent = g_silent + tl.where(is_lower, zero, g_middle)
        g_fired = g_fired + tl.where(is_lower, g_middle, zero)
        g_low = g_low + (g_one * one + g_chord * chord)
        g_high = g_high - (g_other * other + g_chord * chord)
        g_th = g_th + (g_other * other - g_one * one)
    elif SLOPE == "paper":
        wide = above >= below
        to_low = on_state > 0.0
        past = tl.where(to_low, low, th)
        jump = constant
        if RESET == "hard":
            jump = constant - multiply(on_state, past)
        span = tl.where(wide, falling, rising)
        g_jump = tl.where(tl.where(wide, jump, -jump) > 0.0, turn, zero) / span
        g_span = -g_jump * jump / span
        g_high = g_high + tl.where(wide, g_span, zero)
        g_low = g_low - tl.where(wide, zero, g_span)
        g_th = g_th + tl.where(wide, -g_span, g_span)
        g_constant = g_constant + g_jump
        g_fired_slope = g_fired_slope + turn
        if RESET == "hard":
            g_on_state = g_on_state - g_jump * past
            g_low = g_low - tl.where(to_low, g_jump * on_state, zero)
            g_th = g_th - tl.where(to_low, zero, g_jump * on_state)
    else:
        g_given = turn
    g_on_state = g_on_state + (g_left * low + g_silent * th)
    g_constant = g_constant + (g_fired + g_right)
    g_fired_slope = g_fired_slope + (g_fired * th + g_right * high)
    g_low = g_low + g_left * on_state
    g_high = g_high + g_right * fired_slope
    g_th = g_th + (g_silent * on_state + g_fired * fired_slope)
    g_next = zero
    if RESET == "hard":
        g_on_state = g_on_state + g_constant * tl.full([], V_RESET, tl.float64)
    elif RESET == "soft":
        g_on_state = g_on_state + (g_fired_slope - g_constant * th)
        g_th = g_th - g_constant * on_state
    else:
        g_on_state = g_on_state + g_fired_slope
        if RESET == "delayed_soft":
            g_next = -g_constant * th
            g_th = g_th - g_constant * k
    return g_constant, g_next + g_on_state * a, g_low, g_high, g_on_state * k, g_th, g_given
