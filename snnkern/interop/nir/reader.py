"""Networks from NIR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from snnkern._checks import check_number
from snnkern.interop.nir.graph import Graph, Scale
from snnkern.interop.nir.nodes import NORM, Array, Convention, check_reset, kept_in, kept_norm, pair
from snnkern.nn import LIF, NormLIF, TimeDistributed
from snnkern.surrogate import Surrogate, Triangle

NEURONS = (nir.LIF, nir.IF, nir.CubaLIF)
ROUNDING = 1e-6  # relative, of what was float32 once


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
    check_reset(reset)
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
    if kept := kept_norm(node):
        return _with_norm(kept, nn.BatchNorm2d)
    if isinstance(node, nir.Conv2d):
        outputs, inputs, *kernel = node.weight.shape
        padding = node.padding
        layer = nn.Conv2d(
            inputs * int(node.groups),
            outputs,
            pair(kernel),
            pair(node.stride),
            padding if isinstance(padding, str) else pair(padding),
            pair(node.dilation),
            int(node.groups),
        )
        return filled(layer, node.bias)
    if isinstance(node, nir.AvgPool2d):
        return nn.AvgPool2d(pair(node.kernel_size), pair(node.stride), pair(node.padding))
    if isinstance(node, nir.SumPool2d):
        sizes = (pair(node.kernel_size), pair(node.stride), pair(node.padding))
        return nn.AvgPool2d(*sizes, divisor_override=1)
    if isinstance(node, nir.Flatten):
        start, end = int(node.start_dim), int(node.end_dim)
        return nn.Flatten(start + 1 if start >= 0 else start, end + 1 if end >= 0 else end)
    raise ValueError(f"{name} is a {type(node).__name__}, which has no counterpart here")


def _norms_of_neurons(
    graph: nir.NIRGraph, before: dict[str, list[str]]
) -> dict[str, dict[str, Any]]:
    """What we kept of each norm that neurons had for themselves, by the name of its node."""
    norms: dict[str, dict[str, Any]] = {}
    for name, node in graph.nodes.items():
        kept = kept_norm(node)
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
    ours = kept_in(node)
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


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
