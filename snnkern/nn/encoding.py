"""Encoders: from images ``[N, ...]``, or frames of events, to a sequence ``[T, N, ...]``."""

from __future__ import annotations

import torch
from torch import Tensor

from snnkern import functional
from snnkern._checks import check_int, check_number
from snnkern.autograd import Held
from snnkern.nn.gradient import GradientMode


class Direct(GradientMode):
    """Direct coding: the image itself is the input of every time step.

    The result has time stride 0: no copy is made, and layers that see it run once instead of T
    times.

    Args:
        timesteps: T, at least 1.
    """

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        check_int("timesteps", timesteps, 1)
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...] -> [T, N, ...]``."""
        if self.through_rate:
            held: Tensor = Held.apply(x, self.timesteps)
            return held
        return x.expand(1 if self.is_relu else self.timesteps, *x.shape)

    def extra_repr(self) -> str:
        """T."""
        return f"timesteps={self.timesteps}"


def quantized(x: Tensor, bits: int, low: float) -> Tensor:
    """The nearest of ``2^bits`` even levels from ``low`` to 1, with a straight-through gradient.

    Args:
        x: values of any shape.
        bits: at least 1.
        low: the lowest level.
    """
    steps, span = (1 << bits) - 1, 1 - low
    level = ((x.detach() - low) * (steps / span)).round()
    return level * span / steps + low + (x - x.detach())


class RateCoding(GradientMode):
    """Rate coding: every step draws spikes at the rate of the image.

    See ``snnkern.functional.encode``. As part of a ReLU network it passes the scaled image on.

    Args:
        timesteps: T, at least 1.
        coding: ``"poisson"``, ``"signed_poisson"`` or ``"bernoulli"``.
        rate: the largest rate: inputs are scaled by it.
        bits: round inputs to ``2^bits`` even levels from 0, of a signed coding from -1, to 1 before
            that (section 4.2 of Sharmin et al. 2020), with a straight-through gradient.
    """

    def __init__(
        self,
        timesteps: int,
        coding: functional.Coding = "poisson",
        rate: float = 1.0,
        bits: int | None = None,
    ) -> None:
        super().__init__()
        check_int("timesteps", timesteps, 1)
        check_number("rate", rate, low=0, high=1, open_low=True)
        if coding not in functional.CODINGS:
            raise ValueError(
                f"coding is {coding!r}, expected one of {', '.join(functional.CODINGS)}"
            )
        if bits is not None:
            check_int("bits", bits, 1)
        self.timesteps = timesteps
        self.coding: functional.Coding = coding
        self.rate = rate
        self.bits = bits

    def rates(self, x: Tensor) -> Tensor:
        """What spikes are drawn at: monotone in the image, in floating point too."""
        if self.bits is not None:
            x = quantized(x, self.bits, low=-1.0 if self.coding == "signed_poisson" else 0.0)
        return self.rate * x if self.rate != 1 else x

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``[N, ...] -> [T, N, ...]``."""
        if self.is_relu:
            return self.rates(x).unsqueeze(0)
        return functional.encode(self.rates(x), self.timesteps, self.coding, generator=generator)

    def extra_repr(self) -> str:
        """T, coding, rate, and bits where there are any."""
        parts = f"timesteps={self.timesteps}, coding={self.coding!r}, rate={self.rate:g}"
        return parts if self.bits is None else f"{parts}, bits={self.bits}"


class Events(GradientMode):
    """Frames of events, ``[N, F, ...]``, of which the first T are the input of the T time steps.

    As part of a ReLU network it passes on their mean.

    Args:
        timesteps: T, at least 1.
    """

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        check_int("timesteps", timesteps, 1)
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        """``[N, F, ...] -> [T, N, ...]``.

        Raises:
            ValueError: fewer than T frames.
        """
        if x.dim() < 3 or x.shape[1] < self.timesteps:
            raise ValueError(
                f"x has shape {list(x.shape)}, expected frames of events [N, F, ...], "
                f"{self.timesteps} of them at least"
            )
        first = x[:, : self.timesteps].transpose(0, 1)
        return first.mean(0, keepdim=True) if self.is_relu else first

    def extra_repr(self) -> str:
        """T."""
        return f"timesteps={self.timesteps}"
