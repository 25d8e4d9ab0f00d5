"""How the code of Liang et al. 2022 differentiates its bounds, for the sake of comparison.

The values of bounds are those of snnkern.certify.ibp and, with the slopes of the paper, of
snnkern.certify.crown, without what these subtract for rounding. The gradients differ: whether a
spike is unsure is ``(upper + lower) % 2`` there, whose derivative is 1 by both ends (the right one
is 1 and -1), S-CROWN is differentiated through ``1 - upper`` of the spikes too, and what is 0 has
the derivatives of a positive and of a negative number added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from snnkern import reference
from snnkern.reference import Interval

_published = ContextVar("published", default=False)


@contextmanager
def published_gradient() -> Iterator[None]:
    """Within the block bounds are differentiated as their published code does it."""
    before = _published.set(True)
    try:
        yield
    finally:
        _published.reset(before)


def wanted() -> bool:
    """Whether that is asked for, and anything is differentiated."""
    return _published.get() and torch.is_grad_enabled()


class _BothAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return lower.clone(), upper.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        of_lower, of_upper = grads
        return of_lower + 2 * of_upper, of_upper


def unsure(box: Interval) -> Interval:
    """The box, whose width goes up with either end as far as its gradient is concerned."""
    both_add: Any = _BothAdd.apply
    return Interval(*both_add(*box))


def lines(
    rows: Tensor, neuron: dict[str, Any], spikes: Interval, membranes: Interval
) -> tuple[Tensor, Tensor]:
    """``functional.relax_lif`` with the planes of eq. 8 and 10, for a hard reset to 0."""
    if neuron["reset"] != "hard" or neuron["v_reset"] != 0 or neuron["v_init"] != 0:
        raise ValueError(f"the neurons are {neuron}, expected a hard reset to 0 as in the paper")
    leak, threshold = (
        reference.broadcast(torch.as_tensor(neuron[name], dtype=rows.dtype), membranes.lower)
        for name in ("leak", "threshold")
    )
    on_next = torch.zeros_like(rows[:, 0])
    bias = torch.zeros_like(on_next)
    found = []
    for t in reversed(range(rows.shape[1])):
        surely, maybe = (end[t] for end in spikes)
        low, high = (end[t] for end in membranes)
        either = (maybe == 1) & (surely == 0)
        wide = high - threshold >= threshold - low
        on_state = leak * on_next
        plane = on_state.clamp(min=0) * torch.where(either, low, 0)
        plane = plane + on_state.clamp(max=0) * torch.where(either, threshold, 0)
        on_spike = rows[:, t] - plane
        below = torch.where(either & wide, 1 / (high - threshold), 0)
        above = torch.where(either & ~wide, 1 / (threshold - low), 0)
        least = torch.where(surely == 1, 1, -below * threshold)
        most = torch.where(maybe == 0, 0, torch.where(either & ~wide, -above * low, 1))
        up, down = on_spike.clamp(min=0), on_spike.clamp(max=0)
        bias = bias + plane + up * least + down * most
        on_next = up * below + down * above + (1 - maybe) * on_state
        found.append(on_next)
    return torch.stack(found[::-1], 1), bias.double()
