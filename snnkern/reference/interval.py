"""What one step of neurons does with every current between two."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from snnkern.reference.neuron import DELAYED_SOFT, HARD, NONE, SOFT, Neuron
from snnkern.reference.parameters import broadcast


class Interval(NamedTuple):
    """Elementwise bounds."""

    lower: Tensor
    upper: Tensor

    def map(self, f: Callable[[Tensor], Tensor]) -> Interval:
        """The image under a function that is monotone in floating point."""
        return Interval(f(self.lower), f(self.upper))


def lesser(a: Tensor, b: Tensor) -> Tensor:
    """The smaller of two numbers, the first of two like ones."""
    return torch.where(b < a, b, a)


def greater(a: Tensor, b: Tensor) -> Tensor:
    """The larger of two numbers, the first of two like ones."""
    return torch.where(b > a, b, a)


def charge_interval(neuron: Neuron, u: Interval, x: Interval) -> Interval:
    """Bounds of the membrane before reset, from those of the carried state and of the current.

    A delayed reset subtracts here what a step before may owe that fired.
    """
    rest = neuron._replace(reset=NONE)
    low, high = rest.charge(u.lower, x.lower), rest.charge(u.upper, x.upper)
    if neuron.reset != DELAYED_SOFT:
        return Interval(low, high)
    threshold = neuron.threshold
    surely, maybe = u.map(neuron.fires)
    # Both cases meet at the threshold, where one has fired and the other has not.
    fired, silent = rest.charge(threshold, x.lower) - threshold, rest.charge(threshold, x.upper)
    return Interval(
        torch.where(surely, low - threshold, torch.where(maybe, lesser(low, fired), low)),
        torch.where(
            surely, high - threshold, torch.where(maybe, greater(silent, high - threshold), high)
        ),
    )


def carry_interval(neuron: Neuron, v: Interval) -> Interval:
    """Bounds of the state after reset (eq. 9 of Liang et al. 2022, for any reset).

    Where ``v`` may or may not fire, the smallest interval around the states of both cases.
    """
    if neuron.reset not in (HARD, SOFT):
        return v
    threshold = neuron.threshold
    surely, maybe = v.map(neuron.fires)
    if neuron.reset == HARD:
        fired = v.map(lambda end: torch.full_like(end, neuron.v_reset))
        least = fired.lower
    else:
        fired = v.map(lambda end: end - threshold)
        least = torch.zeros_like(v.lower)
    return Interval(
        torch.where(surely, fired.lower, torch.where(maybe, lesser(v.lower, least), v.lower)),
        torch.where(
            surely, fired.upper, torch.where(maybe, greater(threshold, fired.upper), v.upper)
        ),
    )


def bounded_neuron(
    x: Tensor, decay: Tensor, threshold: Tensor, reset: int, v_reset: float, strict: bool
) -> Neuron:
    """The neurons of an op on bounds: charge by leak, no synapse."""
    return Neuron(
        broadcast(decay, x), broadcast(threshold, x), reset=reset, v_reset=v_reset, strict=strict
    )
