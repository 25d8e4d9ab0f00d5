"""Models that step through time, run layer by layer over all their steps."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from snnkern._checks import check_int
from snnkern.interop.accelerate import accelerate
from snnkern.interop.fused import Fused
from snnkern.interop.step_graph import Item, StepGraph, is_hidden, states_of, step_index

# What treats every sample on its own: time steps can be merged into the batch.
SAMPLEWISE_MODULES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Identity,
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.GroupNorm,
    nn.LayerNorm,
)
# As long as they do not train.
SAMPLEWISE_IN_EVAL = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
)
SAMPLEWISE_FUNCTIONS = (
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.max_pool1d,
    F.avg_pool1d,
)
# What treats every value on its own: time is one more dimension.
ELEMENTWISE = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.neg,
    torch.add,
    torch.sub,
    torch.mul,
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    F.relu,
    F.gelu,
    F.silu,
)


class Held(NamedTuple):
    """A value that is the same at every step."""

    value: Any


class _Neuron(NamedTuple):
    """What a neuron gave at all steps: spikes, and states where somebody looks at them."""

    spikes: Any
    states: tuple[Any, ...]


def layerwise(model: nn.Module, timesteps: int) -> Layerwise:
    """Runs a feed-forward snnTorch-style model layer by layer over all its time steps.

    Each layer sees all steps at once: convolutions and the like one batch of ``T * N``, neurons
    one fused op. Two kinds of models are understood:

    - those of one step, whose neurons keep their states (``init_hidden=True``): the result takes
      ``[T, N, ...]`` and gives what the ``T`` calls would, stacked. What is constant in time
      (``x.expand(T, ...)``) is computed once up to the first neuron.
    - those with the loop over time in their ``forward``: the result takes and gives what the model
      does. The number of steps must not depend on the input, except by iterating over it.

    Neurons are accelerated (see ``accelerate``) unless they are already. States in the modules
    before and after the call are those of the steps, but for ``reset_mechanism="zero"``, where the
    state that remains is the one after the reset. A neuron whose membrane is looked at at every
    step, or whose ``reset_delay`` is False, runs step by step, as do layers that may look across
    samples, such as batch norm in training. Python code in ``forward`` runs once, here: branches
    on ``self.training`` stay as they are now. The keys of the result's state_dict begin with
    ``model.``; those of ``model`` are what they were.

    Args:
        model: the model; its modules are shared, not copied.
        timesteps: T, at least 2.

    Returns:
        A module that holds ``model`` and runs it.

    Raises:
        ValueError: ``model`` holds no neuron to accelerate; or its graph does not allow it: a step
            reads another one other than through a neuron's own state, or the code cannot be traced.
    """
    check_int("timesteps", timesteps, 2)
    if not any(isinstance(module, Fused) for module in model.modules()):
        accelerate(model)
    return Layerwise(model, timesteps)


class Layerwise(nn.Module):
    """What ``layerwise`` gives."""

    def __init__(self, model: nn.Module, timesteps: int) -> None:
        super().__init__()
        self.model = model
        self.timesteps = timesteps
        self._graph = StepGraph(model, timesteps)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies by tracing anew."""
        return Layerwise, (self.model, self.timesteps), {"training": self.training}

    def forward(self, *inputs: Tensor) -> Any:
        """The model's own outputs, or those of its steps, stacked."""
        given = iter(inputs)
        values: dict[int, Any] = {}
        last = {id(needed): item for item in self._graph.order for needed in item.needs}
        kept = {id(self._graph.items[node]) for node in self._graph.output.all_input_nodes}
        for item in self._graph.order:
            if item.node.op == "placeholder":
                values[id(item)] = self._input(item, given)
            else:
                values[id(item)] = self._run(item, values)
            for needed in item.needs:
                if last[id(needed)] is item and id(needed) not in kept:
                    values.pop(id(needed), None)
        return fx.node.map_arg(self._graph.output.args[0], lambda node: self._result(node, values))

    def _input(self, item: Item, given: Iterator[Tensor]) -> Any:
        name = item.node.name
        try:
            x = next(given)
        except StopIteration:
            if not item.node.args:
                raise TypeError(f"missing input {name}") from None
            return Held(item.node.args[0])
        if self._graph.has_loop:
            return x
        if x.dim() < 2 or len(x) != self.timesteps:
            raise ValueError(
                f"{name} has shape {list(x.shape)}, expected [{self.timesteps}, N, ...]: the model "
                "is one of single steps"
            )
        return Held(x[0]) if x.stride(0) == 0 else x

    def _result(self, node: fx.Node, values: dict[int, Any]) -> Any:
        item = self._graph.items[node]
        value = values[id(item)]
        if not item.in_time:
            return value
        if self._graph.has_loop:
            return self._at(value, item.nodes.index(node))
        if isinstance(value, _Neuron):
            return self._sequence(value.spikes), *(self._sequence(s) for s in value.states)
        return self._sequence(value)

    def _sequence(self, value: Any) -> Any:
        """``[T, N, ...]``."""
        if isinstance(value, Held):
            if not isinstance(value.value, Tensor):
                return value.value
            return value.value.expand(self.timesteps, *value.value.shape)
        return torch.stack(value) if isinstance(value, list) else value

    def _at(self, value: Any, t: int) -> Any:
        if isinstance(value, Held):
            return value.value
        return value[t]

    def _steps(self, value: Any) -> list[Any]:
        """What it is at each step."""
        if isinstance(value, Held):
            return [value.value] * self.timesteps
        return value if isinstance(value, list) else list(value.unbind(0))

    def _run(self, item: Item, values: dict[int, Any]) -> Any:
        node = item.node
        if node.op == "get_attr":
            value: Any = self.model
            for name in node.target.split("."):
                value = getattr(value, name)
            return value
        if self._graph.is_neuron(item):
            return self._run_neuron(item, values)
        if not item.in_time:
            return self._run_once(item, values)
        if node.target is operator.getitem:
            source = self._graph.items[node.args[0]]
            value = values[id(source)]
            if isinstance(value, _Neuron):
                number = node.args[1]
                return value.spikes if number == 0 else value.states[number - 1]
            if not source.in_time:  # the steps of an input
                return self._input_steps(source, value, step_index(node.args[1])[0])

        def look_up(other: fx.Node) -> Any:
            needed = self._graph.items[other]
            return values[id(needed)] if needed.in_time else Held(values[id(needed)])

        return self._over_time(item, look_up)

    def _input_steps(self, source: Item, value: Any, dim: int) -> Any:
        given = value.shape[dim] if isinstance(value, Tensor) else len(value)
        if given < self.timesteps or (
            source.node.name in self._graph.iterated and given > self.timesteps
        ):
            raise ValueError(
                f"{source.node.name} has {given} time steps, expected {self.timesteps} (timesteps)"
            )
        if isinstance(value, Tensor):
            return value.movedim(dim, 0)[: self.timesteps]
        return list(value)[: self.timesteps]

    def _run_once(self, item: Item, values: dict[int, Any]) -> Any:
        """A node outside time, which may gather what the steps gave."""
        node = item.node
        if node.target is torch.stack and (whole := self._whole(node.args[0])) is not None:
            dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            value = values[id(whole)]
            return self._sequence(value).movedim(0, dim)

        def look_up(other: fx.Node) -> Any:
            needed = self._graph.items[other]
            value = values[id(needed)]
            return self._at(value, needed.nodes.index(other)) if needed.in_time else value

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), look_up)
        return self._function(node)(*args, **kwargs)

    def _whole(self, nodes: Any) -> Item | None:
        """The item whose steps these are, all of them in order."""
        if not isinstance(nodes, list | tuple) or not isinstance(nodes[0], fx.Node):
            return None
        item = self._graph.items[nodes[0]]
        return item if item.in_time and list(nodes) == item.nodes else None

    def _function(self, node: Any) -> Callable[..., Any]:
        if node.op == "call_module":
            return self.model.get_submodule(node.target)
        if node.op == "call_method":
            name = node.target
            return lambda owner, *args, **kwargs: getattr(owner, name)(*args, **kwargs)
        function: Callable[..., Any] = node.target
        return function

    def _over_time(self, item: Item, look_up: Callable[[fx.Node], Any]) -> Any:
        """A layer without state, at all steps: merged into the batch, or one after the other."""
        node = item.node
        read = [look_up(other) for other in node.all_input_nodes]
        function = self._function(node)
        if _is_samplewise(node, function) and len(read) == 1:
            value = read[0]
            if isinstance(value, Held):
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: value.value)
                return Held(function(*args, **kwargs))
            x = self._sequence(value)
            merged = x.flatten(0, 1)
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: merged)
            return function(*args, **kwargs).unflatten(0, x.shape[:2])
        if _is_elementwise(node, function):
            tensors = [value for value in read if isinstance(value, Tensor)]
            held = [value.value for value in read if isinstance(value, Held)]
            if len(tensors) + len(held) == len(read) and _aligned(tensors, held):
                plain = {
                    other: value.value if isinstance(value, Held) else value
                    for other, value in zip(node.all_input_nodes, read, strict=True)
                }
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), plain.__getitem__)
                result = function(*args, **kwargs)
                return result if tensors else Held(result)
        steps = [self._steps(value) for value in read]
        results = []
        for t in range(self.timesteps):
            at_t = item.nodes[t] if self._graph.has_loop else node
            inputs = {n: s[t] for n, s in zip(at_t.all_input_nodes, steps, strict=True)}
            args, kwargs = fx.node.map_arg((at_t.args, at_t.kwargs), inputs.__getitem__)
            results.append(self._function(at_t)(*args, **kwargs))
        return results

    def _run_neuron(self, item: Item, values: dict[int, Any]) -> Any:
        node = item.node
        module: Any = self._graph.neurons[node.target]
        source = self._graph.items[node.args[0]]
        value = values[id(source)]
        x = self._sequence(value if source.in_time else Held(value))
        if item.fresh:
            for name in states_of(module):
                setattr(module, name, x.new_zeros(0))

        def start(state: Any) -> Any:
            if item.fresh or not isinstance(state, fx.Node):
                return x.new_zeros(0) if item.fresh else state
            return values[id(self._graph.items[state])]

        states = [start(state) for state in (*node.args[1:], *node.kwargs.values())]
        in_one = getattr(module, "in_one", None)
        if in_one and not item.shows_states and (spikes := in_one(x, *states)) is not None:
            return spikes if is_hidden(module) else _Neuron(spikes, ())
        outputs = []
        for x_t in x.unbind(0):
            positional = len(node.args) - 1
            named = dict(zip(node.kwargs, states[positional:], strict=True))
            outputs.append(module(x_t, *states[:positional], **named))
            if states:
                _, *states = outputs[-1]
        if is_hidden(module):
            return outputs
        columns = [list(column) for column in zip(*outputs, strict=True)]
        return _Neuron(columns[0], tuple(columns[1:]))


def _is_samplewise(node: fx.Node, function: Any) -> bool:
    if node.op == "call_module":
        if isinstance(function, nn.Flatten):
            return function.start_dim >= 1
        samplewise = isinstance(function, SAMPLEWISE_MODULES)
        return samplewise or (isinstance(function, SAMPLEWISE_IN_EVAL) and not function.training)
    if node.target in ("flatten", torch.flatten):
        start = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)
        return isinstance(start, int) and start >= 1
    return any(function is f for f in SAMPLEWISE_FUNCTIONS)


def _is_elementwise(node: fx.Node, function: Any) -> bool:
    return node.op == "call_function" and any(function is f for f in ELEMENTWISE)


def _aligned(tensors: list[Tensor], held: list[Any]) -> bool:
    """Whether time as one more dimension in front leaves broadcasting as it is at a step."""
    if not tensors:
        return True
    dims = {t.dim() for t in tensors}
    return len(dims) == 1 and all(
        not isinstance(v, Tensor) or v.dim() < next(iter(dims)) for v in held
    )
