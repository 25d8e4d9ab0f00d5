"""Neurons of a constant current: which spike trains they have, and linear bounds of these.

A neuron that starts from rest and goes back to it after every spike fires first at the step n at
which ``I (1 + leak + ... + leak^(n - 1))`` reaches the threshold, and every n steps from then on.
So the trains are T + 1, ordered by the current, and a weighted sum of spikes is a function of the
current with that many steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnkern import functional, reference
from snnkern.autograd import is_constant
from snnkern.reference import Interval

# Edges of the hull that are tried.
ROUNDS = 4


def fits(neuron: dict[str, Any], box: Interval) -> bool:
    """Whether the currents are constant in time and the neurons have such trains.

    Not where they are to be differentiated: what is exact here has no gradient.
    """
    rests = neuron["reset"] == "hard" and neuron["v_reset"] == 0 and neuron["v_init"] == 0
    tensors = [*box, *(value for value in neuron.values() if isinstance(value, Tensor))]
    fixed = not any(tensor.requires_grad for tensor in tensors)
    return rests and fixed and is_constant(box.lower) and is_constant(box.upper)


def _periods(neuron: dict[str, Any], box: Interval) -> tuple[Tensor, Tensor]:
    """The first steps, from 1 on, at which neurons fire at either end; T + 1 for never.

    Charge is monotone in floating point: in between, no first step lies outside of these.
    """
    periods = []
    for current in box:
        spikes = functional.lif(current, **neuron)
        steps = torch.arange(1, len(spikes) + 1, device=spikes.device)
        steps = steps.view(-1, *(1,) * (spikes.dim() - 1))
        periods.append(torch.where(spikes > 0, steps, len(spikes) + 1).amin(0))
    return periods[1], periods[0]


def spikes(neuron: dict[str, Any], box: Interval) -> Interval:
    """Bounds of the spikes ``[T, N, ...]``, each of them attained."""
    fastest, slowest = _periods(neuron, box)
    timesteps = len(box.lower)
    surely = torch.ones(box.lower.shape, dtype=torch.bool, device=box.lower.device)
    maybe = torch.zeros_like(surely)
    for period in range(1, timesteps + 2):
        reachable = (fastest <= period) & (period <= slowest)
        for t in range(timesteps):
            if (t + 1) % period == 0:
                maybe[t] |= reachable
            else:
                surely[t] &= ~reachable
    return Interval(surely, maybe).map(lambda t: t.to(box.lower.dtype))


def lines(
    rows: Tensor, neuron: dict[str, Any], box: Interval, tilt: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Lines in the current below ``sum(rows[r] * spikes)``; see ``functional.relax_lif``.

    The slope is that of the edge of the lower hull over the middle of the currents, as far as a few
    rounds find it; the intercept is right whatever it is. ``tilt`` ``[R, N, ...]`` adds to it, in
    units of the slope from no spike to all.

    Returns:
        Lines ``[R, 1, N, ...]``, for the sum over time of the current, and biases ``[R, N]``.
    """
    fastest, slowest = _periods(neuron, box)
    timesteps, like = rows.shape[1], box.lower[:1]
    # The trains of most neurons are known, and what they sum to.
    unsure = fastest != slowest
    known = torch.where(unsure, 0, spikes(neuron, box).lower).double()
    sums = torch.einsum("rtnf,tnf->rn", rows.double().flatten(3), known.flatten(2))
    index = unsure.flatten().nonzero()[:, 0]

    def pick(t: Tensor) -> Tensor:
        return t.expand(unsure.shape).flatten()[index]

    fastest, slowest = pick(fastest), pick(slowest)
    low, high = (pick(t[0]).double() for t in box)
    leak, threshold = (
        pick(reference.broadcast(torch.as_tensor(neuron[name]).to(like), like).to(torch.float64))
        for name in ("leak", "threshold")
    )
    # The relative error of a membrane that was charged T times without reset, and more.
    tolerance = 4 * (timesteps + 2) * torch.finfo(box.lower.dtype).eps
    weights = rows.flatten(2)[:, :, index].double()
    size = weights.abs().sum(1)
    ends: list[tuple[Tensor, Tensor, Tensor]] = []  # current, sum of weights, whether it is there
    above = torch.full_like(low, torch.inf)
    charge = torch.zeros_like(low)
    for period in range(1, timesteps + 2):
        if period <= timesteps:
            charge = leak * charge + 1
            least = threshold / charge
            value = weights[:, period - 1 :: period].sum(1)
        else:
            least, value = torch.full_like(low, -torch.inf), torch.zeros_like(weights[:, 0])
        reachable = (fastest <= period) & (period <= slowest)
        if 1 < period <= timesteps:
            reachable &= leak > 0
        left = torch.maximum(least * (1 - tolerance), low)
        right = torch.minimum(above * (1 + tolerance), high)
        ends += [(end, value, reachable) for end in (left, torch.maximum(left, right))]
        above = least
    line = _slope([(at.detach(), value.detach(), there) for at, value, there in ends], low, high)
    if tilt is not None:
        steep = size.detach() / (high - low)
        line = line + tilt.flatten(1)[:, index].double() * steep
    slope = line.to(rows.dtype)
    line = slope.double()
    bias = torch.full_like(line, torch.inf)
    for current, value, there in ends:
        bias = torch.where(there, torch.minimum(bias, value - line * current), bias)
    reach = torch.maximum(low.abs(), high.abs())
    bias = bias - 2.0**-47 * timesteps * (size + line.abs() * (reach + threshold))
    shape = rows[:, 0].shape
    every = torch.zeros(shape, dtype=torch.float64, device=rows.device).flatten(1)
    every = every.index_copy(1, index, bias).view(*shape[:2], -1)
    magnitude = torch.einsum("rtnf,tnf->rn", rows.double().abs().flatten(3), known.flatten(2))
    off = (timesteps * every.shape[2] + 8) * 2.0**-51 * (every.abs().sum(2) + magnitude)
    lines = torch.zeros(shape, dtype=rows.dtype, device=rows.device).flatten(1)
    lines = lines.index_copy(1, index, slope).view(shape)
    return lines[:, None], every.sum(2) + sums - off


def _slope(ends: list[tuple[Tensor, Tensor, Tensor]], low: Tensor, high: Tensor) -> Tensor:
    """The slope of the lower hull over the middle: down from the chord, whatever lies below it."""
    middle = (low + high) / 2
    one, other = [low, torch.zeros_like(ends[0][1])], [high, torch.zeros_like(ends[0][1])]
    for current, value, there in ends:  # from the fastest to the slowest
        other[1] = torch.where(there & (current == high), value, other[1])
        one[1] = torch.where(there & (current == low), value, one[1])
    for _ in range(ROUNDS):
        line = torch.where(other[0] > one[0], (other[1] - one[1]) / (other[0] - one[0]), 0)
        best = one[1] - line * one[0]
        at, of = one
        for current, value, there in ends:
            gap = value - line * current
            lower = there & (gap < best)
            best = torch.where(lower, gap, best)
            at, of = torch.where(lower, current, at), torch.where(lower, value, of)
        right = at > middle
        one = [torch.where(right, a, b) for a, b in zip(one, (at, of), strict=True)]
        other = [torch.where(right, b, a) for a, b in zip(other, (at, of), strict=True)]
    return torch.where(other[0] > one[0], (other[1] - one[1]) / (other[0] - one[0]), 0)
