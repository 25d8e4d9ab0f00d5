"""Networks to and from NIR, the graph format that simulators and neuromorphic hardware share.

NIR describes neurons in continuous time and says nothing of time steps; whether a spike sets the
membrane or is subtracted from it depends on who reads (NIR 1.0.4 documents the one, 1.0.8 has a
``v_reset`` for the other). So both are arguments here.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snnkern._checks import check_number
from snnkern.nn import LIF, Direct, MeanReadout, SumReadout, TimeDistributed
from snnkern.surrogate import Surrogate, Triangle

Convention = Literal["hard", "soft"]
Array = NDArray[np.float64]
# NIR 1.0.4, which other libraries insist on, has none.
HAS_V_RESET = any(field.name == "v_reset" for field in fields(nir.LIF))
OURS = "snnkern"  # the key of what we add to a node, for whoever reads it with the same dt


def to_nir(model: nn.Sequential, sample: Tensor, *, dt: float, reset: Convention) -> nir.NIRGraph:
    """The graph of a feed-forward network: convolutions, linear layers, pooling and LIF neurons.

    A step of ours is Euler's for ``tau dv/dt = (v_leak - v) + r I`` with step ``dt``: ``tau`` is
    ``dt / rate``, ``dt * tau`` or ``dt / (1 - leak)``, and ``r`` makes up for the gain; a neuron
    without a leak is ``nir.IF``, one with a synapse ``nir.CubaLIF``: a step of the current, then
    one of the membrane. Surrogates have no place in NIR. Our own charge, synapse and comparison
    stand in the metadata, so that ``from_nir`` gives the same spikes; nobody needs them.

    Args:
        model: ``nn.Sequential`` of ``TimeDistributed`` layers and neurons, nested as one likes. A
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
    layers = _layers(model)
    nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(sample.shape[1:])})}
    x = sample
    with torch.no_grad():
        for number, (name, layer) in enumerate(layers):
            if isinstance(layer, Direct) and number == 0:
                continue
            if isinstance(layer, MeanReadout | SumReadout) and number == len(layers) - 1:
                continue
            if isinstance(layer, LIF):
                node = _neuron_to_nir(name, layer, x.shape[1:], dt, reset)
            else:
                node = _layer_to_nir(name, layer, x.shape[1:])
                x = layer(x)
            nodes[f"{number}_{name}".replace(".", "_")] = node
    nodes["output"] = nir.Output({"output": np.array(x.shape[1:])})
    names = list(nodes)
    return nir.NIRGraph(nodes, list(pairwise(names)))


def from_nir(
    graph: nir.NIRGraph | str | Path,
    *,
    dt: float,
    reset: Convention,
    strict: bool = True,
    surrogate: Surrogate = Triangle(),  # noqa: B008  frozen
) -> nn.Sequential:
    """A network of ours, ``[T, N, ...] -> [T, N, ...]``, from a chain of NIR's nodes.

    Args:
        graph: the graph, or the file that holds it.
        dt: seconds per step. ``LIF`` becomes Euler's step, whose rate ``dt / tau`` is 1 at most;
            where ``r`` makes up for the rate, ``v = leak * v + x``.
        reset: what a spike does, see ``to_nir``; the file does not tell.
        strict: fire at ``v > v_threshold``, as NIR has it. What ``to_nir`` wrote with this ``dt``
            has a charge and a comparison of its own.
        surrogate: of all neurons.

    Raises:
        ValueError: a node or an edge that has no counterpart here, and why.
    """
    check_number("dt", dt, low=0, open_low=True)
    _check_reset(reset)
    if not isinstance(graph, nir.NIRGraph):
        graph = nir.read(graph)
    model = nn.Sequential()
    for name in _chain(graph):
        node = graph.nodes[name]
        layer: nn.Module
        if isinstance(node, nir.Input | nir.Output):
            continue
        if isinstance(node, nir.LIF | nir.IF | nir.CubaLIF):
            layer = _neuron_from_nir(name, node, dt, reset, strict, surrogate)
        else:
            layer = TimeDistributed(_layer_from_nir(name, node))
        model.add_module(name.replace(".", "_"), layer)
    return model


def _check_reset(reset: str) -> None:
    if reset not in ("hard", "soft"):
        raise ValueError(f"reset is {reset!r}, expected 'hard' or 'soft'")


def _layers(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The chain of layers, whose names are those in the model."""
    found = []
    for name, child in model.named_children():
        inner = child.module if type(child) is TimeDistributed else child
        if type(inner) is nn.Sequential:
            found += _layers(inner, f"{prefix}{name}.")
        elif not isinstance(inner, nn.Identity):
            found.append((prefix + name, inner))
    return found


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
    if not (array == first).all():
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


def _neuron_from_nir(
    name: str, node: Any, dt: float, reset: Convention, strict: bool, surrogate: Surrogate
) -> LIF:
    ours = dict((node.metadata or {}).get(OURS, {}))
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
    if isinstance(node, nir.IF):
        gain = float(ours["gain"]) if known else _uniform(name, "r", node.r) * dt
        return LIF(1.0, gain=gain, **options)
    rest = _uniform(name, "v_leak", node.v_leak)
    through = 1.0  # the gain of the synapse
    if isinstance(node, nir.CubaLIF):
        tau = _time_constant(name, "tau_mem", node.tau_mem, dt)
        share = dt / _time_constant(name, "tau_syn", node.tau_syn, dt)
        through = _near_one(_uniform(name, "w_in dt / tau_syn", share * node.w_in))
        synapse = _text(ours["synapse"]) if known else "charged"
        options["synapse"] = synapse
        options["synapse_decay"] = _parameter(share if synapse == "jump" else 1 - share)
    else:
        tau = _time_constant(name, "tau", node.tau, dt)
    charge = _text(ours["charge"]) if known else "euler_box"  # as Norse has it
    r = np.asarray(node.r, dtype=np.float64)
    drive = dt / tau * r
    makes_up = np.allclose(drive, drive.flat[0], 1e-6, 0) and not (r == 1).all()
    if not known and makes_up and rest == 0:
        # r makes up for tau, as snnTorch writes it: the current as it is, and a leak.
        gain = _near_one(float(drive.flat[0]) * through)
        return LIF(_parameter(1 - dt / tau), gain=gain, **options)
    options["gain"] = float(ours["gain"]) if known else _uniform(name, "r", r) * through
    if charge == "leak":
        return LIF(_parameter(1 - dt / tau), **options)
    decay = dt / tau if charge in ("euler", "euler_box") else tau / dt
    options["rate" if charge in ("euler", "euler_box") else "tau"] = _parameter(decay)
    return LIF(charge=charge, v_rest=rest, v_init=rest or None, **options)  # type: ignore[arg-type]


def _time_constant(name: str, what: str, values: Any, dt: float) -> Array:
    tau = np.asarray(values, dtype=np.float64)
    if not (tau >= dt).all():
        raise ValueError(f"{name} has {what} {tau.min()}, expected at least dt, which is {dt}")
    return tau


def _near_one(gain: float) -> float:
    """The gain, or 1 where that is what rounding left of it."""
    return 1.0 if abs(gain - 1) < 1e-6 else gain


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _chain(graph: nir.NIRGraph) -> list[str]:
    """The names of the nodes in order, if each leads to one other."""
    after: dict[str, str] = {}
    for start, end in graph.edges:
        if start in after or end in after.values():
            raise ValueError(f"graph branches at {start} -> {end}, expected a chain of nodes")
        after[start] = end
    starts = [name for name in graph.nodes if name not in after.values()]
    if len(starts) != 1:
        raise ValueError(f"graph starts at {starts}, expected one node without a predecessor")
    order = starts
    while order[-1] in after:
        order.append(after[order[-1]])
    if len(order) != len(graph.nodes):
        raise ValueError(f"graph has nodes beside the chain {order}, expected a chain of nodes")
    return order
