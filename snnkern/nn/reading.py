"""What modules compute, for those who read a network instead of running it."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from snnkern.nn.norm import NormLIF
from snnkern.nn.time import MeanReadout, SumReadout, TimeDistributed

M = TypeVar("M", bound=nn.Module)


class _Silent(nn.Module):
    """All that a subclass may define and still compute what its base does."""

    note: str

    def __init__(self) -> None: ...

    def extra_repr(self) -> str: ...  # type: ignore[empty-body]


def _overrides(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the class of a module, or the module itself, says otherwise than ``kind``.

    Whatever it is: forward calls methods, and these others. What ``torch.nn.utils.parametrize``
    defines are the tensors that it makes, which every reader sees as forward does.
    """
    family = type(module).__mro__
    own = len(family) - len(kind.__mro__)
    if family[own:] != kind.__mro__:
        return True
    made = getattr(module, "parametrizations", ())
    silent = {*vars(_Silent), *made, *(("__getstate__", "__deepcopy__") if made else ())}
    shadows = any(callable(getattr(kind, name, None)) for name in vars(module))
    return shadows or not all(vars(part).keys() <= silent for part in family[:own])


def runs_as(module: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Whether ``module`` computes what its class ``kind`` says: nothing overridden, no own hooks.

    Raises:
        TypeError: hooks are registered for all modules, which may change what any of them gives.
    """
    # Not an answer: it would blame a class that is as expected.
    if everywhere := [*_global_forward_pre_hooks.values(), *_global_forward_hooks.values()]:
        raise TypeError(
            f"torch.nn.modules.module has forward hooks for all modules, {everywhere}, expected "
            "none: what they change is not known"
        )
    if not isinstance(module, kind) or _overrides(module, kind):
        return False
    return not (module._forward_hooks or module._forward_pre_hooks or module._compiled_call_impl)


def flattened(layers: list[nn.Module]) -> list[nn.Module]:
    """The layers without the containers that run them one after the other."""
    flat: list[nn.Module] = []
    for layer in layers:
        if runs_as(layer, nn.Sequential):
            flat += flattened(list(layer))
        elif runs_as(layer, TimeDistributed) and runs_as(layer.module, nn.Sequential):
            flat += flattened([TimeDistributed(part) for part in layer.module])
        else:
            flat.append(layer)
    return flat


def running_statistics(
    layer: NormLIF | nn.BatchNorm1d | nn.BatchNorm2d,
) -> tuple[Tensor, Tensor]:
    """Mean and variance that a normalised layer goes by, if those are not the batch's."""
    mean, var = layer.running_mean, layer.running_var
    if layer.training or mean is None or var is None:
        raise TypeError(
            f"model holds a {type(layer).__name__} without running statistics or in training, "
            "expected one whose output does not depend on the batch"
        )
    return mean, var


def scale_and_shift(
    layer: NormLIF | nn.BatchNorm1d | nn.BatchNorm2d,
) -> tuple[Tensor, Tensor]:
    """What a normalised layer multiplies and adds per channel, as it computes them."""
    mean, var = running_statistics(layer)
    inverse = torch.rsqrt(var + layer.eps)
    scale = inverse if layer.weight is None else layer.weight * inverse
    return scale, (0.0 if layer.bias is None else layer.bias) - mean * scale


def divided_by(readout: nn.Module, timesteps: int) -> int:
    """By what a readout divides the sum over time."""
    if runs_as(readout, SumReadout):
        return 1
    if runs_as(readout, MeanReadout):
        return timesteps
    raise TypeError(f"model ends in a {type(readout).__name__}, expected MeanReadout or SumReadout")
