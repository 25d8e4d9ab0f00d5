"""Models that carry state from call to call, as those of other libraries do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# By library: the method that puts a layer of neurons at rest.
RESETS = {"snntorch": "reset_mem", "spikingjelly": "reset"}


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
        before, chance = _tensors(model), torch.random.get_rng_state()
        logits = _logits(model, x)
        after = _tensors(model)
        changed = [name for name in after if not _same(after[name], before.get(name))]
        if changed and torch.equal(chance, torch.random.get_rng_state()):
            with torch.no_grad():
                again = _logits(model, x)
            if not torch.equal(again, logits):
                raise ValueError(
                    f"model carries state from call to call, in {', '.join(changed[:3])}: expected "
                    "one that starts from rest, such as snnkern.attacks.Stateless(model, reset)"
                )
        return logits

    return call


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
    for kind in type(model).__mro__:
        reset = getattr(model, RESETS.get(kind.__module__.partition(".")[0], ""), None)
        if callable(reset):
            found[model] = reset
    for part in model.children():
        found |= _resets(part)
    return found


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module may keep state in: buffers and attributes, of dicts their contents."""
    return {
        name: dict(value) if isinstance(value, dict) else value
        for name, value in vars(module).items()
        if name not in ("_parameters", "_modules") and not name.endswith("_hooks")
    }


def _with_copies(attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _with_copies(value)
        if isinstance(value, dict)
        else value.clone()
        if isinstance(value, Tensor)
        else value
        for name, value in attributes.items()
    }


def _set_attributes(module: nn.Module, attributes: dict[str, Any]) -> None:
    now = vars(module)
    for name in _attributes(module).keys() - attributes.keys():
        del now[name]
    for name, value in attributes.items():
        if isinstance(value, dict) and isinstance(now.get(name), dict):
            now[name].clear()
            now[name].update(value)
        else:
            now[name] = value


def _tensors(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """The tensors that a model holds besides its parameters, each with its count of changes."""
    return {
        ".".join(filter(None, (path, name))): (value, 0 if value.is_inference() else value._version)
        for path, module in model.named_modules()
        for holder in (vars(module), *filter(_is_dict, _attributes(module).values()))
        for name, value in holder.items()
        if isinstance(value, Tensor)
    }


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _same(one: tuple[Tensor, int], other: tuple[Tensor, int] | None) -> bool:
    return other is not None and one[0] is other[0] and one[1] == other[1]
