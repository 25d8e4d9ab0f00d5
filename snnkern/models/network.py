"""The frame that all networks share: images in, logits out, time inside."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snnkern._checks import check_int
from snnkern.nn import Direct, Events, GradientMode, RateCoding


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel, so that attacks see pixels in ``[0, 1]``."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        finite = all(math.isfinite(value) for value in (*mean, *std))
        if len(mean) != len(std) or not finite or any(s <= 0 for s in std):
            raise ValueError(
                f"mean is {list(mean)} and std is {list(std)}, expected one finite number per "
                "channel each, and std above 0"
            )
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        return (x - self.mean) / self.std


class SpikingNetwork(nn.Sequential):
    """Images ``[N, C, H, W]`` in ``[0, 1]`` to logits ``[N, K]``; an ordinary module.

    Args:
        timesteps: T; 0 makes it the ReLU network of the same weights, without a time axis.
        normalize: applied to the images first.
        layers: from ``[T, N, C, H, W]`` to ``[T, N, K]``.
        readout: from ``[T, N, K]`` to ``[N, K]``.
    """

    def __init__(
        self, timesteps: int, normalize: nn.Module, layers: nn.Module, readout: nn.Module
    ) -> None:
        super().__init__()
        check_int("timesteps", timesteps, 0)
        self.normalize = normalize
        self.encoder: Direct | RateCoding | Events = Direct(max(timesteps, 1))
        self.layers = layers
        self.readout = readout
        self.timesteps = timesteps

    @property
    def timesteps(self) -> int:
        """T, or 0 for the ReLU network."""
        return 0 if self.encoder.relu else self.encoder.timesteps

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        check_int("timesteps", value, 0)
        for module in self.modules():
            if isinstance(module, GradientMode):
                module.relu = value == 0
        self.encoder.timesteps = max(value, 1)
