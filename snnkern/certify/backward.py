"""Ways back through the modules of a network, and what there is to choose on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from snnkern.certify.slopes import Slopes
from snnkern.reference import Interval

# Numbers that the rows of one chunk may have in a layer.
CHUNK = 1 << 25

# From weights of a module's output ``[R, T, N, ...]`` to those of its input and what is left over,
# ``[R, N]`` float64: their sum is nowhere above. Weights of what is constant in time may be one
# step long, the sum over time.
Backward = Callable[[Tensor], tuple[Tensor, Tensor]]


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


def one_after_the_other(steps: list[Backward]) -> Backward:
    """From the last of them to the first."""

    def back(rows: Tensor) -> tuple[Tensor, Tensor]:
        bias = rows.new_zeros(1, 1, dtype=torch.float64)
        for step in reversed(steps):
            rows, more = step(rows)
            bias = bias + down(more)
        return rows, bias

    return back


def weigh(rows: Tensor, values: Tensor) -> Tensor:
    """``[R, T, N, ...]`` and ``[T, N, ...]``: the sum over time and features, ``[R, N]``."""
    return torch.einsum("rtnf,tnf->rn", rows.double().flatten(3), values.double().flatten(2))


def magnitude_of(box: Interval) -> Tensor:
    """The largest magnitude in a box, everywhere."""
    return torch.maximum(box.lower.abs(), box.upper.abs())


def sums_of(values: Tensor) -> Tensor:
    """``[T, N, ...]``: the sum over time and features, ``[N]`` float64."""
    return values.double().flatten(2).sum((0, 2))


def down(bias: Tensor) -> Tensor:
    """Less by as much as adding up hundreds of such numbers can round off, or underflow."""
    return bias - (2.0**-44 * bias.abs() + 2.0**-960)


def round_down(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of float64 in another dtype, nowhere above."""
    rounded = values.to(dtype)
    down = torch.nextafter(rounded, torch.full_like(rounded, -math.inf))
    return torch.where(rounded.double() > values, down, rounded)
