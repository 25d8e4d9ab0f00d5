"""S-CROWN: linear bounds backward through a spiking network (Liang et al. 2022), tightened.

A margin is a weighted sum of the last layer's spikes. Going back, a layer at a time, it is replaced
by something below it that is linear in the layer's input, until the input itself is reached, where
the least value is known. Three things differ from the paper: one line lies below what a neuron
fires and carries on together, an input that is the same at every step is minimised once and not
step by step, and the first neurons of such an input fire in one of T + 1 known trains.

The bounds hold for the network as it is computed. Sums and their transposed ones may be off by the
worst rounding error of any order of summation, as in S-IBP, and that is subtracted; so is what
neurons round (see snnkern.functional.relax_lif).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from snnkern import functional, reference
from snnkern.autograd import CHANNELS_LAST, is_constant
from snnkern.certify import first, ibp, published
from snnkern.nn import LIF, NormLIF, Residual, TimeDistributed
from snnkern.reference import Interval

# Numbers that the rows of one chunk may have in a layer.
CHUNK = 1 << 25

# From weights of a module's output ``[R, T, N, ...]`` to those of its input and what is left over,
# ``[R, N]`` float64: their sum is nowhere above. Weights of what is constant in time may be one
# step long, the sum over time.
Backward = Callable[[Tensor], tuple[Tensor, Tensor]]


class Known(NamedTuple):
    """What is known of a layer of neurons before its slopes are optimised; N samples.

    Attributes:
        first: whether they are exact, and not only bounded.
        start: where slopes begin, of a single row: ``[N, ...]``, of others than first neurons mixes
            ``[N, T, ...]``.
        within: currents of first neurons ``[N, ...]``, to which alone the bounds are limited;
            of others bounds of their membranes ``[N, T, ...]``.
    """

    first: bool
    start: Tensor
    within: Interval

    def pick(self, index: Tensor) -> Known:
        """Of some of the samples."""
        return Known(self.first, self.start[index], self.within.map(lambda t: t[index]))

    def join(self, other: Known) -> Known:
        """Of these samples and others."""
        low, high = (torch.cat(ends) for ends in zip(self.within, other.within, strict=True))
        return Known(self.first, torch.cat([self.start, other.start]), Interval(low, high))


@dataclass
class Layer:
    """A layer of neurons whose slopes are optimised.

    Attributes:
        known: before.
        slopes: as they are: mixes, or shares of first neurons.
        membranes: their bounds.
        trains: of first neurons, like what follows.
        rows: weights of the spikes, as they were last.
        lines: weights of the currents, as they were last.
        probe: zeros that are added to these, for the sake of their gradient.
        currents: where the bound is attained, in the mean over the later half of the steps.
    """

    known: Known | None = None
    slopes: Tensor | None = None
    membranes: Interval | None = None
    trains: first.Trains | None = None
    rows: Tensor | None = None
    lines: Tensor | None = None
    probe: Tensor | None = None
    currents: Tensor | None = None

    def mixes(self, otherwise: Tensor) -> Tensor:
        """Of neurons that are not exact, which begin as they are known or otherwise."""
        if self.slopes is None:
            start = otherwise if self.known is None else self.known.start.transpose(0, 1)[None]
            self.slopes = start.clone().requires_grad_()
        return self.slopes

    def exact(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The way back through first neurons."""
        assert self.trains is not None
        if self.slopes is None:
            start = None if self.known is None else self.known.start[None]
            self.slopes = self.trains.shares(rows.detach(), start).requires_grad_()
            self.probe = torch.zeros_like(self.slopes).requires_grad_()
        assert self.probe is not None
        lines, bias = self.trains.lines(rows, self.slopes)
        self.rows, self.lines = rows.detach(), lines[:, 0].detach()
        return lines + self.probe[:, None], bias

    def found(self) -> Known:
        """What is known of it now, of a single row."""
        if self.trains is not None:
            within = self.trains.limits
            start = torch.zeros_like(within.lower) if self.lines is None else self.lines[0]
            return Known(True, start, within)
        assert self.membranes is not None
        within = self.membranes.map(lambda t: t.transpose(0, 1))
        mixes = torch.zeros_like(self.membranes.lower) if self.slopes is None else self.slopes[0]
        return Known(False, mixes.detach().transpose(0, 1), within)


class Slopes:
    """The slopes of all layers of neurons, as parameters, in the order in which they are traced.

    Args:
        known: of these layers, if anything is.
        steps: that optimise them, ``STEPS`` if not given.
        rate: how far the first step goes, ``RATE`` if not given.
    """

    def __init__(
        self, known: list[Known] | None = None, steps: int | None = None, rate: float | None = None
    ) -> None:
        self.given = known
        self.steps = STEPS if steps is None else steps
        self.rate = RATE if rate is None else rate
        self.layers: list[Layer] = []
        self.in_use = False

    def layer(self) -> Layer:
        """The next one."""
        known = None if self.given is None else self.given[len(self.layers)]
        self.layers.append(Layer(known))
        return self.layers[-1]

    def known(self) -> list[Known]:
        """What is known of them now."""
        return [layer.found() for layer in self.layers]


class Options(NamedTuple):
    """What there is to choose; the paper's algorithm is ``Options("paper", False, False)``.

    Attributes:
        slope: where slopes are not optimised, see ``functional.relax_lif``.
        exact_first: know the spike trains of the first neurons of a constant input.
        once_over_time: minimise a constant input once, and not step by step.
        slopes: to be optimised.
        membranes: bound those of small hidden layers by S-CROWN too, not by S-IBP alone.
        outward: subtract what sums may round off. Training does without, in half the time: the
            bound is then off by rounding errors and certifies nothing.
        rivals: margins that are bounded like this, of every sample those of which S-IBP has the
            lowest bounds; the others keep these. All where it is not given.
    """

    slope: Literal["edge", "paper"] = "edge"
    exact_first: bool = True
    once_over_time: bool = True
    slopes: Slopes | None = None
    membranes: bool = False
    outward: bool = True
    rivals: int | None = None


class Traced(NamedTuple):
    """What a module makes of a box, the way back through it, and the most numbers in a layer."""

    box: Interval
    back: Backward
    width: int


def _weigh(rows: Tensor, values: Tensor) -> Tensor:
    """``[R, T, N, ...]`` and ``[T, N, ...]``: the sum over time and features, ``[R, N]``."""
    return torch.einsum("rtnf,tnf->rn", rows.double().flatten(3), values.double().flatten(2))


def _down(bias: Tensor) -> Tensor:
    """Less by as much as adding up hundreds of such numbers can round off."""
    return bias - 2.0**-44 * bias.abs()


def _reach(box: Interval) -> Tensor:
    return torch.maximum(box.lower.abs(), box.upper.abs())


def _shape_only(module: nn.Module, box: Interval) -> Traced:
    """Of modules that move numbers and change none."""
    after = ibp.propagate(module, box)
    inner = module.module if isinstance(module, TimeDistributed) else module
    if not any(ibp.runs_as(inner, kind) for kind in ibp.SHAPE_ONLY):
        raise TypeError(
            f"model holds a {type(inner).__name__} where S-CROWN has no rule for it; expected it "
            "in a TimeDistributed, or method='ibp'"
        )

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        before = (*rows.shape[:2], *box.lower.shape[1:])
        return rows.reshape(before), rows.new_zeros(1, 1, dtype=torch.float64)

    return Traced(after, back, max(box.lower.numel(), after.lower.numel()))


def _time_distributed(module: TimeDistributed, box: Interval, options: Options) -> Traced:
    if ibp.runs_as(module.module, nn.Sequential):
        return _chain([TimeDistributed(part) for part in module.module], box, options)
    for kind, describe in ibp.AFFINE.items():
        if ibp.runs_as(module.module, kind):
            return _affine(module, describe(module.module), box, options)
    return _shape_only(module, box)


def _affine(module: TimeDistributed, its: ibp.Affine, box: Interval, options: Options) -> Traced:
    after = ibp.propagate(module, box)
    constant = is_constant(box.lower) and is_constant(box.upper)
    timesteps = 1 if constant else len(box.lower)
    seen = box.map(lambda t: t[:timesteps])
    width = max(box.lower.numel(), after.lower.numel())
    if not options.outward:
        if its.weighed is not None:  # whose rows have their channels last
            after = after.map(_channels_last)
        summed = constant and options.once_over_time
        return Traced(after, _inexact(its, seen.lower, summed), width)
    with torch.no_grad():
        size = its.magnitude(_reach(seen).flatten(0, 1)) + its.bias
    zero = its.apply(torch.zeros_like(seen.lower[0, :1]))
    size = size.view(timesteps, -1, *size.shape[1:])
    gamma = ibp.rounding(max(its.terms, its.spread), box.lower.dtype)

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        slack = torch.zeros((), dtype=torch.float64, device=rows.device)
        if constant and options.once_over_time and rows.shape[1] > 1:
            once = rows.sum(1, keepdim=True, dtype=torch.float64)
            slack = 2.0**-50 * rows.shape[1] * _weigh(rows.abs().sum(1, keepdim=True), size)
            rows = once.to(rows.dtype)
        summed = ibp.rounding(rows[0, :, 0].numel(), torch.float64)
        slack = slack + (gamma + summed) * _weigh(
            rows.abs(), size.expand(rows.shape[1], *size.shape[1:])
        )
        bias = torch.einsum("rtnf,f->rn", rows.double().flatten(3), zero.double().flatten())
        flat = rows.flatten(0, 2)
        weights = its.back(flat, torch.Size((len(flat), *box.lower.shape[2:])))
        return weights.view(*rows.shape[:3], *weights.shape[1:]), bias - slack

    return Traced(after, back, width)


def _channels_last(x: Tensor) -> Tensor:
    """A box's end in another layout; what is constant in time stays so."""
    steps = x[:1] if is_constant(x) else x
    merged = steps.flatten(0, 1).contiguous(memory_format=CHANNELS_LAST)
    return merged.view(*steps.shape[:2], *merged.shape[1:]).expand(x.shape)


def _inexact(its: ibp.Affine, x: Tensor, summed: bool) -> Backward:
    """The way back through an affine map, without a look at rounding errors.

    ``summed``: over time, for inputs that are constant in it.
    """
    shape = x.shape[2:]

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        if summed:
            rows = rows.sum(1, keepdim=True)
        flat = rows.flatten(0, 2)
        whole = torch.Size((len(flat), *shape))
        if its.weighed is not None:
            weights, constants = its.weighed(flat, whole)
        else:
            weights = its.back(flat, whole)
            constants = flat.flatten(1) @ its.apply(torch.zeros_like(x[0, :1])).flatten()
        bias = constants.view(rows.shape[:3]).sum(1, dtype=torch.float64)
        return weights.view(*rows.shape[:3], *weights.shape[1:]), bias

    return back


def _neurons(layer: LIF, box: Interval, options: Options, before: Backward | None = None) -> Traced:
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
            before = _one_after_the_other([before, scaling])
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
            total = total - off
        return lines, total

    return _behind(Traced(Interval(surely, maybe), back, surely.numel()), scaling)


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
        slack = 2.0**-49 * _weigh(weights.abs() + line.abs(), reach)
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
        return rows, _down(bias) + _down(more)

    return Traced(traced.box, back, traced.width)


def _norm(layer: NormLIF, box: Interval) -> tuple[Interval, Backward]:
    """What the neurons of a normalised layer see, and the way back through scale and shift."""
    scale, shift = (t[:, *(None,) * (box.lower.dim() - 3)] for t in ibp.scale_and_shift(layer))
    size = scale.abs() * _reach(box) + shift.abs()
    unit = torch.finfo(box.lower.dtype).eps

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        bias = _weigh(rows, shift.expand(rows.shape[1:]))
        gamma = 4 * unit + ibp.rounding(rows[0, :, 0].numel(), torch.float64)
        return rows * scale, bias - gamma * _weigh(rows.abs(), size[: rows.shape[1]])

    return ibp.scaled(layer, box), back


def _one_after_the_other(steps: list[Backward]) -> Backward:
    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        bias = rows.new_zeros(1, 1, dtype=torch.float64)
        for step in reversed(steps):
            rows, more = step(rows)
            bias = bias + _down(more)
        return rows, bias

    return back


def _chain(
    modules: list[nn.Module], box: Interval, options: Options, least: Least | None = None
) -> Traced:
    """The modules one after the other; with ``least`` of the box, membranes are bounded anew."""
    steps: list[Backward] = []
    widest = box.lower.numel()
    fired = False
    for module in modules:
        neurons = ibp.runs_as(module, LIF) or ibp.runs_as(module, NormLIF)
        anew = fired and neurons and least is not None
        if anew and isinstance(module, LIF) and not module.is_relu:
            through = _one_after_the_other(list(steps))

            def before(rows: Tensor, through: Backward = through) -> tuple[Tensor, Tensor]:
                lines, bias = through(rows)
                assert least is not None
                return lines, bias + least(lines)

            box, step, width = _neurons(module, box, options, before)
        else:
            box, step, width = trace(module, box, options)
        fired = fired or neurons
        steps.append(step)
        widest = max(widest, width)
    return Traced(box, _one_after_the_other(steps), widest)


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
            reach = _reach(plain).double() + threshold + abs(neuron["v_reset"])
            reach = reach + leak * (_reach(Interval(*past))[-1].double() + threshold)
            ends = []
            for sign in (1, -1):
                parts = []
                for rows in (sign * one).split(max(1, CHUNK // like.numel())):
                    earlier = rows.new_zeros(len(rows), t, count, *features)
                    lines, bias = functional.relax_lif(earlier, *past, **neuron, after=rows)
                    later = rows.new_zeros(len(rows), timesteps - t - 1, count, *features)
                    _, more = before(torch.cat([lines, rows[:, None], later], 1))
                    bias = bias.flatten(2)
                    off = ibp.rounding(bias.shape[2], torch.float64) * bias.abs().sum(2)
                    parts.append(_down(bias.sum(2) - off) + _down(more))
                found = torch.cat(parts).view(*features, count).movedim(-1, 0)
                found = _down(found) - 4 * unit * reach
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


def round_down(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of float64 in another dtype, nowhere above."""
    rounded = values.to(dtype)
    down = torch.nextafter(rounded, torch.full_like(rounded, -math.inf))
    return torch.where(rounded.double() > values, down, rounded)


def _residual(module: Residual, box: Interval, options: Options) -> Traced:
    parts = [trace(part, box, options) for part in (module.shortcut, module.branch)]
    factors = [1.0, 1.0]
    if module.branch_weights is not None:
        factors = [weight.item() for weight in module.branch_weights]
    unit = torch.finfo(box.lower.dtype).eps
    reach = _reach(box)
    past, through = (abs(w) * _reach(part.box) for w, part in zip(factors, parts, strict=True))

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        found = [part.back(factor * rows) for factor, part in zip(factors, parts, strict=True)]
        bias = _down(found[0][1]) + _down(found[1][1])
        lines = [line.double() for line, _ in found]
        sizes = [line.abs() for line in lines]
        if lines[0].shape[1] != lines[1].shape[1]:  # one of them is summed over time
            lines, sizes = ([t.sum(1, keepdim=True) for t in ts] for ts in (lines, sizes))
        size = sizes[0] + sizes[1]
        slack = 4 * unit * _weigh(rows.abs(), (past + through).expand(rows.shape[1:]))
        slack = slack + len(reach) * 2 * unit * _weigh(size, reach[: size.shape[1]])
        return (lines[0] + lines[1]).to(rows.dtype), bias - slack

    return Traced(ibp.propagate(module, box), back, max(part.width for part in parts))


def trace(module: nn.Module, box: Interval, options: Options) -> Traced:
    """The bounds of ``module`` forward, and its way back.

    Raises:
        TypeError: there is no rule for the module.
    """
    if ibp.runs_as(module, nn.Sequential):
        return _chain(list(module), box, options)
    if ibp.runs_as(module, TimeDistributed):
        return _time_distributed(module, box, options)
    if ibp.runs_as(module, Residual):
        return _residual(module, box, options)
    if ibp.runs_as(module, LIF) or ibp.runs_as(module, NormLIF):
        return _neurons(module, box, options)
    if isinstance(module, nn.Linear):  # the same along time as by itself
        return _time_distributed(TimeDistributed(module), box, options)
    return _shape_only(module, box)


def least_in_box(rows: Tensor, box: Interval, options: Options) -> Tensor:
    """The least ``sum(rows[r] * x)`` of all x in the box, ``[R, N]`` float64, from below.

    Of an input that is the same at every step, over the x that are so as well.
    """
    timesteps = len(box.lower)
    slack = torch.zeros((), dtype=torch.float64, device=rows.device)
    reach = _reach(box).double()
    if is_constant(box.lower) and is_constant(box.upper):
        box, reach = box.map(lambda t: t[:1]), reach[:1]
        if options.once_over_time or rows.shape[1] == 1:
            total = rows.abs().sum(1, keepdim=True, dtype=torch.float64)
            slack = timesteps * 2.0**-50 * _weigh(total, reach)
            rows = rows.sum(1, keepdim=True, dtype=torch.float64)
    if not options.outward:
        flat, (low, high) = rows.flatten(3), (end.to(rows.dtype).flatten(2) for end in box)
        middle, width = ((high + side * low).expand(flat.shape[1:]) / 2 for side in (1, -1))
        value = torch.einsum("rtnf,tnf->rn", flat, middle)
        return (value - torch.einsum("rtnf,tnf->rn", flat.abs(), width)).double()
    low, high = (end.double().expand(rows.shape[1:]) for end in box)
    reach = reach.expand(rows.shape[1:])
    value = _weigh(rows, (low + high) / 2) - _weigh(rows.abs(), (high - low) / 2)
    gamma = ibp.rounding(2 * rows[0, :, 0].numel(), torch.float64)
    return _down(value - (slack + gamma * _weigh(rows.abs(), reach)))


# From weights of the input ``[R, T, N, ...]`` to their least sum over all inputs, ``[R, N]``.
Least = Callable[[Tensor], Tensor]
# Membranes of a layer, over all time steps, up to which they are bounded by S-CROWN.
SMALL = 512
# Of the steps that optimise slopes: how many, and how far the first goes, with what is left later.
STEPS = 40
RATE = 0.15
DECAY = 0.95
TIGHT = Options()
WITH_SLOPES_OF_THE_PAPER = Options("paper")


def _optimised(value: Callable[[Tensor], Tensor], rows: Tensor, slopes: Slopes) -> Tensor:
    """The best of the bounds that slopes have on their way uphill; each of them holds."""
    for layer in slopes.layers:
        layer.slopes = layer.probe = layer.currents = None
    slopes.in_use = True
    best = torch.full((), -math.inf, dtype=torch.float64)
    optimizer: torch.optim.Adam | None = None
    later = slopes.steps // 2
    with torch.enable_grad():
        for step in range(slopes.steps + 1):
            bound = value(rows)
            best = torch.maximum(best, bound.detach().nan_to_num(-math.inf, math.inf, -math.inf))
            chosen = [layer.slopes for layer in slopes.layers if layer.slopes is not None]
            if step == slopes.steps or not chosen or not bound.requires_grad:
                break
            if optimizer is None:
                optimizer = torch.optim.Adam(chosen, slopes.rate)
            probed = [layer for layer in slopes.layers if layer.probe is not None]
            leaves = chosen + [layer.probe for layer in probed if layer.probe is not None]
            gradients = torch.autograd.grad(-bound.sum(), leaves, allow_unused=True)
            for parameter, gradient in zip(chosen, gradients, strict=False):
                parameter.grad = None if gradient is None else gradient.nan_to_num(0, 0, 0)
            for layer, gradient in zip(probed, gradients[len(chosen) :], strict=True):
                if step >= later and gradient is not None:
                    share = gradient.nan_to_num(0, 0, 0) / (later - slopes.steps)
                    layer.currents = share if layer.currents is None else layer.currents + share
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= DECAY
    return best


def width(layers: list[nn.Module], box: Interval) -> int:
    """The most numbers in a layer."""
    return _chain(ibp.flattened(ibp.split_head(layers)[1]), box, TIGHT).width


def totals(
    layers: list[nn.Module],
    box: Interval,
    y: Tensor,
    options: Options = TIGHT,
    least: Least | None = None,
    only: Tensor | None = None,
) -> Tensor:
    """Lower bounds of the margins' sums over time, ``[N, K - 1]`` float64, j ascending without y.

    With ``only``, numbers ``[N, M]``, those of these margins.

    ``box`` bounds the input of ``layers``, the last of a network before its readout; ``least``
    knows more about which inputs there are than the box does.
    """
    head, before = ibp.split_head(layers)

    def lowest(lines: Tensor) -> Tensor:
        return least(lines) if least else least_in_box(lines, box, options)

    traced = _chain(ibp.flattened(before), box, options, lowest if options.membranes else None)
    target = head(traced.box, y)
    every = None
    if options.rivals is not None and options.rivals < target.constant.shape[1]:
        every = ibp.least_sums(target, traced.box)
        only = every.detach().topk(options.rivals, largest=False).indices
    if only is not None:
        samples = torch.arange(len(only), device=only.device)[:, None]
        target = ibp.Target(*(t[samples, only] for t in target))
    rows = target.weights.transpose(0, 1)[:, None]  # [margins, 1, N, features]
    rows = rows.expand(-1, len(box.lower), *rows.shape[2:])

    def value(rows: Tensor) -> Tensor:
        lines, bias = traced.back(rows)
        return bias + lowest(lines)

    slopes = options.slopes
    parts = [
        _optimised(value, some, slopes) if slopes else value(some)
        for some in rows.split(max(1, CHUNK // traced.width))
    ]
    total = torch.cat(parts).T + _down(target.constant.double())
    # What overflowed on the way says nothing.
    total = torch.where(total.isnan() | (total == math.inf), -math.inf, total)
    if every is None or only is None:
        return total
    return every.double().scatter(1, only, total)
