"""snnTorch itself, beside its neurons fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.helpers import need
from python_tests.twins import assert_same_calls, assert_same_state_dict, lift, twins
from snnkern.functional import checks
from snnkern.interop import accelerate, restore

snn = need("snntorch")
surrogate = need("snntorch.surrogate")

Make = Callable[..., nn.Module]
LEARNT = {"learn_beta": True, "learn_threshold": True}


@pytest.fixture(autouse=True)
def _no_instances() -> None:
    """The library's list of every neuron ever built."""
    snn.SpikingNeuron.instances.clear()


class PassesStates(nn.Module):
    """The usual network, with the loop over time in its forward."""

    lif1: Any
    lif2: Any

    def __init__(self, make: Make) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.lif1 = make()
        self.fc = nn.Linear(4 * 9, 5)
        self.lif2 = make()
        lift(self.fc, 1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        states: list[list[Tensor]] = [
            list(s) if isinstance(s := lif.reset_mem(), tuple) else [s]
            for lif in (self.lif1, self.lif2)
        ]
        spikes, last = [], []
        for x_t in x.unbind(0):
            s, *states[0] = self.lif1(self.conv(x_t), *states[0])
            s = nn.functional.max_pool2d(s, 2)
            s, *states[1] = self.lif2(self.fc(s.flatten(1)), *states[1])
            spikes.append(s)
            last.append(torch.stack(states[1]))
        return torch.stack(spikes), torch.stack(last)


def hidden_net(make: Make) -> nn.Module:
    """The other usual network, whose neurons keep their states."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        make(init_hidden=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 9, 5),
        make(init_hidden=True, output=True),
    )
    lift(model[4], 1.0)
    return model


def images(*shape: int, ties: bool = False) -> Tensor:
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 3
    return (x * 4).round() / 4 if ties else x


def run(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def step_by_step(model: nn.Module, x: Tensor) -> Any:
    return [model(x_t) for x_t in x.unbind(0)]


def states(model: nn.Module) -> dict[str, Any]:
    return {
        f"{name}.{state}": getattr(module, state)
        for name, module in model.named_modules()
        for state in ("mem", "syn")
        if hasattr(module, state)
    }


def detach(model: nn.Module) -> None:
    for module in model.modules():
        for state in ("mem", "syn"):
            if hasattr(module, state):
                getattr(module, state).detach_()


def maker(kind: str, **options: Any) -> Make:
    if kind == "Leaky":
        return lambda **more: snn.Leaky(0.9, **options, **more)
    return lambda **more: snn.Synaptic(0.8, 0.9, **options, **more)


NEURONS: dict[str, Make] = {
    **{
        f"Leaky {mechanism}{', now' * now}": maker(
            "Leaky", reset_mechanism=mechanism, reset_delay=not now, **LEARNT
        )
        for mechanism in ("subtract", "zero", "none")
        for now in (False, True)
    },
    **{
        f"Synaptic {mechanism}{', now' * now}": maker(
            "Synaptic", reset_mechanism=mechanism, reset_delay=not now, learn_alpha=True, **LEARNT
        )
        for mechanism in ("subtract", "none")
        for now in (False, True)
    },
    "Leaky graded": maker("Leaky", graded_spikes_factor=0.7, learn_graded_spikes_factor=True),
    "Leaky fast sigmoid": maker("Leaky", spike_grad=surrogate.fast_sigmoid(slope=10)),
    "Leaky sigmoid": maker("Leaky", spike_grad=surrogate.sigmoid(slope=5)),
    "Leaky straight through": maker("Leaky", spike_grad=surrogate.straight_through_estimator()),
}
EVERY_NEURON = pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)


@EVERY_NEURON
def test_a_loop_that_passes_states(make: Make) -> None:
    own, fused, report = twins(PassesStates(make))
    assert list(report.replaced) == ["lif1", "lif2"]
    inputs = [images(5, 3, 2, 6, 6), images(5, 2, 2, 6, 6, ties=True)]
    assert_same_calls(own, fused, inputs, run, states)


@EVERY_NEURON
def test_hidden_states(make: Make) -> None:
    """They survive to the second batch, as the library has it, unless its shape differs."""
    own, fused, _ = twins(hidden_net(make))
    inputs = [images(4, 3, 2, 6, 6), images(4, 3, 2, 6, 6, ties=True), images(4, 2, 2, 6, 6)]
    assert_same_calls(own, fused, inputs, step_by_step, states, detach)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 1, 1), (4, 6, 7)], ids=str)
@pytest.mark.parametrize("mechanism", ["subtract", "zero"])
def test_shapes_of_parameters(shape: tuple[int, ...], mechanism: str) -> None:
    """They broadcast against the last dimensions: (7,) is one for every column."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    neuron = snn.Leaky(
        values.clone(), values + 0.5, reset_mechanism=mechanism, init_hidden=True, **LEARNT
    )
    own, fused, report = twins(neuron)
    assert not report.left
    for step in ((3, 4, 6, 7), *([(3, 7), (7,)] if len(shape) < 2 else [])):
        assert_same_calls(own, fused, [images(5, *step)], step_by_step, states)
        own.reset_mem()
        fused.reset_mem()


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("mechanism", ["subtract", "zero", "none"])
def test_membranes_at_the_threshold(mechanism: str, now: bool) -> None:
    """They neither fire nor are reset."""
    neuron = snn.Leaky(0.5, reset_mechanism=mechanism, reset_delay=not now, init_hidden=True)
    own, fused, _ = twins(neuron)
    x = (torch.randn(9, 3, 50, generator=torch.Generator().manual_seed(0)) * 4).round() / 4
    assert_same_calls(own, fused, [x], step_by_step, states)


def test_a_learnt_beta_beyond_its_range_acts_clamped() -> None:
    own, fused, _ = twins(snn.Leaky(1.2, init_hidden=True, **LEARNT))
    assert_same_calls(own, fused, [images(5, 3, 9)], step_by_step, states)
    assert own.beta.grad == fused.beta.grad == 0


def test_a_parameter_per_sample_runs_the_library_s_steps() -> None:
    own, fused, _ = twins(snn.Leaky(torch.rand(3, 1), init_hidden=True))
    with pytest.warns(UserWarning, match=r"leak has shape \[3, 1\]"):
        assert_same_calls(own, fused, [images(5, 3, 9)], step_by_step, states)


def test_a_state_handed_to_hidden_ones_is_refused_as_before() -> None:
    _, fused, _ = twins(snn.Leaky(0.9, init_hidden=True))
    with pytest.raises(TypeError, match="`mem` should not be passed"):
        fused(images(3, 9), images(3, 9))


def test_state_dict_and_restore() -> None:
    make = NEURONS["Leaky subtract"]
    own, fused, _ = twins(PassesStates(make))
    assert fused.lif1.beta is dict(fused.named_parameters())["lif1.beta"]
    assert_same_state_dict(own, fused)
    assert isinstance(fused.lif1, snn.Leaky)
    kinds = [type(module) for module in own.modules()]
    x = images(5, 3, 2, 6, 6)
    own(x), fused(x)
    restore(fused)
    assert [type(module) for module in fused.modules()] == kinds
    assert_same_calls(own, fused, [x], run, states)


def test_the_library_s_own_reset_works() -> None:
    model = hidden_net(NEURONS["Leaky subtract"])
    accelerate(model)
    x = images(3, 2, 6, 6)
    model(x)
    assert states(model)["1.mem"].any()
    utils = need("snntorch.utils")
    utils.reset(model)
    assert not states(model)["1.mem"].any()


def refused() -> dict[str, nn.Module]:
    return {
        "there is no fused one": snn.Lapicque(0.9),
        "reset_mechanism is 'zero'": snn.Synaptic(0.8, 0.9, reset_mechanism="zero"),
        "state_quant is": snn.Leaky(0.9, state_quant=torch.round),
        "surrogate_disable is True": snn.Leaky(0.9, surrogate_disable=True),
        "there is no surrogate triangular": snn.Leaky(0.9, spike_grad=surrogate.triangular()),
        "not one of snnTorch's own": snn.Leaky(0.9, spike_grad=torch.relu),
        "spike_grad is atan(-1.0)": snn.Leaky(0.9, spike_grad=surrogate.atan(-1.0)),
    }


@pytest.mark.parametrize("reason", refused())
def test_what_is_left_says_why(reason: str) -> None:
    report = accelerate(nn.Sequential(refused()[reason], snn.Leaky(0.9)))
    assert reason in report.left["0"]
    assert list(report.replaced) == ["1"]


def test_half_inputs() -> None:
    x = images(6, 3, 50).bfloat16()
    own, fused, _ = twins(snn.Leaky(0.9, init_hidden=True))
    with pytest.warns(UserWarning, match="Leaky runs the library's own steps: .* torch.bfloat16"):
        assert torch.equal(fused(x[0]), own(x[0]))
    own, fused, _ = twins(snn.Leaky(0.9, init_hidden=True), corrected=True)
    for x_t in x.unbind(0):
        spikes = fused(x_t)
        assert spikes.dtype == torch.bfloat16
        assert torch.equal(spikes.float(), own(x_t.float()))
        assert torch.equal(fused.mem, own.mem)


def test_a_gpu_is_asked_for_values_once_per_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at values waits for it. Here the CPU plays its part."""
    seen: list[str] = []
    monkeypatch.setattr(checks, "waits_for_device", lambda value: True)
    monkeypatch.setattr(checks, "check_parameter", lambda name, value: seen.append(name))
    neuron: Any = snn.Synaptic(0.8, 0.9, init_hidden=True, **LEARNT)
    accelerate(neuron)
    for _ in range(2):
        for x_t in images(4, 3, 7).unbind(0):
            neuron(x_t)
        with torch.no_grad():
            neuron.threshold += 0.1
    assert seen == ["threshold"] * 2
