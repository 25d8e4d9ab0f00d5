"""BrainCog's own nodes, beside them fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.twins import (
    assert_same_calls,
    assert_same_state_dict,
    braincog_nodes,
    lift,
    twins,
)
from snnkern.interop import accelerate, restore

T = 5


node = braincog_nodes()
Make = Callable[..., nn.Module]


def plif(**options: Any) -> nn.Module:
    made: nn.Module = node.PLIFNode(threshold=0.6, **options)
    made.act_fun.alpha.requires_grad_(False)  # type: ignore[union-attr]
    return made


NODES: dict[str, Make] = {
    "LIF": node.LIFNode,
    "LIF tau=3": lambda **options: node.LIFNode(tau=3.0, threshold=0.4, **options),
    "LIF sigmoid": lambda **options: node.LIFNode(act_fun=node.SigmoidGrad, **options),
    "LIF gate": lambda **options: node.LIFNode(act_fun=node.GateGrad, **options),
    "LIF that learns its threshold": lambda **options: node.LIFNode(
        requires_thres_grad=True, sigmoid_thres=True, **options
    ),
    "IF": node.IFNode,
    "IF dt=0.3, sigmoid of the threshold": lambda **options: node.IFNode(
        dt=0.3, sigmoid_thres=True, requires_thres_grad=True, **options
    ),
    "PLIF": plif,
}
EVERY_NODE = pytest.mark.parametrize("make", NODES.values(), ids=NODES)


def conv_net(make: Make, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        make(**options),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 9, 5),
        make(**options),
    )
    lift(model[0], 0.5)
    lift(model[4], 1)
    return model


def images(*shape: int, ties: bool = False) -> Tensor:
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2
    return (x * 4).round() / 4 if ties else x


def run(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def step_by_step(model: nn.Module, x: Tensor) -> Any:
    return [model(x_t) for x_t in x.unbind(0)]


def states(model: nn.Module) -> dict[str, Any]:
    return {
        f"{name}.{state}": getattr(module, state)
        for name, module in model.named_modules()
        for state in ("mem", "spike", "feature_map")
        if isinstance(module, node.BaseNode)
    }


def detach(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, node.BaseNode):
            module.mem = module.mem.detach()


def reset(*models: nn.Module) -> None:
    for model in models:
        for module in model.modules():
            if isinstance(module, node.BaseNode):
                module.n_reset()


@EVERY_NODE
def test_layer_by_layer(make: Make) -> None:
    """Over two calls with states carried over, and one after a reset."""
    own, fused, report = twins(conv_net(make, layer_by_layer=True, step=T, requires_fp=True))
    assert list(report.replaced) == ["1", "5"]
    inputs = [images(T * 3, 2, 6, 6), images(T * 3, 2, 6, 6, ties=True)]
    assert_same_calls(own, fused, inputs, run, states, detach)
    reset(own, fused)
    assert states(own) == states(fused)
    assert_same_calls(own, fused, [images(T * 2, 2, 6, 6)], run, states)


@EVERY_NODE
@pytest.mark.parametrize("mem_detach", [False, True])
def test_step_by_step(make: Make, mem_detach: bool) -> None:
    own, fused, _ = twins(conv_net(make, mem_detach=mem_detach))
    inputs = [images(T, 3, 2, 6, 6), images(T, 3, 2, 6, 6, ties=True)]
    assert_same_calls(own, fused, inputs, step_by_step, states, detach)


@EVERY_NODE
def test_membranes_at_the_threshold(make: Make) -> None:
    own, fused, _ = twins(make(layer_by_layer=True, step=T))
    x = (torch.randn(T * 3, 50, generator=torch.Generator().manual_seed(0)) * 4).round() / 4
    assert_same_calls(own, fused, [x], run, states)


def test_steps_among_the_channels() -> None:
    own, fused, _ = twins(node.LIFNode(n_groups=2, step=T))
    assert_same_calls(own, fused, [images(3, 4 * T, 6, 6)], run, states)


def test_state_dict_and_restore() -> None:
    own, fused, _ = twins(conv_net(NODES["PLIF"], layer_by_layer=True, step=T))
    assert fused[1].w is dict(fused.named_parameters())["1.w"]
    assert_same_state_dict(own, fused)
    kinds = [type(module) for module in own.modules()]
    x = images(T * 3, 2, 6, 6)
    own(x), fused(x)
    restore(fused)
    assert [type(module) for module in fused.modules()] == kinds
    assert_same_calls(own, fused, [x], run, states, detach)


def refused() -> dict[str, nn.Module]:
    return {
        "there is no fused one": node.BurstLIFNode(),
        "whose alpha learns": node.PLIFNode(),
        "act_fun is ReLUGrad, unknown here": node.LIFNode(act_fun=node.ReLUGrad),
        "requires_mem is True": node.LIFNode(requires_mem=True),
        "mem_detach is True": node.LIFNode(mem_detach=True, layer_by_layer=True),
        "threshold is 0.0": node.LIFNode(threshold=0.0),
        "tau is 0.5": node.LIFNode(tau=0.5),
        "dt is 0.5": plif(dt=0.5),
    }


@pytest.mark.parametrize("reason", refused())
def test_what_is_left_says_why(reason: str) -> None:
    report = accelerate(nn.Sequential(refused()[reason], node.LIFNode()))
    assert reason in report.left["0"]
    assert list(report.replaced) == ["1"]
