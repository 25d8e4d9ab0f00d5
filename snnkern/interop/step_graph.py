"""The graph of a model that steps through time: which nodes are the same one at different steps."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from snnkern.interop.accelerate import library_of

IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


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
                count = 1 + len(states_of(module))
        else:
            self.iterated.add(obj.node.name)
        return iter([operator.getitem(obj, t) for t in range(count)])


def states_of(module: nn.Module) -> dict[str, Tensor]:
    """The states of a neuron, by the names of its buffers."""
    return {name: getattr(module, name) for name in module._non_persistent_buffers_set}


def is_hidden(neuron: Any) -> bool:
    """Whether it gives spikes alone."""
    return getattr(neuron, "init_hidden", True) and not getattr(neuron, "output", False)


class StepGraph:
    """The nodes of a model's graph as items, in an order in which each finds what it needs.

    Attributes:
        neurons: the model's neurons by name.
        has_loop: whether the loop over time stands in the forward of the model.
        iterated: names of what must have as many elements as there are steps.
        items: what each node belongs to.
        order: the items.
        output: the node of what the model gives.
    """

    def __init__(self, model: nn.Module, timesteps: int) -> None:
        self._model = model
        self._timesteps = timesteps
        self.neurons = {
            name: module for name, module in model.named_modules() if library_of(module)
        }
        self._graph, reset = self._trace()
        calls = defaultdict(list)
        for node in self._graph.nodes:
            if node.op == "call_module" and node.target in self.neurons:
                calls[node.target].append(node)
        counts = {name: len(nodes) for name, nodes in calls.items()}
        self.has_loop = set(counts.values()) != {1}
        if self.has_loop and set(counts.values()) != {timesteps}:
            raise ValueError(
                f"model {type(model).__name__} calls its neurons {counts} times, expected each "
                f"{timesteps} times (timesteps), or once"
            )
        self.items = self._group()
        self._link()
        self.order = self._schedule()
        for item in self.order:
            item.fresh = self.is_neuron(item) and item.node.target in reset

    def _trace(self) -> tuple[fx.Graph, set[str]]:
        """The graph, and the neurons that the forward of the model resets."""
        before = {name: states_of(module) for name, module in self.neurons.items()}
        marks = {}
        for name, states in before.items():
            marks[name] = {state: torch.zeros(0) for state in states}
            for state, mark in marks[name].items():
                setattr(self.neurons[name], state, mark)
        try:
            tracer = _Tracer(self._timesteps)
            graph = tracer.trace(self._model)
            self.iterated = tracer.iterated
        except Exception as error:
            raise ValueError(
                f"model {type(self._model).__name__} cannot be traced: {error}"
            ) from error
        finally:
            now = {name: states_of(module) for name, module in self.neurons.items()}
            for name, states in before.items():
                for state, value in states.items():
                    setattr(self.neurons[name], state, value)
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
            elif node.op == "call_module" and node.target in self.neurons:
                key = ("neuron", node.target)
            else:
                arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: _Key(keys[n]))
                key = (node.op, node.target, repr(arguments))
            keys[node] = numbers.setdefault(key, len(numbers))
            members[keys[node]].append(node)
        items: dict[fx.Node, Item] = {}
        for group in members.values():
            alike = group[0].op == "get_attr"
            in_time = len(group) == self._timesteps and group[0].op not in (
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
                    dim, t = step_index(user.args[1])
                    if takers[dim].setdefault(t, user) is not user:
                        user.replace_all_uses_with(takers[dim][t])
            for dim, at in takers.items():
                if dim >= 0 and set(at) == set(range(self._timesteps)):
                    found |= dict.fromkeys(at.values(), (source.name, dim))
        return found

    def is_neuron(self, item: Item) -> bool:
        """Whether a neuron of the model is called."""
        return item.node.op == "call_module" and item.node.target in self.neurons

    # Who needs what, and whether a step reads another one.

    def _link(self) -> None:
        for item in _unique(self.items.values()):
            for t, node in enumerate(item.nodes):
                read = node.all_input_nodes
                if self.is_neuron(item):
                    read = self._read_by_neuron(item, t)
                for other in read:
                    needed = self.items[other]
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
            if self.is_neuron(item):
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
        if is_hidden(self.neurons[item.node.target]):
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
        for item in _unique(self.items.values()):
            if self.is_neuron(item) or item.node.op == "placeholder":
                visit(item)
        for node in output.all_input_nodes:
            visit(self.items[node])
        self.output = output
        return order


class _Key(NamedTuple):
    """Stands for a node in the key of another."""

    number: int


def _unique(items: Any) -> list[Item]:
    return list({id(item): item for item in items}.values())


def step_index(index: Any) -> tuple[int, int]:
    """The dimension and the step of ``x[t]`` or ``x[:, t]``; -1 for other indices."""
    parts = index if isinstance(index, tuple) else (index,)
    whole = slice(None)
    *before, t = parts if parts else (None,)
    if isinstance(t, int) and all(isinstance(p, slice) and p == whole for p in before):
        return len(before), t
    return -1, 0
