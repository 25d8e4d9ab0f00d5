"""Whether a layer sums the events of its input or multiplies densely."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from snnkern import _load

# What things cost in dense products, for which oneDNN is near the peak of a core. A product by
# events, and one that was not: the sums of 64 channels are loaded and stored together. An input: it
# is packed, unpacked and gathered. A weight, in training: it is brought into the order that events
# read.
EVENT_COST, IDLE_COST, INPUT_COST, ROW_COST = 1.1, 0.12, 40.0, 100.0
# Events whose values are read and multiplied by pay up to this share of the density.
GRADED = 0.85
# How many dense products of bfloat16 go in the time of one of float32, on CPUs that have them.
FASTER = {torch.float32: 1.0, torch.bfloat16: 2.2}
# Of the dense time, events have to promise less than this.
WORTH = 0.85
# Dense products that are nearly over before anything has been looked at.
LEAST_PRODUCTS = 2**27
# Images of a batch that are looked at before all of it is.
LOOKED_AT = 4


def why_never(x: Tensor, weight: Tensor, groups: int, *, insists: bool) -> str:
    """Why a layer cannot go by events, empty where it can.

    Of one dtype with the weight is what dense products take; who ``insists`` may give integers too.
    """
    if x.device.type != "cpu":
        return f"the tensors are on {x.device}"
    if is_transformed():
        return "a transform of torch.func"
    if _load.why_not:
        return _load.why_not
    if groups != 1:
        return f"groups={groups}"
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return f"weights of {weight.dtype}"
    if x.dtype != weight.dtype and (x.is_floating_point() or not insists):
        return f"an input of {x.dtype} for weights of {weight.dtype}"
    if x.shape[1] != weight.shape[1]:
        return f"{x.shape[1]} channels for weights of {weight.shape[1]}"
    return ""


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is under way, which no Function of ours knows."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_watched() -> bool:
    """Whether somebody looks at the ops or at values that stand for others: no time to choose."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or is_transformed()
    )


def share(density: float, channels: int, *, graded: bool = False) -> float:
    """The time of sums by events over that of dense products of float32."""
    if graded:
        density /= GRADED
    return EVENT_COST * density + IDLE_COST * (-(-channels // 64) * 64 / channels)


def limit(
    x: Tensor,
    weight: Tensor,
    positions: int,
    *,
    graded: bool,
    trains: bool,
    sums_weights: bool,
) -> float:
    """The density of ``x`` below which events pay, for a layer of so many output positions.

    In training rows are made anew, and the gradient of the weight goes by events too where
    ``sums_weights``.
    """
    cost, products = INPUT_COST * x.numel(), positions * weight.numel()
    if trains:
        cost += ROW_COST * weight.numel()
        products *= 2 if sums_weights else 1
    left = WORTH / FASTER[weight.dtype] - share(0.0, x.shape[1]) - cost / products
    return max(0.0, left / EVENT_COST) * (GRADED if graded else 1)


class Sample(NamedTuple):
    """What a few images say of all."""

    density: float
    graded: bool

    @classmethod
    def of(cls, x: Tensor) -> Sample:
        """Of ``[N, C, H, W]``."""
        some = x[:: max(1, len(x) // LOOKED_AT)]
        events = int(torch.count_nonzero(some))
        return cls(events / some.numel(), events != int(torch.count_nonzero(some == 1)))


class Choice:
    """What a layer found in its last input, what it chose, and why.

    The choice depends on the input alone, neither on a clock nor on earlier calls: equal inputs
    give equal sums, in a run that was resumed too. To change it costs nothing: rows are kept.
    """

    def __init__(self) -> None:
        self.by_events = False
        self.density: float | None = None
        self.graded = False
        self.reason = "not called yet"
        self.seconds: dict[str, float] = {}

    def decide(self, density: float, below: float, *, graded: bool, what: str = "density") -> bool:
        """Chooses for an input that is spikes, or ``graded`` ones: other values than 1."""
        self.density, self.graded = density, graded
        self.by_events = density < below
        self.reason = (
            "event_driven is True"
            if below == math.inf
            else f"{what} {'below' if self.by_events else 'at least'} {below:.3f}"
        )
        if graded:
            self.reason += ", of graded spikes"
        return self.by_events

    def never(self, reason: str) -> None:
        """Dense, whatever the density."""
        self.by_events, self.density, self.graded, self.reason = False, None, False, reason

    def timed(self, run: Callable[[], Tensor], by_events: bool) -> Tensor:
        """Runs the layer, and keeps how long that took."""
        start = perf_counter()
        result = run()
        self.seconds["events" if by_events else "dense"] = perf_counter() - start
        return result


def density_of(packed: Tensor, numel: int) -> float:
    """The share of ones."""
    return int(torch.ops.snnkern.count_spikes(packed)) / numel
