"""Slopes of the lines below spiking neurons as parameters, which are optimised.

A line in the membrane lies below what a neuron fires and carries on whatever its slope, so every
bound on the way uphill holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from snnkern.certify import first
from snnkern.reference import Interval

# Steps that optimise slopes: how many, and how far the first goes, with what is left later.
STEPS = 40
RATE = 0.15
DECAY = 0.95


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


def optimised(value: Callable[[Tensor], Tensor], rows: Tensor, slopes: Slopes) -> Tensor:
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
