"""Hybrid training: backpropagation through spikes after a conversion (Rathi et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnkern._checks import check_number
from snnkern.nn import LIF, MeanReadout, gradient
from snnkern.surrogate import SpikeTime, Surrogate
from snnkern.training.method import Losses, Memory, Method


@torch.no_grad()
def set_leaks(model: nn.Module, leak: float) -> None:
    """Gives all neurons one constant leak."""
    for name, module in model.named_modules():
        if not isinstance(module, LIF):
            continue
        kept = getattr(module, "leak", None)
        if kept is None or isinstance(kept, nn.Parameter):
            what = f"{module.decay_name} is theirs" if kept is None else "learn_leak is True"
            raise ValueError(
                f"leak is {leak:g} and {name or 'model'} holds neurons where {what}, expected "
                "neurons with a constant leak"
            )
        kept.fill_(leak)


def steps_in_mean(model: nn.Module) -> int:
    """By what the logits times it are the sum over time: T, or 1 where they are that sum."""
    timesteps = getattr(model, "timesteps", None)
    mean = any(isinstance(module, MeanReadout) for module in model.modules())
    if timesteps == 0 or (mean and timesteps is None):
        raise ValueError(
            f"model has timesteps={timesteps}, expected at least 1: the loss is that of the sum "
            "over time"
        )
    return timesteps if mean and timesteps is not None else 1


@dataclass(frozen=True)
class SpikeTimeFinetune(Method):
    """Cross entropy of the output summed over time, by spike-time dependent backpropagation (STDB).

    The second half of hybrid training: SNN-BP of Sharmin et al. 2020 after Rathi et al. 2020. The
    network, with its Poisson encoder, comes from a conversion. Logits that are means over time
    count T times here, as the sums that they stand for; an attack sees them as they are.

    Args:
        surrogate: by what spikes are differentiated while training, whatever surrogates the neurons
            have. The linear one of the papers is ``Triangle(scale=0.3, normalized=True)``.
        leak: what all neurons get before the first batch, and keep: a converted network has 1, the
            papers train with 0.99, and lower for more robustness. None leaves the network's own.
    """

    surrogate: Surrogate = SpikeTime(normalized=True)  # noqa: RUF009  frozen
    leak: float | None = None

    def __post_init__(self) -> None:
        """Refuses what means nothing."""
        if not isinstance(self.surrogate, Surrogate):
            raise TypeError(
                f"SpikeTimeFinetune: surrogate is {self.surrogate!r}, expected a "
                "snnkern.surrogate.Surrogate"
            )
        if self.leak is not None:
            check_number("SpikeTimeFinetune: leak", self.leak, low=0, high=1)

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        """Cross entropy of the sum over time."""
        if self.leak is not None:
            set_leaks(model, self.leak)
        with gradient(model, self.surrogate):
            logits = steps_in_mean(model) * model(x)
        yield F.cross_entropy(logits, y), logits
