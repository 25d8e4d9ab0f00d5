"""A library's own model beside the accelerated one, call by call."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from python_tests.helpers import lacks, need
from snnkern.interop import Report, accelerate

Run = Callable[[nn.Module, Tensor], Any]
States = Callable[[nn.Module], dict[str, Any]]
RTOL = 1e-5


def twins(model: nn.Module, **options: Any) -> tuple[Any, Any, Report]:
    """The model, an accelerated copy of it, and the report."""
    fused = copy.deepcopy(model)
    return model, fused, accelerate(fused, **options)


def lift(layer: Any, by: float | Tensor) -> None:
    """For the neurons behind the layer to fire."""
    with torch.no_grad():
        layer.bias += by


def leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def assert_close(actual: Tensor | None, expected: Tensor | None, what: str) -> None:
    """Gradients, relative to the largest of the tensor.

    That of a single value is a sum of many terms of order one, which may cancel.
    """
    if actual is None or expected is None:
        assert actual is expected, f"{what}: one has a gradient and the other has none"
        return
    error = (actual - expected).abs().max().item()
    scale = max(expected.abs().max().item(), 1.0 if expected.numel() == 1 else 0.0)
    assert error <= RTOL * scale, f"{what} is off by {error}"


def assert_equal(actual: Any, expected: Any, what: str) -> None:
    ours, theirs = leaves(actual), leaves(expected)
    assert len(ours) == len(theirs), what
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype, what
        assert torch.equal(mine, other), what


def assert_same_calls(
    own: nn.Module,
    fused: nn.Module,
    inputs: Sequence[Tensor],
    run: Run,
    states: States,
    between: Callable[[nn.Module], None] = lambda model: None,
    learn: bool = True,
) -> None:
    """Outputs and states bit for bit, gradients of input and parameters, at every call.

    ``between`` is what the library asks for between two of them.
    """
    fired = 0.0
    for number, x in enumerate(inputs):
        outcomes = []
        for model in (own, fused):
            model.zero_grad()
            leaf = x.clone().requires_grad_(learn)
            outputs = run(model, leaf)
            if learn:
                generator = torch.Generator().manual_seed(number)
                loss = torch.zeros((), dtype=x.dtype)
                for out in leaves(outputs):
                    if out.requires_grad:
                        weights = torch.randn(out.shape, generator=generator, dtype=out.dtype)
                        loss = loss + (out * weights).sum()
                loss.backward()
            grads = {"x": leaf.grad} | {n: p.grad for n, p in model.named_parameters()}
            outcomes.append((outputs, states(model), grads))
            between(model)
        (theirs, their_states, their_grads), (ours, our_states, our_grads) = outcomes
        assert_equal(ours, theirs, f"outputs of call {number}")
        assert our_states.keys() == their_states.keys()
        for name in their_states:
            assert_equal(our_states[name], their_states[name], f"{name} after call {number}")
        assert our_grads.keys() == their_grads.keys()
        for name in their_grads:
            assert_close(our_grads[name], their_grads[name], f"gradient of {name}, call {number}")
        fired = max(fired, leaves(theirs)[0].mean().item())
    assert fired > 0


def assert_same_state_dict(own: nn.Module, fused: nn.Module) -> None:
    """The same keys in the same order; each loads what the other saved."""
    theirs, ours = own.state_dict(), fused.state_dict()
    assert list(theirs) == list(ours)
    own.load_state_dict(ours)
    fused.load_state_dict(theirs)


@cache
def braincog_nodes() -> Any:
    """BrainCog's nodes without the rest of it, which asks for many other packages."""
    spec = find_spec("braincog")
    if spec is None or not spec.submodule_search_locations:
        lacks("braincog", "make test installs requirements-peers.txt")
    root = Path(next(iter(spec.submodule_search_locations))).parent
    for name in ("braincog", "braincog.base", "braincog.base.strategy"):
        package = ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules.setdefault(name, package)
    need("einops")
    return import_module("braincog.base.node")
