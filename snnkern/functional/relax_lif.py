"""Lines below what neurons fire."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from snnkern import reference
from snnkern.autograd import RelaxConfig, RelaxLIF
from snnkern.functional import backends
from snnkern.functional.backends import Backend
from snnkern.functional.bounded import bounded_neurons, check_ends
from snnkern.functional.neurons import Reset

Slope = Literal["edge", "paper"]


def relax_lif(
    rows: Tensor,
    v_lower: Tensor,
    v_upper: Tensor,
    leak: float | Tensor = 1.0,
    threshold: float | Tensor = 1.0,
    *,
    reset: Reset = "hard",
    v_reset: float = 0.0,
    v_init: float = 0.0,
    strict: bool = False,
    slope: Slope | Tensor = "edge",
    mix: Tensor | None = None,
    after: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """A linear function of the currents below one of the spikes: S-CROWN's step through neurons.

    For all spikes s and currents x of a ``lif`` whose membranes stay between ``v_lower`` and
    ``v_upper``::

        sum(rows[r] * s) >= sum(lines[r] * x) + sum(bias[r])

    with the sums over time and neurons. It holds for s as ``lif`` computes it: rounding errors of
    the membrane, and of the lines, are within ``bias``. What a step fires and what it carries on
    are both functions of its one membrane, and one line lies below their weighted sum, instead of
    one each as in eq. 8 and 10 of Liang et al. 2022.

    Args:
        rows: weights of the spikes, ``[R, T, N, ...]``, float32 or float64.
        v_lower: membranes ``[T, N, ...]`` as ``interval_lif`` gives them, of the dtype of ``rows``.
        v_upper: likewise.
        leak: see ``lif``, like the other options.
        threshold: likewise.
        reset: likewise.
        v_reset: likewise.
        v_init: a number.
        strict: likewise.
        slope: of the lines of neurons that may or may not fire. ``"edge"``: the longer edge of the
            lower hull; ``"paper"``: eq. 8 and 10; or slopes like ``rows``. Any of them is sound.
        mix: shares like ``rows``, in place of ``slope``: 0 for the left edge of the hull, 1 for the
            right one, where it has two. Sound beyond as well.
        after: weights ``[R, N, ...]`` of the membrane that would come after the last step, but for
            the current and the rounding of that step.
        backend: see ``interval_lif``.

    Returns:
        Lines, of the shape and dtype of ``rows``, and their bias ``[R, N, ...]``, float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a value, shape or device that does not fit.
        RuntimeError: ``backend`` cannot run here.
    """
    check_ends(("v_lower", "v_upper"), v_lower, v_upper)
    if v_lower.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"v_lower has dtype {v_lower.dtype}, expected float32 or float64")
    slopes = slope if isinstance(slope, Tensor) else mix
    if mix is not None and slope != "edge":
        raise ValueError("mix and slope are given, expected one of them")
    if slopes is None and slope not in ("edge", "paper"):
        raise ValueError(f"slope is {slope!r}, expected 'edge', 'paper' or a tensor like rows")
    given = "slope" if mix is None else "mix"
    for name, value in (("rows", rows), (given, slopes), ("after", after)):
        if value is not None and (value.dtype, value.device) != (v_lower.dtype, v_lower.device):
            raise TypeError(
                f"{name} is {value.dtype} on {value.device}, expected {v_lower.dtype} on "
                f"{v_lower.device} like v_lower"
            )
    if rows.shape[1:] != v_lower.shape or rows.shape[0] == 0:
        raise ValueError(
            f"rows has shape {list(rows.shape)}, expected {['R', *v_lower.shape]} with R > 0"
        )
    if slopes is not None and slopes.shape != rows.shape:
        raise ValueError(f"{given} has shape {list(slopes.shape)}, expected {list(rows.shape)}")
    if after is not None and after.shape != rows[:, 0].shape:
        raise ValueError(f"after has shape {list(after.shape)}, expected {list(rows[:, 0].shape)}")
    neurons = bounded_neurons(v_lower, leak, threshold, reset, v_reset, v_init, strict)
    if mix is not None:
        kind = reference.MIXED
    else:
        kind = reference.GIVEN if slopes is not None else reference.SLOPES.index(str(slope))
    config = RelaxConfig(*neurons[2:], kind, backends.overload_for(backend, v_lower))
    tensors = (rows, v_lower, v_upper, *neurons[:2], slopes, after)
    result: tuple[Tensor, Tensor] = RelaxLIF.apply(*tensors, config)
    return result
