"""Networks through NIR and back, with either generation of it; and what it cannot express."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from python_tests.helpers import need
from python_tests.twins import lift
from snnkern.models import resnet12, resnet20, wrn16_4
from snnkern.nn import IF, LIF, Direct, MeanReadout, NormLIF, Residual, TimeDistributed
from snnkern.surrogate import ATan

nir = need("nir")
ours = need("snnkern.interop.nir")
DT = 1e-3
T = 4
# What the libraries call.
DEPRECATED = pytest.mark.filterwarnings("ignore:nirtorch:DeprecationWarning")


def network(*neurons: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = neurons
    conv, linear = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.Linear(4 * 9, 5)
    with torch.no_grad():
        conv.weight *= 3
    lift(linear, torch.linspace(-0.5, 1.0, 5))
    return nn.Sequential(
        TimeDistributed(conv),
        first,
        TimeDistributed(nn.Sequential(nn.AvgPool2d(2), nn.Flatten())),
        nn.Sequential(TimeDistributed(linear), second),
    )


def images() -> Tensor:
    return torch.rand(12, 3, 2, 6, 6, generator=torch.Generator().manual_seed(1)) * 4


PER_CHANNEL = torch.linspace(0.5, 0.95, 4)
PER_NEURON = torch.linspace(0.2, 0.9, 4 * 6 * 6).reshape(4, 6, 6)
NEURONS: dict[str, tuple[Any, Any]] = {
    "leak": (lambda r: LIF(0.9, 0.7, reset=r), lambda r: IF(0.8, reset=r, strict=True)),
    "per channel": (
        lambda r: LIF(PER_CHANNEL, PER_CHANNEL + 0.2, reset=r),
        lambda r: LIF(0.5, 0.4, gain=0.7, reset=r),
    ),
    "per neuron": (
        lambda r: LIF(rate=PER_NEURON, charge="euler", reset=r, strict=True, gain=1.5),
        lambda r: LIF(tau=3.0, charge="decay", reset=r, threshold=0.5),
    ),
    "synapses": (
        lambda r: LIF(0.9, 0.7, reset=r, synapse="charged", synapse_decay=0.5, gain=0.6),
        lambda r: LIF(tau=2.0, charge="decay", reset=r, synapse="decayed", synapse_decay=0.7),
    ),
    "synapse of Norse": (
        lambda r: LIF(rate=0.3, charge="euler", reset=r, synapse="jump", synapse_decay=0.2),
        lambda r: LIF(PER_CHANNEL[:1].item(), 0.4, reset=r, synapse="jump", synapse_decay=0.5),
    ),
    "at rest elsewhere": (
        lambda r: LIF(rate=0.3, charge="euler_box", v_rest=0.2, v_init=0.2, reset=r),
        lambda r: LIF(tau=1.7, charge="decay_input", threshold=0.3, reset=r),
    ),
}


@pytest.mark.parametrize("makers", NEURONS.values(), ids=NEURONS)
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_a_round_trip_gives_the_same_spikes(makers: Any, reset: str, tmp_path: Path) -> None:
    model = network(*(make(reset) for make in makers))
    x = images()
    graph = ours.to_nir(model, x[0], dt=DT, reset=reset)
    nir.write(tmp_path / "net.nir", graph)
    twin = ours.from_nir(tmp_path / "net.nir", dt=DT, reset=reset, surrogate=ATan())
    spikes = model(x)
    assert 0.02 < spikes.mean() < 0.98
    assert torch.equal(twin(x), spikes)


def test_a_module_may_stand_twice() -> None:
    torch.manual_seed(0)
    first, second, neurons = nn.Linear(4, 6), nn.Linear(6, 6), LIF(0.9, 0.3)
    inner = nn.Sequential(TimeDistributed(second), neurons, neurons)
    model = nn.Sequential(TimeDistributed(first), neurons, inner, inner, neurons)
    x = torch.rand(20, 3, 4, generator=torch.Generator().manual_seed(0)) * 3
    spikes = model(x)
    assert 0.02 < spikes.mean() < 0.98
    graph = ours.to_nir(model, x[0], dt=DT, reset="hard")
    assert sum(isinstance(node, nir.LIF) for node in graph.nodes.values()) == 6
    assert torch.equal(ours.from_nir(graph, dt=DT, reset="hard")(x), spikes)


def residual_network(name: str) -> nn.Module:
    """The layers of a network of the papers, after training that says something."""
    torch.manual_seed(0)
    make = {"resnet12": resnet12, "resnet20": resnet20, "wrn16_4": wrn16_4}[name]
    layers = make(timesteps=T, input_shape=(3, 16, 16)).layers.eval()
    with torch.no_grad():
        for module in layers.modules():
            if isinstance(module, NormLIF | nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.5)  # type: ignore[union-attr]
                module.bias.uniform_(0, 0.5)  # type: ignore[union-attr]
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.1, 0.5)  # type: ignore[union-attr]
            elif isinstance(module, Residual) and module.branch_weights is not None:
                module.branch_weights.copy_(torch.tensor([0.3, 0.8]))
            elif isinstance(module, nn.Conv2d):
                module.weight.normal_(0, (3 / module.weight[0].numel()) ** 0.5)
    return layers


@pytest.mark.parametrize("name", ["resnet12", "resnet20", "wrn16_4"])
def test_residual_networks_come_back(name: str, tmp_path: Path) -> None:
    """And go out again, from what came back."""
    model = residual_network(name)
    x = torch.rand(T, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    reset = "soft" if name == "resnet12" else "hard"
    graph = ours.to_nir(model, x[0], dt=DT, reset=reset)
    nir.write(tmp_path / "net.nir", graph)
    twin = ours.from_nir(tmp_path / "net.nir", dt=DT, reset=reset)
    again = ours.from_nir(ours.to_nir(twin, x[0], dt=DT, reset=reset), dt=DT, reset=reset)
    fired: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _, __, spikes: fired.append(spikes.mean()))
    with torch.no_grad():
        logits = model(x)
        assert min(fired) > 0.01
        assert max(fired) < 0.99
        assert torch.equal(twin(x), logits)
        assert torch.equal(again(x), logits)


def test_without_our_metadata_norms_are_convolutions() -> None:
    model = nn.Sequential(TimeDistributed(nn.BatchNorm2d(3)), NormLIF(3, leak=0.9)).double().eval()
    with torch.no_grad():
        model[1].running_mean.normal_()  # type: ignore[operator]
        model[1].weight.uniform_(0.5, 2)  # type: ignore[operator]
    x = torch.randn(6, 2, 3, 4, 4).double() * 2
    graph = ours.to_nir(model, x[0], dt=DT, reset="hard")
    for node in graph.nodes.values():
        node.metadata = {}
    twin = ours.from_nir(graph, dt=DT, reset="hard", strict=False)
    assert [type(layer) for layer in twin] == [TimeDistributed, TimeDistributed, LIF]
    spikes = model(x)
    assert 0.02 < spikes.mean() < 0.98
    assert (twin.double()(x) != spikes).double().mean() < 1e-3  # weights are kept as float32


@pytest.mark.parametrize("makers", NEURONS.values(), ids=NEURONS)
@pytest.mark.parametrize("field", ["r", "w_in"])
def test_changed_neurons_are_read_as_they_are(makers: Any, field: str) -> None:
    """By somebody who leaves our metadata as it is, such as a quantiser."""
    model: Any = network(*(make("hard") for make in makers)).double()[:2]
    x = images().double()
    before = model(x)
    graph = ours.to_nir(model, x[0], dt=DT, reset="hard")
    nodes = [node for node in graph.nodes.values() if hasattr(node, field)]
    for node in nodes:
        setattr(node, field, getattr(node, field) * 0.5)
    twin = ours.from_nir(graph, dt=DT, reset="hard").double()
    if nodes:
        model[1].gain *= 0.5
        assert not torch.equal(model(x), before)
    assert torch.equal(twin(x), model(x))


def test_a_changed_leak_or_rest_is_read_as_it_is() -> None:
    x = images().flatten(2)[..., :6]
    whole = np.ones(6)
    graph = ours.to_nir(nn.Sequential(LIF(0.5, strict=True)), x[0], dt=DT, reset="hard")
    (node,) = (node for node in graph.nodes.values() if isinstance(node, nir.LIF))
    node.tau, node.r = 4 * DT * whole, 4 * whole
    (neuron,) = ours.from_nir(graph, dt=DT, reset="hard")
    assert torch.equal(neuron(x), LIF(0.75, strict=True)(x))
    node.v_leak = 0.4 * whole
    (neuron,) = ours.from_nir(graph, dt=DT, reset="hard")
    rest: dict[str, Any] = {"charge": "euler_box", "v_rest": 0.4, "v_init": 0.4, "gain": 4.0}
    assert torch.equal(neuron(x), LIF(rate=0.25, strict=True, **rest)(x))


def test_changed_norms_are_read_as_they_are() -> None:
    model = nn.Sequential(TimeDistributed(nn.BatchNorm2d(3)), NormLIF(3, leak=0.9)).eval()
    x = torch.randn(6, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2
    for changed in ("weight", "bias"):
        graph = ours.to_nir(model, x[0], dt=DT, reset="hard")
        convolutions = [node for node in graph.nodes.values() if isinstance(node, nir.Conv2d)]
        assert len(convolutions) == 2
        for node in convolutions:
            setattr(node, changed, getattr(node, changed) * 1.5 + 0.25 * np.float32(1))
        twin = ours.from_nir(graph, dt=DT, reset="hard")
        y = x
        for node in convolutions:
            weight, bias = (torch.from_numpy(value) for value in (node.weight, node.bias))
            y = nn.functional.conv2d(y.flatten(0, 1), weight, bias).unflatten(0, (6, 2))
        spikes = LIF(0.9)(y)
        assert not torch.equal(spikes, model(x))
        assert torch.equal(twin(x), spikes)


def test_names_of_any_kind() -> None:
    """A dot, what a module has already, and two that are told apart by a dot alone."""
    names = ("a.b", "a_b", "keys", "type", "forward", "0")
    factors = [torch.tensor(2.0 + n) for n in range(len(names))]
    nodes: dict[str, Any] = {"in": nir.Input({"input": np.array([4])})}
    nodes |= {
        name: nir.Scale(np.full(4, factor)) for name, factor in zip(names, factors, strict=True)
    }
    nodes |= {"out": nir.Output({"output": np.array([4])})}
    x = torch.rand(5, 3, 4)
    order = ["in", *names, "out"]
    chain = ours.from_nir(nir.NIRGraph(nodes, list(pairwise(order))), dt=DT, reset="hard")
    assert isinstance(chain, nn.Sequential)
    torch.testing.assert_close(chain(x), x * torch.stack(factors).prod())
    edges = [("in", name) for name in names] + [(name, "out") for name in names]
    graph = ours.from_nir(nir.NIRGraph(nodes, edges), dt=DT, reset="hard")
    assert list(graph.sources) == order
    torch.testing.assert_close(graph(x), x * torch.stack(factors).sum())


def test_a_graph_takes_what_it_has() -> None:
    graph = ours.Graph()
    graph.append("a", nn.Identity(), ())
    with pytest.raises(ValueError, match=r"b takes \['c'\], expected some of \['a'\]"):
        graph.append("b", nn.Identity(), ("a", "c"))
    with pytest.raises(ValueError, match="name is 'a', which is there already"):
        graph.append("a", nn.Identity(), ())


def test_scales_are_written_as_they_broadcast() -> None:
    """Along the last axes; ``[3, 3, 3]`` does not tell which is which."""
    x = torch.rand(2, 4, 3, 3, 3)
    for shape in ((3,), (3, 1), (3, 1, 1), (3, 3, 3), ()):
        model = nn.Sequential(ours.Scale(torch.rand(shape)), LIF(0.9, 0.3))
        graph = ours.to_nir(model, x[0], dt=DT, reset="hard")
        assert torch.equal(ours.from_nir(graph, dt=DT, reset="hard")(x), model(x))
    scale = ours.Scale(torch.rand(4, 3, 3))
    with pytest.raises(ValueError, match=r"scale has shape \[4, 3, 3\], .* sample, \[4, 1, 1\]"):
        scale(torch.rand(2, 4, 4, 1, 1))
    with pytest.raises(ValueError, match=r"scaled has shape \[4, 3, 3\]"):
        ours.to_nir(nn.Sequential(OrderedDict(scaled=scale)), x[0], dt=DT, reset="hard")


def test_edges_into_one_node_add_up() -> None:
    """A graph of somebody else: branches of branches, and one that goes past several layers."""
    w, scale = np.random.default_rng(0).normal(size=(4, 4)) * 1.5, np.linspace(0.5, 2.0, 4)
    neurons = {k: np.full(4, v) for k, v in (("tau", 5e-3), ("r", 5.0), ("v_leak", 0.0))}
    nodes = {
        "input": nir.Input({"input": np.array([4])}),
        "a": nir.LIF(**neurons, v_threshold=np.full(4, 0.7)),
        "b": nir.Linear(w),
        "c.d": nir.Scale(scale),
        "e": nir.LIF(**neurons, v_threshold=np.full(4, 1.1)),
        "output": nir.Output({"output": np.array([4])}),
    }
    edges = [("input", "a"), ("a", "b"), ("a", "c.d"), ("c.d", "b"), ("b", "e"), ("input", "e")]
    graph = nir.NIRGraph(nodes, [*edges, ("e", "output"), ("a", "output")])
    x = torch.rand(8, 3, 4, generator=torch.Generator().manual_seed(0))
    a, e, out = torch.zeros(3, 4).double(), torch.zeros(3, 4).double(), []
    for x_t in x.double().unbind(0):
        a = 0.8 * a + x_t
        s = (a > 0.7).double()
        a = a * (1 - s)
        e = 0.8 * e + (s + s * torch.as_tensor(scale)) @ torch.as_tensor(w).T + x_t
        s_e = (e > 1.1).double()
        e = e * (1 - s_e)
        out.append(s + s_e)
    expected = torch.stack(out)
    twin = ours.from_nir(graph, dt=DT, reset="hard")
    assert len(expected.unique()) == 3
    assert torch.equal(twin(x).double(), expected)
    again = ours.from_nir(ours.to_nir(twin, x[0], dt=DT, reset="hard"), dt=DT, reset="hard")
    assert torch.equal(again(x).double(), expected)


def test_the_equations_are_those_of_nir() -> None:
    """Without our metadata: Euler's step of the node, whoever wrote it."""
    shape = (3,)
    tau, r, leak, threshold = np.array([5e-3, 8e-3, 20e-3]), 2.0, 0.1, 0.9
    node = nir.LIF(
        tau=tau,
        r=np.full(shape, r),
        v_leak=np.full(shape, leak),
        v_threshold=np.full(shape, threshold),
    )
    graph = nir.NIRGraph.from_list(node)
    x = torch.rand(30, 2, 3, generator=torch.Generator().manual_seed(0)) * 2
    for reset in ("hard", "soft"):
        model = ours.from_nir(graph, dt=DT, reset=reset)
        v = torch.full((2, 3), leak, dtype=torch.float64)
        expected = []
        for x_t in x.double().unbind(0):
            v = v + torch.as_tensor(DT / tau) * ((leak - v) + r * x_t)
            fired = v > threshold
            expected.append(fired)
            v = torch.where(fired, 0.0, v) if reset == "hard" else v - threshold * fired
        spikes = model(x)
        assert spikes.any()
        assert torch.equal(spikes.bool(), torch.stack(expected))


def test_the_equations_of_a_synapse_are_those_of_nir() -> None:
    """The current steps first, and the membrane takes what it is then."""
    tau_syn, tau_mem, w_in, r = 4e-3, 8e-3, 3.0, 1.5
    whole = np.ones(3)
    node = nir.CubaLIF(
        tau_syn=tau_syn * whole,
        tau_mem=tau_mem * whole,
        r=r * whole,
        v_leak=0 * whole,
        v_threshold=0.9 * whole,
        w_in=w_in * whole,
    )
    (model,) = ours.from_nir(nir.NIRGraph.from_list(node), dt=DT, reset="soft")
    x = torch.rand(30, 2, 3, generator=torch.Generator().manual_seed(0))
    v, current, expected = torch.zeros(2, 3).double(), torch.zeros(2, 3).double(), []
    for x_t in x.double().unbind(0):
        current = current + DT / tau_syn * (w_in * x_t - current)
        v = v + DT / tau_mem * (r * current - v)
        expected.append(v > 0.9)
        v = v - 0.9 * expected[-1]
    spikes = model(x)
    assert 0.02 < spikes.mean() < 0.98
    assert torch.equal(spikes.bool(), torch.stack(expected))


def test_what_we_write_means_the_same_without_our_metadata() -> None:
    """Up to rounding, whatever the charge; in float64 and away from ties no spike differs."""
    x = images()
    for makers in NEURONS.values():
        model = network(*(make("hard") for make in makers)).double()
        graph = ours.to_nir(model, x[0].double(), dt=DT, reset="hard")
        for node in graph.nodes.values():
            node.metadata = {}
        first = ours.from_nir(graph, dt=DT, reset="hard")[:2].double()
        assert torch.equal(first(x.double()), model[:2](x.double()))


def test_another_dt_keeps_the_time_constant() -> None:
    graph = ours.to_nir(nn.Sequential(LIF(0.9)), torch.rand(2, 3), dt=DT, reset="hard")
    (neuron,) = ours.from_nir(graph, dt=DT / 2, reset="hard")
    assert neuron.leak.item() == pytest.approx(0.95)
    assert neuron.gain == pytest.approx(0.5)


def test_encoder_and_readout_stay_outside() -> None:
    model = nn.Sequential(Direct(5), TimeDistributed(nn.Linear(4, 3)), LIF(0.9), MeanReadout())
    graph = ours.to_nir(model, torch.rand(2, 4), dt=DT, reset="hard")
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert kinds == ["Input", "Affine", "LIF", "Output"]
    x = torch.rand(2, 4) * 5
    spikes = ours.from_nir(graph, dt=DT, reset="hard")(x.expand(5, 2, 4))
    assert torch.equal(spikes.mean(0), model(x))


def stepwise(model: Any, x: Tensor) -> Tensor:
    """What nirtorch makes of a graph is called step by step, with its state."""
    outputs, state = [], None
    for x_t in x.unbind(0):
        out = model(x_t) if state is None else model(x_t, state)
        out, state = out if isinstance(out, tuple) else (out, None)
        outputs.append(out)
    return torch.stack(outputs)


def two_layers(*neurons: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [TimeDistributed(nn.Linear(4, 6)), TimeDistributed(nn.Linear(6, 5))]
    return nn.Sequential(layers[0], neurons[0], layers[1], neurons[1])


@DEPRECATED
def test_snntorch_reads_ours() -> None:
    """Its dt is 1e-4, and a spike resets to zero at once."""
    reader = need("snntorch.import_nir")
    model = two_layers(LIF(0.9, strict=True), LIF(0.8, 0.3, strict=True))
    x = torch.rand(20, 3, 4, generator=torch.Generator().manual_seed(0)) * 3
    spikes = model(x)
    assert spikes.any()
    graph = ours.to_nir(model, x[0], dt=1e-4, reset="hard")
    assert torch.equal(stepwise(reader.import_from_nir(graph), x), spikes)


@DEPRECATED
@pytest.mark.skipif(not ours.HAS_V_RESET, reason="snnTorch writes v_reset")
def test_we_read_snntorch_s() -> None:
    snn = need("snntorch")
    writer = need("snntorch.export_nir")
    torch.manual_seed(0)
    options = {"reset_mechanism": "zero", "reset_delay": False, "init_hidden": True}
    beta, threshold = torch.full((6,), 0.9), torch.full((6,), 0.3)
    leaky: Any = snn.Leaky(beta, threshold, **options)
    model = nn.Sequential(nn.Linear(4, 6), leaky)
    x = torch.rand(20, 3, 4, generator=torch.Generator().manual_seed(0)) * 3
    graph = writer.export_to_nir(model, x[0], ignore_dims=[0])
    twin = ours.from_nir(graph, dt=1e-4, reset="hard")
    leaky.reset_mem()
    spikes = stepwise(model, x)
    assert spikes.any()
    assert torch.equal(twin(x), spikes)


@DEPRECATED
@pytest.mark.skipif(not ours.HAS_V_RESET, reason="nirtorch wants a newer nir to import for Norse")
def test_norse_reads_ours() -> None:
    norse = need("norse.torch")
    euler: dict[str, Any] = {"charge": "euler_box", "strict": True}
    model = two_layers(LIF(rate=0.5, **euler), LIF(rate=0.4, threshold=0.1, **euler))
    x = torch.rand(20, 3, 4, generator=torch.Generator().manual_seed(0)) * 3
    spikes = model(x)
    assert spikes.any()
    graph = ours.to_nir(model, x[0], dt=DT, reset="hard")
    assert torch.equal(stepwise(norse.from_nir(graph, dt=DT), x), spikes)


REFUSED: dict[str, tuple[Any, str]] = {
    "synapse without a leak": (
        lambda: LIF(1.0, synapse="jump", synapse_decay=0.2),
        "'jump' and no leak",
    ),
    "reset": (lambda: LIF(0.9, reset="soft"), "reset 'soft' and reset is 'hard'"),
    "delayed": (lambda: LIF(0.9, reset="delayed_soft"), "reset 'delayed_soft'"),
    "start": (lambda: LIF(0.9, v_init=0.5), "v_init 0.5"),
    "mixed": (lambda: LIF(torch.tensor([0.5, 1.0, 0.2])), "with and without a leak"),
    "max": (lambda: TimeDistributed(nn.MaxPool1d(1)), "MaxPool1d, which NIR cannot express"),
    "norm": (lambda: TimeDistributed(nn.BatchNorm1d(3)), "BatchNorm1d, which NIR cannot"),
    "norm of the batch": (
        lambda: NormLIF(3, track_running_stats=False, leak=0.9),
        "no running statistics",
    ),
    "norm of features": (lambda: NormLIF(3, leak=0.9), r"sees \[3\], expected maps"),
    "twice the same": (lambda: Residual(nn.Identity()), "takes input twice"),
    "readout inside": (lambda: nn.Sequential(MeanReadout(), nn.Tanh()), "MeanReadout, which NIR"),
}


@pytest.mark.parametrize(("make", "why"), REFUSED.values(), ids=REFUSED)
def test_what_nir_cannot_express_is_refused(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ours.to_nir(nn.Sequential(make()), torch.rand(2, 3), dt=DT, reset="hard")


def test_graphs_that_are_refused() -> None:
    def lif(**values: Any) -> Any:
        arrays = {"tau": 5e-3, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0} | values
        return nir.LIF(**{name: np.broadcast_to(v, (2,)).copy() for name, v in arrays.items()})

    for node, why in (
        (lif(tau=5e-4), "tau 0.0005, expected at least dt"),
        (lif(r=np.array([1.0, 2.0])), "r from 1.0 to 2.0"),
        (nir.Threshold(np.ones(2)), "Threshold, which has no counterpart"),
    ):
        with pytest.raises(ValueError, match=why):
            ours.from_nir(nir.NIRGraph.from_list(node), dt=DT, reset="hard")
    nodes = {
        "input": nir.Input({"input": np.array([2])}),
        "a": lif(),
        "b": lif(),
        "output": nir.Output({"output": np.array([2])}),
    }
    for edges, why in (
        ([("input", "a"), ("a", "b"), ("b", "a"), ("a", "output")], r"loop among \['a', 'b'"),
        ([("input", "a"), ("input", "b"), ("a", "output")], "ends at "),
        ([("input", "a"), ("a", "output"), ("b", "output")], "starts at "),
    ):
        with pytest.raises(ValueError, match=why):
            ours.from_nir(nir.NIRGraph(nodes, edges), dt=DT, reset="hard")
    graph = nir.NIRGraph.from_list(lif())
    graph.edges.append(("input", "c"))
    with pytest.raises(ValueError, match=r"edge with \{'c'\}, expected some of \['input'"):
        ours.from_nir(graph, dt=DT, reset="hard")
    with pytest.raises(ValueError, match="reset is 'none'"):
        ours.from_nir(nir.NIRGraph.from_list(lif()), dt=DT, reset="none")


@pytest.mark.skipif(ours.HAS_V_RESET, reason="this nir knows v_reset")
def test_a_generation_without_v_reset_says_so() -> None:
    with pytest.raises(ValueError, match=r"v_reset -0\.3, which this version of nir lacks"):
        ours.to_nir(nn.Sequential(LIF(0.9, v_reset=-0.3)), torch.rand(2, 3), dt=DT, reset="hard")


@pytest.mark.skipif(not ours.HAS_V_RESET, reason="this nir does not know v_reset")
def test_v_reset_comes_back() -> None:
    model = nn.Sequential(LIF(0.9, v_reset=-0.3))
    graph = ours.to_nir(model, torch.rand(2, 3), dt=DT, reset="hard")
    (neuron,) = ours.from_nir(graph, dt=DT, reset="hard")
    assert neuron.v_reset == -0.3
