"""Which modules compute what their class says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snnkern
from python_tests.networks import tiny_net
from snnkern.nn import IF, LIF, NormLIF, RateCoding, packed
from snnkern.nn.reading import runs_as


class Standardised(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = super()._conv_forward(input, weight - weight.mean(), bias)
        return result


class Hot(LIF):
    def neuron_options(self) -> dict[str, Any]:
        return super().neuron_options() | {"threshold": 2 * self.threshold}


class Scaled(LIF):
    def dynamics(self) -> dict[str, Any]:
        return super().dynamics() | {"threshold": 2 * self.threshold}


class Shifted(NormLIF):
    def current(self, x: Tensor) -> Tensor:
        return super().current(x) + 1


class Negatives(RateCoding):
    def rates(self, x: Tensor) -> Tensor:
        return 1 - x


class Called(nn.Linear):
    def __call__(self, *args: Any, **options: Any) -> Tensor:
        result: Tensor = super().__call__(*args, **options)
        return -result


class Always(nn.Dropout):
    @property
    def training(self) -> bool:
        return True

    @training.setter
    def training(self, value: bool) -> None: ...


class Noisy(nn.Linear):
    @property
    def in_features(self) -> int:
        return 0

    @in_features.setter
    def in_features(self, value: int) -> None: ...


class Turned(nn.Module):
    def _call_impl(self, *args: Any, **options: Any) -> Tensor:
        result: Tensor = super()._call_impl(*args, **options)  # type: ignore[no-untyped-call]
        return -result


class Mixed(nn.Linear, Turned): ...


class Named(LIF):
    """What changes nothing."""

    note: str

    def __init__(self) -> None:
        super().__init__(0.9, 0.3)

    def extra_repr(self) -> str:
        return "named"


def with_own(module: nn.Module, name: str) -> nn.Module:
    setattr(module, name, getattr(module, name))
    return module


def compiled(module: nn.Module) -> nn.Module:
    module.compile()
    return module


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (Standardised(1, 1, 1), nn.Conv2d),
        (Hot(), LIF),
        (Scaled(), LIF),
        (Shifted(3), NormLIF),
        (Negatives(3), RateCoding),
        (Called(2, 2), nn.Linear),
        (Always(), nn.Dropout),
        (Noisy(2, 2), nn.Linear),
        (Mixed(2, 2), nn.Linear),
        (packed.Linear(2, 2), nn.Linear),
        (with_own(LIF(), "neuron_options"), LIF),
        (with_own(LIF(), "dynamics"), LIF),
        (with_own(nn.Conv2d(1, 1, 1), "_conv_forward"), nn.Conv2d),
        (with_own(nn.Linear(1, 1), "_call_impl"), nn.Linear),
        (compiled(nn.Linear(1, 1)), nn.Linear),
        (torch.nn.utils.parametrizations.weight_norm(Called(2, 2)), nn.Linear),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_whatever_forward_calls_may_not_be_overridden(
    module: nn.Module, kind: type[nn.Module]
) -> None:
    assert not runs_as(module, kind)


def test_what_overrides_nothing_is_what_its_base_is() -> None:
    assert runs_as(IF(), LIF)
    assert runs_as(Named(), LIF)
    assert runs_as(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear)
    assert runs_as(
        torch.nn.utils.parametrizations.spectral_norm(packed.Linear(2, 2)), packed.Linear
    )
    net = tiny_net()
    with snnkern.gradient(net, "rate"):
        assert all(runs_as(module, type(module)) for module in net.modules())
