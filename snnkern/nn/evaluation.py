"""Running a model for its answers alone, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from snnkern.nn.neuron import LIF


@contextmanager
def evaluation_mode(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """The model in evaluation mode, ``gradients`` of parameters or none; afterwards as it was."""
    training = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for module, _ in training:
            module.training = False
        for parameter, wants in wanted:
            parameter.requires_grad_(gradients and wants)
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, mode in wanted:
            parameter.requires_grad_(mode)


def check_stateless(model: nn.Module) -> None:
    """Raises where a layer carries state from call to call: no two calls are then alike."""
    for name, module in model.named_modules():
        if isinstance(module, LIF) and module.stateful:
            raise ValueError(
                f"model holds {name or 'a LIF'} with stateful=True, expected layers that start "
                "from rest at every call"
            )
