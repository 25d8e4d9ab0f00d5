"""Norse itself, beside its neurons fused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from python_tests.helpers import need
from python_tests.twins import assert_same_calls, assert_same_state_dict, lift, twins
from snnkern.interop import accelerate, restore

norse = need("norse.torch")


def images(*shape: int, ties: bool = False) -> Tensor:
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 8
    return (x * 4).round() / 4 if ties else x


class Net(nn.Module):
    """All steps at once, each module handing on its spikes, and states from call to call."""

    def __init__(self, lif1: nn.Module, lif2: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 9, 5)
        self.lif1, self.lif2 = lif1, lif2
        self.kept: list[Any] = [None, None]
        lift(self.conv, 2)
        lift(self.fc, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first, second = self.kept
        y = self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        y, first = self.lif1(y, first)
        y = self.fc(nn.functional.max_pool2d(y.flatten(0, 1), 2).flatten(1))
        y, second = self.lif2(y.unflatten(0, x.shape[:2]), second)
        self.kept = [type(s)(*(part.detach() for part in s)) for s in (first, second)]
        return (y, *first, *second)


class Steps(nn.Module):
    """A cell in a loop over time, states passed."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        state, spikes = None, []
        for x_t in x.unbind(0):
            s, state = self.cell(x_t, state)
            spikes.append(s)
        assert state is not None
        return (torch.stack(spikes), *state)


def run(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def nothing(model: nn.Module) -> dict[str, Any]:
    return {}


def parameters(**options: Any) -> Any:
    return norse.LIFParameters(**{n: torch.as_tensor(v) for n, v in options.items()})


PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {},
    "elsewhere": {"v_leak": 0.2, "v_reset": -0.1, "v_th": 0.8, "tau_mem_inv": 300.0},
    "slow current": {"tau_syn_inv": 70.0},
}
EVERY = pytest.mark.parametrize("options", PARAMETERS.values(), ids=PARAMETERS)


@EVERY
def test_lif_over_two_calls(options: dict[str, Any]) -> None:
    """The second goes on from the state of the first."""
    p = parameters(**options)
    own, fused, report = twins(Net(norse.LIF(p), norse.LIF(p, dt=0.002)))
    assert list(report.replaced) == ["lif1", "lif2"]
    assert not report.left
    inputs = [images(6, 3, 2, 6, 6), images(4, 3, 2, 6, 6, ties=True)]
    assert_same_calls(own, fused, inputs, run, nothing)
    own.kept = fused.kept = [None, None]
    assert_same_calls(own, fused, [images(4, 2, 2, 6, 6)], run, nothing)


def test_iaf() -> None:
    own, fused, _ = twins(Net(norse.IAF(), norse.IAF(norse.IAFParameters(v_th=torch.tensor(2.0)))))
    assert_same_calls(own, fused, [images(6, 3, 2, 6, 6), images(4, 3, 2, 6, 6)], run, nothing)


@EVERY
def test_lif_cell(options: dict[str, Any]) -> None:
    own, fused, report = twins(Steps(norse.LIFCell(parameters(**options))))
    assert not report.left
    inputs = [images(9, 3, 50), images(9, 2, 4, 5, ties=True), images(9, 50)]
    assert_same_calls(own, fused, inputs, run, nothing)


@pytest.mark.parametrize("reset", ["reset_value", "reset_subtract"])
@pytest.mark.parametrize("v_leak", [0.0, 0.2])
def test_lif_box_cell(reset: str, v_leak: float) -> None:
    from norse.torch.functional import reset as resets

    p = norse.LIFBoxParameters(
        v_leak=torch.tensor(v_leak), v_reset=torch.tensor(-0.1), reset_method=getattr(resets, reset)
    )
    own, fused, report = twins(Steps(norse.LIFBoxCell(p)))
    assert not report.left
    inputs = [images(20, 3, 50), images(20, 2, 4, 5, ties=True)]
    assert_same_calls(own, fused, inputs, run, nothing)


def test_iaf_cell() -> None:
    own, fused, _ = twins(Steps(norse.IAFCell()))
    assert_same_calls(own, fused, [images(9, 3, 50, ties=True) / 4], run, nothing)


def test_time_constants_and_thresholds_learn() -> None:
    values = {"tau_mem_inv": 120.0, "tau_syn_inv": 180.0, "v_th": 0.9}
    x = images(8, 3, 50)
    grads = []
    for accelerated in (False, True):
        learnt = {name: nn.Parameter(torch.tensor(value)) for name, value in values.items()}
        lif = norse.LIF(norse.LIFParameters(**learnt))
        if accelerated:
            assert accelerate(lif).replaced
        spikes, state = lif(x)
        weights = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(0))
        ((spikes * weights).sum() + state.v.sum() + state.i.sum()).backward()
        grads.append([parameter.grad for parameter in learnt.values()])
    for theirs, ours in zip(*grads, strict=True):
        assert theirs is not None
        assert ours is not None
        assert (theirs - ours).abs() <= 1e-5 * theirs.abs()


def test_super_spike_heeds_alpha_only_when_corrected() -> None:
    x = images(6, 3, 50)
    own, corrected, _ = twins(norse.LIF(), corrected=True)
    grads = []
    for model in (own, corrected):
        leaf = x.clone().requires_grad_()
        spikes, _ = model(leaf)
        spikes[0].sum().backward()
        grads.append(leaf.grad)
    assert grads[0] is not None
    assert grads[1] is not None
    z = 0.1 * x[0] - 1
    assert torch.allclose(grads[0][0], 0.1 / (1 + z.abs()) ** 2)
    assert torch.allclose(grads[1][0], 0.1 / (1 + 100 * z.abs()) ** 2)


def test_sequential_state_passes_states_on() -> None:
    """The library's container looks at the signature of forward."""
    torch.manual_seed(0)
    model = norse.SequentialState(norse.LIFCell(), nn.Linear(7, 5), norse.LIFCell())
    own, fused, report = twins(model)
    assert list(report.replaced) == ["0", "2"]
    x = images(5, 3, 7) * 4
    ours = theirs = None
    for x_t in x.unbind(0):
        mine, ours = fused(x_t, ours)
        other, theirs = own(x_t, theirs)
        assert torch.equal(mine, other)
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine is None) == (other is None)
            if mine is not None:
                assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def test_state_dict_and_restore() -> None:
    own, fused, _ = twins(Net(norse.LIF(), norse.LIF()))
    assert_same_state_dict(own, fused)
    kinds = [type(module) for module in own.modules()]
    restore(fused)
    assert [type(module) for module in fused.modules()] == kinds
    assert_same_calls(own, fused, [images(4, 3, 2, 6, 6)], run, nothing)


def refused() -> dict[str, nn.Module]:
    return {
        "there is no fused one": norse.LIFRecurrent(3, 3),
        "record_states is True": norse.LIF(record_states=True),
        "p.method is 'adjoint'": norse.LIF(norse.LIFParameters(method="adjoint")),
        "there is no surrogate circ": norse.LIF(norse.LIFParameters(method="circ")),
        "p.v_th is -50.0": norse.LIF(parameters(v_th=-50.0)),
        "p.v_reset is not a number": norse.LIF(parameters(v_reset=torch.rand(3))),
        "dt * tau_mem_inv is 2.0": norse.LIF(parameters(tau_mem_inv=2000.0)),
    }


@pytest.mark.parametrize("reason", refused())
def test_what_is_left_says_why(reason: str) -> None:
    report = accelerate(nn.Sequential(refused()[reason], norse.LIF()))
    assert reason in report.left["0"]
    assert list(report.replaced) == ["1"]


def test_half_inputs() -> None:
    x = images(6, 3, 50).bfloat16()
    own, fused, _ = twins(norse.LIF())
    with pytest.warns(UserWarning, match="LIF runs the library's own steps: .* torch.bfloat16"):
        assert torch.equal(fused(x)[0], own(x)[0])
    own, fused, _ = twins(norse.LIF(), corrected=True)
    spikes, state = fused(x)
    wide, expected = own(x.float())
    assert spikes.dtype == torch.bfloat16
    assert torch.equal(spikes.float(), wide)
    assert torch.equal(state.v, expected.v)


def test_thresholds_per_feature() -> None:
    """As they broadcast: against the last dimensions of a sample; otherwise the library runs."""
    v_th = torch.rand(7, generator=torch.Generator().manual_seed(0)) + 0.5
    own, fused, _ = twins(norse.LIF(parameters(v_th=v_th)))
    assert_same_calls(own, fused, [images(6, 3, 7), images(6, 2, 4, 7)], run, nothing)
    with pytest.warns(UserWarning, match=r"threshold has shape \[7\], which is not one of feat"):
        assert_same_calls(own, fused, [images(6, 7)], run, nothing)
