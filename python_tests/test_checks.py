"""Whether checks of an attack pass where it works, and fail where something is masked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.networks import assert_unchanged, fc_layers, linear_net, snapshot, tiny_net
from snnkern.attacks import (
    APGD,
    DEFAULT_ENSEMBLE,
    FGSM,
    PGD,
    SAPGD,
    Check,
    Ensemble,
    Square,
    check,
)
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import LIF, MeanReadout, RateCoding
from snnkern.surrogate import Rectangle, Triangle

EVERY = (
    "one step beats many by",
    "black box beats white box by",
    "noise breaks what gradients miss",
    "twice the eps loses",
    "unbounded attack leaves",
    "twice the steps lose",
    "twice the restarts lose",
    "more steps and restarts find",
    "no gradient at all",
    "gradients not finite",
    "a layer without gradient",
    "loss rises by",
    "two calls differ",
)


def batches(net: nn.Module, count: int = 60, size: int = 25) -> list[tuple[Tensor, Tensor]]:
    """Images whose labels are what the network says, but for every fourth."""
    x = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.random.fork_rng():
        labels = net(x).argmax(1)
    labels[::4] = (labels[::4] + 1) % 3
    return list(zip(x.split(size), labels.split(size), strict=True))


def checked(net: nn.Module, attack: Any, **options: Any) -> dict[str, Check]:
    options = {"queries": 50, "progress": False} | options
    return {one.name: one for one in check(net, batches(net), attack, **options)}


def failing(checks: dict[str, Check]) -> set[str]:
    return {name for name, one in checks.items() if not one.passed}


@pytest.mark.parametrize(
    "attack",
    [
        PGD(0.1, steps=20, keep="best"),
        APGD(0.1, steps=20),
        PGD(0.2, step_size=0.05, steps=20, norm="l2"),
    ],
    ids=["pgd", "apgd", "l2"],
)
def test_gradients_that_are_derivatives_pass(attack: Any) -> None:
    checks = checked(linear(), attack)
    assert list(checks) == [name for name in EVERY if name != "a layer without gradient"]
    assert not failing(checks)
    assert checks["twice the eps loses"].figure < 0
    assert checks["loss rises by"].figure > 0
    assert checks["unbounded attack leaves"].threshold == pytest.approx(1 / 3)


def test_the_default_ensemble_passes() -> None:
    net = tiny_net().train()
    before = snapshot(net)
    attack = Ensemble(SAPGD(0.1, steps=20, stop=True), DEFAULT_ENSEMBLE)
    checks = checked(net, attack)
    assert_unchanged(net, before)
    assert tuple(checks) == EVERY
    assert not failing(checks)


def test_a_surrogate_that_is_nowhere_is_seen() -> None:
    checks = checked(tiny_net(surrogate=Rectangle(1e-6)), PGD(0.3, steps=10, random_start=False))
    assert failing(checks) == {
        "black box beats white box by",
        "noise breaks what gradients miss",
        "unbounded attack leaves",
        "no gradient at all",
        "loss rises by",
    }
    assert checks["no gradient at all"].figure == 1
    assert checks["unbounded attack leaves"].figure == pytest.approx(0.75)
    assert checks["a layer without gradient"].passed  # above the only layer all is well


def test_layers_and_members_are_told_apart() -> None:
    net = tiny_net(surrogate=Triangle(2.0))
    blind = Rectangle(1e-6)
    checks = checked(net, Ensemble(PGD(0.1, steps=3), (blind, Triangle(2.0))))
    assert checks["no gradient at all"].passed
    assert checks["no gradient at all"].note == f"{blind} 100.0%, {Triangle(2.0)} 0.0%"


def test_a_dead_layer_is_seen_below_it() -> None:
    layers = fc_layers((4, 8, 8, 3), leak=0.5, threshold=0.5, surrogate=Triangle(2.0))
    net = SpikingNetwork(3, Normalize([0.5], [0.5]), layers, MeanReadout())
    dead = layers[4]
    assert isinstance(dead, LIF)
    dead.surrogate = Rectangle(1e-6)
    found = checked(net, PGD(0.1, steps=2))["a layer without gradient"]
    assert found.figure == 1
    assert found.note == "layers.4 0.0%, layers.2 100.0%"


def linear() -> nn.Module:
    """Says which of the first three pixels is the brightest."""
    return linear_net(5 * torch.eye(3, 4), torch.zeros(3))


class Odd(nn.Module):
    """A linear classifier whose gradient is something else."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = linear()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x = x + 0
            x.register_hook(self.change)
        logits: Tensor = self.linear(x)
        return logits


def test_gradients_that_lead_down_or_are_not_finite_are_seen() -> None:
    down = checked(Odd(lambda g: -g), PGD(0.2, steps=10, random_start=False))
    seen = {"loss rises by", "unbounded attack leaves", "black box beats white box by"}
    assert seen <= failing(down)
    infinite = checked(Odd(lambda g: g / 0), PGD(0.1, steps=10))
    assert infinite["gradients not finite"].figure == 1
    half = Odd(lambda g: torch.where(torch.arange(len(g)).view(-1, 1, 1, 1) % 2 > 0, g, g * 0))
    figure = checked(half, PGD(0.1, steps=10))["no gradient at all"].figure
    assert 0.4 < figure < 0.6


def test_chance_is_seen_unless_it_is_averaged() -> None:
    net = tiny_net()
    net.encoder = RateCoding(3)
    state = torch.random.get_rng_state()
    once = checked(net, PGD(0.1, steps=3))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert "two calls differ" in failing(once)
    assert once == checked(net, PGD(0.1, steps=3))
    assert "two calls differ" not in failing(checked(net, PGD(0.1, steps=3, eot=2)))


def test_a_source_takes_the_place_of_square() -> None:
    """A source that knows better than the network's own gradients."""
    net = tiny_net(surrogate=Rectangle(1e-6))
    attack = PGD(0.3, steps=10, random_start=False)
    black = "black box beats white box by"
    same = checked(net, attack, source=net)[black]
    assert same.figure == 0
    better = checked(net, attack, source=tiny_net(surrogate=Triangle(2.0)))[black]
    assert better.figure > 0.2


def test_few_samples_are_enough() -> None:
    net = tiny_net()
    loader = batches(net)
    cut = [loader[0], (loader[1][0][:5], loader[1][1][:5])]
    options: dict[str, Any] = {"queries": 2, "progress": False}
    some = check(net, loader, PGD(0.1, steps=2), samples=30, **options)
    assert some == check(net, cut, PGD(0.1, steps=2), **options)
    assert some != check(net, loader, PGD(0.1, steps=2), **options)


@dataclass
class Refused:
    loader: Any
    attack: Any
    error: type[Exception]
    message: str


@pytest.mark.parametrize(
    "case",
    [
        Refused(None, FGSM(), TypeError, "expected a PGD, APGD or SAPGD, or an Ensemble"),
        Refused(None, Square(), TypeError, "expected a PGD"),
        Refused([], PGD(), ValueError, "loader is empty"),
        Refused(
            [(torch.full((1, 1, 2, 2), 1.5), torch.tensor([0]))], PGD(), ValueError, "pixels in"
        ),
    ],
)
def test_what_cannot_be_checked_is_refused(case: Refused) -> None:
    net = tiny_net()
    with pytest.raises(case.error, match=case.message):
        check(net, batches(net) if case.loader is None else case.loader, case.attack)


def test_a_figure_that_is_no_number_fails() -> None:
    assert not Check("a", float("nan")).passed
    assert not Check("a", float("nan"), bound="above").passed
    assert Check("a", 0.0).passed
    assert not Check("a", 0.0, bound="above").passed
