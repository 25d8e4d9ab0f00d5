"""Models that carry state from call to call, as those of other libraries do."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from snnkern.attacks.chance import global_streams

# By library: the method that puts a layer of neurons at rest.
RESETS = {"snntorch": "reset_mem", "spikingjelly": "reset"}
# What every module has, and no state is in.
NO_STATE = vars(nn.Module()).keys() - {"_buffers"}


class Stateless(nn.Module):
    """A model that carries state, every call of which starts from rest and leaves no trace.

    Attacks and ``evaluate`` make one by themselves of a model with layers of SpikingJelly or
    snnTorch.

    Args:
        model: images ``[N, ...]`` to logits ``[N, K]``.
        reset: puts the model at rest; that of its layers' libraries unless given.

    Raises:
        ValueError: no ``reset``, and no layer that is known to need one.
    """

    def __init__(
        self, model: nn.Module, reset: Callable[[nn.Module], object] | None = None
    ) -> None:
        super().__init__()
        if reset is None and not _resets(model):
            raise ValueError(
                f"reset is None and {type(model).__name__} holds no layer of SpikingJelly or "
                "snnTorch, expected a function that puts the model at rest"
            )
        self.model = model
        self.reset = reset

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...] -> [N, K]``."""
        resets = _resets(self.model)
        carrying = resets if self.reset is None else self.model.modules()
        before = [(module, _attributes(module)) for module in carrying]
        try:
            # A reset may write into the state that is there, and that is the caller's.
            for module, attributes in before:
                _set_attributes(module, _with_copies(attributes))
            if self.reset is not None:
                self.reset(self.model)
            for reset in resets.values():
                reset()
            logits: Tensor = self.model(x)
            return logits
        finally:
            for module, attributes in before:
                _set_attributes(module, attributes)


def stateless(model: nn.Module) -> nn.Module:
    """The model, as ``Stateless`` where it holds layers of a library that carry state."""
    return Stateless(model) if _resets(model) else model


def refuse_state(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model; the first call raises if it gave no logits, or if a second would give others.

    Raises:
        ValueError: from that call.
    """
    looked = False

    def call(x: Tensor) -> Tensor:
        nonlocal looked
        if looked:
            return _logits(model, x)
        looked = True
        streams = global_streams(x.device)
        before, chance = _tensors(model), [stream.get_state() for stream in streams]
        logits = _logits(model, x)
        after, chance_after = _tensors(model), [stream.get_state() for stream in streams]
        known = {(id(tensor), version) for tensor, version in before.values()}
        left = [name for name, (t, version) in after.items() if (id(t), version) not in known]
        if left:  # which need not mean anything: it may only be kept to be looked at
            _set_states(streams, chance)
            with torch.no_grad():
                again = _logits(model, x)
            _set_states(streams, chance_after)
            if not torch.equal(again, logits):
                raise ValueError(
                    f"model carries state from call to call, in {', '.join(left[:3])}: expected "
                    "one that starts from rest, such as snnkern.attacks.Stateless(model, reset)"
                )
        return logits

    return call


def _set_states(streams: list[torch.Generator], states: list[Tensor]) -> None:
    for stream, state in zip(streams, states, strict=True):
        stream.set_state(state)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    logits: object = model(x)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        shown = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model gives {shown}, expected logits [{len(x)}, K], one row per image")
    return logits


def _resets(model: nn.Module) -> dict[nn.Module, Callable[[], object]]:
    """How the layers that carry state are put at rest, but for those that ``Stateless`` sees to."""
    if isinstance(model, Stateless):
        return {}
    found: dict[nn.Module, Callable[[], object]] = {}
    kind: Any = type(model)
    name = _reset_name(kind)
    if name is not None:
        found[model] = getattr(model, name)
    for part in model.children():
        found |= _resets(part)
    return found


@cache
def _reset_name(kind: type[Any]) -> str | None:
    names = (RESETS.get(base.__module__.partition(".")[0]) for base in kind.__mro__)
    return next((name for name in names if name and hasattr(kind, name)), None)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module may keep state in: buffers and attributes, of containers their contents."""
    return {
        name: value.copy() if isinstance(value, dict | list) else value
        for name, value in vars(module).items()
        if name not in NO_STATE
    }


def _with_copies(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list):
        return [_with_copies(part) for part in value]
    if isinstance(value, dict):
        return {name: _with_copies(part) for name, part in value.items()}
    return value


def _set_attributes(module: nn.Module, attributes: dict[str, Any]) -> None:
    now = vars(module)
    for name in _attributes(module).keys() - attributes.keys():
        del now[name]
    for name, value in attributes.items():
        held = now.get(name)
        if isinstance(value, dict) and isinstance(held, dict):
            held.clear()
            held.update(value)
        elif isinstance(value, list) and isinstance(held, list):
            held[:] = value
        else:
            now[name] = value


def _tensors(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """The tensors that a model holds besides its parameters, each with its count of changes."""
    found: dict[str, tuple[Tensor, int]] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in NO_STATE:
                _add_tensors(found, f"{path}.{name}" if path else name, value)
    return found


def _add_tensors(found: dict[str, tuple[Tensor, int]], name: str, value: object) -> None:
    if isinstance(value, Tensor):
        found[name] = value, 0 if value.is_inference() else value._version
    elif isinstance(value, dict):
        for key, part in value.items():
            _add_tensors(found, f"{name}[{key!r}]", part)
    elif isinstance(value, list | tuple):
        for key, part in enumerate(value):
            _add_tensors(found, f"{name}[{key}]", part)
