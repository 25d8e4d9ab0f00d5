"""The way back through neurons: a line below what they fire and carry on together."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from snnkern import functional, reference
from snnkern.certify import backward, first, ibp, published
from snnkern.certify.backward import (
    Backward,
    Options,
    Traced,
    down,
    magnitude_of,
    one_after_the_other,
    round_down,
    sums_of,
    weigh,
)
from snnkern.certify.slopes import Layer
from snnkern.nn import LIF, NormLIF
from snnkern.nn.reading import scale_and_shift
from snnkern.reference import Interval

# Membranes of a layer, over all time steps, up to which they are bounded by S-CROWN.
SMALL = 512


def through_neurons(
    layer: LIF, box: Interval, options: Options, before: Backward | None = None
) -> Traced:
    """``before``: from weights of the currents to the least sum, of which nothing is left."""
    scaling: Backward | None = None
    if isinstance(layer, NormLIF):
        box, scaling = _norm(layer, box)
    if layer.is_relu:
        return _behind(_relu(box), scaling)
    neuron = ibp.neuron_options(layer)
    threshold = reference.broadcast(
        torch.as_tensor(neuron["threshold"], dtype=box.lower.dtype, device=box.lower.device),
        box.lower,
    )
    slopes = options.slopes
    state = slopes.layer() if slopes else Layer()
    known = state.known
    if options.exact_first and first.fits(neuron, box):
        trains = state.trains = first.Trains(neuron, box, known.within if known else None)

        def exact(rows: Tensor) -> tuple[Tensor, Tensor]:
            return state.exact(rows) if slopes and slopes.in_use else trains.lines(rows)

        return _behind(Traced(trains.spikes, exact, box.lower.numel()), scaling)
    surely, maybe, low, high = functional.interval_lif(
        box.lower, box.upper, **neuron | ibp.surrogate_of(layer), return_membranes=True
    )
    if before is not None and low[:, 0].numel() <= SMALL:
        if scaling is not None:
            before = one_after_the_other([before, scaling])
        surely, maybe, low, high = _by_rows(neuron, box, before)
    if known is not None:
        ends = known.within.map(lambda t: t.transpose(0, 1))
        low = torch.maximum(low, ends.lower)
        high = torch.maximum(low, torch.minimum(high, ends.upper))  # also where no input is left
        fires = torch.gt if neuron["strict"] else torch.ge
        surely, maybe = (fires(end, threshold).to(low.dtype) for end in (low, high))
    state.membranes = Interval(low, high)

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        if published.wanted():
            lines, bias = published.lines(
                rows, neuron, Interval(surely, maybe), Interval(low, high)
            )
        elif slopes and slopes.in_use:
            right = (low + high > 2 * threshold).to(low.dtype)
            mix = state.mixes(right.expand(rows.shape))
            lines, bias = functional.relax_lif(rows, low, high, **neuron, mix=mix)
        else:
            lines, bias = functional.relax_lif(rows, low, high, **neuron, slope=options.slope)
        features = list(range(2, bias.dim()))
        total = bias.sum(features)
        if options.outward:
            count = bias[0, 0].numel()
            off = ibp.rounding(count, torch.float64) * bias.detach().abs().sum(features)
            total = total - off - _lost(lines)
        return lines, total

    return _behind(Traced(Interval(surely, maybe), back, surely.numel()), scaling)


def _lost(lines: Tensor) -> Tensor:
    """What neurons whose membranes underflow may be off by, ``[R, N]``: a charge at every step."""
    sizes = lines.detach().abs().flatten(3).sum((1, 3), dtype=torch.float64)
    return ibp.lost(1, lines.dtype) * sizes


def _relu(box: Interval) -> Traced:
    """CROWN of the ReLU network (Zhang et al. 2018)."""
    low, high = (t.double() for t in box)

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        weights = rows.double()
        chord = high / (high - low)
        share = torch.where(weights < 0, chord, (high >= -low).double())
        share = torch.where(low >= 0, 1, torch.where(high <= 0, 0, share))
        lines = (weights * share).to(rows.dtype)
        line = lines.double()
        bias = torch.minimum(weights * low.clamp(min=0) - line * low, (weights - line) * high)
        bias = torch.where(high <= 0, torch.minimum(-line * low, -line * high), bias)
        bias = torch.where((low < 0) & (high > 0), bias.clamp(max=0), bias)
        reach = torch.maximum(low.abs(), high.abs())
        slack = 2.0**-49 * weigh(weights.abs() + line.abs(), reach)
        size = ibp.rounding(rows[0, :, 0].numel(), torch.float64) * bias.abs().flatten(3).sum(
            (1, 3)
        )
        return lines, bias.flatten(3).sum((1, 3)) - size - slack

    return Traced(box.map(torch.relu), back, box.lower.numel())


def _behind(traced: Traced, before: Backward | None) -> Traced:
    if before is None:
        return traced
    through = before

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        rows, bias = traced.back(rows)
        rows, more = through(rows)
        return rows, down(bias) + down(more)

    return Traced(traced.box, back, traced.width)


def _norm(layer: NormLIF, box: Interval) -> tuple[Interval, Backward]:
    """What the neurons of a normalised layer see, and the way back through scale and shift."""
    scale, shift = (t[:, *(None,) * (box.lower.dim() - 3)] for t in scale_and_shift(layer))
    size = (scale.abs() * magnitude_of(box) + shift.abs()).double()
    unit, lost = torch.finfo(box.lower.dtype).eps, ibp.lost(4, box.lower.dtype)
    fixed = lost * sums_of(magnitude_of(box))

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        bias = weigh(rows, shift.expand(rows.shape[1:]))
        gamma = 4 * unit + ibp.rounding(rows[0, :, 0].numel(), torch.float64)
        off = gamma * size[: rows.shape[1]] + lost
        return rows * scale, bias - (weigh(rows.abs(), off) + fixed)

    return ibp.scaled(layer, box), back


def _by_rows(
    neuron: dict[str, Any], box: Interval, before: Backward
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bounds of spikes and membranes, every membrane by a row of its own, one step after the other.

    ``before`` gives the least weighted sum of the currents.
    """
    timesteps, count, *features = box.lower.shape
    like, dtype = box.lower, box.lower.dtype
    size = math.prod(features)
    one = torch.eye(size, dtype=dtype, device=like.device).view(size, 1, *features)
    one = one.expand(-1, count, *features)
    names = ("leak", "threshold")
    leak, threshold = (
        reference.broadcast(
            torch.as_tensor(neuron[name], dtype=like.dtype, device=like.device), like
        )
        for name in names
    )
    cell = reference.Neuron(
        leak,
        threshold,
        reset=reference.RESETS.index(neuron["reset"]),
        v_reset=neuron["v_reset"],
        strict=neuron["strict"],
    )
    unit = torch.finfo(dtype).eps
    start = torch.full_like(like[0], neuron["v_init"])
    state = Interval(start, start)
    lows: list[Tensor] = []
    highs: list[Tensor] = []
    for t in range(timesteps):
        plain = reference.charge_interval(cell, state, Interval(box.lower[t], box.upper[t]))
        v = plain
        if t > 0:
            past = torch.stack(lows), torch.stack(highs)
            reach = magnitude_of(plain).double() + threshold + abs(neuron["v_reset"])
            reach = reach + leak * (magnitude_of(Interval(*past))[-1].double() + threshold)
            ends = []
            for sign in (1, -1):
                parts = []
                for rows in (sign * one).split(max(1, backward.CHUNK // like.numel())):
                    earlier = rows.new_zeros(len(rows), t, count, *features)
                    lines, bias = functional.relax_lif(earlier, *past, **neuron, after=rows)
                    later = rows.new_zeros(len(rows), timesteps - t - 1, count, *features)
                    _, more = before(torch.cat([lines, rows[:, None], later], 1))
                    bias = bias.flatten(2)
                    off = ibp.rounding(bias.shape[2], torch.float64) * bias.abs().sum(2)
                    parts.append(down(bias.sum(2) - off - _lost(lines)) + down(more))
                found = torch.cat(parts).view(*features, count).movedim(-1, 0)
                found = down(found) - (4 * unit * reach + ibp.lost(1, dtype))
                ends.append(sign * round_down(found, dtype))
            lower, upper = ends
            lower = torch.where(lower > plain.lower, lower, plain.lower)
            v = Interval(lower, torch.where(upper < plain.upper, upper, plain.upper))
        lows.append(v.lower)
        highs.append(v.upper)
        state = reference.carry_interval(cell, v)
    low, high = torch.stack(lows), torch.stack(highs)
    surely, maybe = (end.to(dtype) for end in map(cell.fires, (low, high)))
    return surely, maybe, low, high
