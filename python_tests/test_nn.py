from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

import snnkern
from python_tests.helpers import RESETS, assert_same_bits, assert_within, golden, random
from python_tests.networks import rat_smallnet, tiny_net
from snnkern import functional, surrogate
from snnkern.functional import Backend, lif, membranes, unpack_spikes
from snnkern.models import SpikingNetwork
from snnkern.nn import (
    IF,
    LIF,
    Direct,
    GradientMode,
    MeanReadout,
    NormLIF,
    Residual,
    SumReadout,
    TimeDistributed,
    gradient,
    watch_membranes,
    watch_spikes,
)

OPTIONS = st.fixed_dictionaries(
    {
        "reset": st.sampled_from(RESETS),
        "v_reset": st.sampled_from([0.0, -0.25]),
        "v_init": st.sampled_from([None, 0.5, 1.5]),
        "surrogate": st.sampled_from(
            [surrogate.Triangle(), surrogate.ATan(normalized=True), surrogate.Rate()]
        ),
        "detach_reset": st.booleans(),
        "strict": st.booleans(),
        "gain": st.sampled_from([1.0, 0.5]),
        "delayed_spike": st.booleans(),
        "backend": st.sampled_from([None, "reference"]),
    }
)
CHARGES: list[dict[str, Any]] = [
    {"leak": 0.0},
    {"leak": 0.5},
    {"leak": 0.9},
    {"leak": 1.0},
    {"charge": "euler", "rate": 0.5, "v_rest": -0.25},
    {"charge": "euler_box", "rate": 0.25},
    {"charge": "decay_input", "tau": 2.0, "v_rest": 0.25},
    {"charge": "decay", "tau": 4.0},
]
SYNAPSES: list[dict[str, Any]] = [
    {},
    {"synapse": "charged", "synapse_decay": 0.5},
    {"synapse": "jump", "synapse_decay": 0.25},
]


def spikes_of(layer: nn.Module, x: Tensor) -> Tensor:
    spikes = layer(x)
    assert isinstance(spikes, Tensor)
    return spikes


def count_calls(module: nn.Module) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    module.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    return shapes


# Neurons


@given(OPTIONS, st.sampled_from(CHARGES), st.sampled_from(SYNAPSES), st.sampled_from([0.25, 1.0]))
@settings(max_examples=150)
def test_a_layer_is_the_function_with_its_options(
    options: dict[str, Any], charge: dict[str, Any], synapse: dict[str, Any], threshold: float
) -> None:
    if options["reset"] in ("hard", "soft"):  # their states do not tell of a spike to leave
        options = options | {"delayed_spike": False}
    options = options | charge | synapse | {"threshold": threshold, "return_state": True}

    def function(x: Tensor) -> tuple[Tensor, ...]:
        result = functional.lif(x, **options)
        assert isinstance(result, tuple)
        return result

    runs: tuple[Callable[[Tensor], tuple[Tensor, ...]], ...] = (LIF(**options), function)
    results = []
    for run in runs:
        x = ((4 * random(5, 2, 3)).round() / 4).requires_grad_()  # some hit the threshold
        spikes, *states = run(x)
        (spikes * random(5, 2, 3, seed=1)).sum().backward()
        assert x.grad is not None
        results.append([spikes.detach(), x.grad, *(state.detach() for state in states)])
    assert len(results[0]) == (4 if synapse else 3)
    for actual, expected in zip(*results, strict=True):
        assert_same_bits(actual, expected)


def test_defaults_are_a_leak_of_0_9_and_a_hard_reset() -> None:
    x = random(6, 2, 3)
    assert_same_bits(spikes_of(LIF(), x), functional.lif(x, 0.9, 1.0))
    assert_same_bits(spikes_of(IF(), x), functional.lif(x, 1.0, 1.0))
    assert not list(LIF().parameters())


def test_parameters_per_channel() -> None:
    leak, threshold = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.3, 0.6, 1.2])
    x = random(5, 2, 3, 2, 2)
    layer = LIF(leak, threshold)
    together = spikes_of(layer, x)
    for c in range(3):
        alone = functional.lif(x[:, :, c], leak[c].item(), threshold[c].item())
        assert_same_bits(together[:, :, c].contiguous(), alone)
    leak.fill_(0.0)  # the caller's tensor is not the layer's
    assert layer.get_buffer("leak").tolist() == [0.0, 0.5, 1.0]


def test_learnt_parameters_get_the_gradients_of_the_function() -> None:
    layer = LIF(0.5, torch.tensor([0.5, 0.75, 1.0]), learn_leak=True, learn_threshold=True)
    assert [name for name, _ in layer.named_parameters()] == ["leak", "threshold"]
    x, weight = random(6, 2, 3), random(6, 2, 3, seed=1)
    (spikes_of(layer, x) * weight).sum().backward()
    leak = torch.tensor(0.5, requires_grad=True)
    threshold = torch.tensor([0.5, 0.75, 1.0], requires_grad=True)
    (functional.lif(x, leak, threshold) * weight).sum().backward()
    for parameter, plain in (
        (layer.get_parameter("leak"), leak),
        (layer.threshold, threshold),
    ):
        assert parameter.grad is not None
        assert plain.grad is not None
        assert plain.grad.abs().min() > 0
        assert_same_bits(parameter.grad, plain.grad)


@pytest.mark.parametrize(
    ("name", "beyond", "bound", "options"),
    [
        ("leak", 1.75, 1.0, {"learn_leak": True}),
        ("leak", -0.5, 0.0, {"learn_leak": True}),
        ("threshold", -3.0, 0.03, {"learn_threshold": True, "min_threshold": 0.03}),
        ("rate", 1.5, 1.0, {"charge": "euler", "rate": 0.5, "learn_leak": True}),
        ("tau", 0.25, 1.0, {"charge": "decay", "tau": 2.0, "learn_leak": True}),
        (
            "synapse_decay",
            1.5,
            1.0,
            {"synapse": "charged", "synapse_decay": 0.5, "learn_synapse": True},
        ),
    ],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_learnt_parameters_act_within_their_bounds(
    name: str, beyond: float, bound: float, options: dict[str, Any], sign: float
) -> None:
    layer = LIF(**options)
    parameter = layer.get_parameter(name)
    nn.init.constant_(parameter, beyond)
    x, weight = random(6, 4, 3), sign * random(6, 4, 3, seed=1)
    spikes = spikes_of(layer, x)
    (spikes * weight).sum().backward()
    at_bound = torch.tensor(bound, requires_grad=True)
    plain = {k: v for k, v in options.items() if k[:5] not in ("learn", "min_t")}
    if "charge" not in options:
        plain["leak"] = 0.9
    plain[name] = at_bound
    expected = functional.lif(x, **plain)
    assert_same_bits(spikes.detach(), expected.detach())
    (expected * weight).sum().backward()
    slope = at_bound.grad
    assert slope is not None
    assert slope != 0
    # A descent step goes against the slope.
    outwards = (slope < 0) if beyond > bound else (slope > 0)
    assert parameter.grad is not None
    assert_same_bits(parameter.grad, torch.zeros(()) if outwards else slope)


def test_a_learnt_leak_returns_from_beyond_its_bound() -> None:
    layer = LIF(1.0, learn_leak=True)
    nn.init.constant_(layer.get_parameter("leak"), 1.3)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.5)
    x = torch.full((6, 1, 1), 0.4)
    for _ in range(40):
        optimiser.zero_grad()
        spikes_of(layer, x).sum().backward()
        optimiser.step()
    assert layer.get_parameter("leak").item() < 1


def test_state_dict_round_trip() -> None:
    first = LIF(torch.tensor([0.1, 0.9]), 0.3, learn_threshold=True)
    second = LIF(torch.zeros(2), 1.0, learn_threshold=True)
    assert sorted(first.state_dict()) == ["leak", "threshold"]
    second.load_state_dict(first.state_dict())
    x = random(5, 3, 2)
    assert_same_bits(spikes_of(second, x).detach(), spikes_of(first, x).detach())


@pytest.mark.parametrize("name", ["leak", "learn_leak", "tau", "rate", "charge"])
def test_if_has_no_leak(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} is 0\.5, expected none"):
        IF(1.0, **{name: 0.5})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leak": 1.5}, r"leak is 1\.5, expected in \[0, 1\]"),
        ({"leak": torch.tensor([0.5, -1.0])}, r"leak is between -1\.0 and 0\.5"),
        ({"leak": float("nan")}, "leak is nan"),
        ({"threshold": 0.0}, r"threshold is 0\.0, expected finite and above 0"),
        ({"threshold": torch.tensor([1.0, torch.inf])}, "threshold is between"),
        ({"min_threshold": -1.0}, r"threshold is -1\.0"),
    ],
)
def test_impossible_neurons_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LIF(**options)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("cut", [1, 3, 6])
@pytest.mark.parametrize(
    "options",
    [
        {"leak": 0.75},
        {"leak": 0.75, "delayed_spike": True},
        {"leak": 0.75, "synapse": "charged", "synapse_decay": 0.5},
        {"charge": "decay", "tau": 2.0},
    ],
    ids=["leak", "delayed", "synapse", "tau"],
)
def test_a_stateful_layer_continues(
    reset: functional.Reset, cut: int, options: dict[str, Any]
) -> None:
    x = random(7, 2, 3)
    if "delayed_spike" in options and reset in ("hard", "soft"):
        with pytest.raises(ValueError, match="delayed_spike is True and reset is"):
            spikes_of(LIF(stateful=True, reset=reset, **options), x)
        return
    options = options | {"threshold": 0.5, "reset": reset, "v_init": 0.25}
    layer = LIF(stateful=True, **options)
    whole = functional.lif(x, **options)
    assert whole[cut:].any()
    for _ in range(2):
        halves = torch.cat([spikes_of(layer, x[:cut]), spikes_of(layer, x[cut:])])
        assert_same_bits(halves, whole)
        layer.reset_state()


@pytest.mark.parametrize("reset", ["delayed_soft", "none"])
def test_a_delayed_spike_is_not_lost_between_calls(reset: functional.Reset) -> None:
    layer = LIF(1.0, 1.0, reset=reset, delayed_spike=True, stateful=True)
    step = torch.ones(1, 1, 1)
    assert [spikes_of(layer, step).item() for _ in range(2)] == [0, 1]


def test_a_stateful_layer_carries_no_gradient() -> None:
    layer = LIF(1.0, stateful=True)
    first = random(3, 1, 2).requires_grad_()
    spikes_of(layer, first)
    second = random(3, 1, 2, seed=1).requires_grad_()
    spikes_of(layer, second).sum().backward()
    assert first.grad is None
    assert second.grad is not None


def test_a_stateful_layer_refuses_another_batch_size() -> None:
    layer = LIF(stateful=True)
    spikes_of(layer, random(3, 2, 4))
    message = r"shape \[5, 4\], expected \[2, 4\].*reset_state\(\)"
    with pytest.raises(ValueError, match=message):
        layer(random(3, 5, 4))
    layer.reset_state()
    spikes_of(layer, random(3, 5, 4))


def test_layers_are_stateless_by_default() -> None:
    layer, x = LIF(1.0), torch.full((3, 1, 2), 0.3)
    assert not spikes_of(layer, x).any()
    assert not spikes_of(layer, x).any()
    assert spikes_of(layer, torch.cat([x, x])).any()


def test_return_state() -> None:
    x = random(4, 2, 3)
    result = LIF(0.5, return_state=True)(x)
    spikes, state = functional.lif(x, 0.5, 1.0, return_state=True)
    assert isinstance(result, tuple)
    assert_same_bits(result[0], spikes)
    assert_same_bits(result[1], state)
    stateful = LIF(0.5, return_state=True, stateful=True)
    _, middle = stateful(x[:2])
    _, end = stateful(x[2:])
    assert not torch.equal(middle, end)
    assert_same_bits(end, state)


def test_repr_tells_what_differs() -> None:
    text = repr(LIF(0.5, learn_leak=True, strict=True, v_reset=-0.5, backend="reference"))
    for part in (
        "leak=0.5",
        "threshold=1",
        "learns leak",
        "reset='hard'",
        "surrogate=Triangle(",
        "strict=True",
        "v_reset=-0.5",
        "backend='reference'",
    ):
        assert part in text
    for part in ("detach_reset", "stateful", "v_init"):
        assert part not in text
    assert "[0.1 to 0.9] x 3" in repr(LIF(torch.tensor([0.1, 0.5, 0.9])))
    assert repr(Direct(4)) == "Direct(timesteps=4)"


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_their_own(copied: Callable[[LIF], LIF]) -> None:
    layer = LIF(0.5, 0.7, learn_leak=True, stateful=True, strict=True, surrogate=surrogate.ATan())
    x = random(4, 2, 3)
    spikes_of(layer, x)
    twin = copied(layer)
    expected = spikes_of(layer, x).detach()
    assert_same_bits(spikes_of(twin, x).detach(), expected)
    nn.init.constant_(twin.get_parameter("leak"), 0.0)
    assert layer.get_parameter("leak").item() == 0.5
    assert twin.surrogate == surrogate.ATan()


def test_double() -> None:
    layer = LIF(0.5, 0.25, learn_threshold=True).double()
    x = random(5, 2, 3, dtype=torch.float64)
    spikes = spikes_of(layer, x)
    assert_same_bits(spikes.detach(), functional.lif(x, 0.5, 0.25))
    spikes.sum().backward()
    assert layer.threshold.grad is not None
    assert layer.threshold.grad.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("half_module", [False, True])
def test_half_inputs(dtype: torch.dtype, half_module: bool) -> None:
    layer = LIF(0.75, 0.5, return_state=True, learn_leak=True)
    if half_module:
        layer = layer.to(dtype)
    x = random(5, 2, 3).to(dtype)
    spikes, state = layer(x)
    expected, expected_state = functional.lif(x, 0.75, 0.5, return_state=True)
    assert spikes.dtype == dtype
    assert_same_bits(spikes.detach(), expected)
    assert_same_bits(state.detach(), expected_state)
    spikes.sum().backward()
    leak = layer.get_parameter("leak")
    assert leak.grad is not None
    assert leak.grad.dtype == leak.dtype


# Encoders, containers, readouts


def test_direct_repeats_without_a_copy() -> None:
    x = random(2, 1, 4, 4)
    steps = Direct(5)(x)
    assert steps.shape == (5, 2, 1, 4, 4)
    assert steps.stride(0) == 0
    assert steps.data_ptr() == x.data_ptr()
    for step in steps:
        assert_same_bits(step, x)


@pytest.mark.parametrize(("timesteps", "kind"), [(0, ValueError), (-1, ValueError)])
def test_direct_needs_a_step(timesteps: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"timesteps is {timesteps}, expected an int of at least 1"):
        Direct(timesteps)


@pytest.mark.parametrize("timesteps", [1, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(2, 3, 3, padding=1),
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.AvgPool2d(2), nn.Flatten()),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3)),
        lambda: nn.BatchNorm2d(2).eval(),
        nn.Identity,
    ],
    ids=["conv", "stack", "linear", "batch norm", "identity"],
)
@pytest.mark.parametrize("layout", ["steps", "constant", "channels_last", "time last"])
def test_time_distributed_is_the_loop(
    make: Callable[[], nn.Module], timesteps: int, layout: str
) -> None:
    module = make().double()
    x = random(timesteps, 3, 2, 4, 4, dtype=torch.float64)
    if layout == "constant":
        x = x[:1].expand(timesteps, -1, -1, -1, -1)
    elif layout == "channels_last":
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    elif layout == "time last":
        x = x.movedim(0, -1).contiguous().movedim(-1, 0)
    expected = torch.stack([module(step) for step in x])
    assert_within(TimeDistributed(module)(x), expected, 1e-12)


def test_a_constant_input_runs_once() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten())
    layer = TimeDistributed(module)
    shapes = count_calls(module)
    steps = Direct(6)(random(2, 1, 6, 6))
    constant = layer(steps)
    assert [list(shape) for shape in shapes] == [[2, 1, 6, 6]]
    assert constant.shape == (6, 2, 8)
    assert constant.stride(0) == 0
    shapes.clear()
    moving = layer(steps.contiguous())
    assert [list(shape) for shape in shapes] == [[12, 1, 6, 6]]
    assert_within(constant, moving, 1e-6)


def test_a_constant_input_gets_the_gradient_of_every_step() -> None:
    module = nn.Linear(3, 2).double()
    layer, weight = TimeDistributed(module), random(5, 4, 2, dtype=torch.float64)
    encoders: tuple[Callable[[Tensor], Tensor], ...] = (Direct(5), lambda x: x.repeat(5, 1, 1))
    grads = []
    for steps in encoders:
        x = random(4, 3, seed=1, dtype=torch.float64).requires_grad_()
        module.zero_grad()
        (layer(steps(x)) * weight).sum().backward()
        assert x.grad is not None
        assert module.weight.grad is not None
        grads.append((x.grad, module.weight.grad.clone()))
    for actual, expected in zip(*grads, strict=True):
        assert_within(actual, expected, 1e-12)


class FunctionalDropout(nn.Module):
    """Chance without a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(50, 50)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x))


class NoisyLinear(nn.Linear):
    """Chance in a class derived from one that has none."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn_like(x)


@pytest.mark.parametrize(
    "make",
    [
        nn.Dropout,
        lambda: nn.Sequential(nn.Linear(50, 50), nn.Dropout()),
        FunctionalDropout,
        lambda: NoisyLinear(50, 50),
    ],
    ids=["dropout", "in a stack", "functional", "derived"],
)
def test_chance_is_drawn_anew_in_every_step(make: Callable[[], nn.Module]) -> None:
    steps = TimeDistributed(make())(Direct(4)(torch.ones(2, 50)))
    assert not torch.equal(steps[0], steps[1])


def test_batch_norm_in_training_counts_all_steps() -> None:
    x = random(3, 2, 4, 4)
    once, all_steps = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    y = TimeDistributed(once)(Direct(5)(x))
    expected = all_steps(x.repeat(5, 1, 1, 1)).view(5, 3, 2, 4, 4)
    assert_within(y.detach(), expected.detach(), 1e-6)
    # The unbiased variance knows the number of samples.
    assert once.running_var is not None
    assert all_steps.running_var is not None
    assert_within(once.running_var, all_steps.running_var, 1e-7)
    single = nn.BatchNorm2d(2)
    single(x)
    assert single.running_var is not None
    assert not torch.allclose(single.running_var, all_steps.running_var, atol=1e-5)


def test_readouts() -> None:
    x = random(5, 2, 3)
    total = x[0] + x[1] + x[2] + x[3] + x[4]
    assert_within(SumReadout()(x), total, 1e-6)
    assert_within(MeanReadout()(x), total / 5, 1e-6)


# Watching


def test_watch_spikes_sees_every_layer() -> None:
    inner = nn.Sequential(IF(), LIF(return_state=True))
    model = nn.Sequential(LIF(0.5), nn.Sequential(inner[0]))
    seen: list[tuple[str, Tensor]] = []
    x = random(4, 2, 3).requires_grad_()
    with watch_spikes(model, lambda name, spikes: seen.append((name, spikes))):
        out = model(x)
    assert [name for name, _ in seen] == ["0", "1.0"]
    assert_same_bits(seen[0][1], functional.lif(x.detach(), 0.5))
    assert_same_bits(seen[1][1], out.detach())
    assert not any(spikes.requires_grad for _, spikes in seen)
    model(x)
    assert len(seen) == 2
    seen.clear()
    with watch_spikes(inner, lambda name, spikes: seen.append((name, spikes))):
        inner(x)
    assert [name for name, _ in seen] == ["0", "1"]


def test_watch_spikes_sees_what_is_packed() -> None:
    x = random(4, 2, 3, 5)
    seen: dict[str, Tensor] = {}
    for spike_format in ("input", "uint8", "bits"):
        layer = LIF(spike_format=spike_format)
        with watch_spikes(layer, seen.__setitem__):
            layer(x)
        assert torch.equal(seen.pop("").float(), LIF()(x))


def test_watch_spikes_ends_with_an_exception() -> None:
    layer = LIF()
    with pytest.raises(KeyError), watch_spikes(layer, lambda *_: None):
        raise KeyError
    assert not layer._forward_hooks


# Gradients that an attacker chooses


class Plain:
    """The network of tiny_net in plain PyTorch, with a spike of one's own."""

    def __init__(self, net: SpikingNetwork) -> None:
        linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
        self.first, self.second = linears
        self.timesteps = net.timesteps

    def __call__(self, x: Tensor, derivative: Callable[[Tensor], Tensor]) -> Tensor:
        current = self.first((x.flatten(1) - 0.5) / 0.5)
        u, total = torch.zeros_like(current), torch.zeros(())
        for _ in range(self.timesteps):
            v = 0.5 * u + current
            z = v - 0.5
            fired = (z >= 0).to(v.dtype)
            s = fired + derivative(z.detach()) * (z - z.detach())
            u = v * (1 - s)
            total = total + self.second(s)
        return total / self.timesteps

    def through_rates(self, x: Tensor) -> Tensor:
        current = self.first((x.flatten(1) - 0.5) / 0.5)
        steps = current.detach().expand(self.timesteps, -1, -1)
        u, spikes = torch.zeros_like(current), []
        for step in steps:
            v = 0.5 * u + step
            spikes.append((v >= 0.5).to(v.dtype))
            u = v * (1 - spikes[-1])
        gate = (torch.stack(spikes).sum(0) > 0).to(current.dtype)
        passed = gate * (current - current.detach())
        return torch.stack([self.second(s.detach() + passed) for s in spikes]).mean(0)

    def relu(self, x: Tensor) -> Tensor:
        out = self.second(self.first((x.flatten(1) - 0.5) / 0.5).relu())
        assert isinstance(out, Tensor)
        return out


def logits_and_slope(run: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    x = random(6, 1, 2, 2, seed=5, dtype=torch.float64).sigmoid().requires_grad_()
    logits = run(x)
    F.cross_entropy(logits, torch.arange(6) % 3).backward()
    assert x.grad is not None
    return logits.detach(), x.grad


def assert_alike(net: nn.Module, plain: Callable[[Tensor], Tensor]) -> None:
    for actual, expected in zip(logits_and_slope(net), logits_and_slope(plain), strict=True):
        assert_within(actual, expected, 1e-12)
        assert expected.abs().max() > 0


TRIANGLE = surrogate.Triangle(2.0, scale=0.3)
EXPONENTIAL = surrogate.Exponential(0.7, slope=1.5)


def test_gradient_replaces_the_surrogate() -> None:
    net = tiny_net(4, surrogate=TRIANGLE).double()
    plain = Plain(net)

    def with_triangle(x: Tensor) -> Tensor:
        return plain(x, lambda z: 0.3 * (2 - z.abs()).clamp(min=0))

    assert_alike(net, with_triangle)
    with gradient(net, EXPONENTIAL):
        assert_alike(net, lambda x: plain(x, lambda z: 0.7 * (-1.5 * z.abs()).exp()))
    with gradient(net, None):
        assert_alike(net, with_triangle)
    assert_alike(net, with_triangle)


def test_gradient_through_the_rate() -> None:
    net = tiny_net(4).double()
    with gradient(net, "rate"):
        assert_alike(net, Plain(net).through_rates)


class EveryStep(nn.Module):
    """Hands on what it gets; its gradient is a copy for every step."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1


def bptr_net(between: Callable[[], nn.Module], readout: nn.Module, training: bool) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        Direct(6),
        TimeDistributed(nn.Conv2d(2, 4, 3, padding=1)),
        NormLIF(4, threshold=0.5),
        between(),
        TimeDistributed(nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))),
        LIF(leak=0.7, threshold=0.25),
        between(),
        TimeDistributed(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(20, 3))),
        readout,
    )
    for module in net.modules():
        if isinstance(module, NormLIF | nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_()
    return net.double().train(training)


class Batches(TorchDispatchMode):
    """How many images every convolution goes back over."""

    sizes: list[int]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.convolution_backward.default:
            self.sizes.append(args[0].shape[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("readout", [MeanReadout(), SumReadout()], ids=["mean", "sum"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_through_the_rate_one_step_stands_for_all(training: bool, readout: nn.Module) -> None:
    """The way back over one step gives what the way back over every step gives, and costs less."""
    x = random(3, 2, 8, 8, seed=1, dtype=torch.float64).requires_grad_()
    grads, batches = [], []
    for between in (nn.Identity, EveryStep):
        net = bptr_net(between, readout, training)
        torch.manual_seed(1)  # of dropout
        with gradient(net, "rate"):
            logits = net(x)
        counter = Batches()  # type: ignore[no-untyped-call]
        counter.sizes = []
        with counter:
            loss = F.cross_entropy(logits, torch.tensor([0, 1, 2]))
            wanted = [p for p in net.parameters() if p.requires_grad]
            grads.append(torch.autograd.grad(loss, [x, *wanted]))
        batches.append(counter.sizes)
    for once, every in zip(*grads, strict=True):
        assert_within(once, every, 1e-12)
    assert grads[0][0].abs().max() > 0
    # In training mode dropout differs from step to step, and batch norm looks at all of them.
    assert batches == ([[18, 3], [18, 3]] if training else [[3, 3], [18, 3]])


def residual_net() -> nn.Sequential:
    """Blocks with and without weights and convolutions in their shortcuts, one around another."""
    torch.manual_seed(0)

    def layer(before: int, after: int) -> list[nn.Module]:
        conv = nn.Conv2d(before, after, 3, padding=1)
        return [TimeDistributed(conv), NormLIF(after, threshold=0.5)]

    def project(before: int, after: int) -> nn.Module:
        return TimeDistributed(nn.Sequential(nn.Conv2d(before, after, 1), nn.BatchNorm2d(after)))

    inner = Residual(nn.Sequential(*layer(4, 4)), weighted=True)
    net = nn.Sequential(
        Direct(6),
        *layer(2, 4),
        Residual(nn.Sequential(*layer(4, 5)), project(4, 5)),
        LIF(leak=0.7, threshold=0.5),
        Residual(nn.Sequential(*layer(5, 4), inner), project(5, 4), weighted=True),
        LIF(leak=0.7, threshold=0.25),
        TimeDistributed(nn.Sequential(nn.Flatten(), nn.Linear(4 * 16, 3))),
        MeanReadout(),
    )
    for module in net.modules():
        if isinstance(module, NormLIF | nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_(std=0.3)
        if isinstance(module, Residual) and module.branch_weights is not None:
            nn.init.uniform_(module.branch_weights, 0.3, 0.8)
    return net.double().eval()


@pytest.mark.parametrize("frozen", [False, True])
def test_through_the_rate_branches_too_are_one_step(
    frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What autograd makes of plain sums, but for one step."""
    x = random(3, 2, 4, 4, seed=1, dtype=torch.float64).requires_grad_()
    net = residual_net().requires_grad_(not frozen)
    wanted = [x, *(p for p in net.parameters() if p.requires_grad)]
    grads, batches = [], []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(Residual, "through_rate", False)
        with gradient(net, "rate"):
            logits = net(x)
        counter = Batches()  # type: ignore[no-untyped-call]
        counter.sizes = []
        with counter:
            grads.append(torch.autograd.grad(logits.square().sum(), wanted))
        batches.append(counter.sizes)
    for once, every in zip(*grads, strict=True):
        assert_within(once, every, 1e-12)
    assert grads[0][0].abs().max() > 0
    # Behind autograd's product with a weight every step is a copy, but for the image's own.
    assert batches == [[3] * 6, [18] * 5 + [3]]


def test_branches_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Low and full precision meet where a branch joins its shortcut."""
    x, net = random(2, 2, 4, 4, seed=1), residual_net().float()
    grads = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(Residual, "through_rate", False)
        with torch.autocast("cpu", torch.bfloat16), gradient(net, "rate"):
            loss = net(x).float().square().sum()
        grads.append(torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad]))
    for once, every in zip(*grads, strict=True):
        assert once.dtype == torch.float32
        assert_within(once, every, 0.02 * (1 + float(every.abs().max())))


def test_a_branch_that_takes_no_gradient() -> None:
    class Stop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x.detach()

    for net in (Residual(Stop()), Residual(nn.Identity(), Stop(), weighted=True)):
        x = random(4, 2, 3).requires_grad_()
        with gradient(nn.Sequential(net, LIF()), "rate"):
            (slope,) = torch.autograd.grad(net(x).sum(), x)
        assert torch.equal(slope, torch.full_like(x, 1.0 if net.branch_weights is None else 0.5))


def rate_gradients(net: nn.Module, x: Tensor, every_step: bool) -> tuple[Tensor, ...]:
    """Gradients of the image and all parameters through the rate, by one step or by every one."""
    with pytest.MonkeyPatch.context() as patch, gradient(net, "rate"):
        if every_step:
            patch.setattr(TimeDistributed, "_is_affine", lambda self: False)
        logits = net(x)
    wanted = [x, *(p for p in net.parameters() if p.requires_grad)]
    return torch.autograd.grad(logits.square().sum(), wanted, materialize_grads=True)


def affine_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        Direct(4),
        TimeDistributed(nn.Conv2d(3, 4, 3, padding=1)),
        LIF(threshold=0.2),
        TimeDistributed(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6))),
        LIF(threshold=0.2),
        TimeDistributed(nn.Sequential(nn.Flatten(), nn.Linear(216, 5))),
        MeanReadout(),
    )


CASES = ["modes", "batch statistics", "autocast", "hooks", "hooks of all modules", "spectral"]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_through_the_rate_nothing_else_changes(
    case: str, frozen: bool, request: pytest.FixtureRequest
) -> None:
    """What runs again on the way back runs as it did, unseen, and where it cannot, does not."""
    net = affine_net().eval()
    block: Any = net[3].module
    x = random(2, 3, 6, 6, seed=1).requires_grad_()
    seen: list[int] = []
    if case == "batch statistics":
        block[1] = nn.BatchNorm2d(6, track_running_stats=False)
    if case == "hooks":
        block[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        block[0].weight.register_hook(lambda grad: 0.5 * grad)
    if case == "hooks of all modules":

        def see(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if module is block[0]:
                seen.append(len(output))

        request.addfinalizer(register_module_forward_hook(see).remove)
    if case == "spectral":
        block[0] = nn.utils.spectral_norm(block[0])
    net.requires_grad_(not frozen)
    before = {name: value.clone() for name, value in net.named_buffers()}

    def run(every_step: bool) -> tuple[Tensor, ...]:
        for name, value in net.named_buffers():
            value.copy_(before[name])
        if case != "modes":
            with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
                return rate_gradients(net, x, every_step)
        with snnkern.nn.evaluation_mode(net.train()), gradient(net, "rate"):
            if every_step:
                return rate_gradients(net, x, every_step)
            logits = net(x)
        return torch.autograd.grad(logits.square().sum(), x)

    once, every = run(False), run(True)
    size = max(float(expected.abs().max()) for expected in every)
    for actual, expected in zip(once, every, strict=case != "modes"):
        assert_within(actual, expected, (0.02 if case == "autocast" else 1e-5) * size)
    if case == "modes":
        for name, value in net.named_buffers():
            assert torch.equal(value, before[name]), name
    assert set(seen) <= {8}


def test_autocast_of_the_forward_pass_serves_the_way_back() -> None:
    net, x = affine_net().eval(), random(2, 3, 6, 6, seed=1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), gradient(net, "rate"):
        loss = net(x).float().square().sum()
    loss.backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_a_second_derivative_through_the_rate_is_refused() -> None:
    net, x = affine_net().eval(), random(2, 3, 6, 6, seed=1).requires_grad_()
    with gradient(net, "rate"):
        loss = net(x).square().sum()
    with pytest.raises(NotImplementedError, match="a second derivative through the rate"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_through_the_rate_layers_may_work_in_place() -> None:
    net = nn.Sequential(TimeDistributed(nn.Identity()), nn.ReLU(inplace=True), LIF())
    x = random(3, 2, 4).requires_grad_()
    with gradient(net, "rate"):
        net(x * 1).sum().backward()


@pytest.mark.parametrize("readout", ["mean", "sum"])
def test_gradient_of_the_relu_network(readout: str) -> None:
    net = tiny_net(4).double()
    if readout == "sum":
        net.readout = SumReadout()
    with gradient(net, "relu"):
        assert_alike(net, Plain(net).relu)


def test_spikes_do_not_depend_on_the_gradient() -> None:
    net, x = tiny_net(5), torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = net(x).detach()
    for g in (TRIANGLE, surrogate.Rate(), "rate"):
        with gradient(net, g):
            assert_same_bits(net(x).detach(), expected)


def test_gradient_nests_and_is_undone() -> None:
    layer = LIF()
    model = nn.Sequential(Direct(2), layer)

    def modes() -> set[Any]:
        return {m.gradient_mode for m in model.modules() if isinstance(m, GradientMode)}

    with gradient(model, "relu"):
        assert modes() == {"relu"}
        with gradient(model, TRIANGLE):
            assert modes() == {TRIANGLE}
        with pytest.raises(KeyError), gradient(model, TRIANGLE):
            raise KeyError
        assert modes() == {"relu"}
        with gradient(layer, "rate"):
            assert modes() == {"relu", surrogate.Rate()}
    assert modes() == {None}
    assert layer.surrogate == surrogate.Triangle()


def test_gradient_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match=r"g is 'bptr', expected a snnkern\.surrogate\.Surrogate"):
        gradient(LIF(), "bptr").__enter__()  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="g is <class"):
        gradient(LIF(), surrogate.Triangle).__enter__()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Linear holds no neuron"):
        gradient(nn.Linear(1, 1), "rate").__enter__()
    assert snnkern.gradient is gradient


# Golden data of SNN-RAT


def golden_run(mode: str) -> tuple[Tensor, Tensor, Tensor, dict[str, nn.Module]]:
    data = golden("snnrat_smallnet")
    net, parts = rat_smallnet()
    net.eval()
    images = torch.from_numpy(data["images"]).requires_grad_()
    g: Any = {"bptt": None, "bptr": "rate", "act": "relu"}[mode]
    with gradient(net, g):
        logits = net(images)
        loss = F.cross_entropy(logits, torch.from_numpy(data["labels"]))
        loss.backward()
    assert images.grad is not None
    return logits.detach(), loss.detach(), images.grad, parts


@pytest.mark.parametrize("mode", ["bptt", "bptr", "act"])
def test_golden_network_in_evaluation_mode(mode: str) -> None:
    data = golden("snnrat_smallnet")
    logits, loss, slope, parts = golden_run(mode)
    for name, actual in (("logits", logits), ("loss", loss), ("grad_images", slope)):
        assert_within(actual, torch.from_numpy(data[f"eval.{mode}.{name}"]), 1e-9, name)
    for name, part in parts.items():
        for key, parameter in part.named_parameters():
            assert parameter.grad is not None
            expected = torch.from_numpy(data[f"eval.{mode}.grad.{name}.{key}"])
            assert_within(parameter.grad, expected, 1e-9, f"{name}.{key}")


def test_golden_network_in_training_mode() -> None:
    data = golden("snnrat_smallnet")
    net, parts = rat_smallnet()
    seen: list[Tensor] = []
    net.readout.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    logits = net(torch.from_numpy(data["images"]))
    assert_within(seen[0], torch.from_numpy(data["train.out"]), 1e-9)
    loss = F.cross_entropy(logits, torch.from_numpy(data["labels"]))
    loss.backward()
    assert_within(loss.detach(), torch.from_numpy(data["train.loss"]), 1e-9)
    for name, part in parts.items():
        for key, parameter in part.named_parameters():
            assert parameter.grad is not None
            expected = torch.from_numpy(data[f"train.grad.{name}.{key}"])
            assert_within(parameter.grad, expected, 1e-9, f"{name}.{key}")
        for key in ("running_mean", "running_var"):
            if f"train.after.{name}.{key}" in data:
                expected = torch.from_numpy(data[f"train.after.{name}.{key}"])
                assert_within(part.get_buffer(key), expected, 1e-9, f"{name}.{key}")


def test_a_number_first_seen_in_inference_mode_can_be_trained_with_later() -> None:
    x = random(3, 2, 4).requires_grad_()
    with torch.inference_mode():
        functional.lif(x.detach(), 0.7654321, 1.2345678)
    functional.lif(x, 0.7654321, 1.2345678).sum().backward()


@pytest.mark.parametrize("spike_format", ["uint8", "bits"])
def test_packed_spikes_of_learning_neurons_are_refused(
    spike_format: functional.SpikeFormat,
) -> None:
    layer = LIF(learn_threshold=True, spike_format=spike_format)
    with pytest.raises(ValueError, match=r"and threshold requires a gradient, expected 'input'"):
        layer(random(3, 2, 4))
    with torch.no_grad():
        assert layer(random(3, 2, 4)).dtype == torch.uint8


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"charge": "foo"}, ValueError, r"charge is 'foo', expected one of leak"),
        ({"threshold": "1"}, TypeError, r"threshold is '1' of type str, expected a number"),
        ({"reset": "Hard"}, ValueError, r"reset is 'Hard', expected one of hard"),
        ({"strict": 1}, TypeError, r"strict is 1 of type int, expected a bool"),
        ({"synapse": "x"}, ValueError, r"synapse is 'x', expected one of none"),
    ],
)
def test_bad_options_are_refused_when_the_layer_is_made(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LIF(**options)


def test_attacks_refuse_layers_that_remember() -> None:
    model = torch.nn.Sequential(snnkern.nn.Direct(2), LIF(stateful=True), snnkern.nn.MeanReadout())
    x, y = torch.rand(2, 3), torch.zeros(2, dtype=torch.int64)
    for use in (
        lambda: snnkern.attacks.FGSM()(model, x, y),
        lambda: snnkern.evaluate(model, [(x, y)], progress=False),
    ):
        with pytest.raises(ValueError, match=r"model holds 1 with stateful=True, expected layers"):
            use()


@pytest.mark.parametrize(
    "options",
    [
        {"leak": 0.7, "reset": "soft"},
        {"leak": 0.9, "reset": "delayed_soft", "strict": True},
        {"reset": "none", "threshold": torch.tensor([0.5, 0.7, 1.0])},
        {"charge": "decay_input", "tau": 2.5, "v_rest": -0.1},
        {"leak": 0.9, "synapse": "charged", "synapse_decay": 0.5},
        {"leak": 0.5, "spike_format": "bits", "v_init": 0.3},
        {"leak": 0.9, "stateful": True},
    ],
    ids=str,
)
def test_watch_membranes_sees_what_the_thresholds_are_compared_with(
    options: dict[str, Any],
) -> None:
    layer = LIF(**options)
    x = random(9, 2, 3, 4).requires_grad_()
    compared = torch.ge if not layer.strict else torch.gt
    for _ in range(2):
        seen: dict[str, Tensor] = {}
        with watch_membranes(layer, seen.__setitem__):
            spikes = layer(x.detach() if layer.spike_format == "bits" else x)
        v = seen[""]
        assert v.shape == x.shape
        assert not v.requires_grad
        if layer.spike_format == "bits":
            spikes = unpack_spikes(spikes, x.detach())
        threshold = layer.threshold.view(-1, *(1,) * layer.threshold.dim())
        assert torch.equal(compared(v, threshold), spikes.bool())
    assert not layer._forward_pre_hooks


def test_watch_membranes_of_normalised_neurons() -> None:
    model = nn.Sequential(NormLIF(3, leak=0.8), NormLIF(3, leak=0.6))
    x = random(5, 4, 3, 6, 6)
    model(x)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    spikes: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    with watch_spikes(model, spikes.__setitem__), watch_membranes(model, seen.__setitem__):
        model(x)
    assert list(seen) == ["0", "1"]
    for name, v in seen.items():
        assert torch.equal(v >= 1, spikes[name].bool())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    with (
        pytest.raises(TypeError, match="running statistics"),
        watch_membranes(model.train(), print),
    ):
        model(x)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_membranes_are_those_that_spikes_come_from(backend: Backend | None) -> None:
    x = random(7, 3, 5)
    spikes, state = lif(x, 0.9, reset="none", return_state=True, backend=backend)
    v = membranes(x, 0.9, reset="none", backend=backend)
    assert torch.equal(v >= 1, spikes.bool())
    assert torch.equal(v[-1], state)
    with pytest.raises(TypeError, match="spike_format is 'bits', expected none"):
        membranes(x, spike_format="bits")
    held = membranes(x[:1], 0.9, timesteps=4, backend=backend)
    assert torch.equal(held, membranes(x[:1].expand(4, -1, -1), 0.9, backend=backend))
