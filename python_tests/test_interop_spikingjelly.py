"""SpikingJelly itself, beside its neurons fused; whichever of the known versions is installed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.helpers import need
from python_tests.twins import assert_same_calls, assert_same_state_dict, lift, twins
from snnkern import gradient
from snnkern.interop import accelerate, restore
from snnkern.surrogate import ASSG, HART, PDSG, RGA, Triangle

functional, layer, neuron, surrogate = (
    need(f"spikingjelly.activation_based.{name}")
    for name in ("functional", "layer", "neuron", "surrogate")
)

HAS_TRANSITIONS = hasattr(neuron.BaseNode, "single_step_functional_forward")
Make = Callable[[], nn.Module]


def conv_net(make: Make, step_mode: str = "m") -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        make(),
        layer.MaxPool2d(2),
        layer.Flatten(),
        layer.Linear(4 * 9, 5),
        make(),
    )
    lift(model[0], 0.5)
    lift(model[4], 1.5)
    functional.set_step_mode(model, step_mode)
    return model


def images(*shape: int, ties: bool = False) -> Tensor:
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 4
    return (x * 4).round() / 4 if ties else x


def run(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def step_by_step(model: nn.Module, x: Tensor) -> Any:
    return torch.stack([model(x_t) for x_t in x.unbind(0)])


def memories(model: nn.Module) -> dict[str, Any]:
    return {
        name: module.v
        for name, module in model.named_modules()
        if isinstance(module, neuron.BaseNode)
    }


NODES: dict[str, Make] = {
    "LIF": neuron.LIFNode,
    "LIF soft tau=3": lambda: neuron.LIFNode(tau=3.0, v_reset=None),
    "LIF to -0.3": lambda: neuron.LIFNode(tau=1.7, v_reset=-0.3, v_threshold=0.7),
    "LIF no decay of input": lambda: neuron.LIFNode(tau=3.0, decay_input=False),
    "LIF no decay, soft": lambda: neuron.LIFNode(tau=3.0, decay_input=False, v_reset=None),
    "LIF no decay, to -0.3": lambda: neuron.LIFNode(tau=3.0, decay_input=False, v_reset=-0.3),
    "LIF no decay, tau=4": lambda: neuron.LIFNode(tau=4.0, decay_input=False),
    "LIF no decay, tau=4, to -0.3": lambda: neuron.LIFNode(
        tau=4.0, decay_input=False, v_reset=-0.3
    ),
    "LIF detached": lambda: neuron.LIFNode(detach_reset=True, surrogate_function=surrogate.ATan()),
    "LIF that stores": lambda: neuron.LIFNode(store_v_seq=True),
    "IF": lambda: neuron.IFNode(surrogate_function=surrogate.ATan(3.0)),
    "IF soft": lambda: neuron.IFNode(v_reset=None),
    "PLIF": lambda: neuron.ParametricLIFNode(init_tau=3.0),
    "PLIF soft": lambda: neuron.ParametricLIFNode(v_reset=None, detach_reset=True),
    "PLIF to -0.3": lambda: neuron.ParametricLIFNode(v_reset=-0.3),
}
EVERY_NODE = pytest.mark.parametrize("make", NODES.values(), ids=NODES)


@EVERY_NODE
@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("training", [True, False])
def test_spikes_membranes_gradients(make: Make, step_mode: str, training: bool) -> None:
    """Over two calls with a detach between them, and one after a reset."""
    own, fused, report = twins(conv_net(make, step_mode))
    assert list(report.replaced) == ["1", "5"]
    assert not report.left
    own.train(training)
    fused.train(training)
    calls = run if step_mode == "m" else step_by_step
    first = [images(5, 3, 2, 6, 6), images(5, 3, 2, 6, 6, ties=True)]
    for inputs in (first, [images(4, 3, 2, 6, 6)]):
        # The scripted steps of 0.0.0.0.14 in eval mode pass no gradient on.
        learn = training or HAS_TRANSITIONS
        assert_same_calls(own, fused, inputs, calls, memories, functional.detach_net, learn)
        functional.reset_net(own)
        functional.reset_net(fused)
        assert memories(fused) == memories(own)


def test_another_batch_size_without_reset() -> None:
    """2.0.0 starts anew, which 0.0.0.0.14 cannot."""
    own, fused, _ = twins(conv_net(NODES["LIF"]))
    inputs = [images(4, 3, 2, 6, 6), images(4, 2, 2, 6, 6)]
    if HAS_TRANSITIONS:
        assert_same_calls(own, fused, inputs, run, memories, functional.detach_net)
    else:
        fused(inputs[0])
        with pytest.raises(ValueError, match=r"v_init has shape \[3, 4, 6, 6\]"):
            fused(inputs[1])


def test_float64_and_steps_without_a_batch() -> None:
    own, fused, _ = twins(neuron.LIFNode(tau=3.0, step_mode="m"))
    for x in (images(9, 4).double(), images(9)):
        assert_same_calls(own, fused, [x], run, lambda model: {"v": model.v})
        functional.reset_net(own)
        functional.reset_net(fused)


SURROGATES = [
    surrogate.ATan(),
    surrogate.Sigmoid(),
    surrogate.PiecewiseQuadratic(1.5),
    surrogate.PiecewiseExp(2.0),
    surrogate.Erf(1.5),
    surrogate.SoftSign(),
    *([surrogate.SuperSpike(), surrogate.Rect(2.0)] if HAS_TRANSITIONS else []),
]


@pytest.mark.parametrize("function", SURROGATES, ids=lambda f: type(f).__name__)
def test_surrogates(function: nn.Module) -> None:
    own, fused, _ = twins(neuron.LIFNode(surrogate_function=function, step_mode="m"))
    assert_same_calls(own, fused, [images(6, 3, 50)], run, lambda model: {"v": model.v})


def test_state_dict_pickle_and_copy() -> None:
    own, fused, _ = twins(conv_net(NODES["PLIF"]))
    assert fused[1].w is dict(fused.named_parameters())["1.w"]
    assert_same_state_dict(own, fused)
    x = images(4, 3, 2, 6, 6)
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert_same_calls(own, twin, [x], run, memories)
        functional.reset_net(own)


def test_restore_is_the_library_again() -> None:
    """With the state of the call before."""
    own, fused, _ = twins(conv_net(NODES["PLIF"]))
    kinds = [type(module) for module in own.modules()]
    x = images(4, 3, 2, 6, 6)
    own(x), fused(x)
    restore(fused)
    assert [type(module) for module in fused.modules()] == kinds
    assert vars(fused[1]).keys() == vars(own[1]).keys()
    assert_same_calls(own, fused, [x], run, memories)


def test_a_hook_and_a_shared_node_stay() -> None:
    shared = neuron.LIFNode(step_mode="m")
    seen: list[Tensor] = []
    shared.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model: Any = nn.ModuleDict({"a": shared, "b": shared})
    report = accelerate(model)
    assert list(report.replaced) == ["a"]
    assert model["a"] is model["b"] is shared
    x = images(4, 3, 7)
    assert torch.equal(shared(x), seen[0])


def refused() -> dict[str, nn.Module]:
    class Custom(neuron.LIFNode):  # type: ignore[misc, name-defined]
        pass

    return {
        "no fused one": Custom(),
        "there is no surrogate QPseudoSpike": neuron.LIFNode(
            surrogate_function=surrogate.QPseudoSpike()
        ),
        "there is no surrogate SoftSign with alpha=3": neuron.IFNode(
            surrogate_function=surrogate.SoftSign(3.0)
        ),
        "not one of SpikingJelly's own": neuron.IFNode(surrogate_function=torch.relu),
        "spiking is False": neuron.IFNode(surrogate_function=surrogate.ATan(spiking=False)),
        "v_threshold is 0.0": neuron.IFNode(v_threshold=0.0),
        "decay_input is False": neuron.ParametricLIFNode(decay_input=False, v_reset=-0.3),
    }


@pytest.mark.parametrize("reason", refused())
def test_what_is_left_says_why(reason: str) -> None:
    model = nn.Sequential(refused()[reason], neuron.LIFNode())
    kinds = [type(module) for module in model]
    report = accelerate(model)
    assert reason in report.left["0"]
    assert list(report.replaced) == ["1"]
    assert type(model[0]) is kinds[0]
    assert reason in str(report)
    assert "fused  1: spikingjelly" in str(report)


def test_a_model_without_neurons() -> None:
    with pytest.raises(ValueError, match="Linear holds no neuron of spikingjelly"):
        accelerate(nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_membranes_are_the_library_s_unless_corrected(dtype: torch.dtype) -> None:
    x = images(6, 3, 50).to(dtype)
    own, fused, _ = twins(neuron.LIFNode(tau=3.0, step_mode="m"))
    with pytest.warns(UserWarning, match=f"LIFNode runs the library's own steps: .* {dtype}"):
        spikes = fused(x)
    assert torch.equal(spikes, own(x))
    assert fused.v.dtype == own.v.dtype
    own, corrected, _ = twins(neuron.LIFNode(tau=3.0, step_mode="m"), corrected=True)
    for _ in range(2):  # the state is kept in float32 between calls, too
        spikes, wide = corrected(x), own(x.float())
        assert spikes.dtype == dtype
        assert torch.equal(spikes.float(), wide)
        assert torch.equal(corrected.v, own.v)


def test_an_option_that_changes_later_is_heeded() -> None:
    own, fused, _ = twins(neuron.LIFNode(step_mode="m"))
    x = images(6, 3, 50)
    for model in (own, fused):
        model.tau, model.v_threshold = 5.0, 0.5
    assert_same_calls(own, fused, [x], run, lambda model: {"v": model.v})
    for model in (own, fused):
        model.surrogate_function = surrogate.QPseudoSpike()
        functional.reset_net(model)
    with pytest.warns(UserWarning, match="there is no surrogate QPseudoSpike"):
        assert_same_calls(own, fused, [x], run, lambda model: {"v": model.v})


def test_gradient_of_an_attacker() -> None:
    """snnkern.gradient differentiates an accelerated model by another surrogate."""
    _, fused, _ = twins(neuron.LIFNode(step_mode="m", tau=2.0))
    own = neuron.LIFNode(
        step_mode="m", tau=2.0, surrogate_function=surrogate.PiecewiseQuadratic(1.0)
    )
    x = images(6, 3, 50)
    grads = []
    for model in (own, fused):
        leaf = x.clone().requires_grad_()
        with gradient(fused, Triangle()):
            model(leaf).sum().backward()
        grads.append(leaf.grad)
    assert grads[0] is not None
    assert grads[1] is not None
    assert (grads[0] - grads[1]).abs().max() <= 1e-5 * grads[0].abs().max()
    with gradient(fused, "relu"), pytest.raises(ValueError, match="g is 'relu'"):
        fused(x)
    # The library's own steps would keep the library's gradient.
    with gradient(fused, Triangle()), pytest.raises(ValueError, match=r"g is Triangle.*float16"):
        fused(x.half())
    fused.step_mode = "s"
    with gradient(fused, "rate"), pytest.raises(ValueError, match="g is 'rate'"):
        fused(x[0])
    for g in (RGA(), HART(), PDSG(), ASSG()):
        kind = type(g).__name__
        with gradient(fused, g), pytest.raises(ValueError, match=rf"g is {kind}.*single steps"):
            fused(x[0])


@pytest.mark.skipif(HAS_TRANSITIONS, reason="only 0.0.0.0.14 has scripted steps")
def test_eval_mode_passes_no_gradient_unless_corrected() -> None:
    x = images(6, 3, 50)
    for make in (NODES["LIF"], NODES["IF"]):
        for corrected in (False, True):
            own, fused, _ = twins(make(), corrected=corrected)
            own.step_mode = fused.step_mode = "m"
            own.eval()
            fused.eval()
            leaf = x.clone().requires_grad_()
            assert not own(leaf).requires_grad
            assert fused(leaf).requires_grad == corrected
            own_v, fused_v = torch.zeros_like(x[0]), torch.zeros_like(x[0])
            if not corrected:
                (own_v,) = torch.autograd.grad(own.v.sum(), leaf)
                (fused_v,) = torch.autograd.grad(fused.v.sum(), leaf)
            assert torch.allclose(own_v, fused_v, rtol=1e-5)


def test_an_attack_has_its_gradient_in_eval_mode() -> None:
    x = images(6, 3, 50)
    for make in (NODES["LIF"], NODES["IF"]):
        _, fused, _ = twins(make())
        fused.step_mode = "m"
        grads = []
        for training in (True, False):
            functional.reset_net(fused)
            fused.train(training)
            leaf = x.clone().requires_grad_()
            with gradient(fused, Triangle(2.0)):
                grads.append(torch.autograd.grad(fused(leaf).sum(), leaf)[0])
        assert torch.equal(grads[0], grads[1])
        assert grads[0].count_nonzero() > 0


@pytest.mark.skipif(not HAS_TRANSITIONS, reason="0.0.0.0.14 has scripted parts")
@pytest.mark.parametrize("name", ["LIF", "PLIF", "IF soft"])
def test_a_compiler_sees_it_whole(name: str) -> None:
    own, fused, _ = twins(conv_net(NODES[name]))
    compiler: Any = torch.compile
    compiled = compiler(fused, backend="eager", fullgraph=True)
    inputs = [images(4, 3, 2, 6, 6)]
    expected = own(inputs[0])
    assert torch.equal(compiled(inputs[0]), expected)
    assert torch.equal(fused[1].v, own[1].v)
