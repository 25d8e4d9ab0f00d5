"""sinabs itself, beside its neurons fused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.helpers import need
from python_tests.twins import assert_same_calls, assert_same_state_dict, lift, twins
from snnkern.interop import accelerate, restore

sl = need("sinabs.layers")
activation = need("sinabs.activation")

Make = Callable[..., nn.Module]
T = 6


def images(*shape: int, ties: bool = False) -> Tensor:
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 4
    return (x * 4).round() / 4 if ties else x


def single(**options: Any) -> dict[str, Any]:
    return {"spike_fn": activation.SingleSpike} | options


NEURONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LIF": (sl.LIF, single(tau_mem=5.0)),
    "LIF that learns alphas": (sl.LIF, single(tau_mem=5.0, train_alphas=True)),
    "LIF with a synapse": (sl.LIF, single(tau_mem=5.0, tau_syn=3.0, norm_input=False)),
    "LIF to zero": (sl.LIF, single(tau_mem=5.0, reset_fn=activation.MembraneReset())),
    "LIF gaussian": (sl.LIF, single(tau_mem=5.0, surrogate_grad_fn=activation.Gaussian())),
    "LIF of one spike": (
        sl.LIF,
        {"tau_mem": 5.0, "spike_fn": activation.MaxSpike(1), "spike_threshold": torch.tensor(0.7)},
    ),
    "LIF wider": (
        sl.LIF,
        single(tau_mem=5.0, surrogate_grad_fn=activation.SingleExponential(0.8, 1.5)),
    ),
    "IAF": (sl.IAF, single()),
    "IAF with a synapse": (sl.IAF, single(tau_syn=3.0)),
}
SQUEEZED = {sl.LIF: sl.LIFSqueeze, sl.IAF: sl.IAFSqueeze}
EVERY_NEURON = pytest.mark.parametrize(("kind", "options"), NEURONS.values(), ids=NEURONS)


def conv_net(kind: Any, options: dict[str, Any]) -> nn.Module:
    """The usual network, of batch and time merged, trained like this by the library's users."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        SQUEEZED[kind](num_timesteps=T, **options),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 9, 5),
        SQUEEZED[kind](num_timesteps=T, **options),
    )
    lift(model[0], 1)
    lift(model[4], 2)
    return model


def run(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def states(model: nn.Module) -> dict[str, Any]:
    names = ("v_mem", "i_syn", "firing_rate")
    return {
        f"{name}.{state}": getattr(module, state)
        for name, module in model.named_modules()
        for state in names
        if getattr(module, state, None) is not None
    }


def zero_grad(model: nn.Module) -> None:
    """What detaches the states."""
    for module in model.modules():
        if isinstance(module, sl.StatefulLayer):
            module.zero_grad()


@EVERY_NEURON
def test_spikes_membranes_gradients(kind: Any, options: dict[str, Any]) -> None:
    """Over two calls, states carried over; the third with a reset before it."""
    own, fused, report = twins(conv_net(kind, options))
    assert list(report.replaced) == ["1", "5"]
    assert not report.left
    inputs = [images(3 * T, 2, 6, 6), images(3 * T, 2, 6, 6, ties=True)]
    assert_same_calls(own, fused, inputs, run, states, zero_grad)
    for model in (own, fused):
        for number in (1, 5):
            model[number].reset_states()
    assert_same_calls(own, fused, inputs[:1], run, states, zero_grad)


@EVERY_NEURON
def test_batch_and_time_apart(kind: Any, options: dict[str, Any]) -> None:
    own, fused, _ = twins(kind(**options))
    inputs = [images(3, T, 7), images(3, T, 7, ties=True), images(3, T, 4, 5, 6)]
    assert_same_calls(own, fused, inputs, run, states, zero_grad)
    x = images(3, T, 7)
    assert fused(x).is_contiguous()


def test_another_batch_size_draws_states_as_the_library_does() -> None:
    own, fused, _ = twins(sl.LIF(**single(tau_mem=5.0)))
    outcomes = []
    for model in (own, fused):
        model(images(3, T, 7))
        zero_grad(model)
        torch.manual_seed(1)
        outcomes.append(model(images(5, T, 7)))
    assert torch.equal(*outcomes)
    assert torch.equal(own.v_mem, fused.v_mem)


@pytest.mark.parametrize("shape", [(1,), (7,), (4, 1, 1), (4, 6, 7)], ids=str)
def test_time_constants_per_feature(shape: tuple[int, ...]) -> None:
    tau = torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 5 + 1
    own, fused, _ = twins(sl.LIF(**single(tau_mem=tau)))
    assert_same_calls(own, fused, [images(3, T, 4, 6, 7)], run, states)


def test_a_time_constant_that_does_not_learn() -> None:
    own, fused, _ = twins(sl.LIF(**single(tau_mem=5.0)))
    for model in (own, fused):
        model.tau_mem.requires_grad_(False)
    assert_same_calls(own, fused, [images(3, T, 7)], run, states)


def test_state_dict_copy_and_restore() -> None:
    own, fused, _ = twins(conv_net(*NEURONS["LIF"]))
    assert fused[1].tau_mem is dict(fused.named_parameters())["1.tau_mem"]
    x = images(3 * T, 2, 6, 6)
    own(x), fused(x)
    assert_same_state_dict(own, fused)
    kinds = [type(module) for module in own.modules()]
    twin = copy.deepcopy(fused)
    assert [type(module) for module in twin.modules()] == [type(m) for m in fused.modules()]
    restore(fused)
    assert [type(module) for module in fused.modules()] == kinds
    for model in (own, fused):
        zero_grad(model)
    assert_same_calls(own, fused, [x], run, states)


def test_membrane_reset_sets_only_what_fired_when_corrected() -> None:
    options = single(tau_mem=5.0, reset_fn=activation.MembraneReset(0.3))
    report = accelerate(sl.LIF(**options))
    assert "reset_fn is MembraneReset(reset_value=0.3)" in report.left[""]
    own, fused, _ = twins(sl.LIF(**options), corrected=True)
    fused = copy.deepcopy(fused)
    x = images(3, T, 7) / 2
    a = torch.exp(torch.tensor(-1 / 5.0))
    v = torch.zeros(3, 7)
    expected = []
    for x_t in x.unbind(1):
        v = a * v + (1 - a) * x_t
        fired = v >= 1
        expected.append(fired.float())
        v = torch.where(fired, 0.3, v)
    spikes = fused(x)
    assert torch.equal(spikes, torch.stack(expected, 1))
    assert torch.equal(fused.v_mem, v)
    assert not torch.equal(own(x), spikes)


def refused() -> dict[str, nn.Module]:
    return {
        "there is no fused one": sl.ALIF(5.0, 5.0),
        "which can fire several times a step": sl.LIF(5.0),
        "spike_fn is MaxSpike(max_num_spikes_per_bin=2)": sl.IAF(spike_fn=activation.MaxSpike(2)),
        "record_states is True": sl.IAF(**single(record_states=True)),
        "min_v_mem is": sl.IAF(**single(min_v_mem=-1.0)),
        "tau_syn is given and norm_input is True": sl.LIF(**single(tau_mem=5.0, tau_syn=3.0)),
        "reset_fn is MembraneSubtract(subtract_value=2.0)": sl.IAF(
            **single(reset_fn=activation.MembraneSubtract(2.0))
        ),
        "there is no surrogate Heaviside": sl.IAF(
            **single(surrogate_grad_fn=activation.Heaviside())
        ),
        "not above 0": sl.IAF(**single(spike_threshold=torch.tensor(0.0))),
    }


@pytest.mark.parametrize("reason", refused())
def test_what_is_left_says_why(reason: str) -> None:
    report = accelerate(nn.Sequential(refused()[reason], sl.IAF(**single())))
    assert reason in report.left["0"]
    assert list(report.replaced) == ["1"]


def test_half_inputs() -> None:
    x = images(3, T, 50).bfloat16()
    own, fused, _ = twins(sl.LIF(**single(tau_mem=5.0)))
    with pytest.warns(UserWarning, match="LIF runs the library's own steps: .* torch.bfloat16"):
        assert torch.equal(fused(x), own(x))


def test_who_asks_for_the_input_alone_gets_its_gradient_without_those_of_parameters() -> None:
    own, fused, _ = twins(sl.LIF(**single(tau_mem=5.0, tau_syn=3.0, norm_input=False)))
    plain, quick, _ = twins(sl.LIF(**single(tau_mem=5.0)))
    for theirs, ours in ((own, fused), (plain, quick)):
        grads = []
        for layer in (theirs, ours):
            x = images(3, T, 7).requires_grad_()
            layer.reset_states()
            parameters = [p for p in layer.parameters() if p.requires_grad]
            spikes = layer(x)
            (alone,) = torch.autograd.grad(spikes.sum(), x, retain_graph=True)
            together = torch.autograd.grad(spikes.sum(), [x, *parameters])
            assert torch.equal(alone, together[0])
            grads.append(together)
        for actual, expected in zip(*grads, strict=True):
            torch.testing.assert_close(actual, expected)
