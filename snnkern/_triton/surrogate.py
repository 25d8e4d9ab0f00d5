"""Surrogate derivatives of the spike in Triton. Formulas are those of ``snnkern.reference``."""

import triton
import triton.language as tl

from snnkern._triton.neuron import divide, exponential

HALF_PI = tl.constexpr(1.5707963267948966)
INVERSE_SQRT_PI = tl.constexpr(0.5641895835477563)


@triton.jit
def derivative(z, since, first, second, KIND: tl.constexpr):
    """ds/dz of one kind.

    ``since`` is the number of steps since the last spike, for ``"spike_time"``, which does not look
    at z; ``first`` and ``second`` are the kind's numbers.
    """
    if KIND == "triangle":
        height = first - tl.abs(z)
        slope = tl.where(height > 0.0, second * height, 0.0)
    elif KIND == "rectangle":
        slope = tl.where(tl.abs(z) < 0.5 * first, second, 0.0)
    elif KIND == "exponential":
        slope = first * exponential(-(second * tl.abs(z)))
    elif KIND == "atan":
        q = HALF_PI * first * z
        slope = divide(0.5 * first, 1.0 + q * q)
    elif KIND == "sigmoid":
        e = exponential(-(first * tl.abs(z)))
        slope = divide(first * e, (1.0 + e) * (1.0 + e))
    elif KIND == "fast_sigmoid":
        d = 1.0 + first * tl.abs(z)
        slope = divide(1.0, d * d)
    elif KIND == "erf":
        q = first * z
        slope = INVERSE_SQRT_PI * first * exponential(-(q * q))
    elif KIND == "straight_through":
        slope = tl.full(z.shape, 1.0, z.dtype)
    else:
        tl.static_assert(KIND == "spike_time")
        slope = first * exponential(-(second * since))
    return slope


@triton.jit
def mixed_derivative(z, since, kind, first, second):
    """ds/dz where every neuron has its own kind, by its number in ``snnkern.reference.KINDS``."""
    slope = derivative(z, since, first, second, "triangle")
    slope = tl.where(kind == 1, derivative(z, since, first, second, "rectangle"), slope)
    slope = tl.where(kind == 2, derivative(z, since, first, second, "exponential"), slope)
    slope = tl.where(kind == 3, derivative(z, since, first, second, "atan"), slope)
    slope = tl.where(kind == 4, derivative(z, since, first, second, "sigmoid"), slope)
    slope = tl.where(kind == 5, derivative(z, since, first, second, "fast_sigmoid"), slope)
    slope = tl.where(kind == 6, derivative(z, since, first, second, "erf"), slope)
    slope = tl.where(kind == 7, derivative(z, since, first, second, "straight_through"), slope)
    return tl.where(kind == 8, derivative(z, since, first, second, "spike_time"), slope)
