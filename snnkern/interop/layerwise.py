"""Models that step through time, run layer by layer over all their steps."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from snnkern._checks import check_int
from snnkern.interop.accelerate import accelerate, library_of
from snnkern.interop.fused import Fused

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

IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class Held(NamedTuple):
    """A value that is the same at every step."""

    value: Any


class _Neuron(NamedTuple):
    """What a neuron gave at all steps: spikes, and states where somebody looks at them."""

    spikes: Any
    states: tuple[Any, ...]


@dataclass(eq=False)
class Item:
    """Nodes of the graph that are one: a node outside time, or what it is at each step."""

    nodes: list[Any]  # of type fx.Node, whose arguments are of any type
    in_time: bool
    needs: list[Item] = field(default_factory=list)
    fresh: bool = False  # a neuron whose state the model itself resets
    shows_states: bool = False  # a neuron whose states somebody looks at

    @property
    def node(self) -> Any:
        """The node, or that of the first step."""
        return self.nodes[0]


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


class _Tracer(fx.Tracer):
    """Neurons are leaves; what is iterated over has one element per step."""

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.iterated: set[str] = (
            set()
        )  # names of what must have as many elements as there are steps

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Neurons too."""
        return library_of(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Over the time steps of an input, or over what a neuron gives."""
        count = self.timesteps
        if obj.node.op == "call_module":
            module = self.root.get_submodule(str(obj.node.target))
            if library_of(module):
                count = 1 + len(_states_of(module))
        else:
            self.iterated.add(obj.node.name)
        return iter([operator.getitem(obj, t) for t in range(count)])


def _states_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: getattr(module, name) for name in module._non_persistent_buffers_set}


class Layerwise(nn.Module):
    """What ``layerwise`` gives."""

    def __init__(self, model: nn.Module, timesteps: int) -> None:
        super().__init__()
        self.model = model
        self.timesteps = timesteps
        self._neurons = {
            name: module for name, module in model.named_modules() if library_of(module)
        }
        self._graph, reset = self._trace()
        calls = defaultdict(list)
        for node in self._graph.nodes:
            if node.op == "call_module" and node.target in self._neurons:
                calls[node.target].append(node)
        counts = {name: len(nodes) for name, nodes in calls.items()}
        self.has_loop = set(counts.values()) != {1}
        if self.has_loop and set(counts.values()) != {timesteps}:
            raise ValueError(
                f"model {type(model).__name__} calls its neurons {counts} times, expected each "
                f"{timesteps} times (timesteps), or once"
            )
        self._items = self._group()
        self._link()
        self._order = self._schedule()
        for item in self._order:
            item.fresh = self._is_neuron(item) and item.node.target in reset

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies by tracing anew."""
        return Layerwise, (self.model, self.timesteps), {"training": self.training}

    def _trace(self) -> tuple[fx.Graph, set[str]]:
        """The graph, and the neurons that the forward of the model resets."""
        before = {name: _states_of(module) for name, module in self._neurons.items()}
        marks = {}
        for name, states in before.items():
            marks[name] = {state: torch.zeros(0) for state in states}
            for state, mark in marks[name].items():
                setattr(self._neurons[name], state, mark)
        try:
            tracer = _Tracer(self.timesteps)
            graph = tracer.trace(self.model)
            self._iterated = tracer.iterated
        except Exception as error:
            raise ValueError(
                f"model {type(self.model).__name__} cannot be traced: {error}"
            ) from error
        finally:
            now = {name: _states_of(module) for name, module in self._neurons.items()}
            for name, states in before.items():
                for state, value in states.items():
                    setattr(self._neurons[name], state, value)
        for node in graph.nodes:
            node.target = (
                IN_PLACE.get(node.target, node.target) if callable(node.target) else node.target
            )
        reset = {
            name
            for name, states in marks.items()
            if any(now[name][state] is not mark for state, mark in states.items())
        }
        return graph, reset

    # Which nodes are the same one at different steps.

    def _group(self) -> dict[fx.Node, Item]:
        nodes: list[Any] = [node for node in self._graph.nodes if node.op != "output"]
        if not self.has_loop:
            return {node: Item([node], node.op != "get_attr") for node in nodes}
        numbers: dict[Any, int] = {}
        keys: dict[fx.Node, int] = {}
        members = defaultdict(list)
        steps = self._steps_of_inputs()
        for node in nodes:
            key: Any
            if node in steps:
                key = ("step", *steps[node])
            elif node.op == "call_module" and node.target in self._neurons:
                key = ("neuron", node.target)
            else:
                arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: _Key(keys[n]))
                key = (node.op, node.target, repr(arguments))
            keys[node] = numbers.setdefault(key, len(numbers))
            members[keys[node]].append(node)
        items: dict[fx.Node, Item] = {}
        for group in members.values():
            alike = group[0].op == "get_attr"
            in_time = len(group) == self.timesteps and group[0].op not in (
                "get_attr",
                "placeholder",
            )
            for same in [group] if alike or in_time else [[node] for node in group]:
                items |= dict.fromkeys(same, Item(same, in_time))
        return items

    def _steps_of_inputs(self) -> dict[fx.Node, tuple[str, int]]:
        """Nodes that take one step of an input, if each is taken: its name, and the dimension."""
        found: dict[fx.Node, tuple[str, int]] = {}
        for source in self._graph.nodes:
            if source.op != "placeholder" and source.target not in ("unbind", torch.unbind):
                continue
            takers: Any = defaultdict(dict)
            for user in list(source.users):
                if user.op == "call_function" and user.target is operator.getitem:
                    dim, t = _index(user.args[1])
                    if takers[dim].setdefault(t, user) is not user:
                        user.replace_all_uses_with(takers[dim][t])
            for dim, at in takers.items():
                if dim >= 0 and set(at) == set(range(self.timesteps)):
                    found |= dict.fromkeys(at.values(), (source.name, dim))
        return found

    def _is_neuron(self, item: Item) -> bool:
        return item.node.op == "call_module" and item.node.target in self._neurons

    # Who needs what, and whether a step reads another one.

    def _link(self) -> None:
        for item in _unique(self._items.values()):
            for t, node in enumerate(item.nodes):
                read = node.all_input_nodes
                if self._is_neuron(item):
                    read = self._read_by_neuron(item, t)
                for other in read:
                    needed = self._items[other]
                    if t > 0 and item.in_time and needed not in item.needs:
                        raise ValueError(
                            f"step {t} of {node.name} reads {other.name}, which is nothing that "
                            "its step 0 reads, expected the same at every step"
                        )
                    if (
                        item.in_time
                        and needed.in_time
                        and self.has_loop
                        and needed.nodes[t] is not other
                    ):
                        raise ValueError(
                            f"step {t} of {node.name} reads {other.name} of another step, expected "
                            "no connections between steps but a neuron's own state"
                        )
                    if needed not in item.needs:
                        item.needs.append(needed)
            if self._is_neuron(item):
                item.shows_states = self._shows_states(item)

    def _read_by_neuron(self, item: Item, t: int) -> list[fx.Node]:
        """The input of the neuron, and its state at the first step."""
        node = item.nodes[t]
        states = [*node.args[1:], *node.kwargs.values()]
        if not node.args or (states and not self.has_loop):
            raise ValueError(
                f"{node.target} is called with states, which are not its own, expected a loop over "
                "time in the forward of the model, or init_hidden=True"
            )
        for state in states:
            if t == 0 or not isinstance(state, fx.Node):
                continue
            previous = item.nodes[t - 1]
            if state.target is not operator.getitem or state.args[0] is not previous:
                raise ValueError(
                    f"step {t} of {node.target} starts from {state.name}, expected the state that "
                    "its own step before left"
                )
        read = [node.args[0], *(states if t == 0 else [])]
        return [n for n in read if isinstance(n, fx.Node)]

    def _shows_states(self, item: Item) -> bool:
        if self._is_hidden(self._neurons[item.node.target]):
            return False
        for node in item.nodes:
            for user in node.users:
                if user.target is not operator.getitem:
                    return True
                if user.args[1] != 0 and any(u not in item.nodes for u in user.users):
                    return True
        return False

    def _schedule(self) -> list[Item]:
        """Items in an order in which each finds what it needs."""
        order: list[Item] = []
        state: dict[int, bool] = {}  # False while it is being visited

        def visit(item: Item) -> None:
            if id(item) in state:
                if not state[id(item)]:
                    raise ValueError(
                        f"{item.node.name} depends on itself at an earlier step, expected no "
                        "connections between steps but a neuron's own state"
                    )
                return
            state[id(item)] = False
            for needed in item.needs:
                visit(needed)
            state[id(item)] = True
            order.append(item)

        (output,) = (node for node in self._graph.nodes if node.op == "output")
        for item in _unique(self._items.values()):
            if self._is_neuron(item) or item.node.op == "placeholder":
                visit(item)
        for node in output.all_input_nodes:
            visit(self._items[node])
        self._output = output
        return order

    # Running it.

    def forward(self, *inputs: Tensor) -> Any:
        """The model's own outputs, or those of its steps, stacked."""
        given = iter(inputs)
        values: dict[int, Any] = {}
        last = {id(needed): item for item in self._order for needed in item.needs}
        kept = {id(self._items[node]) for node in self._output.all_input_nodes}
        for item in self._order:
            if item.node.op == "placeholder":
                values[id(item)] = self._input(item, given)
            else:
                values[id(item)] = self._run(item, values)
            for needed in item.needs:
                if last[id(needed)] is item and id(needed) not in kept:
                    values.pop(id(needed), None)
        return fx.node.map_arg(self._output.args[0], lambda node: self._result(node, values))

    def _input(self, item: Item, given: Iterator[Tensor]) -> Any:
        name = item.node.name
        try:
            x = next(given)
        except StopIteration:
            if not item.node.args:
                raise TypeError(f"missing input {name}") from None
            return Held(item.node.args[0])
        if self.has_loop:
            return x
        if x.dim() < 2 or len(x) != self.timesteps:
            raise ValueError(
                f"{name} has shape {list(x.shape)}, expected [{self.timesteps}, N, ...]: the model "
                "is one of single steps"
            )
        return Held(x[0]) if x.stride(0) == 0 else x

    def _result(self, node: fx.Node, values: dict[int, Any]) -> Any:
        item = self._items[node]
        value = values[id(item)]
        if not item.in_time:
            return value
        if self.has_loop:
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
        if self._is_neuron(item):
            return self._run_neuron(item, values)
        if not item.in_time:
            return self._run_once(item, values)
        if node.target is operator.getitem:
            source = self._items[node.args[0]]
            value = values[id(source)]
            if isinstance(value, _Neuron):
                number = node.args[1]
                return value.spikes if number == 0 else value.states[number - 1]
            if not source.in_time:  # the steps of an input
                return self._input_steps(source, value, _index(node.args[1])[0])

        def look_up(other: fx.Node) -> Any:
            needed = self._items[other]
            return values[id(needed)] if needed.in_time else Held(values[id(needed)])

        return self._over_time(item, look_up)

    def _input_steps(self, source: Item, value: Any, dim: int) -> Any:
        given = value.shape[dim] if isinstance(value, Tensor) else len(value)
        if given < self.timesteps or (
            source.node.name in self._iterated and given > self.timesteps
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
            needed = self._items[other]
            value = values[id(needed)]
            return self._at(value, needed.nodes.index(other)) if needed.in_time else value

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), look_up)
        return self._function(node)(*args, **kwargs)

    def _whole(self, nodes: Any) -> Item | None:
        """The item whose steps these are, all of them in order."""
        if not isinstance(nodes, list | tuple) or not isinstance(nodes[0], fx.Node):
            return None
        item = self._items[nodes[0]]
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
            at_t = item.nodes[t] if self.has_loop else node
            inputs = {n: s[t] for n, s in zip(at_t.all_input_nodes, steps, strict=True)}
            args, kwargs = fx.node.map_arg((at_t.args, at_t.kwargs), inputs.__getitem__)
            results.append(self._function(at_t)(*args, **kwargs))
        return results

    def _run_neuron(self, item: Item, values: dict[int, Any]) -> Any:
        node = item.node
        module: Any = self._neurons[node.target]
        source = self._items[node.args[0]]
        value = values[id(source)]
        x = self._sequence(value if source.in_time else Held(value))
        if item.fresh:
            for name in _states_of(module):
                setattr(module, name, x.new_zeros(0))

        def start(state: Any) -> Any:
            if item.fresh or not isinstance(state, fx.Node):
                return x.new_zeros(0) if item.fresh else state
            return values[id(self._items[state])]

        states = [start(state) for state in (*node.args[1:], *node.kwargs.values())]
        in_one = getattr(module, "in_one", None)
        if in_one and not item.shows_states and (spikes := in_one(x, *states)) is not None:
            return spikes if self._is_hidden(module) else _Neuron(spikes, ())
        outputs = []
        for x_t in x.unbind(0):
            positional = len(node.args) - 1
            named = dict(zip(node.kwargs, states[positional:], strict=True))
            outputs.append(module(x_t, *states[:positional], **named))
            if states:
                _, *states = outputs[-1]
        if self._is_hidden(module):
            return outputs
        columns = [list(column) for column in zip(*outputs, strict=True)]
        return _Neuron(columns[0], tuple(columns[1:]))

    @staticmethod
    def _is_hidden(module: Any) -> bool:
        """Whether it gives spikes alone."""
        return getattr(module, "init_hidden", True) and not getattr(module, "output", False)


class _Key(NamedTuple):
    """Stands for a node in the key of another."""

    number: int


def _unique(items: Any) -> list[Item]:
    return list({id(item): item for item in items}.values())


def _index(index: Any) -> tuple[int, int]:
    """The dimension and the step of ``x[t]`` or ``x[:, t]``; -1 for other indices."""
    parts = index if isinstance(index, tuple) else (index,)
    whole = slice(None)
    *before, t = parts if parts else (None,)
    if isinstance(t, int) and all(isinstance(p, slice) and p == whole for p in before):
        return len(before), t
    return -1, 0


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
