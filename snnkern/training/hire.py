"""HIRE-SNN: training on crafted noise, for the price of none (Kundu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkern._checks import check_int, check_number
from snnkern.nn import LIF, NormLIF
from snnkern.training.method import Losses, Memory, Method


@contextmanager
def shorter(model: nn.Module, periods: int, carry: bool) -> Iterator[None]:
    """Within the block ``model`` runs ``T // periods`` steps, with ``carry`` from call to call."""
    network: Any = model
    timesteps = getattr(network, "timesteps", 0)
    if not isinstance(timesteps, int) or timesteps < periods:
        raise ValueError(
            f"model has timesteps={timesteps}, expected at least {periods}: one for each of HIRE's "
            "periods"
        )
    neurons = [module for module in model.modules() if isinstance(module, LIF)] if carry else []
    for neuron in neurons:
        if isinstance(neuron, NormLIF):
            raise ValueError(
                "carry is True and model holds a NormLIF, expected LIF: batch statistics cover "
                "whole sequences"
            )
    network.timesteps = timesteps // periods
    try:
        for neuron in neurons:
            neuron.stateful = True
        yield
    finally:
        network.timesteps = timesteps
        for neuron in neurons:
            neuron.stateful = False
            neuron.reset_state()


@torch.no_grad()
def clamp_leaks(model: nn.Module) -> None:
    """Keeps learnt leaks at 1 at most, as DIET-SNN does after every step (Rathi & Roy 2021)."""
    for module in model.modules():
        leak = getattr(module, "leak", None)
        if isinstance(module, LIF) and isinstance(leak, nn.Parameter):
            leak.clamp_(max=1)


@dataclass(frozen=True)
class HIRE(Method):
    """Algorithm 1: the time steps in periods, each on another noisy variant of the image.

    A batch is trained on ``periods`` times, ``floor(T / periods)`` steps each. The backward pass of
    a period also gives the gradient of the pixels, by which the noise ``kappa`` is crafted that the
    next period adds: ``kappa <- clip(kappa + step sign(grad), -bound, bound)`` (eq. 6). One
    ``kappa`` of the size of a batch goes on from period to period, batch to batch and epoch to
    epoch; a short batch uses its first rows.

    Args:
        step: the noise step eps_s, in units of the pixel range; the paper: 0.013 for VGG5, 0.025
            for VGG11, 0.008 and 0.015 for ResNet12.
        bound: the noise bound eps_t; ``step`` unless given, as in the paper.
        periods: N.
        noise: ``"crafted"``, or for comparison ``"gaussian"``: drawn anew for every period, with
            deviation ``step``.
        carry: start periods after the first from the membranes that the one before left, instead
            of from rest. The gradient does not flow into earlier periods.
        order: ``"before"``: the pixels' gradient is that of the weights before the step, from the
            same backward pass (algorithm 1). ``"after"``: that of the weights after it, by a pass
            of its own (figure 6).
        clip: keep ``x + kappa`` in [0, 1]; the algorithm does not.
        clamp_leak: keep learnt leaks at 1 at most.
    """

    step: float = 0.013
    bound: float | None = None
    periods: int = 2
    noise: Literal["crafted", "gaussian"] = "crafted"
    carry: bool = False
    order: Literal["before", "after"] = "before"
    clip: bool = False
    clamp_leak: bool = True

    def __post_init__(self) -> None:
        """Refuses what means nothing."""
        check_number("HIRE: step", self.step, low=0)
        if self.bound is not None:
            check_number("HIRE: bound", self.bound, low=0)
        check_int("HIRE: periods", self.periods, 1)
        for name, expected in (("noise", ("crafted", "gaussian")), ("order", ("before", "after"))):
            if getattr(self, name) not in expected:
                raise ValueError(
                    f"HIRE: {name} is {getattr(self, name)!r}, expected {' or '.join(expected)}"
                )
        if self.carry and self.order == "after":
            raise ValueError(
                "HIRE: carry is True and order is 'after', expected 'before': a second pass would "
                "move the membranes on"
            )

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        """Cross entropy of every period."""
        kappa = self._kappa(x, memory)
        with shorter(model, self.periods, self.carry):
            for _ in range(self.periods):
                if self.noise == "gaussian":
                    draws = torch.randn(
                        x.shape, generator=memory.noise, dtype=x.dtype, device=memory.noise.device
                    )
                    kappa.copy_(self.step * draws)
                images = self._noisy(x, kappa)
                logits = model(images)
                yield F.cross_entropy(logits, y), logits
                if self.clamp_leak:
                    clamp_leaks(model)
                if self.noise == "crafted":
                    self._craft(model, images, y, kappa)

    def _kappa(self, x: Tensor, memory: Memory) -> Tensor:
        """The rows of kappa for these images."""
        kept = memory.tensors.get("kappa", x[:0])
        if len(kept) < len(x):
            kept = torch.cat([kept, torch.zeros_like(x[len(kept) :])])
            memory.tensors["kappa"] = kept
        return kept[: len(x)]

    def _noisy(self, x: Tensor, kappa: Tensor) -> Tensor:
        noisy = (x + kappa).clamp(0, 1) if self.clip else x + kappa
        return noisy.requires_grad_(self.noise == "crafted")

    def _craft(self, model: nn.Module, images: Tensor, y: Tensor, kappa: Tensor) -> None:
        grad = images.grad
        if self.order == "after":
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(F.cross_entropy(model(images), y), images)
        assert grad is not None
        bound = self.step if self.bound is None else self.bound
        kappa.add_(self.step * grad.sign()).clamp_(-bound, bound)
