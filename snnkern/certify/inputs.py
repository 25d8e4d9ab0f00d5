"""What a perturbation can make of spikes at the input: bounds, and their least weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnkern import reference
from snnkern.certify import ibp
from snnkern.certify.crown import Least
from snnkern.nn import RateCoding, TimeDistributed
from snnkern.nn.reading import flattened, runs_as
from snnkern.reference import Interval


def _sum_down(values: Tensor, size: Tensor) -> Tensor:
    """The sum over all but the first dimensions R and N of ``values``, rounded down.

    ``size``: the sum of the magnitudes of all that was added up to make them.
    """
    values = values.flatten(2)
    return values.sum(2) - ibp.rounding(4 * values.shape[2], torch.float64) * size.flatten(2).sum(2)


def coded(encoder: RateCoding, box: Interval, draws: Tensor) -> Interval:
    """Bounds ``[T, N, ...]`` of the spikes that an encoder makes of a box with the same draws.

    Every coding is monotone in the pixels, in floating point too.
    """
    kind = reference.CODINGS.index(encoder.coding)
    return box.map(lambda x: reference.code(encoder.rates(x), draws, kind))


def least_of_draws(spikes: Interval, draws: Tensor) -> Least:
    """Over the spikes of all pixels of a box, given the draws.

    From the lowest to the highest value of a pixel its unsure spikes come one after the other, in
    the order of their draws; of a signed code negative ones go before, in the opposite order. So a
    pixel has one sum more than it has changes, and the least of these is exact.
    """
    low, high = spikes
    position = torch.cat([-draws, draws])
    change = torch.cat([(low < 0) & (high >= 0), (low <= 0) & (high > 0)])
    order = position.argsort(0)

    def least(rows: Tensor) -> Tensor:
        weights = rows.double()
        gains = torch.where(change, torch.cat([weights, weights], 1), 0)
        sums = gains.gather(1, order.expand(gains.shape)).cumsum(1).amin(1).clamp(max=0)
        return _sum_down((weights * low).sum(1) + sums, 3 * len(draws) * weights.abs().sum(1))

    return least


def least_of_flips(spikes: Tensor, free: Tensor, flips: int) -> Least:
    """Over all spikes that differ from ``spikes`` in at most ``flips`` places that are free."""

    def least(rows: Tensor) -> Tensor:
        weights = rows.double()
        gains = torch.where(free, weights * (1 - 2 * spikes), 0).clamp(max=0)
        gains = gains.transpose(1, 2).flatten(2)
        most = gains.topk(min(flips, gains.shape[2]), 2, largest=False).values.sum(2)
        size = weights.abs().transpose(1, 2)
        return most + _sum_down((weights * spikes).transpose(1, 2), 3 * size)

    return least


def with_flips(
    layers: list[nn.Module], spikes: Tensor, free: Tensor, flips: int
) -> list[nn.Module]:
    """The layers, whose first linear layer or convolution knows how many spikes may differ."""
    flat = flattened(layers)
    for number, layer in enumerate(flat):
        inner = layer.module if isinstance(layer, TimeDistributed) else layer
        if any(runs_as(inner, kind) for kind in ibp.SHAPE_ONLY):
            spikes, free = (ibp.propagate(layer, Interval(t, t)).lower for t in (spikes, free))
        elif isinstance(layer, TimeDistributed) and ibp.counts_flips(inner):
            return [*flat[:number], ibp.Budgeted(inner, spikes, free, flips), *flat[number + 1 :]]
        else:
            break
    return flat
