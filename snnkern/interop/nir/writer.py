"""Networks to NIR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snnkern._checks import check_number
from snnkern.interop.nir.graph import Graph, Scale, expanded
from snnkern.interop.nir.nodes import (
    HAS_V_RESET,
    NORM,
    Array,
    Convention,
    check_reset,
    folded,
    pair,
    with_metadata,
)
from snnkern.nn import (
    LIF,
    Direct,
    MeanReadout,
    NormLIF,
    Residual,
    SumReadout,
    TimeDistributed,
)


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
    check_reset(reset)
    writer = _Writer(dt, reset)
    with torch.no_grad():
        writer.write(model, sample)
    return nir.NIRGraph(writer.nodes, writer.edges)


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
            node = nir.Scale(_array(expanded(name, inner.scale, x.shape[1:]), x.shape[1:]))
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
    weight, bias = folded(kept)
    node = nir.Conv2d(
        input_shape=(int(x.shape[2]), int(x.shape[3])),
        weight=weight,
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
        groups=1,
        bias=bias,
    )
    return with_metadata(node, kept)


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
        return with_metadata(nir.IF(r=gain / dt, v_threshold=threshold, **more), ours)
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
        return with_metadata(nir.LIF(tau=tau, **same), ours)
    kept = _array(acting["synapse_decay"], shape)
    kept = 1 - kept if layer.synapse == "jump" else kept
    if (kept == 1).any():
        raise ValueError(f"{name} has a synapse that keeps all its current, expected a decay")
    weight = (kept if layer.synapse == "decayed" else 1) / (1 - kept)
    return with_metadata(
        nir.CubaLIF(tau_mem=tau, tau_syn=dt / (1 - kept), w_in=weight, **same), ours
    )


def _layer_to_nir(name: str, layer: nn.Module, shape: torch.Size) -> Any:
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise ValueError(f"{name} has padding_mode {layer.padding_mode!r}, expected 'zeros'")
        bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias
        return nir.Conv2d(
            input_shape=(int(shape[1]), int(shape[2])),
            weight=_numpy(layer.weight),
            stride=pair(layer.stride),
            padding=layer.padding if isinstance(layer.padding, str) else pair(layer.padding),
            dilation=pair(layer.dilation),
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
        return nir.AvgPool2d(*(np.array(pair(size)) for size in sizes))
    if isinstance(layer, nn.Flatten) and layer.start_dim == 1 and layer.end_dim == -1:
        return nir.Flatten({"input": np.array(shape)}, 0, -1)
    raise ValueError(f"{name} is a {type(layer).__name__}, which NIR cannot express")


def _array(value: Tensor | float, shape: torch.Size) -> Array:
    """One value for every neuron of a sample; a parameter of channels is along its first axis."""
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    if tensor.dim() == 1 and len(shape) > 1:
        tensor = tensor.reshape(-1, *(1,) * (len(shape) - 1))
    array: Array = tensor.expand(shape).numpy().copy()
    return array


def _numpy(value: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = value.detach().cpu().numpy().copy()
    return array
