"""How a model is differentiated by somebody else: an attacker's choice of gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from torch import nn

from snnkern.surrogate import ASSG, Moments, Rate, Surrogate

Gradient = Surrogate | Literal["rate", "relu"]


class GradientMode(nn.Module):
    """A module that ``gradient`` can switch. ``relu``: it is part of a ReLU network for good."""

    is_neuron: bool = False
    relu: bool = False
    gradient_mode: Surrogate | Sequence[Surrogate] | Literal["relu"] | None = None

    @property
    def is_relu(self) -> bool:
        """Whether the module acts as part of a ReLU network without a time axis."""
        return self.relu or self.gradient_mode == "relu"

    @property
    def through_rate(self) -> bool:
        """Whether gradients pass through rates, where no step differs from another."""
        return isinstance(self.gradient_mode, Surrogate) and self.gradient_mode.held

    def active_surrogate(self, own: Surrogate) -> Surrogate | Sequence[Surrogate]:
        """The surrogate to differentiate by: ``own``, unless ``gradient`` set another."""
        mode = self.gradient_mode
        return own if mode is None or isinstance(mode, str) else mode


def check_gradient(name: str, g: object) -> None:
    """Raises a TypeError unless ``g`` is what ``gradient`` takes."""
    known = g is None or isinstance(g, Surrogate) or g in ("rate", "relu")
    if isinstance(g, Sequence) and not isinstance(g, str):
        known = all(isinstance(one, Surrogate) for one in g)
    if not known:
        raise TypeError(
            f"{name} is {g!r}, expected a snnkern.surrogate.Surrogate, 'rate' or 'relu'"
        )


@contextmanager
def gradient(model: nn.Module, g: Gradient | Sequence[Surrogate] | None) -> Iterator[None]:
    """Within the block every neuron of ``model`` is differentiated by ``g``.

    Its spikes stay the same, except for ``"relu"``; on leaving, the model is as it was.

    Args:
        model: any module that holds snnkern's neurons.
        g: a surrogate (``RGA``, ``HART``, ``PDSG`` and ``ASSG`` among them), or a pointwise one
            for every sample of the batch; ``"rate"`` for BPTR, through the rate instead of through
            time (Ding et al. 2022); ``"relu"`` for the conversion-based attack CBA, which takes
            every neuron for a ReLU and drops the time axis; None changes nothing.

    Raises:
        TypeError: ``g`` is none of these.
        ValueError: ``model`` holds no neuron of snnkern.
    """
    check_gradient("g", g)
    g = Rate() if g == "rate" else g
    modules = [module for module in model.modules() if isinstance(module, GradientMode)]
    if g is not None and not any(module.is_neuron for module in modules):
        raise ValueError(
            f"model {type(model).__name__} holds no neuron of snnkern to differentiate"
        )
    before = [module.gradient_mode for module in modules]
    try:
        if g is not None:
            for module in modules:
                module.gradient_mode = g.for_layer() if isinstance(g, Surrogate) else g
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.gradient_mode = mode


def adapting(model: nn.Module) -> list[Moments]:
    """What surrogates that adapt (``ASSG``) remember, layer by layer, within ``gradient``."""
    modes = [m.gradient_mode for m in model.modules() if isinstance(m, GradientMode)]
    return [mode.moments for mode in modes if isinstance(mode, ASSG) and mode.moments is not None]


@contextmanager
def hold_surrogates(model: nn.Module) -> Iterator[None]:
    """Within the block surrogates that adapt to what they see (``ASSG``) stay as they are.

    For the repeats of a gradient that is an expectation over the draws of an encoder: only the
    first of an attack's iteration adapts.
    """
    followed = adapting(model)
    before = [moments.held for moments in followed]
    try:
        for moments in followed:
            moments.held = True
        yield
    finally:
        for moments, held in zip(followed, before, strict=True):
            moments.held = held
