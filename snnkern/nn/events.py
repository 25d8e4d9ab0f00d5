"""Whether a layer sums the events of its input or multiplies densely."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from snnkern import _load

# Dense products take so long for one that events take: oneDNN is near the peak of the machine, rows
# of weights come from the second cache.
DENSE_RATE = 3.0
# In dense products: bringing one weight into the order in which events read it.
ROW_COST = 40.0
# Of the dense time, events have to promise less than this, and less still to begin.
WORTH, BEGIN = 0.85, 0.85
# Dense products that are over before anything has been looked at.
LEAST_PRODUCTS = 2**25
# Calls without a look behind one that found too much, and images that are looked at.
PAUSE, LOOKED_AT = 8, 4


def why_never(x: Tensor, weight: Tensor, groups: int) -> str:
    """Why a layer cannot go by events, empty where it can."""
    if x.device.type != "cpu":
        return f"the tensors are on {x.device}"
    if _load.why_not:
        return _load.why_not
    if groups != 1:
        return f"groups={groups}"
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return f"weights of {weight.dtype}"
    if x.shape[1] != weight.shape[1]:
        return f"{x.shape[1]} channels for weights of {weight.shape[1]}"
    return ""


def is_watched() -> bool:
    """Whether somebody looks at the ops or at values that stand for others: no time to choose."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


class Choice:
    """What a layer measured of its input, and what it chose.

    The choice depends on densities alone, never on a clock: the same inputs in the same order give
    the same sums. It has hysteresis, so that a density near the limit does not flip it.
    """

    def __init__(self) -> None:
        self.by_events = False
        self.density: float | None = None
        self.reason = "not called yet"
        self.seconds: dict[str, float] = {}
        self._pause = 0

    def limit(self, positions: int, fresh_rows: bool) -> float:
        """The density below which events pay, for a layer of so many output positions."""
        worth = WORTH - (ROW_COST / positions if fresh_rows else 0.0)
        return worth / DENSE_RATE * (1.0 if self.by_events else BEGIN)

    def decide(self, density: float, limit: float) -> bool:
        """Chooses for an input that is spikes."""
        self.density = density
        self.by_events = density < limit
        self.reason = f"density {'below' if self.by_events else 'at least'} {limit:.3f}"
        self._pause = 0 if self.by_events else PAUSE
        return self.by_events

    def never(self, reason: str) -> None:
        """Dense, whatever the density."""
        self.by_events, self.density, self.reason = False, None, reason
        self._pause = PAUSE

    def is_promising(self, x: Tensor, limit: float) -> bool:
        """From a few images now and then, whether a look at all of ``x`` is worth its time."""
        if self.by_events:
            return True
        if self._pause > 0:
            self._pause -= 1
            return False
        some = x[:: max(1, len(x) // LOOKED_AT)]
        density = int(torch.count_nonzero(some)) / some.numel()
        if density < limit:
            return True
        self.density = density
        self.reason = f"density at least {limit:.3f}"
        self._pause = PAUSE
        return False

    def timed(self, run: Callable[[], Tensor]) -> Tensor:
        """Runs the layer as chosen, and keeps how long that took."""
        start = perf_counter()
        result = run()
        self.seconds["events" if self.by_events else "dense"] = perf_counter() - start
        return result


def density_of(packed: Tensor, numel: int) -> float:
    """The share of ones."""
    return int(torch.ops.snnkern.count_spikes(packed)) / numel
