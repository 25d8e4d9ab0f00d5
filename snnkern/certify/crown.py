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

import torch
from torch import Tensor, nn

from snnkern.autograd import CHANNELS_LAST, is_constant
from snnkern.certify import backward, ibp
from snnkern.certify.backward import (
    Backward,
    Options,
    Traced,
    down,
    magnitude_of,
    one_after_the_other,
    sums_of,
    weigh,
)
from snnkern.certify.neurons import through_neurons
from snnkern.certify.slopes import optimised
from snnkern.nn import LIF, NormLIF, Residual, TimeDistributed
from snnkern.nn.reading import flattened, runs_as
from snnkern.reference import Interval

# From weights of the input ``[R, T, N, ...]`` to their least sum over all inputs, ``[R, N]``.
Least = Callable[[Tensor], Tensor]
TIGHT = Options()
WITH_SLOPES_OF_THE_PAPER = Options("paper")


def _shape_only(module: nn.Module, box: Interval) -> Traced:
    """Of modules that move numbers and change none."""
    after = ibp.propagate(module, box)
    inner = module.module if isinstance(module, TimeDistributed) else module
    if not any(runs_as(inner, kind) for kind in ibp.SHAPE_ONLY):
        raise TypeError(
            f"model holds a {type(inner).__name__} where S-CROWN has no rule for it; expected it "
            "in a TimeDistributed, or method='ibp'"
        )

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        before = (*rows.shape[:2], *box.lower.shape[1:])
        return rows.reshape(before), rows.new_zeros(1, 1, dtype=torch.float64)

    return Traced(after, back, max(box.lower.numel(), after.lower.numel()))


def _time_distributed(module: TimeDistributed, box: Interval, options: Options) -> Traced:
    if runs_as(module.module, nn.Sequential):
        return _chain([TimeDistributed(part) for part in module.module], box, options)
    for kind, describe in ibp.AFFINE.items():
        if runs_as(module.module, kind):
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
        size = its.magnitude(magnitude_of(seen).flatten(0, 1)) + its.bias
    zero = its.apply(torch.zeros_like(seen.lower[0, :1]))
    size = size.view(timesteps, -1, *size.shape[1:]).double()
    terms = max(its.terms, its.spread)
    gamma, lost = (f(terms, box.lower.dtype) for f in (ibp.rounding, ibp.lost))
    # What underflows in weights of the input, and of the output where time is summed.
    fixed = lost * (sums_of(magnitude_of(seen)) + sums_of(size))

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        slack = torch.zeros((), dtype=torch.float64, device=rows.device)
        if constant and options.once_over_time and rows.shape[1] > 1:
            once = rows.sum(1, keepdim=True, dtype=torch.float64)
            slack = 2.0**-50 * rows.shape[1] * weigh(rows.abs().sum(1, keepdim=True), size)
            rows = once.to(rows.dtype)
        share = gamma + ibp.rounding(rows[0, :, 0].numel(), torch.float64)
        off = (share * size + lost).expand(rows.shape[1], *size.shape[1:])
        slack = slack + weigh(rows.abs(), off) + rows.shape[1] * fixed
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


def _residual(module: Residual, box: Interval, options: Options) -> Traced:
    parts = [trace(part, box, options) for part in (module.shortcut, module.branch)]
    factors = [1.0, 1.0]
    if module.branch_weights is not None:
        factors = [weight.item() for weight in module.branch_weights]
    dtype = box.lower.dtype
    unit, lost = torch.finfo(dtype).eps, ibp.lost(4, dtype)
    reach, ends = magnitude_of(box), [magnitude_of(part.box) for part in parts]
    past, through = (abs(w) * end for w, end in zip(factors, ends, strict=True))
    off = 4 * unit * (past.double() + through) + lost
    # What underflows in the weights of both parts, and of their input.
    fixed = lost * (sums_of(reach) + sums_of(ends[0]) + sums_of(ends[1]))

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        found = [part.back(factor * rows) for factor, part in zip(factors, parts, strict=True)]
        bias = down(found[0][1]) + down(found[1][1])
        lines = [line.double() for line, _ in found]
        sizes = [line.abs() for line in lines]
        if lines[0].shape[1] != lines[1].shape[1]:  # one of them is summed over time
            lines, sizes = ([t.sum(1, keepdim=True) for t in ts] for ts in (lines, sizes))
        size = sizes[0] + sizes[1]
        slack = weigh(rows.abs(), off.expand(rows.shape[1:]))
        slack = slack + len(reach) * 2 * unit * weigh(size, reach[: size.shape[1]]) + fixed
        return (lines[0] + lines[1]).to(rows.dtype), bias - slack

    return Traced(ibp.propagate(module, box), back, max(part.width for part in parts))


def _chain(
    modules: list[nn.Module], box: Interval, options: Options, least: Least | None = None
) -> Traced:
    """The modules one after the other; with ``least`` of the box, membranes are bounded anew."""
    steps: list[Backward] = []
    widest = box.lower.numel()
    fired = False
    for module in modules:
        neurons = runs_as(module, LIF) or runs_as(module, NormLIF)
        anew = fired and neurons and least is not None
        if anew and isinstance(module, LIF) and not module.is_relu:
            through = one_after_the_other(list(steps))

            def before(rows: Tensor, through: Backward = through) -> tuple[Tensor, Tensor]:
                lines, bias = through(rows)
                assert least is not None
                return lines, bias + least(lines)

            box, step, width = through_neurons(module, box, options, before)
        else:
            box, step, width = trace(module, box, options)
        fired = fired or neurons
        steps.append(step)
        widest = max(widest, width)
    return Traced(box, one_after_the_other(steps), widest)


def trace(module: nn.Module, box: Interval, options: Options) -> Traced:
    """The bounds of ``module`` forward, and its way back.

    Raises:
        TypeError: there is no rule for the module.
    """
    if runs_as(module, nn.Sequential):
        return _chain(list(module), box, options)
    if runs_as(module, TimeDistributed):
        return _time_distributed(module, box, options)
    if runs_as(module, Residual):
        return _residual(module, box, options)
    if runs_as(module, LIF) or runs_as(module, NormLIF):
        return through_neurons(module, box, options)
    if isinstance(module, nn.Linear):  # the same along time as by itself
        return _time_distributed(TimeDistributed(module), box, options)
    return _shape_only(module, box)


def least_in_box(rows: Tensor, box: Interval, options: Options) -> Tensor:
    """The least ``sum(rows[r] * x)`` of all x in the box, ``[R, N]`` float64, from below.

    Of an input that is the same at every step, over the x that are so as well.
    """
    timesteps = len(box.lower)
    slack = torch.zeros((), dtype=torch.float64, device=rows.device)
    reach = magnitude_of(box).double()
    if is_constant(box.lower) and is_constant(box.upper):
        box, reach = box.map(lambda t: t[:1]), reach[:1]
        if options.once_over_time or rows.shape[1] == 1:
            total = rows.abs().sum(1, keepdim=True, dtype=torch.float64)
            slack = timesteps * 2.0**-50 * weigh(total, reach)
            rows = rows.sum(1, keepdim=True, dtype=torch.float64)
    if not options.outward:
        flat, (low, high) = rows.flatten(3), (end.to(rows.dtype).flatten(2) for end in box)
        middle, width = ((high + side * low).expand(flat.shape[1:]) / 2 for side in (1, -1))
        value = torch.einsum("rtnf,tnf->rn", flat, middle)
        return (value - torch.einsum("rtnf,tnf->rn", flat.abs(), width)).double()
    low, high = (end.double().expand(rows.shape[1:]) for end in box)
    reach = reach.expand(rows.shape[1:])
    value = weigh(rows, (low + high) / 2) - weigh(rows.abs(), (high - low) / 2)
    gamma = ibp.rounding(2 * rows[0, :, 0].numel(), torch.float64)
    return down(value - (slack + gamma * weigh(rows.abs(), reach)))


def width(layers: list[nn.Module], box: Interval) -> int:
    """The most numbers in a layer."""
    return _chain(flattened(ibp.split_head(layers)[1]), box, TIGHT).width


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

    traced = _chain(flattened(before), box, options, lowest if options.membranes else None)
    target = head(traced.box, y)
    every = None
    if options.rivals is not None and options.rivals < target.constant.shape[1]:
        assert only is None
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
        optimised(value, some, slopes) if slopes else value(some)
        for some in rows.split(max(1, backward.CHUNK // traced.width))
    ]
    total = torch.cat(parts).T + down(target.constant.double())
    # What overflowed on the way says nothing.
    total = torch.where(total.isnan() | (total == math.inf), -math.inf, total)
    if every is None or only is None:
        return total
    return every.double().scatter(1, only, total)
