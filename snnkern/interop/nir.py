"""Networks to and from NIR, the graph format that simulators and neuromorphic hardware share.

NIR describes neurons in continuous time and says nothing of time steps; whether a spike sets the
membrane or is subtracted from it depends on who reads (NIR 1.0.4 documents the one, 1.0.8 has a
``v_reset`` for the other). So both are arguments here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snnkern._checks import check_number
from snnkern.nn import (
    LIF,
    Direct,
    MeanReadout,
    NormLIF,
    Residual,
    SumReadout,
    TimeDistributed,
)
from snnkern.surrogate import Surrogate, Triangle

Convention = Literal["hard", "soft"]
Array = NDArray[np.float64]
# NIR 1.0.4, which other libraries insist on, has none.
HAS_V_RESET = any(field.name == "v_reset" for field in fields(nir.LIF))
OURS = "snnkern"  # the key of what we add to a node, for whoever reads it with the same dt


NEURONS = (nir.LIF, nir.IF, nir.CubaLIF)
ROUNDING = 1e-6  # relative, of what was float32 once
NORM = ("running_mean", "running_var", "weight", "bias")


def to_nir(model: nn.Module, sample: Tensor, *, dt: float, reset: Convention) -> nir.NIRGraph:
    """The graph of a feed-forward network: convolutions, linear layers, pooling and LIF neurons.

    A step of ours is Euler's for ``tau dv/dt = (v_leak - v) + r I`` with step ``dt``: ``tau`` is
    ``dt / rate``, ``dt * tau`` or ``dt / (1 - leak)``, and ``r`` makes up for the gain; a neuron
    without a leak is ``nir.IF``, one with a synapse ``nir.CubaLIF``: a step of the current, then
    one of the membrane. Surrogates have no place in NIR. So that ``from_nir`` gives the same
    spikes, metadata holds ``dt``, charge, gain, synapse and comparison of neurons, and of a batch
    norm its parts and whether neurons had it for themselves. Nobody needs them, and where a node
    was changed afterwards its own values hold.

    Branches (``Residual``) are edges into one node, which adds up what they bring; their weights
    are ``nir.Scale``. Batch norm of maps, as in evaluation, is a 1x1 ``nir.Conv2d`` with a diagonal
    weight. Dropout is left out.

    Args:
        model: ``nn.Sequential`` of ``TimeDistributed`` layers, neurons and ``Residual``, nested as
            one likes, such as ``snnkern.models.resnet20().layers``; or what ``from_nir`` gave. A
            ``Direct`` in front and a readout at the end stay outside of the graph.
        sample: an input of the first layer, ``[N, ...]``, for the shapes.
        dt: seconds per step.
        reset: what a spike does: ``"hard"`` sets the membrane to ``v_reset``, ``"soft"`` subtracts
            the threshold. The neurons have to agree.

    Raises:
        ValueError: something that NIR cannot express, and why.
    """
    check_number("dt", dt, low=0, open_low=True)
    _check_reset(reset)
    writer = _Writer(dt, reset)
    with torch.no_grad():
        writer.write(model, sample)
    return nir.NIRGraph(writer.nodes, writer.edges)


def from_nir(
    graph: nir.NIRGraph | str | Path,
    *,
    dt: float,
    reset: Convention,
    strict: bool = True,
    surrogate: Surrogate = Triangle(),  # noqa: B008  frozen
) -> nn.Sequential | Graph:
    """A network of ours, ``[T, N, ...] -> [T, N, ...]``, from NIR's nodes: a chain, or a ``Graph``.

    Args:
        graph: the graph, or the file that holds it.
        dt: seconds per step. ``LIF`` becomes Euler's step, whose rate ``dt / tau`` is 1 at most;
            where ``r`` makes up for the rate, ``v = leak * v + x``.
        reset: what a spike does, see ``to_nir``; the file does not tell.
        strict: fire at ``v > v_threshold``, as NIR has it. What ``to_nir`` wrote with this ``dt``
            has a charge and a comparison of its own.
        surrogate: of all neurons.

    Raises:
        ValueError: a node or an edge that has no counterpart here (a loop among them), and why.
    """
    check_number("dt", dt, low=0, open_low=True)
    _check_reset(reset)
    if not isinstance(graph, nir.NIRGraph):
        graph = nir.read(graph)
    before = _predecessors(graph)
    norms = _norms_of_neurons(graph, before)
    model = Graph()
    for name, sources in before.items():
        node = graph.nodes[name]
        layer: nn.Module
        if isinstance(node, nir.Input | nir.Output) or name in norms:
            layer = nn.Identity()
        elif isinstance(node, NEURONS):
            options = _neuron_options(name, node, dt, reset, strict, surrogate)
            norm = norms.get(sources[0]) if sources else None
            layer = LIF(**options) if norm is None else _with_norm(norm, NormLIF, **options)
        elif isinstance(node, nir.Scale):
            layer = Scale(torch.as_tensor(np.asarray(node.scale), dtype=torch.float32))
        else:
            layer = TimeDistributed(_layer_from_nir(name, node))
        model.append(name, layer, sources)
    return model.as_chain() or model


class Scale(nn.Module):
    """``[T, N, ...]`` times a learnt number, or one for every value of a sample."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        uniform = bool((scale == scale.flatten()[0]).all())
        self.scale = nn.Parameter((scale.flatten()[0] if uniform else scale).clone())

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        return _expanded("scale", self.scale, x.shape[2:]) * x


def _expanded(name: str, scale: Tensor, shape: torch.Size) -> Tensor:
    """A factor for every value of a sample."""
    try:
        return scale.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {list(scale.shape)}, expected one that broadcasts to that of a "
            f"sample, {list(shape)}"
        ) from None


class Graph(nn.Module):
    """Modules in an order in which each finds what it needs; what several bring is added up.

    ``sources`` has the names of NIR, in the order of ``layers``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.sources: dict[str, tuple[str, ...]] = {}

    def append(self, name: str, layer: nn.Module, sources: Sequence[str]) -> None:
        """Another module, which takes the sum of what ``sources`` give, or the input.

        Raises:
            ValueError: ``name`` is there already, or one of ``sources`` is not.
        """
        if name in self.sources:
            raise ValueError(f"name is {name!r}, which is there already")
        if unknown := [source for source in sources if source not in self.sources]:
            raise ValueError(f"{name} takes {unknown}, expected some of {list(self.sources)}")
        self.layers.append(layer)
        self.sources[name] = tuple(sources)

    def as_chain(self) -> nn.Sequential | None:
        """The modules but identities, if each hands on to the next alone."""
        names = list(self.sources)
        if [self.sources[name] for name in names[1:]] != [(name,) for name in names[:-1]]:
            return None
        return nn.Sequential(*(m for m in self.layers if not isinstance(m, nn.Identity)))

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, ...] -> [T, N, ...]``: what the last module gives."""
        values: dict[str, Tensor] = {}
        last = {source: name for name, sources in self.sources.items() for source in sources}
        for layer, (name, sources) in zip(self.layers, self.sources.items(), strict=True):
            total = x if not sources else values[sources[0]]
            for source in sources[1:]:
                total = total + values[source]
            values[name] = layer(total)
            for source in sources:
                if last[source] == name:
                    values.pop(source, None)
        return values[name]


def _check_reset(reset: str) -> None:
    if reset not in ("hard", "soft"):
        raise ValueError(f"reset is {reset!r}, expected 'hard' or 'soft'")


class _Writer:
    """The nodes and edges of a network, as its modules are gone through."""

    def __init__(self, dt: float, reset: Convention) -> None:
        self.dt, self.reset = dt, reset
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []

    def write(self, model: nn.Module, sample: Tensor) -> None:
        """All of it. A value is a sample, and the names of the nodes whose sum it is."""
        self.nodes["input"] = nir.Input({"input": np.array(sample.shape[1:])})
        layers = [("", model)]
        if type(model) is nn.Sequential:
            layers = list(zip(model._modules, model, strict=True))
            if layers and isinstance(layers[0][1], Direct):
                del layers[0]
            if layers and isinstance(layers[-1][1], MeanReadout | SumReadout):
                del layers[-1]
        value: tuple[Tensor, tuple[str, ...]] = sample, ("input",)
        for name, layer in layers:
            value = self.module(name, layer, *value)
        x, sources = value
        self.node("output", nir.Output({"output": np.array(x.shape[1:])}), sources)

    def node(self, name: str, node: Any, sources: Sequence[str]) -> tuple[str]:
        """Another node."""
        for source in sources:
            if (source, name) in self.edges:
                raise ValueError(f"{name} takes {source} twice, which NIR's edges cannot express")
            self.edges.append((source, name))
        self.nodes[name] = node
        return (name,)

    def module(
        self, name: str, layer: nn.Module, x: Tensor, sources: tuple[str, ...]
    ) -> tuple[Tensor, tuple[str, ...]]:
        """What a module makes of a value."""
        inner = layer.module if type(layer) is TimeDistributed else layer
        if type(inner) is nn.Sequential:
            for child, module in zip(inner._modules, inner, strict=True):  # also what stands twice
                x, sources = self.module(f"{name}.{child}" if name else child, module, x, sources)
            return x, sources
        if isinstance(inner, nn.Identity | nn.Dropout):
            return x, sources
        if isinstance(inner, Residual):
            return self.residual(name, inner, x, sources)
        if isinstance(inner, Graph):
            return self.graph(inner, x, sources)
        unique = f"{len(self.nodes) - 1}_{name}".replace(".", "_")
        if isinstance(inner, NormLIF | nn.BatchNorm2d):
            sources = self.node(f"{unique}_norm", _norm_to_nir(name, inner, x), sources)
        if isinstance(inner, LIF):
            node = _neuron_to_nir(name, inner, x.shape[1:], self.dt, self.reset)
        elif isinstance(inner, nn.BatchNorm2d):
            return x, sources
        elif isinstance(inner, Scale):
            node = nir.Scale(_array(_expanded(name, inner.scale, x.shape[1:]), x.shape[1:]))
        else:
            node = _layer_to_nir(name, inner, x.shape[1:])
            x = inner(x)
        return x, self.node(unique, node, sources)

    def residual(
        self, name: str, layer: Residual, x: Tensor, sources: tuple[str, ...]
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Both branches, whose sum the next node takes."""
        weights = layer.branch_weights
        total: tuple[str, ...] = ()
        y = x
        for number, kind in enumerate(("shortcut", "branch")):
            branch = layer.get_submodule(kind)
            y, ends = self.module(f"{name}.{kind}", branch, x, sources)
            # A sum within a sum would be added up in another order.
            if weights is not None or (total and len(ends) > 1):
                weight = 1.0 if weights is None else weights[number]
                scaled = f"{len(self.nodes) - 1}_{name}_{kind}_weight".replace(".", "_")
                ends = self.node(scaled, nir.Scale(_array(weight, y.shape[1:])), ends)
            total = (*total, *ends)
        return y, total

    def graph(
        self, graph: Graph, x: Tensor, sources: tuple[str, ...]
    ) -> tuple[Tensor, tuple[str, ...]]:
        """One that ``from_nir`` gave."""
        values: dict[str, tuple[Tensor, tuple[str, ...]]] = {}
        for layer, (name, before) in zip(graph.layers, graph.sources.items(), strict=True):
            read = [values[source] for source in before] or [(x, sources)]
            ends = tuple(end for _, part in read for end in part)
            values[name] = self.module(name, layer, read[0][0], ends)
        return values[name]


def _norm_to_nir(name: str, norm: NormLIF | nn.BatchNorm2d, x: Tensor) -> Any:
    """A weight and a bias per channel."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"{name} has no running statistics, which NIR has no other word for")
    if x.dim() != 4:
        raise ValueError(f"{name} sees {list(x.shape[1:])}, expected maps of channels")
    parts = {part: getattr(norm, part) for part in NORM}
    kept: dict[str, Any] = {"eps": norm.eps, "fused": int(isinstance(norm, NormLIF))}
    kept |= {part: _numpy(value) for part, value in parts.items() if value is not None}
    weight, bias = _folded(kept)
    node = nir.Conv2d(
        input_shape=(int(x.shape[2]), int(x.shape[3])),
        weight=weight,
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
        groups=1,
        bias=bias,
    )
    return _with_metadata(node, kept)


def _folded(kept: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight and bias of the 1x1 convolution that a norm is, of what we keep of it."""
    mean, var = (np.asarray(kept[part], dtype=np.float64) for part in NORM[:2])
    scale = kept.get("weight", 1) / np.sqrt(var + kept["eps"])
    shift = kept.get("bias", 0) - mean * scale
    # nir's shapes know no groups
    return np.diag(scale).astype(np.float32)[:, :, None, None], shift.astype(np.float32)


def _array(value: Tensor | float, shape: torch.Size) -> Array:
    """One value for every neuron of a sample; a parameter of channels is along its first axis."""
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    if tensor.dim() == 1 and len(shape) > 1:
        tensor = tensor.reshape(-1, *(1,) * (len(shape) - 1))
    array: Array = tensor.expand(shape).numpy().copy()
    return array


def _neuron_to_nir(name: str, layer: LIF, shape: torch.Size, dt: float, reset: Convention) -> Any:
    if layer.delayed_spike:
        raise ValueError(f"{name} has delayed_spike, which NIR does not know")
    if layer.reset != reset:
        raise ValueError(f"{name} has reset {layer.reset!r} and reset is {reset!r}")
    if layer.v_init not in (None, 0) and layer.v_init != layer.v_rest:
        raise ValueError(f"{name} has v_init {layer.v_init}, which NIR does not know")
    if reset == "hard" and layer.v_reset != 0 and not HAS_V_RESET:
        raise ValueError(f"{name} has v_reset {layer.v_reset}, which this version of nir lacks")
    acting = layer.dynamics()
    decay = _array(acting[layer.decay_name], shape)
    threshold = _array(acting["threshold"], shape)
    gain = np.full(shape, layer.gain)
    rest = np.full(shape, layer.v_rest)
    more = {"v_reset": np.full(shape, layer.v_reset)} if HAS_V_RESET else {}
    ours = {
        "dt": dt,
        "charge": layer.charge,
        "gain": layer.gain,
        "strict": int(layer.strict),
        "synapse": layer.synapse,
    }
    if layer.charge == "leak" and (decay == 1).all():
        if layer.synapse != "none":
            raise ValueError(
                f"{name} has synapse {layer.synapse!r} and no leak, which NIR has no node for"
            )
        return _with_metadata(nir.IF(r=gain / dt, v_threshold=threshold, **more), ours)
    if layer.charge == "leak":
        if (decay == 1).any():
            raise ValueError(f"{name} has neurons with and without a leak")
        tau, r = dt / (1 - decay), gain / (1 - decay)
    elif layer.charge in ("euler", "euler_box"):
        if (decay == 0).any():
            raise ValueError(f"{name} has a rate of 0, whose time constant is infinite")
        tau, r = dt / decay, gain
    else:
        tau, r = dt * decay, gain * (decay if layer.charge == "decay" else 1)
    same = {"r": r, "v_leak": rest, "v_threshold": threshold} | more
    if layer.synapse == "none":
        return _with_metadata(nir.LIF(tau=tau, **same), ours)
    kept = _array(acting["synapse_decay"], shape)
    kept = 1 - kept if layer.synapse == "jump" else kept
    if (kept == 1).any():
        raise ValueError(f"{name} has a synapse that keeps all its current, expected a decay")
    weight = (kept if layer.synapse == "decayed" else 1) / (1 - kept)
    return _with_metadata(
        nir.CubaLIF(tau_mem=tau, tau_syn=dt / (1 - kept), w_in=weight, **same), ours
    )


def _with_metadata(node: Any, ours: dict[str, Any]) -> Any:
    node.metadata = {OURS: ours}
    return node


def _kept(node: Any) -> dict[str, Any]:
    """What we added to a node."""
    return dict((getattr(node, "metadata", None) or {}).get(OURS, {}))


def _kept_norm(node: Any) -> dict[str, Any]:
    """What we added to the node of a norm, if the node still is what that gives."""
    kept = _kept(node) if isinstance(node, nir.Conv2d) else {}
    if kept and all(map(np.array_equal, (node.weight, node.bias), _folded(kept))):
        return kept
    return {}


def _pair(value: Any) -> tuple[int, int]:
    a, b = np.broadcast_to(np.asarray(value), (2,)).tolist()
    return int(a), int(b)


def _numpy(value: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = value.detach().cpu().numpy().copy()
    return array


def _layer_to_nir(name: str, layer: nn.Module, shape: torch.Size) -> Any:
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise ValueError(f"{name} has padding_mode {layer.padding_mode!r}, expected 'zeros'")
        bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias
        return nir.Conv2d(
            input_shape=(int(shape[1]), int(shape[2])),
            weight=_numpy(layer.weight),
            stride=_pair(layer.stride),
            padding=layer.padding if isinstance(layer.padding, str) else _pair(layer.padding),
            dilation=_pair(layer.dilation),
            groups=layer.groups,
            bias=_numpy(bias),
        )
    if isinstance(layer, nn.Linear):
        if layer.bias is None:
            return nir.Linear(_numpy(layer.weight))
        return nir.Affine(_numpy(layer.weight), _numpy(layer.bias))
    if isinstance(layer, nn.AvgPool2d):
        whole = not layer.ceil_mode and layer.divisor_override is None
        if not whole or (layer.padding != 0 and not layer.count_include_pad):
            raise ValueError(f"{name} is {layer}, of which NIR knows no ceil_mode and no divisor")
        sizes = (layer.kernel_size, layer.stride, layer.padding)
        return nir.AvgPool2d(*(np.array(_pair(size)) for size in sizes))
    if isinstance(layer, nn.Flatten) and layer.start_dim == 1 and layer.end_dim == -1:
        return nir.Flatten({"input": np.array(shape)}, 0, -1)
    raise ValueError(f"{name} is a {type(layer).__name__}, which NIR cannot express")


def _layer_from_nir(name: str, node: Any) -> nn.Module:
    def filled(layer: Any, bias: Any) -> nn.Module:
        with torch.no_grad():
            layer.weight.copy_(torch.as_tensor(np.asarray(node.weight)))
            if bias is not None:
                layer.bias.copy_(torch.as_tensor(np.asarray(bias)))
        result: nn.Module = layer
        return result

    if isinstance(node, nir.Affine | nir.Linear):
        bias = getattr(node, "bias", None)
        outputs, inputs = node.weight.shape
        return filled(nn.Linear(inputs, outputs, bias=bias is not None), bias)
    if kept := _kept_norm(node):
        return _with_norm(kept, nn.BatchNorm2d)
    if isinstance(node, nir.Conv2d):
        outputs, inputs, *kernel = node.weight.shape
        padding = node.padding
        layer = nn.Conv2d(
            inputs * int(node.groups),
            outputs,
            _pair(kernel),
            _pair(node.stride),
            padding if isinstance(padding, str) else _pair(padding),
            _pair(node.dilation),
            int(node.groups),
        )
        return filled(layer, node.bias)
    if isinstance(node, nir.AvgPool2d):
        return nn.AvgPool2d(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding))
    if isinstance(node, nir.SumPool2d):
        sizes = (_pair(node.kernel_size), _pair(node.stride), _pair(node.padding))
        return nn.AvgPool2d(*sizes, divisor_override=1)
    if isinstance(node, nir.Flatten):
        start, end = int(node.start_dim), int(node.end_dim)
        return nn.Flatten(start + 1 if start >= 0 else start, end + 1 if end >= 0 else end)
    raise ValueError(f"{name} is a {type(node).__name__}, which has no counterpart here")


def _uniform(name: str, what: str, values: Any) -> float:
    array = np.asarray(values, dtype=np.float64)
    first = float(array.flat[0])
    if not np.allclose(array, first, ROUNDING, 0):
        raise ValueError(
            f"{name} has {what} from {array.min()} to {array.max()}, expected one value"
        )
    return first


def _parameter(values: Any) -> float | Tensor:
    """A number where all neurons have the same, one per channel, or one per neuron."""
    array = np.asarray(values, dtype=np.float64)
    if (array == array.flat[0]).all():
        return float(array.flat[0])
    rows = array.reshape(len(array), -1)
    if (rows == rows[:, :1]).all():
        array = rows[:, 0]
    return torch.as_tensor(array, dtype=torch.float32)


def _norms_of_neurons(
    graph: nir.NIRGraph, before: dict[str, list[str]]
) -> dict[str, dict[str, Any]]:
    """What we kept of each norm that neurons had for themselves, by the name of its node."""
    norms: dict[str, dict[str, Any]] = {}
    for name, node in graph.nodes.items():
        kept = _kept_norm(node)
        takers = [taker for taker, sources in before.items() if name in sources]
        if (
            kept.get("fused")
            and all(isinstance(graph.nodes[taker], NEURONS) for taker in takers)
            and all(before[taker] == [name] for taker in takers)
        ):
            norms[name] = kept
    return norms


def _with_norm(kept: dict[str, Any], kind: Any, **options: Any) -> nn.Module:
    """A norm, or neurons with one, of what we kept."""
    values = {part: torch.as_tensor(np.asarray(kept[part])) for part in NORM if part in kept}
    affine = "weight" in kept
    channels = len(values["running_mean"])
    layer: nn.Module = kind(channels, eps=float(kept["eps"]), affine=affine, **options)
    with torch.no_grad():
        for part, value in values.items():
            getattr(layer, part).copy_(value)
    return layer.eval()


def _neuron_options(
    name: str, node: Any, dt: float, reset: Convention, strict: bool, surrogate: Surrogate
) -> dict[str, Any]:
    """Of ``LIF``."""
    ours = _kept(node)
    known = bool(ours) and float(ours["dt"]) == dt
    v_reset = getattr(node, "v_reset", None)
    options: dict[str, Any] = {
        "threshold": _parameter(node.v_threshold),
        "reset": reset,
        "v_reset": 0.0
        if v_reset is None or reset == "soft"
        else _uniform(name, "v_reset", v_reset),
        "strict": bool(ours["strict"]) if known else strict,
        "surrogate": surrogate,
    }
    own_gain = float(ours["gain"]) if known else 1.0
    if isinstance(node, nir.IF):
        gain = _near(_uniform(name, "r", node.r) * dt, own_gain)
        return options | {"leak": 1.0, "gain": gain}
    rest = _uniform(name, "v_leak", node.v_leak)
    through = 1.0  # the gain of the synapse
    if isinstance(node, nir.CubaLIF):
        tau = _time_constant(name, "tau_mem", node.tau_mem, dt)
        share = dt / _time_constant(name, "tau_syn", node.tau_syn, dt)
        synapse = _text(ours["synapse"]) if known else "charged"
        enters = share * node.w_in / (1 - share if synapse == "decayed" else 1)
        through = _near(_uniform(name, "w_in dt / tau_syn", enters), 1.0)
        options["synapse"] = synapse
        options["synapse_decay"] = _parameter(share if synapse == "jump" else 1 - share)
    else:
        tau = _time_constant(name, "tau", node.tau, dt)
    r = np.asarray(node.r, dtype=np.float64)
    drive = dt / tau * r
    charge = "euler_box" if (r == 1).all() else "leak"
    if known:
        charge = _text(ours["charge"])
    if charge == "leak" and (rest != 0 or not np.allclose(drive, drive.flat[0], ROUNDING, 0)):
        charge = "euler_box"  # as Norse has it
    # Else r makes up for tau, as snnTorch writes it: the current as it is, and a leak.
    gain = _uniform(name, "r", drive if charge in ("leak", "decay") else r) * through
    options["gain"] = _near(gain, own_gain)
    if charge == "leak":
        return options | {"leak": _parameter(1 - dt / tau)}
    decay = dt / tau if charge in ("euler", "euler_box") else tau / dt
    options["rate" if charge in ("euler", "euler_box") else "tau"] = _parameter(decay)
    return options | {"charge": charge, "v_rest": rest, "v_init": rest or None}


def _time_constant(name: str, what: str, values: Any, dt: float) -> Array:
    tau = np.asarray(values, dtype=np.float64)
    if not (tau >= dt).all():
        raise ValueError(f"{name} has {what} {tau.min()}, expected at least dt, which is {dt}")
    return tau


def _near(gain: float, own: float) -> float:
    """The gain, or what it was where rounding made it what it is."""
    return own if np.isclose(gain, own, ROUNDING, 0) else gain


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _predecessors(graph: nir.NIRGraph) -> dict[str, list[str]]:
    """The nodes that each node takes, in an order in which they are there by then."""
    before: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for start, end in graph.edges:
        if unknown := {start, end} - set(before):
            raise ValueError(f"graph has an edge with {unknown}, expected some of {list(before)}")
        before[end].append(start)
    starts = [name for name, sources in before.items() if not sources]
    taken = {source for sources in before.values() for source in sources}
    ends = [name for name in before if name not in taken]
    for what, names in (("starts", starts), ("ends", ends)):
        if len(names) != 1:
            raise ValueError(f"graph {what} at {names}, expected one node")
    order: dict[str, list[str]] = {}
    while len(order) < len(before):
        ready = [
            name
            for name, sources in before.items()
            if name not in order and all(source in order for source in sources)
        ]
        if not ready:
            left = [name for name in before if name not in order]
            raise ValueError(f"graph has a loop among {left}, expected a feed-forward network")
        order |= {name: before[name] for name in ready}
    return order
