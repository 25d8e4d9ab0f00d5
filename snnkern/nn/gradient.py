"""How a model is differentiated by somebody else: an attacker's choice of gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

from snnkern.surrogate import Rate, Surrogate

Gradient = Surrogate | Literal["rate", "relu"]


class GradientMode(nn.Module):
    """A module that ``gradient`` can switch. ``relu``: it is part of a ReLU network for good."""

    is_neuron: bool = False
    relu: bool = False
    gradient_mode: Surrogate | Literal["relu"] | None = None

    @property
    def is_relu(self) -> bool:
        """Whether the module acts as part of a ReLU network without a time axis."""
        return self.relu or self.gradient_mode == "relu"

    @property
    def through_rate(self) -> bool:
        """Whether gradients pass through rates, where no step differs from another."""
        return isinstance(self.gradient_mode, Rate)

    def active_surrogate(self, own: Surrogate) -> Surrogate:
        """The surrogate to differentiate by: ``own``, unless ``gradient`` set another."""
        return self.gradient_mode if isinstance(self.gradient_mode, Surrogate) else own


@contextmanager
def gradient(model: nn.Module, g: Gradient | None) -> Iterator[None]:
    """Within the block every neuron of ``model`` is differentiated by ``g``.

    Its spikes stay the same, except for ``"relu"``; on leaving, the model is as it was.

    Args:
        model: any module that holds snnkern's neurons.
        g: a surrogate; ``"rate"`` for BPTR, through the rate instead of through time (Ding et al.
            2022); ``"relu"`` for the conversion-based attack CBA, which takes every neuron for a
            ReLU and drops the time axis; None changes nothing.

    Raises:
        TypeError: ``g`` is none of these.
        ValueError: ``model`` holds no neuron of snnkern.
    """
    if g is not None and not isinstance(g, Surrogate) and g not in ("rate", "relu"):
        raise TypeError(f"g is {g!r}, expected a snnkern.surrogate.Surrogate, 'rate' or 'relu'")
    modules = [module for module in model.modules() if isinstance(module, GradientMode)]
    if g is not None and not any(module.is_neuron for module in modules):
        raise ValueError(
            f"model {type(model).__name__} holds no neuron of snnkern to differentiate"
        )
    before = [module.gradient_mode for module in modules]
    try:
        if g is not None:
            for module in modules:
                module.gradient_mode = Rate() if g == "rate" else g
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.gradient_mode = mode
