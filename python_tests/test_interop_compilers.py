"""Which compilers see accelerated models whole: the table of docs/howto/drop_in.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn

from python_tests.helpers import need
from python_tests.twins import braincog_nodes
from snnkern.interop import Layerwise, accelerate, layerwise, unroll
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import LIF, MeanReadout, NormLIF, Residual, TimeDistributed

PAGE = Path(__file__).resolve().parents[1] / "docs" / "howto" / "drop_in.md"
T = 3
ONNX = ("onnx", "onnxscript", "onnxruntime")
# The libraries' modules keep their states; torch.onnx looks at what torch deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects"),
    pytest.mark.filterwarnings("ignore:The tensor attributes? self.* (was|were) assigned"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


class Case(NamedTuple):
    """A model, an input, and what lets go of its state."""

    model: nn.Module
    x: Tensor
    reset: Callable[[], Any] = lambda: None


class Neurons(nn.Module):
    """A layer and its neurons, which see all steps."""

    def __init__(self, layer: nn.Module, lif: nn.Module) -> None:
        super().__init__()
        self.layer, self.lif = layer, lif

    def forward(self, x: Tensor) -> Any:
        spikes = self.lif(self.layer(x))
        return spikes[0] if isinstance(spikes, tuple) else spikes


class Loop(Neurons):
    """The same with the loop over time of snnTorch."""

    def forward(self, x: Tensor) -> Tensor:
        lif: Any = self.lif
        mem, spikes = lif.reset_mem(), []
        for x_t in x.unbind(0):
            s, mem = lif(self.layer(x_t), mem)
            spikes.append(s)
        return torch.stack(spikes)


def spikingjelly() -> Case:
    functional = need("spikingjelly.activation_based.functional")
    neuron = need("spikingjelly.activation_based.neuron")
    if not hasattr(neuron.BaseNode, "single_step_functional_forward"):
        pytest.skip("0.0.0.0.14 has scripted parts")
    model = Neurons(nn.Linear(6, 5), neuron.LIFNode(step_mode="m", v_threshold=0.3))
    accelerate(model)
    return Case(model, torch.rand(T, 3, 6) * 4, lambda: functional.reset_net(model))


def snntorch() -> Case:
    library = need("snntorch")
    model = Loop(nn.Linear(6, 5), library.Leaky(0.8, threshold=0.3, learn_beta=True))
    accelerate(model)
    lif: Any = model.lif
    return Case(model, torch.rand(T, 3, 6) * 4, lif.reset_mem)


def snntorch_layerwise() -> Case:
    model, x, reset = snntorch()
    return Case(layerwise(model, T), x, reset)


def norse() -> Case:
    library = need("norse.torch")
    model = Neurons(nn.Linear(6, 5), library.LIF(library.LIFParameters(v_th=torch.tensor(0.05))))
    accelerate(model)
    return Case(model, torch.rand(T, 3, 6) * 4)


def sinabs() -> Case:
    layers = need("sinabs.layers")
    lif = layers.LIF(
        tau_mem=5.0, spike_threshold=0.3, spike_fn=need("sinabs.activation").SingleSpike
    )
    model = Neurons(nn.Linear(6, 5), lif)
    accelerate(model)
    return Case(model, torch.rand(3, T, 6) * 4, lif.reset_states)


def braincog() -> Case:
    lif = braincog_nodes().LIFNode(threshold=0.3, step=T, layer_by_layer=True)
    model = Neurons(nn.Conv2d(2, 4, 3), lif)
    accelerate(model)
    return Case(model, torch.rand(T * 3, 2, 4, 4) * 4, lif.n_reset)


def snnkern() -> Case:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    layers = nn.Sequential(
        TimeDistributed(nn.Conv2d(2, 4, 3, padding=1)),
        NormLIF(4, leak=0.9, threshold=0.5),
        Residual(nn.Sequential(TimeDistributed(conv), LIF(0.9, 0.3)), weighted=True),
        TimeDistributed(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))),
    )
    model = SpikingNetwork(T, Normalize([0.5] * 2, [0.5] * 2), layers, MeanReadout())
    return Case(model.eval(), torch.rand(3, 2, 4, 4))


MODELS: dict[str, Callable[[], Case]] = {
    "SpikingJelly": spikingjelly,
    "snnTorch": snntorch,
    "snnTorch, layerwise": snntorch_layerwise,
    "Norse": norse,
    "sinabs": sinabs,
    "BrainCog": braincog,
    "snnkern": snnkern,
}


def compiled(case: Case) -> Tensor:
    """With the gradients of the model."""
    parameters = [p for p in case.model.parameters() if p.requires_grad]
    eager = torch.autograd.grad(case.model(case.x).sum(), parameters, allow_unused=True)
    case.reset()
    torch.compiler.reset()
    compiler: Any = torch.compile
    result: Tensor = compiler(case.model, backend="aot_eager", fullgraph=True)(case.x)
    gradients = torch.autograd.grad(result.sum(), parameters, allow_unused=True)
    for actual, expected in zip(gradients, eager, strict=True):
        torch.testing.assert_close(actual, expected)
    return result.detach()


@torch.no_grad()
def exported(case: Case) -> Tensor:
    result: Tensor = torch.export.export(case.model, (case.x,), strict=True).module()(case.x)
    return result


@torch.no_grad()
def exported_loosely(case: Case) -> Tensor:
    result: Tensor = torch.export.export(case.model, (case.x,), strict=False).module()(case.x)
    return result


@torch.no_grad()
def unrolled(case: Case) -> Tensor:
    """The program that an ONNX model is made of, which has operators of torch alone."""
    strict = not isinstance(case.model, Layerwise)
    program = unroll(torch.export.export(case.model, (case.x,), strict=strict))
    assert namespaces(program) <= {"aten", "higher_order"}
    result: Tensor = program.module()(case.x)
    return result


def namespaces(program: torch.export.ExportedProgram) -> set[str]:
    """Of the operators of a program and of the graphs in it."""
    graphs: list[Any] = [m for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
    nodes = [node for graph in graphs for node in graph.graph.nodes]
    return {getattr(node.target, "namespace", "aten") for node in nodes}


COMPILERS: dict[str, tuple[Callable[[Case], Tensor], str]] = {
    "`torch.compile`": (compiled, "marked as skipped"),
    "`torch.export`": (exported, "marked as skipped"),
    "`strict=False`": (exported_loosely, "parameters have no values"),
    "ONNX": (unrolled, "nothing is refused"),
}


def cells() -> list[tuple[str, str, str]]:
    """Model, compiler, and what the page says."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| (?:model|" + "|".join(MODELS) + r") \|", line)
    ]
    (_, *columns), *body = rows
    return [
        (row[0], column, cell)
        for row in body
        for column, cell in zip(columns, row[1:], strict=True)
    ]


def test_the_table_is_whole() -> None:
    wanted = [(model, compiler) for model in MODELS for compiler in COMPILERS]
    assert [cell[:2] for cell in cells()] == wanted


@pytest.mark.parametrize(("model", "compiler", "goes"), cells())
def test_the_table_is_true(model: str, compiler: str, goes: str) -> None:
    torch.manual_seed(0)
    case = MODELS[model]()
    with torch.no_grad():
        expected = case.model(case.x)
    assert 0 < expected.count_nonzero() < expected.numel() or model == "snnkern"
    case.reset()
    run, reason = COMPILERS[compiler]
    assert goes in ("yes", "no")
    if goes == "yes":
        assert torch.equal(run(case), expected)
    else:
        with pytest.raises(Exception, match=reason):
            run(case)


@pytest.mark.parametrize("model", MODELS)
def test_the_lines_of_the_page_make_an_onnx_model(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, runtime = (need(name) for name in ONNX)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    case = MODELS[model]()
    with torch.no_grad():
        expected = case.model(case.x)
    case.reset()
    lines = re.search(
        r"^```py\n(.*?torch\.onnx.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert lines is not None
    assert "strict=True" in lines[1]
    strict = str(not isinstance(case.model, Layerwise))
    exec(lines[1].replace("strict=True", f"strict={strict}"), {"model": case.model, "x": case.x})
    session = runtime.InferenceSession("model.onnx")
    (name,) = (i.name for i in session.get_inputs())
    (actual,) = session.run(None, {name: case.x.numpy()})[:1]
    torch.testing.assert_close(torch.from_numpy(actual), expected)


class Autocast(nn.Module):
    """What runs under autocast is a graph of its own in an exported program."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            result: Tensor = self.inner(x)
        return result


@pytest.mark.parametrize("strict", [True, False])
def test_graphs_within_a_program_are_unrolled(strict: bool) -> None:
    case = snnkern()
    model = Autocast(case.model).eval()
    with torch.no_grad():
        program = torch.export.export(model, (case.x,), strict=strict)
        assert "snnkern" in namespaces(program)
        program = unroll(program)
        assert namespaces(program) <= {"aten", "higher_order"}
        assert torch.equal(program.module()(case.x), model(case.x))


def test_a_start_of_one_s_own_is_not_ignored_by_compilers() -> None:
    torch.manual_seed(0)
    model, x, _ = norse()
    lif: Any = model.lif
    other = need("norse.torch").LIF().initial_state
    at_rest = model(x)
    compiler: Any = torch.compile

    def start(x: Tensor) -> Any:
        return lif.initial_state(x)._replace(v=torch.full((*x.shape[1:-1], 5), 0.5))

    for fallback in (start, other):
        lif.state_fallback = fallback
        with pytest.warns(UserWarning, match="LIF runs the library's own steps: state_fallback is"):
            expected = model(x)
        assert torch.equal(expected, at_rest) == (fallback is other)
        torch.compiler.reset()
        with pytest.raises(Exception, match=r"warnings\.warn|__repr__"):
            compiler(model, backend="eager", fullgraph=True)(x)
        torch.compiler.reset()
        with pytest.warns(UserWarning, match="LIF runs the library's own steps: state_fallback is"):
            actual = compiler(model, backend="eager")(x)
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("name", "value", "follows"),
    [("v_th", 0.2, True), ("tau_mem_inv", 300.0, True), ("v_leak", 0.04, False)],
)
def test_what_a_compiled_model_follows(name: str, value: float, follows: bool) -> None:
    """Tensors that are changed in place, but those which have to be numbers, see ``accelerate``."""
    library = need("norse.torch")
    start = {"v_th": 0.05, "tau_mem_inv": 100.0, "v_leak": 0.0}
    p = library.LIFParameters(**{n: torch.tensor(v) for n, v in start.items()})
    torch.manual_seed(0)
    model = Neurons(nn.Linear(6, 5), library.LIF(p))
    accelerate(model)
    x = torch.rand(T, 3, 6) * 4
    torch.compiler.reset()
    compiler: Any = torch.compile
    run = compiler(model, backend="eager", fullgraph=True)
    before = run(x)
    assert torch.equal(before, model(x))
    getattr(p, name).fill_(value)
    eager = model(x)
    assert not torch.equal(eager, before)
    assert torch.equal(run(x), eager if follows else before)
    torch.compiler.reset()
    assert torch.equal(run(x), eager)


def test_a_batch_of_any_size() -> None:
    model, x, _ = snnkern()
    shapes = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=shapes)
        other = torch.rand(5, *x.shape[1:])
        unrolled = unroll(program, dynamic_shapes=shapes).module()
        assert torch.equal(unrolled(other), model(other))


def test_a_program_that_cannot_be_traced_again_is_refused() -> None:
    program = torch.export.export(nn.Linear(2, 3), (torch.rand(1, 2),))
    assert unroll(program) is program
    program.example_inputs = None
    with pytest.raises(ValueError, match="no example_inputs"):
        unroll(program)
