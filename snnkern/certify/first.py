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


class Trains:
    """The spike trains of neurons whose constant currents are in a box.

    Args:
        neuron: options of ``functional.lif``.
        box: of the currents, ``[T, N, ...]``.
        limits: currents ``[N, ...]`` within which alone the trains are asked for. Neurons that they
            cut get a line even where one train is left: its slope, times how far the current is
            from the limits, keeps whatever comes before within them.
    """

    def __init__(
        self, neuron: dict[str, Any], box: Interval, limits: Interval | None = None
    ) -> None:
        timesteps, self.shape = len(box.lower), box.lower.shape
        width = (box.upper[0] - box.lower[0]).double()
        cut = torch.zeros_like(width, dtype=torch.bool)
        if limits is not None:
            cut = (limits.lower > box.lower[0]) | (limits.upper < box.upper[0])
            within = (
                torch.maximum(box.lower[0], limits.lower),
                torch.minimum(box.upper[0], limits.upper),
            )
            box = Interval(*(end.expand(self.shape) for end in within))
        else:
            endless = torch.full_like(
                box.lower[0], torch.inf, memory_format=torch.contiguous_format
            )
            limits = Interval(-endless, endless)
        self.box, self.limits = box, limits
        self.fastest, self.slowest = _periods(neuron, box)
        self.spikes = self._spikes(box.lower.dtype)
        # The trains of most neurons are known, and what they sum to.
        unsure = cut | (self.fastest != self.slowest)
        self.known = torch.where(unsure, 0, self.spikes.lower).double()
        self.index = unsure.flatten().nonzero()[:, 0]
        like = box.lower[:1]
        broadcast = {
            name: reference.broadcast(
                torch.as_tensor(neuron[name], dtype=like.dtype, device=like.device), like
            )
            for name in ("leak", "threshold")
        }
        self.neuron = neuron | broadcast
        leak, self.threshold = (self._pick(value).double() for value in broadcast.values())
        self.low, self.high = (self._pick(end[0]).double() for end in box)
        self.width, self.cut = self._pick(width), self._pick(cut).double()
        # The errors of a membrane that was charged T times without reset, and more: the relative
        # one, and that of numbers that underflow.
        limits_of = torch.finfo(box.lower.dtype)
        units = limits_of.eps, limits_of.smallest_normal
        tolerance, lost = (4 * (timesteps + 2) * unit for unit in units)
        fastest, slowest = self._pick(self.fastest), self._pick(self.slowest)
        ends: list[Tensor] = []
        there: list[Tensor] = []
        above, charge = torch.full_like(self.low, torch.inf), torch.zeros_like(self.low)
        for period in range(1, timesteps + 2):
            charge = leak * charge + 1
            never = period > timesteps
            least = torch.full_like(charge, -torch.inf) if never else self.threshold / charge
            reachable = (fastest <= period) & (period <= slowest)
            if 1 < period <= timesteps:
                reachable &= leak > 0
            left = torch.maximum(least * (1 - tolerance) - lost, self.low)
            right = torch.minimum(above * (1 + tolerance) + lost, self.high)
            ends += [left, torch.maximum(left, right)]
            there += [reachable] * 2
            above = least
        # Of every train, from the fastest to the slowest, both ends of the currents that have it.
        self.ends, self.there = torch.stack(ends), torch.stack(there)

    def _pick(self, values: Tensor) -> Tensor:
        return values.expand(self.shape[1:]).flatten()[self.index]

    def _spikes(self, dtype: torch.dtype) -> Interval:
        """Bounds of the spikes ``[T, N, ...]``, each of them attained."""
        timesteps = self.shape[0]
        surely = torch.ones(self.shape, dtype=torch.bool, device=self.fastest.device)
        maybe = torch.zeros_like(surely)
        for period in range(1, timesteps + 2):
            reachable = (self.fastest <= period) & (period <= self.slowest)
            for t in range(timesteps):
                if (t + 1) % period == 0:
                    maybe[t] |= reachable
                else:
                    surely[t] &= ~reachable
        return Interval(surely, maybe).map(lambda t: t.to(dtype))

    def _values(self, weights: Tensor) -> Tensor:
        """What the train of every end sums ``[R, T, M]`` to."""
        timesteps = weights.shape[1]
        sums = [weights[:, period - 1 :: period].sum(1) for period in range(1, timesteps + 2)]
        return torch.stack(sums).repeat_interleave(2, 0)

    def lines(self, rows: Tensor, shares: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Lines in the current below ``sum(rows[r] * spikes)``; see ``functional.relax_lif``.

        The slope is that of the edge of the lower hull over the middle of the currents, as far as a
        few rounds find it, or ``shares`` ``[R, N, ...]`` of the slope from no spike to all, and one
        spike more where limits cut. The intercept is right whatever it is.

        Returns:
            Lines ``[R, 1, N, ...]``, for the sum over time of the current, and biases ``[R, N]``.
        """
        timesteps = rows.shape[1]
        flat = rows.double().flatten(3)
        known = self.known.flatten(2)
        sums = torch.einsum("rtnf,tnf->rn", flat, known)
        slope, bias = self._lines(rows, shares)
        shape = rows[:, 0].shape
        every = torch.zeros(shape, dtype=torch.float64, device=rows.device).flatten(1)
        every = every.index_copy(1, self.index, bias).view(*shape[:2], -1)
        magnitude = torch.einsum("rtnf,tnf->rn", flat.abs(), known)
        off = (timesteps * every.shape[2] + 8) * 2.0**-51 * (every.abs().sum(2) + magnitude)
        lines = torch.zeros(shape, dtype=rows.dtype, device=rows.device).flatten(1)
        lines = lines.index_copy(1, self.index, slope).view(shape)
        return lines[:, None], every.sum(2) + sums - off

    def _lines(self, rows: Tensor, shares: Tensor | None) -> tuple[Tensor, Tensor]:
        """Slopes ``[R, M]`` and intercepts, of those that are not known."""
        weights = self._weights(rows)
        values = self._values(weights)
        if shares is None:
            with torch.no_grad():
                line = self._slope(values)
        else:
            line = shares.flatten(1)[:, self.index].double() * self._steep(weights.detach())
        slope = line.to(rows.dtype)
        line = slope.double()
        gaps = values - line * self.ends[:, None]
        bias = torch.where(self.there[:, None], gaps, torch.inf).amin(0)
        size = weights.abs().sum(1)
        reach = torch.maximum(self.low.abs(), self.high.abs())
        slack = 2.0**-47 * rows.shape[1] * (size + line.abs() * (reach + self.threshold))
        return slope, bias - slack

    def shares(self, rows: Tensor, lines: Tensor | None = None) -> Tensor:
        """Slopes ``[R, N, ...]``, of the hull where none are given, as ``lines`` takes them."""
        weights = self._weights(rows)
        slope = self._slope(self._values(weights))
        if lines is not None:
            slope = lines.flatten(1)[:, self.index].double()
        share = (slope / self._steep(weights)).nan_to_num(0, 0, 0).to(rows.dtype)
        shares = torch.zeros_like(rows[:, 0])
        return shares.flatten(1).index_copy(1, self.index, share).view(shares.shape)

    def _weights(self, rows: Tensor) -> Tensor:
        return rows.flatten(2)[:, :, self.index].double()

    def _steep(self, weights: Tensor) -> Tensor:
        return (weights.abs().sum(1) + self.cut) / self.width

    def branch(
        self, rows: Tensor, shares: Tensor, currents: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For every sample the neuron whose currents are best split, and where.

        Args:
            rows: weights of the spikes ``[1, T, N, ...]``.
            shares: of its lines, see ``lines``.
            currents: ``[N, ...]``, where the bound is attained.

        Returns:
            How far the line of the neuron is below its spikes there, -inf where no neuron of the
            sample can be split; its number; the least current of the upper part. ``[N]`` each.
        """
        count = self.shape[1]
        line, bias = (found[0].double() for found in self._lines(rows, shares))
        values = self._values(self._weights(rows))[::2, 0]
        at = self._pick(currents).double().clamp(self.low, self.high)
        left, there = self.ends[::2], self.there[::2]
        train = (there & (left <= at)).to(torch.int8).argmax(0)
        gain = values.gather(0, train[None])[0] - line * at - bias
        slower = there.flip(0).cumsum(0).flip(0) > 1
        distance, which = torch.where(there & slower, (left - at).abs(), torch.inf).min(0)
        gain = torch.where(distance.isfinite(), gain, -torch.inf)
        every = at.new_full((self.fastest.numel(),), -torch.inf)
        every = every.index_copy(0, self.index, gain).view(count, -1)
        best, neuron = every.max(1)
        least = torch.zeros_like(best, dtype=rows.dtype)
        found = best.isfinite().nonzero()[:, 0]
        if len(found) == 0:
            return best, neuron, least
        number = found * every.shape[1] + neuron[found]
        place = torch.searchsorted(self.index, number)
        return best, neuron, least.index_copy(0, found, self._least(which[place] + 1, place))

    def _least(self, period: Tensor, place: Tensor) -> Tensor:
        """The least currents at which neurons fire at a step or before, as they are computed.

        Wrong ones would split badly, but split all the same.
        """
        timesteps, dtype = self.shape[0], self.box.lower.dtype
        guess = self.ends[2 * (period - 1), place].to(dtype)
        bits = guess.view(torch.int32 if dtype == torch.float32 else torch.int64)
        # Ends are below by up to twice the tolerance: the floats that follow, as far.
        near = torch.arange(18 * (timesteps + 2), dtype=bits.dtype, device=bits.device)
        currents = (bits + near[:, None]).view(dtype)
        options: dict[str, Any] = {
            name: self._pick(value)[place] if isinstance(value, Tensor) else value
            for name, value in self.neuron.items()
        }
        spikes = functional.lif(currents.expand(timesteps, *currents.shape), **options)
        steps = torch.arange(timesteps, device=bits.device).view(-1, 1, 1)
        fires = ((spikes > 0) & (steps < period)).any(0)
        which = torch.where(fires.any(0), fires.to(torch.int8).argmax(0), len(near) - 1)
        found = currents.gather(0, which[None])[0]
        return torch.minimum(found, self.high[place].to(dtype))

    def _slope(self, values: Tensor) -> Tensor:
        """The slope of the hull over the middle: down from the chord, whatever is below it."""
        middle = (self.low + self.high) / 2
        at = self.ends[:, None].expand(values.shape)
        lowest = torch.where(self.there & (self.ends == self.low), 1, 0).argmax(0)
        highest = torch.where(self.there & (self.ends == self.high), 1, 0).argmax(0)

        def end(which: Tensor) -> tuple[Tensor, Tensor]:
            return at.gather(0, which[None])[0], values.gather(0, which[None])[0]

        one, other = (end(which.expand(values.shape[1:])) for which in (lowest, highest))

        def through() -> Tensor:
            wide = other[0] > one[0]
            return torch.where(wide, (other[1] - one[1]) / (other[0] - one[0]), 0)

        for _ in range(ROUNDS):
            gaps = torch.where(self.there[:, None], values - through() * at, torch.inf)
            below = end(gaps.argmin(0))
            right = below[0] > middle
            one = torch.where(right, one[0], below[0]), torch.where(right, one[1], below[1])
            other = torch.where(right, below[0], other[0]), torch.where(right, below[1], other[1])
        return through()
