"""Bounds of what neurons fire."""

from __future__ import annotations

from torch import Tensor

from snnkern.autograd import IntervalConfig, IntervalLIF
from snnkern.functional import backends
from snnkern.functional.backends import Backend
from snnkern.functional.bounded import bounded_neurons, check_ends
from snnkern.functional.neurons import Reset
from snnkern.surrogate import KINDS, NotPointwise, SpikeTime, Surrogate, Triangle


def interval_lif(
    lower: Tensor,
    upper: Tensor,
    leak: float | Tensor = 1.0,
    threshold: float | Tensor = 1.0,
    *,
    reset: Reset = "hard",
    v_reset: float = 0.0,
    v_init: float = 0.0,
    strict: bool = False,
    surrogate: Surrogate = Triangle(),  # noqa: B008  frozen
    return_membranes: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, ...]:
    """Bounds of what ``lif`` fires for any currents between ``lower`` and ``upper``, as one op.

    S-IBP of Liang et al. 2022 (eq. 7 to 9) for every reset: a membrane in ``[l, u]`` fires for sure
    where ``l`` fires and may fire where ``u`` does; what is carried on is the smallest interval
    around the states of both cases. Charge, fire and reset are monotone in floating point too, so
    the bounds hold for spikes as they are computed. They are attained in a single step, and over
    time where no step is unsure.

    Args:
        lower: currents ``[T, N, ...]``, see ``lif``; not NaN.
        upper: the same, nowhere below ``lower``, which is not checked.
        leak: see ``lif``, like the other options; tensors get gradients.
        threshold: likewise.
        reset: likewise.
        v_reset: likewise.
        v_init: a number.
        strict: likewise.
        surrogate: the derivative of a spike, at either end of the membrane. Of the reset, what was
            selected is differentiated, and what selected it is not, as in the paper's code.
        return_membranes: also give the bounds of the membranes before reset.
        backend: see ``lif``.

    Returns:
        Lower and upper spikes, 0 or 1, of the shape, dtype and layout of ``lower``; with
        ``return_membranes`` also lower and upper membranes, float32 (float64 for float64).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a value, shape or device that does not fit.
        RuntimeError: ``backend`` cannot run here.
    """
    check_ends(("lower", "upper"), lower, upper)
    decay, threshold, start, kind_of_reset, after, strict = bounded_neurons(
        lower, leak, threshold, reset, v_reset, v_init, strict
    )
    if not isinstance(surrogate, Surrogate) or isinstance(surrogate, NotPointwise | SpikeTime):
        raise ValueError(f"surrogate is {surrogate!r}, expected a function of the membrane alone")
    overload = backends.overload_for(backend, lower)
    config = IntervalConfig(
        start,
        kind_of_reset,
        after,
        strict,
        KINDS.index(surrogate.kind),
        surrogate.args,
        surrogate.normalized,
        return_membranes,
        overload,
    )
    outputs: tuple[Tensor, ...] = IntervalLIF.apply(lower, upper, decay, threshold, config)
    return outputs if return_membranes else outputs[:2]
