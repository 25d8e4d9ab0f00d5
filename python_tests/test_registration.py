"""The ops as parts of torch: schemas, fakes, compilation, export, and what autograd may not do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from python_tests.helpers import (
    LAYOUTS,
    RESETS,
    RUNNABLE,
    assert_same_bits,
    laid_out,
    leave,
    lif,
    random,
    raw_neuron,
)
from snnkern import _ops, functional, reference
from snnkern.functional import Backend
from snnkern.surrogate import ATan, Rate, Rectangle

OVERLOADS = ("default", "reference")
EVERY_OVERLOAD = pytest.mark.parametrize("overload", OVERLOADS)


@pytest.fixture(params=RUNNABLE)
def backend(request: pytest.FixtureRequest) -> str:
    """Those that torch may trace for tensors on the CPU."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def op(name: str, overload: str) -> Any:
    return getattr(getattr(torch.ops.snnkern, name), overload)


def test_every_op_has_both_overloads_and_a_reference() -> None:
    for name in _ops.SCHEMAS:
        assert set(OVERLOADS) <= set(getattr(torch.ops.snnkern, name).overloads())
        assert callable(getattr(reference, name))
    assert set(_ops.FAKES) == set(_ops.SCHEMAS)


# Layout, reset, a tensor to start from, per-channel parameters.
SAMPLES = [(layout, RESETS[i % 4], i % 2 == 0, i % 3 == 0) for i, layout in enumerate(LAYOUTS)] + [
    ("contiguous", reset, True, True) for reset in RESETS
]


def neuron_arguments(reset: str, from_tensor: bool, channels: bool) -> tuple[Any, ...]:
    shape = (3,) if channels else ()
    v_init = laid_out(random(1, 2, 3, 4, seed=1), "reversed")[0] if from_tensor else None
    leak, threshold = torch.full(shape, 0.5), torch.full(shape, 0.75)
    return raw_neuron(
        leak, threshold, v_init, v_reset=-0.5, reset=RESETS.index(reset), strict=channels
    )


@EVERY_OVERLOAD
@pytest.mark.parametrize(("layout", "reset", "from_tensor", "channels"), SAMPLES)
def test_opcheck(overload: str, layout: str, reset: str, from_tensor: bool, channels: bool) -> None:
    x = laid_out(random(5, 2, 3, 4), layout)
    neuron = neuron_arguments(reset, from_tensor, channels)
    for return_state in (False, True):
        for spike_format in range(4):
            opcheck(op("lif_forward", overload), (x, *neuron, spike_format, return_state))
    gs = laid_out(random(5, 2, 3, 4, seed=2), layout)
    for grad_state, gradients in ((None, True), (random(2, 3, 4, seed=3), False)):
        for surrogate in (0, 8):
            options = (False, surrogate, [1.0, 1.0], channels, None, None, gradients)
            opcheck(op("lif_backward", overload), (gs, grad_state, None, x, *neuron, *options))


def full_neuron(held: int) -> tuple[Any, ...]:
    """A layer with a synapse, per-neuron parameters and delayed spikes, for the raw ops."""
    step = (2, 3, 4)
    states = (random(*step, seed=4), random(*step, seed=5))
    parameters = (torch.full(step, 2.0), torch.full((3,), 0.75), torch.tensor(0.5))
    return (held, *parameters, *states, 3, 0.1, 0.7, 3, 2, 0.0, True, True)


@EVERY_OVERLOAD
@pytest.mark.parametrize("held", [False, True])
def test_opcheck_of_everything_at_once(overload: str, held: bool) -> None:
    x = random(1 if held else 5, 2, 3, 4)
    neuron = full_neuron(5 if held else 0)
    for return_state in (False, True):
        opcheck(op("lif_forward", overload), (x, *neuron, 0, return_state))
    gs, g_state, g_current = random(5, 2, 3, 4, seed=6), random(2, 3, 4), random(2, 3, 4)
    table = torch.tensor([[0.0, 1.0, 1.0, 0.0], [8.0, 0.3, 0.01, 1.0]], dtype=torch.float64)
    # A delayed reset looks at the state before the first step too.
    given = laid_out(random(6, *gs.shape[1:], seed=7), "padded")
    for gradients, of_samples in ((False, True), (True, True), (True, False)):
        surrogates = (table, None) if of_samples else (None, given)
        options = (False, 0, [0.0, 0.0], False, *surrogates, gradients)
        arguments = (gs, g_state, g_current, x, *neuron, *options)
        opcheck(op("lif_backward", overload), arguments)


@EVERY_OVERLOAD
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_opcheck_of_every_dtype(overload: str, dtype: torch.dtype) -> None:
    x = random(5, 2, 3, 4, dtype=dtype)
    state = reference.state_dtype(dtype)
    parameters = (torch.tensor(0.5, dtype=state), torch.full((3,), 0.75, dtype=state))
    neuron = raw_neuron(*parameters, torch.zeros(2, 3, 4, dtype=state))
    opcheck(op("lif_forward", overload), (x, *neuron, 0, True))
    options = (False, 3, [2.0, 0.0], False, None, None, True)
    opcheck(op("lif_backward", overload), (x, None, None, x, *neuron, *options))


@EVERY_OVERLOAD
def test_a_raw_op_refuses_to_be_differentiated(overload: str) -> None:
    neuron = neuron_arguments("hard", False, False)
    x = random(5, 2, 3, 4).requires_grad_()
    spikes, state, _ = op("lif_forward", overload)(x, *neuron, 0, True)
    for out in (spikes, state):
        with pytest.raises(
            NotImplementedError,
            match=r"derivative of torch.ops.snnkern.lif_forward; call snnkern.functional.lif",
        ):
            torch.autograd.grad(out.sum(), x, retain_graph=True)


def test_a_second_derivative_is_refused(backend: Backend) -> None:
    x = random(5, 2, 3, 4).requires_grad_()
    spikes = functional.lif(x, 0.5, surrogate=ATan(), backend=backend)
    (gx,) = torch.autograd.grad(spikes.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second derivative of snnkern.functional.lif"):
        gx.square().sum().backward()


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.vmap(f)(torch.stack([x, x])),
        lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    ],
    ids=["vmap", "grad"],
)
def test_functorch_is_refused_not_wrong(
    backend: Backend, transform: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
) -> None:
    with pytest.raises(RuntimeError, match=r"autograd.Function with functorch transforms"):
        transform(lambda x: functional.lif(x, backend=backend), random(5, 2, 4))


class Net(nn.Module):
    """Convolution, neurons, convolution, neurons, on numbers that no order of summation rounds."""

    def __init__(self, backend: Backend | None = None) -> None:
        super().__init__()
        self.backend = backend
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 3, 3, padding=1)
        self.leak = nn.Parameter(torch.tensor(0.5))
        self.threshold = nn.Parameter(torch.tensor([0.5, 0.75, 1.0, 1.25]))
        with torch.no_grad():
            for i, parameter in enumerate((*self.first.parameters(), *self.second.parameters())):
                parameter.copy_((random(*parameter.shape, seed=i) * 4).round() / 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        time = x.shape[:2]
        y = self.first(x.flatten(0, 1)).unflatten(0, time)
        y = functional.lif(
            y, self.leak, self.threshold, surrogate=Rectangle(2.0), backend=self.backend
        )
        y = self.second(y.flatten(0, 1)).unflatten(0, time)
        return functional.lif(y, 0.5, 0.75, reset="soft", return_state=True, backend=self.backend)


def images(timesteps: int) -> Tensor:
    return (random(timesteps, 2, 2, 6, 6, seed=9) * 4).round() / 4


def step(net: Any, x: Tensor) -> list[Tensor]:
    """Outputs and gradients of one training step."""
    leaf = x.clone().requires_grad_()
    spikes, state = net(leaf)
    loss = (spikes * random(*spikes.shape, seed=3)).sum() + state.sum()
    return [spikes, state, *torch.autograd.grad(loss, [leaf, *net.parameters()])]


def assert_same_step(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual[:2], expected[:2], strict=True):
        assert_same_bits(a, e, "outputs")
    assert expected[0].any()
    for a, e in zip(actual[2:], expected[2:], strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_a_network_compiles_whole(backend: Backend, compiler: str) -> None:
    net = Net(backend)
    compiled = torch.compile(net, fullgraph=True, backend=compiler)
    assert_same_step(step(compiled, images(4)), step(net, images(4)))
    with torch.no_grad():
        assert_same_bits(compiled(images(4))[0], net(images(4))[0], "without gradients")


@pytest.mark.parametrize("reset", RESETS)
def test_compiled_neurons_are_those_of_eager_for_every_length(
    backend: Backend, reset: functional.Reset
) -> None:
    """The same op runs in both, so everything is equal, gradients too; two graphs do for all T."""

    def neurons(x: Tensor, leak: Tensor, threshold: Tensor, v_init: Tensor) -> Any:
        return functional.lif(
            x,
            leak,
            threshold,
            v_init=v_init,
            reset=reset,
            surrogate=ATan(),
            return_state=True,
            backend=backend,
        )

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(neurons, fullgraph=True, backend=counter)
    for timesteps in (3, 4, 6, 9, 13):
        leaves = [
            laid_out(random(timesteps, 2, 3, 5, seed=timesteps), "channels_last"),
            torch.tensor(0.9),
            torch.tensor([0.5, 0.75, 1.0]),
            random(2, 3, 5),
        ]
        results = []
        for function in (compiled, neurons):
            inputs = [t.detach().requires_grad_() for t in leaves]
            spikes, state = function(*inputs)
            grads = torch.autograd.grad(
                (spikes, state), inputs, (random(*spikes.shape), random(*state.shape))
            )
            results.append([spikes, state, *grads])
        for actual, expected in zip(*results, strict=True):
            assert actual.stride() == expected.stride()
            assert_same_bits(actual, expected, f"T={timesteps}")
    assert counter.frame_count == 2


def test_numbers_as_parameters_compile_too(backend: Backend) -> None:
    def neurons(x: Tensor) -> Tensor:
        return functional.lif(x, 0.25, 0.5, v_init=0.125, surrogate=Rate(), backend=backend)

    compiled = torch.compile(neurons, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(random(4, 2, 3)), neurons(random(4, 2, 3)))


def test_bad_arguments_are_refused_while_compiling(backend: Backend) -> None:
    def neurons(x: Tensor, leak: float) -> Tensor:
        return functional.lif(x, leak, backend=backend)

    compiled = torch.compile(neurons, backend="aot_eager")
    with pytest.raises(ValueError, match=r"x has shape \[4\], expected \[T, N"):
        compiled(random(4), 0.5)
    with pytest.raises(ValueError, match=r"leak is 1.5, expected in \[0, 1\]"):
        compiled(random(4, 2), 1.5)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")  # torch, of itself
@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_network_runs(backend: Backend, strict: bool) -> None:
    net = Net(backend)
    dynamic = ({0: torch.export.Dim("time", min=2, max=64)},)
    program = torch.export.export(net, (images(4),), strict=strict, dynamic_shapes=dynamic)
    for timesteps in (4, 7):
        actual, expected = program.module()(images(timesteps)), net(images(timesteps))
        for a, e in zip(actual, expected, strict=True):
            assert_same_bits(a, e, f"T={timesteps}")
    lowered = program.run_decompositions()
    targets = [str(node.target) for node in lowered.graph.nodes]
    assert sum("snnkern.lif_forward" in target for target in targets) == 2


def test_compiled_autograd(backend: Backend) -> None:
    def gradient() -> Tensor:
        x = random(5, 2, 3, 4).requires_grad_()
        spikes, state = functional.lif(x, 0.5, surrogate=ATan(), return_state=True, backend=backend)
        ((spikes * random(5, 2, 3, 4, seed=1)).sum() + state.sum()).backward()
        assert x.grad is not None
        return x.grad

    expected = gradient()
    with torch._dynamo.config.patch(compiled_autograd=True):
        compiled = torch._dynamo.compiled_autograd._enable(
            torch.compile(backend="eager", fullgraph=True)
        )
        with compiled:
            assert_same_bits(gradient(), expected)


def test_checkpoint(backend: Backend) -> None:
    net = Net(backend)
    expected = step(net, images(5))

    leaf = images(5).requires_grad_()
    spikes, state = checkpoint(net, leaf, use_reentrant=False)
    loss = (spikes * random(*spikes.shape, seed=3)).sum() + state.sum()
    actual = [spikes, state, *torch.autograd.grad(loss, [leaf, *net.parameters()])]
    for a, e in zip(actual, expected, strict=True):
        assert_same_bits(a, e)


def test_autocast_runs_the_fused_op_in_half_precision(backend: Backend) -> None:
    linear = nn.Linear(4, 6)
    x = random(5, 3, 4)
    leak = torch.tensor(0.5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.profiler.profile() as profile:
        current = linear(x)
        spikes, state = functional.lif(
            current, leak, reset="soft", surrogate=ATan(), return_state=True, backend=backend
        )
    names = [event.key for event in profile.key_averages()]
    assert any("snnkern::lif_forward" in name for name in names)
    assert (current.dtype, spikes.dtype, state.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )
    plain = functional.lif(
        current.detach().float(), 0.5, reset="soft", return_state=True, backend=backend
    )
    assert_same_bits(spikes.float(), plain[0], "spikes")
    assert_same_bits(state, plain[1], "state")
    spikes.sum().backward()
    assert leak.grad is not None
    assert leak.grad.dtype == torch.float32
    assert linear.weight.grad is not None
    assert linear.weight.grad.isfinite().all()


def test_only_what_is_asked_for_gets_a_gradient(backend: Backend) -> None:
    def inputs(*wanted: str) -> dict[str, Tensor]:
        tensors = {
            "x": random(5, 2, 3),
            "leak": torch.tensor(0.5),
            "threshold": torch.tensor(0.75),
            "v_init": random(2, 3),
        }
        for name in wanted:
            tensors[name].requires_grad_()
        return tensors

    full = inputs("x", "leak", "threshold", "v_init")
    lif(**full, backend=backend).sum().backward()
    for name in full:
        alone = inputs(name)
        lif(**alone, backend=backend).sum().backward()
        for other, t in alone.items():
            assert (t.grad is None) == (other != name)
        target, grad = full[name].grad, alone[name].grad
        assert target is not None
        assert grad is not None
        assert_same_bits(grad, target, name)
    spikes, state = lif(**inputs(), return_state=True, backend=backend)
    assert not spikes.requires_grad
    assert not state.requires_grad


def test_only_the_input_is_saved_for_backward(backend: Backend) -> None:
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    x = random(16, 8, 32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        functional.lif(x, 0.5, 0.75, backend=backend)
    large = [t for t in saved if t.numel() > 1]
    assert len(large) == 1
    assert large[0].data_ptr() == x.data_ptr()


class Readout(nn.Module):
    """Linear, neurons with learnable parameters, linear; images in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 3)
        self.leak = nn.Parameter(torch.tensor(0.75))
        self.threshold = nn.Parameter(torch.tensor(0.5))
        with torch.no_grad():
            for i, parameter in enumerate((*self.first.parameters(), *self.second.parameters())):
                parameter.copy_(random(*parameter.shape, seed=i))

    def forward(self, x: Tensor) -> Tensor:
        spikes = functional.lif(
            self.first(x).expand(4, -1, -1), self.leak, self.threshold, surrogate=ATan()
        )
        logits: Tensor = self.second(spikes).mean(0)
        return logits


def train_one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    net = DistributedDataParallel(Readout())
    net(random(8, 6, seed=7)[rank * 4 : rank * 4 + 4]).square().mean().backward()
    grads = {name: p.grad for name, p in net.module.named_parameters()}
    torch.save(grads, f"{folder}/{rank}.pt")
    del net
    leave()


def test_two_processes_get_the_gradient_of_one(tmp_path: Path) -> None:
    spawn(train_one_rank, (str(tmp_path),), nprocs=2)
    net = Readout()
    net(random(8, 6, seed=7)).square().mean().backward()
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], parameter.grad, rtol=1e-5, atol=1e-7)
        assert parameter.grad.any()
