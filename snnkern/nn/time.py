"""Stateless layers along time, and readouts that end it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from snnkern.autograd import Held, RateDistributed, is_constant
from snnkern.nn import packed
from snnkern.nn.gradient import GradientMode

# What these make of one step does not depend on any other, nor on chance.
_TIME_INVARIANT = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Linear,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    packed.Conv2d,
    packed.Linear,
    packed.AvgPool2d,
    packed.MaxPool2d,
    nn.Flatten,
    nn.Identity,
)
_NOT_AFFINE = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, packed.MaxPool2d)
# Affine, and the same at every step, once they no longer learn.
_AFFINE_IN_EVALUATION = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Dropout3d,
)


def _looks_at_values(part: nn.Module) -> bool:
    """Whether hooks watch a module, or a norm takes its statistics from the batch."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    norm = isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    watched = _has_any_global_hook() or any(getattr(part, hook) for hook in hooks)
    return watched or (norm and part.running_mean is None)


class TimeDistributed(GradientMode):
    """Runs a stateless module on all time steps at once, as one batch of ``T * N``.

    An input that is constant in time (stride 0, as from ``Direct``) runs through convolutions,
    linear layers and pooling once. Where ``snnkern.gradient`` asks for BPTR, a gradient that is
    constant in time goes back through an affine module once.

    Args:
        module: takes ``[N, ...]`` and gives ``[N, ...]``.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, ...] -> [T, N, ...]``."""
        timesteps = x.shape[0]
        if is_constant(x) and self._is_time_invariant():
            once: Tensor = self.module(x[0])
            if self.through_rate:
                held: Tensor = Held.apply(once, timesteps)
                return held
            return once.expand(timesteps, *once.shape)
        # A compiler sees no tensors to look at: there every step goes back, to the same sum.
        if self.through_rate and not torch.compiler.is_compiling() and self._is_affine():
            result: Tensor = RateDistributed.apply(x, self.module, *self.module.parameters())
            return result
        merged: Tensor = self.module(x.flatten(0, 1))
        return merged.view(timesteps, -1, *merged.shape[1:])

    def _parts(self) -> list[nn.Module]:
        # Exact types: what a subclass or a container of the user's own does is not known.
        return [part for part in self.module.modules() if type(part) is not nn.Sequential]

    def _is_time_invariant(self) -> bool:
        return all(type(part) in _TIME_INVARIANT for part in self._parts())

    def _is_affine(self) -> bool:
        # A layer that insists on spikes refuses their mean, which RateDistributed would show it.
        if any(getattr(part, "spike_input", None) for part in self._parts()):
            return False
        return all(
            (type(part) in _TIME_INVARIANT and type(part) not in _NOT_AFFINE)
            or (type(part) in _AFFINE_IN_EVALUATION and not part.training)
            for part in self._parts()
        ) and not any(_looks_at_values(part) for part in self.module.modules())


class SharedDropout(nn.Dropout):
    """Dropout whose mask is the same in all time steps, ``[T, N, ...] -> [T, N, ...]``.

    Kundu et al. 2021, after the hybrid training of Rathi et al. 2020. ``nn.Dropout`` on the same
    tensor draws a mask for every step.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The spikes of the neurons that stay, scaled by ``1 / (1 - p)``."""
        if not self.training:
            return input
        return input * super().forward(torch.ones_like(input[:1]))


class MeanReadout(nn.Module):
    """Logits: the mean over time, ``[T, N, K] -> [N, K]``.

    Ding et al. 2022; Ozdenizci & Legenstein 2023 in their code.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The mean over time."""
        # Not mean(), whose gradient would be T copies.
        return x.sum(0) / x.shape[0]


class SumReadout(nn.Module):
    """Logits: the sum over time, ``[T, N, K] -> [N, K]``.

    Output neurons that integrate and never fire: Kundu et al. 2021; eq. 7 of Ozdenizci & Legenstein
    2023.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The sum over time."""
        return x.sum(0)
