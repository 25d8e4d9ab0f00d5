"""Branch and bound: margins bounded for parts of what the first neurons' currents may be.

The first neurons of a constant input fire in one of T + 1 trains, ordered by their current. The
currents of one of them are split where its train changes: a margin is nowhere below the lower of
the two bounds, and of the two parts each has tighter ones, by S-IBP of the layers that follow and
by S-CROWN, whose lines have to hold in the part alone. The slope of a line is then also the
multiplier of the constraint that says which part it is. Once every first neuron has a single train
nothing is unsure any more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnkern.certify import backward, crown
from snnkern.certify.slopes import Known, Slopes
from snnkern.reference import Interval

# Rounds of splitting, and the parts of a margin's box that are split in each: the lowest.
ROUNDS = 16
WIDTH = 32
# Of the steps that optimise the slopes of a part, which begin as those of the whole.
STEPS = 8
RATE = 0.1
# Numbers in a layer, of all parts that are kept at once.
KEPT = 1 << 28


class Parts(NamedTuple):
    """Parts of boxes: whose they are, what bounds them, and where to split them further.

    Attributes:
        owner: numbers of the margins, ``[M]``.
        bound: of their sums over time.
        layer: that the neuron to split is in, -1 where there is none.
        neuron: its number within the layer.
        least: the least of its currents in the upper of the parts.
        known: of all layers of neurons.
    """

    owner: Tensor
    bound: Tensor
    layer: Tensor
    neuron: Tensor
    least: Tensor
    known: list[Known]

    def pick(self, index: Tensor) -> Parts:
        """Some of them."""
        return Parts(
            self.owner[index],
            self.bound[index],
            self.layer[index],
            self.neuron[index],
            self.least[index],
            [known.pick(index) for known in self.known],
        )

    def join(self, other: Parts) -> Parts:
        """These and others."""
        return Parts(
            torch.cat([self.owner, other.owner]),
            torch.cat([self.bound, other.bound]),
            torch.cat([self.layer, other.layer]),
            torch.cat([self.neuron, other.neuron]),
            torch.cat([self.least, other.least]),
            [one.join(two) for one, two in zip(self.known, other.known, strict=True)],
        )


class Margins(NamedTuple):
    """Margins ``[M]``: of the layers' output over a box, the class, and the number of the other."""

    layers: list[nn.Module]
    box: Interval
    y: Tensor
    other: Tensor

    def pick(self, index: Tensor) -> Margins:
        """Some of them; a constant input stays one."""

        def part(t: Tensor) -> Tensor:
            return (
                t[0, index].expand(len(t), *t[0, index].shape) if t.stride(0) == 0 else t[:, index]
            )

        return Margins(self.layers, self.box.map(part), self.y[index], self.other[index])


def totals(margins: Margins, enough: float = math.inf) -> Tensor:
    """Lower bounds of sums over time ``[M]`` float64; those above ``enough`` are not improved."""
    one = margins.pick(torch.zeros(1, dtype=torch.int64, device=margins.y.device))
    width = crown.width(one.layers, one.box)
    most = max(1, min(ROUNDS * WIDTH, KEPT // width))
    at_once = max(1, KEPT // (width * most))
    every = torch.arange(len(margins.y), device=margins.y.device)
    found = [_totals(margins.pick(some), enough, most, width) for some in every.split(at_once)]
    return torch.cat(found)


def _totals(margins: Margins, enough: float, most: int, width: int) -> Tensor:
    every = torch.arange(len(margins.y), device=margins.y.device)
    parts = _bounded(margins, every, None, width)
    for _ in range(ROUNDS):
        count = parts.owner.bincount(minlength=len(every))
        open_ = (parts.bound <= enough) & (parts.layer >= 0) & (count < most)[parts.owner]
        order = parts.bound.argsort(stable=True)
        order = order[parts.owner[order].argsort(stable=True)]
        order = order[open_[order]]
        owner = parts.owner[order]
        rank = torch.arange(len(order), device=order.device) - torch.searchsorted(owner, owner)
        order = order[rank < WIDTH]
        if len(order) == 0:
            break
        rest = torch.ones_like(open_)
        rest[order] = False
        whole = parts.pick(order)
        halves = whole.join(whole)
        _split(halves)
        found = _bounded(margins, halves.owner, halves.known, width)
        found = found._replace(bound=torch.maximum(found.bound, halves.bound))
        parts = parts.pick(rest.nonzero()[:, 0]).join(found)
    lowest = torch.full_like(every, math.inf, dtype=torch.float64)
    return lowest.scatter_reduce(0, parts.owner, parts.bound, "amin")


def _split(halves: Parts) -> None:
    """Limits the currents of the first half of the parts from below, of the second from above."""
    upper = torch.arange(len(halves.owner), device=halves.owner.device) < len(halves.owner) // 2
    for number, known in enumerate(halves.known):
        if not known.first:
            continue
        low, high = (end.flatten(1) for end in known.within)
        for some, end in ((upper, low), (~upper, high)):
            index = (some & (halves.layer == number)).nonzero()[:, 0]
            least = halves.least[index].to(low.dtype)
            # Currents are numbers of this dtype: every one of them is in one of both.
            below = torch.nextafter(least, torch.full_like(least, -math.inf))
            end[index, halves.neuron[index]] = least if end is low else below


def _bounded(margins: Margins, owner: Tensor, known: list[Known] | None, width: int) -> Parts:
    """Parts of the margins' boxes, whole where nothing is known."""
    found = []
    every = torch.arange(len(owner), device=owner.device)
    for some in every.split(max(1, backward.CHUNK // (8 * width))):
        slopes = Slopes()
        if known is not None:
            slopes = Slopes([layer.pick(some) for layer in known], STEPS, RATE)
        # Membranes of a part by S-IBP, within those of the whole: by S-CROWN again for each they
        # would take ten times as long, and few margins get any better.
        options = backward.Options(slopes=slopes, membranes=known is None)
        its = margins.pick(owner[some])
        bound = crown.totals(its.layers, its.box, its.y, options, only=its.other[:, None])[:, 0]
        found.append(Parts(owner[some], bound, *_branch(slopes, bound), slopes.known()))
    parts = found[0]
    for more in found[1:]:
        parts = parts.join(more)
    return parts


def _branch(slopes: Slopes, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The layer, neuron and current at which every part is to be split next."""
    layer = torch.full_like(bound, -1, dtype=torch.int64)
    neuron, least = torch.zeros_like(layer), torch.zeros_like(bound)
    most = torch.full_like(bound, -math.inf)
    for number, state in enumerate(slopes.layers):
        if state.trains is None or state.currents is None:
            continue
        assert state.rows is not None
        assert state.slopes is not None
        gain, which, at = state.trains.branch(state.rows, state.slopes.detach(), state.currents[0])
        more = gain > most
        most = torch.where(more, gain, most)
        layer = torch.where(more, number, layer)
        neuron, least = torch.where(more, which, neuron), torch.where(more, at.double(), least)
    return layer, neuron, least
