"""Encoders: from images ``[N, ...]`` to a sequence ``[T, N, ...]``."""

from __future__ import annotations

from torch import Tensor

from snnkern._checks import check_int
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
        return x.expand(1 if self.is_relu else self.timesteps, *x.shape)

    def extra_repr(self) -> str:
        """T."""
        return f"timesteps={self.timesteps}"
