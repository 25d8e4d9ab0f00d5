"""What neurons compare with their thresholds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnkern import reference
from snnkern.autograd.engine import run
from snnkern.functional.lif import LIF_DEFAULTS, held
from snnkern.functional.neurons import neurons


@torch.no_grad()
def membranes(
    x: Tensor,
    leak: float | Tensor | None = None,
    threshold: float | Tensor = 1.0,
    *,
    timesteps: int | None = None,
    **options: Any,
) -> Tensor:
    """The membranes of ``lif`` before reset, by the same kernel: what a step's spikes come from.

    A neuron fires where its membrane is at the threshold, with ``strict`` where it is above. With
    ``delayed_spike`` that spike leaves one step later.

    Args:
        x: see ``lif``.
        leak: likewise.
        threshold: likewise.
        timesteps: likewise.
        options: the other options of ``lif`` but ``spike_format`` and ``return_state``.

    Returns:
        ``[T, N, ...]`` in the layout of ``x``, float32 (float64 for float64), without a gradient.

    Raises:
        TypeError, ValueError, RuntimeError: as ``lif`` does.
    """
    for name in ("spike_format", "return_state"):
        if name in options:
            raise TypeError(
                f"{name} is {options[name]!r}, expected none: membranes are given alone"
            )
    taken = LIF_DEFAULTS | {"leak": leak, "threshold": threshold} | options
    tensors, config = neurons(x, **taken)
    steps, count = held(x, timesteps)
    op = getattr(torch.ops.snnkern.lif_forward, config.overload)
    # The last of them is of surrogates.
    given = (steps, count, *tensors[:-1], *config.dynamics)
    found: Tensor = run(op, *given, reference.MEMBRANES, False)[0]
    return found
