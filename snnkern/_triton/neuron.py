"""The dynamics of a spiking neuron in Triton: the one place where they are written in it.

Every function takes blocks of neurons and is inlined. Capitals are known at compile time: the
options by their names in ``snnkern.reference``, and numbers. What the reference rounds is rounded
here too: products through ``multiply``, quotients through ``divide``.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def multiply(a, b):
    """A product that is rounded on its own.

    Spelled out in PTX since only an explicit rounding keeps the compiler from fusing it into a sum:
    the option of a launch that forbids this does not reach kernels inside a compiled graph.
    """
    if INTERPRETED:
        product = a * b
    elif b.dtype == tl.float64:
        product = tl.inline_asm_elementwise(
            "mul.rn.f64 $0, $1, $2;", "=d,d,d", [a, b], dtype=tl.float64, is_pure=True, pack=1
        )
    else:
        product = tl.inline_asm_elementwise(
            "mul.rn.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )
    return product


@triton.jit
def divide(a, b):
    """The correctly rounded quotient, which ``/`` is for float64 alone."""
    if b.dtype == tl.float64:
        quotient = a / b
    else:
        quotient = tl.div_rn(a, b)
    return quotient


@triton.jit
def exponential(x):
    """exp; ``tl.exp`` of float32 is too coarse on a GPU."""
    if INTERPRETED:
        power = tl.exp(x)
    else:
        power = libdevice.exp(x)
    return power


@triton.jit
def fires(v, threshold, STRICT: tl.constexpr):
    """Fire. False for NaN."""
    if STRICT:
        spike = v > threshold
    else:
        spike = v >= threshold
    return spike


@triton.jit
def charge(
    u,
    current,
    decay,
    threshold,
    V_REST: tl.constexpr,
    CHARGE: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
):
    """The membrane before reset, from the carried state and the current that reaches it."""
    rest = tl.full([], V_REST, u.dtype)
    if CHARGE == "leak":
        v = multiply(decay, u) + current
    elif CHARGE == "euler":
        v = u + multiply(decay, (rest - u) + current)
    elif CHARGE == "euler_box":
        v = u + multiply(decay, (current + rest) - u)
    elif CHARGE == "decay_input":
        v = u + divide((rest - u) + current, decay)
    else:
        tl.static_assert(CHARGE == "decay")
        v = (u - divide(u - rest, decay)) + current
    if RESET == "delayed_soft":
        v = v - tl.where(fires(u, threshold, STRICT), threshold, 0.0)
    return v


@triton.jit
def charge_du(decay, CHARGE: tl.constexpr):
    """dv/du of the charge."""
    if CHARGE == "leak":
        slope = decay
    elif CHARGE == "euler" or CHARGE == "euler_box":
        slope = 1.0 - decay
    else:
        slope = 1.0 - divide(1.0, decay)
    return slope


@triton.jit
def charge_dx(decay, CHARGE: tl.constexpr):
    """dv/dcurrent of the charge."""
    if CHARGE == "leak" or CHARGE == "decay":
        slope = tl.full([], 1.0, decay.dtype)
    elif CHARGE == "decay_input":
        slope = divide(1.0, decay)
    else:
        slope = decay
    return slope


@triton.jit
def charge_ddecay(u, current, decay, V_REST: tl.constexpr, CHARGE: tl.constexpr):
    """dv/ddecay of the charge."""
    rest = tl.full([], V_REST, u.dtype)
    if CHARGE == "leak":
        slope = u
    elif CHARGE == "euler" or CHARGE == "euler_box":
        slope = (current - u) + rest
    elif CHARGE == "decay_input":
        slope = divide((u - rest) - current, decay * decay)
    else:
        slope = divide(u - rest, decay * decay)
    return slope


@triton.jit
def carried(v, spike, threshold, V_RESET: tl.constexpr, RESET: tl.constexpr):
    """Reset: the state that the next step starts from."""
    if RESET == "hard":
        u = tl.where(spike, tl.full([], V_RESET, v.dtype), v)
    elif RESET == "soft":
        u = v - tl.where(spike, threshold, 0.0)
    else:
        u = v
    return u


@triton.jit
def conduct(c, x, synapse_decay, GAIN: tl.constexpr, SYNAPSE: tl.constexpr):
    """Synapse: what reaches the membrane, and the synaptic current that is carried on."""
    if GAIN != 1.0:
        x = multiply(tl.full([], GAIN, x.dtype), x)
    if SYNAPSE == "none":
        current = x
    elif SYNAPSE == "charged":
        c = multiply(synapse_decay, c) + x
        current = c
    elif SYNAPSE == "decayed":
        c = multiply(synapse_decay, c + x)
        current = c
    else:
        tl.static_assert(SYNAPSE == "jump")
        current = c + x
        c = current + multiply(-synapse_decay, current)
    return current, c


@triton.jit
def conduct_gradient(g, gc, c, x, synapse_decay, GAIN: tl.constexpr, SYNAPSE: tl.constexpr):
    """Backward through the synapse: gradients of x, of the current before, and of its decay.

    ``g`` is that of what reached the membrane, ``gc`` that of the carried current of the step
    after, ``c`` the carried current before the step.
    """
    gain = tl.full([], GAIN, x.dtype)
    if SYNAPSE == "none":
        gx = g
        share = tl.zeros_like(g)
    elif SYNAPSE == "charged":
        gx = g + gc
        share = gx * c
        gc = synapse_decay * gx
    elif SYNAPSE == "decayed":
        total = g + gc
        share = total * (c + gain * x)
        gc = synapse_decay * total
        gx = gc
    else:
        share = -(gc * (c + gain * x))
        gc = g + (1.0 - synapse_decay) * gc
        gx = gc
    if GAIN != 1.0:
        gx = gain * gx
    return gx, gc, share


@triton.jit
def take_step(
    u,
    c,
    x,
    decay,
    threshold,
    synapse_decay,
    V_REST: tl.constexpr,
    V_RESET: tl.constexpr,
    GAIN: tl.constexpr,
    CHARGE: tl.constexpr,
    SYNAPSE: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
):
    """One time step: conduct, charge, fire, reset. What every scan over time is made of.

    From the carried state, the synaptic current and the input to both carried on, the membrane
    before reset, the current that reached it, and the spikes.
    """
    current, c = conduct(c, x, synapse_decay, GAIN, SYNAPSE)
    v = charge(u, current, decay, threshold, V_REST, CHARGE, RESET, STRICT)
    spike = fires(v, threshold, STRICT)
    return carried(v, spike, threshold, V_RESET, RESET), c, v, current, spike


@triton.jit
def step_gradient(
    v,
    ds_dv,
    gs,
    g_next,
    du,
    delayed,
    threshold,
    minus_dthreshold,
    V_RESET: tl.constexpr,
    RESET: tl.constexpr,
    STRICT: tl.constexpr,
    DETACH_RESET: tl.constexpr,
):
    """One step of backpropagation through time: dL/dv of a step, its share of dL/dthreshold.

    ``gs`` is dL/d(spike), ``g_next`` is dL/dv of the step after, ``du`` that step's dv/du, and
    ``delayed`` 1 if it subtracts what a delayed reset owes; at the end of time dL/du, 1 and 0.
    ``minus_dthreshold`` is -dz/dthreshold over dz/dv, of the surrogate's argument z.
    """
    spike = fires(v, threshold, STRICT)
    by_spike = tl.zeros_like(g_next)
    by_state = du
    by_threshold = tl.zeros_like(g_next)
    if RESET == "hard":
        by_spike = du * ((tl.full([], V_RESET, v.dtype) - v) * ds_dv)
        by_state = tl.where(spike, 0.0, du)
    elif RESET == "soft":
        by_spike = -du * (threshold * ds_dv)
        by_threshold = tl.where(spike, -du, 0.0)
    elif RESET == "delayed_soft":
        by_spike = -delayed * (threshold * ds_dv)
        by_threshold = tl.where(spike, -delayed, 0.0)
    if DETACH_RESET:
        by_spike = tl.zeros_like(g_next)
    from_above = gs * ds_dv
    through_spike = from_above + g_next * by_spike
    share = g_next * by_threshold - through_spike * minus_dthreshold
    return from_above + g_next * (by_spike + by_state), share
