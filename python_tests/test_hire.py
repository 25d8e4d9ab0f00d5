from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from python_tests.helpers import assert_same_bits, assert_within, golden
from python_tests.networks import hire_net, tiny_net
from snnkern import LIF, NormLIF
from snnkern.functional import checks
from snnkern.models import SpikingNetwork
from snnkern.nn import TimeDistributed
from snnkern.nn import neuron as neuron_module
from snnkern.training import HIRE, Memory, fit

LAYERS = ("features.0", "features.3", "features.6", "classifier.0", "classifier.3")
NEURONS = ("0", "3", "6", "9")


def batches(count: int = 3, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(0)
    return [
        (torch.rand(size, 1, 2, 2, generator=draws), torch.randint(3, (size,), generator=draws))
        for _ in range(count)
    ]


def reference(
    model: SpikingNetwork,
    data: list[tuple[Tensor, Tensor]],
    *,
    lr: float,
    step: float,
    bound: float,
    periods: int,
    after: bool = False,
    clip: bool = False,
) -> tuple[list[Tensor], list[float]]:
    """Algorithm 1 line by line, without any of the library's training code."""
    timesteps = model.timesteps
    model.timesteps = timesteps // periods
    kappa, kappas, losses = torch.zeros_like(data[0][0]), [], []
    for x, y in data:
        for _ in range(periods):
            rows = slice(len(x))
            images = x + kappa[rows]
            images = (images.clamp(0, 1) if clip else images).requires_grad_()
            loss = F.cross_entropy(model(images), y)
            parameters = [p for p in model.parameters() if p.requires_grad]
            *grads, of_pixels = torch.autograd.grad(loss, [*parameters, images])
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.detach().sub_(lr * grad)
            if after:
                (of_pixels,) = torch.autograd.grad(F.cross_entropy(model(images), y), images)
            kappa[rows] = (kappa[rows] + step * of_pixels.sign()).clamp(-bound, bound)
            kappas.append(kappa.clone())
            losses.append(loss.item())
    model.timesteps = timesteps
    return kappas, losses


def assert_same_weights(model: nn.Module, other: nn.Module, allowed: float = 1e-6) -> None:
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert_within(mine.detach(), theirs.detach(), allowed, name)


# The papers' numbers


@pytest.fixture
def _leaks_above_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The papers' code has no bound on leaks; here they act at 1 at most."""
    monkeypatch.setitem(neuron_module.BOUNDS, "leak", (0.0, torch.inf))
    monkeypatch.setattr(checks, "check_parameter", lambda name, value: None)


@pytest.mark.usefixtures("_leaks_above_one")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_hire_network(mode: str, dtype: torch.dtype) -> None:
    data = {name: torch.from_numpy(value) for name, value in golden("hire_network").items()
            if value.dtype.kind in "fi"}  # fmt: skip
    masks = {name: data[f"{mode}.mask.{name}"].to(dtype) for name in ("5", "11")}
    model, layers, neurons = hire_net(golden("hire_network"), masks)
    model.to(dtype)
    x = data["x"].to(dtype).requires_grad_()
    out = model(x)
    loss = F.cross_entropy(out, data["labels"])
    loss.backward()
    assert x.grad is not None
    found = {"out": out, "loss": loss, "gx": x.grad}
    for name, layer in zip(LAYERS, layers, strict=True):
        found[f"g.{name}.weight"] = layer.get_parameter("weight").grad
    for key, neuron in zip(NEURONS, neurons, strict=True):
        found[f"g.threshold.t{key}"] = neuron.get_parameter("threshold").grad
        found[f"g.leak.l{key}"] = neuron.get_parameter("leak").grad
    for name, actual in found.items():
        expected = data[f"{mode}.{name}"]
        scale = max(1.0, float(expected.abs().max()))
        allowed = (1e-9 if dtype == torch.float64 else 2e-5) * scale
        assert_within(actual.detach(), expected, allowed, name)


@pytest.mark.usefixtures("_leaks_above_one")
def test_golden_hire_kappa() -> None:
    data = golden("hire_kappa")
    method = HIRE(float(data["eps_s"]), float(data["eps_t"]), int(data["N"]), clamp_leak=False)
    model, layers, neurons = hire_net(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=float(data["lr"]))
    xs, ys = torch.from_numpy(data["xs"]), torch.from_numpy(data["ys"])
    memory, period = Memory.seeded(0), 0
    for x, y in zip(xs, ys, strict=True):
        for loss, _ in method.losses(model, x, y, memory):
            if period:
                kappa = torch.from_numpy(data["kappa"][period - 1])
                assert_within(memory.tensors["kappa"], kappa, 1e-12, f"kappa {period}")
            assert loss.item() == pytest.approx(data["losses"][period], rel=1e-9)
            period += 1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert_within(memory.tensors["kappa"], torch.from_numpy(data["kappa"][-1]), 1e-12)

    fitted, fitted_layers, fitted_neurons = hire_net(data)
    fit(
        fitted,
        list(zip(xs, ys, strict=True)),
        method,
        epochs=1,
        optimizer=torch.optim.SGD(fitted.parameters(), lr=float(data["lr"])),
        progress=False,
    )
    for these, those in ((layers, neurons), (fitted_layers, fitted_neurons)):
        for name, layer in zip(LAYERS, these, strict=True):
            expected = torch.from_numpy(data[f"after.{name}.weight"])
            assert_within(layer.get_parameter("weight").detach(), expected, 1e-9, name)
        for key, neuron in zip(NEURONS, those, strict=True):
            assert neuron.threshold.item() == pytest.approx(data[f"after.threshold.t{key}"])
            assert neuron.get_parameter("leak").item() == pytest.approx(data[f"after.leak.l{key}"])


# Algorithm 1 and its options


@pytest.mark.parametrize(
    "options",
    [
        {"step": 0.05, "bound": 0.08, "periods": 2},
        {"step": 0.05, "bound": 0.05, "periods": 3},
        {"step": 0.05, "bound": 0.08, "periods": 1},
        {"step": 0.3, "bound": 0.5, "periods": 2, "clip": True},
        {"step": 0.05, "bound": 0.08, "periods": 2, "after": True},
    ],
    ids=str,
)
def test_hire_is_algorithm_1(options: dict[str, Any]) -> None:
    model = tiny_net(7, learn_leak=True, learn_threshold=True)
    plain = tiny_net(7, learn_leak=True, learn_threshold=True)
    data = [*batches(3, 6), *batches(1, 4), *batches(2, 6)]
    kappas, losses = reference(plain, data, lr=0.1, **options)
    order = "after" if options.pop("after", False) else "before"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory, at = Memory.seeded(0), 0
    for x, y in data:
        for loss, _ in HIRE(**options, order=order).losses(model, x, y, memory):  # type: ignore[arg-type]
            if at:
                assert_within(memory.tensors["kappa"], kappas[at - 1], 1e-7)
            assert loss.item() == pytest.approx(losses[at], rel=1e-5)
            at += 1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert at == len(kappas)
    assert_within(memory.tensors["kappa"], kappas[-1], 1e-7)
    assert memory.tensors["kappa"].any()
    assert_same_weights(model, plain)
    assert model.timesteps == 7


def test_kappa_goes_on_over_epochs() -> None:
    model, plain = tiny_net(4), tiny_net(4)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    history = fit(model, batches(2), HIRE(0.05), epochs=3, optimizer=sgd, progress=False)
    _, losses = reference(plain, batches(2) * 3, lr=0.1, step=0.05, bound=0.05, periods=2)
    assert_same_weights(model, plain)
    for epoch, record in enumerate(history):
        assert record.loss == pytest.approx(sum(losses[4 * epoch :][:4]) / 4, rel=1e-5)


def test_kappa_grows_with_a_larger_batch() -> None:
    model, memory = tiny_net(4), Memory.seeded(0)
    for (x, y), size in zip(batches(3), (2, 6, 3), strict=True):
        kept = memory.tensors.get("kappa", x[:0]).clone()
        for loss, _ in HIRE(0.1).losses(model, x[:size], y[:size], memory):
            loss.backward()
            assert_same_bits(memory.tensors["kappa"][size:], kept[size:])
            if size == 6:
                break
        assert len(memory.tensors["kappa"]) == max(size, len(kept))


def test_one_backward_gives_both_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = {"forward": 0, "backward": 0}
    model = tiny_net(4)
    model.register_forward_hook(lambda *_: passes.update(forward=passes["forward"] + 1))
    right = torch.autograd.backward

    def spy(*arguments: Any, **options: Any) -> None:
        passes["backward"] += 1
        right(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "backward", spy)
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: pytest.fail("a second backward pass"))
    fit(model, batches(3), HIRE(0.1), epochs=1, progress=False)
    assert passes == {"forward": 6, "backward": 6}


def test_periods_start_from_rest_or_from_where_the_last_ended() -> None:
    """Without noise and learning, carried membranes make the periods one long run."""
    (x, y), *_ = batches(1)
    model = tiny_net(6, leak=1.0)
    halves: dict[bool, list[Tensor]] = {}
    for carry in (False, True):
        method = HIRE(0.0, periods=2, carry=carry)
        found = method.losses(model, x, y, Memory.seeded(0))
        halves[carry] = [logits.detach() for _, logits in _without_steps(found)]
    whole = model(x)
    assert_within(torch.stack(halves[True]).mean(0), whole.detach(), 1e-6)
    assert_same_bits(halves[False][0], halves[False][1])
    assert not torch.equal(halves[True][0], halves[True][1])
    assert_same_bits(halves[True][0], halves[False][0])
    assert not any(m.stateful or m._state for m in model.modules() if isinstance(m, LIF))


def _without_steps(losses: Any) -> Any:
    for loss, logits in losses:
        loss.backward()
        yield loss, logits


def test_gaussian_noise_is_drawn_for_every_period() -> None:
    (x, y), *_ = batches(1, 500)
    model, memory = tiny_net(4), Memory.seeded(3)
    drawn = []
    for loss, _ in HIRE(0.2, noise="gaussian").losses(model, x, y, memory):
        loss.backward()
        drawn.append(memory.tensors["kappa"].clone())
    for noise in drawn:
        assert noise.std().item() == pytest.approx(0.2, rel=0.1)
        assert abs(noise.mean().item()) < 0.02
    assert not torch.equal(*drawn)


def test_leaks_are_kept_at_one() -> None:
    model = tiny_net(4, leak=1.0, learn_leak=True)
    leaks = [m.get_parameter("leak") for m in model.modules() if isinstance(m, LIF)]
    for clamp in (False, True):
        for loss, _ in HIRE(0.1, clamp_leak=clamp).losses(model, *batches(1)[0], Memory.seeded(0)):
            loss.backward()
            for leak in leaks:
                leak.detach().fill_(1.25)
        assert all(leak.item() == (1.0 if clamp else 1.25) for leak in leaks)


def test_what_hire_cannot_train_is_refused() -> None:
    x, y = batches(1)[0]
    memory = Memory.seeded(0)
    with pytest.raises(ValueError, match="model has timesteps=3, expected at least 4"):
        next(HIRE(periods=4).losses(tiny_net(3), x, y, memory))
    with pytest.raises(ValueError, match="model has timesteps=0, expected at least 2"):
        next(HIRE().losses(nn.Linear(2, 2), x, y, memory))
    normed = tiny_net(4)
    normed.layers = nn.Sequential(TimeDistributed(nn.Flatten()), NormLIF(4, leak=0.5))
    with pytest.raises(ValueError, match="carry is True and model holds a NormLIF"):
        next(HIRE(carry=True).losses(normed, x, y, memory))
    assert normed.timesteps == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": -0.1}, "HIRE: step is -0.1, expected"),
        ({"bound": "wide"}, "HIRE: bound is 'wide'.*expected a number"),
        ({"periods": 0}, "HIRE: periods is 0, expected"),
        ({"noise": "white"}, "HIRE: noise is 'white', expected crafted or gaussian"),
        ({"order": "then"}, "HIRE: order is 'then', expected before or after"),
        ({"carry": True, "order": "after"}, "carry is True and order is 'after'"),
    ],
)
def test_impossible_hires_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        HIRE(**options)
