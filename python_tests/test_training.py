from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from python_tests.helpers import assert_same_bits, assert_within, golden
from python_tests.networks import linear_net, tiny_net
from snnkern.attacks import FGSM, PGD, RFGSM
from snnkern.data import digits, loader
from snnkern.models import SpikingNetwork, fc_net
from snnkern.nn import LIF
from snnkern.training import (
    HIRE,
    RAT,
    EpochRecord,
    Memory,
    Method,
    Natural,
    fit,
    orthogonal_retraction,
    simplex_projection,
)

Batches = list[tuple[Tensor, Tensor]]


def batches(count: int = 3, size: int = 6) -> Batches:
    draws = torch.Generator().manual_seed(0)
    return [
        (
            torch.rand(size, 1, 2, 2, generator=draws),
            torch.randint(3, (size,), generator=draws),
        )
        for _ in range(count)
    ]


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def digits_net() -> SpikingNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fc_net(timesteps=4, input_shape=(1, 8, 8), hidden=(32,), leak=0.5, threshold=0.5)


# The loop


@pytest.mark.parametrize("method", [Natural(), RAT(eps=0.05, beta=1e-4), HIRE(0.02)])
def test_fit_learns_the_digits(method: Method) -> None:
    split = digits()
    model = digits_net()
    history = fit(
        model, loader(split.train, shuffle=True), method, epochs=5, lr=5e-3, progress=False
    )
    assert [record.epoch for record in history] == list(range(5))
    assert history[-1].loss < 0.5 * history[0].loss
    assert history[-1].accuracy > max(0.85, history[0].accuracy)
    model.eval()
    images, labels = split.test.tensors
    assert (model(images).argmax(1) == labels).float().mean() > 0.85


def test_fit_is_adam_with_a_cosine_schedule() -> None:
    model = tiny_net()
    plain = copy.deepcopy(model)
    history = fit(model, batches(), epochs=4, lr=0.02, progress=False)
    optimiser = torch.optim.Adam(plain.parameters())
    for epoch in range(4):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * (1 + math.cos(math.pi * epoch / 4)) / 2
        loss_sum, right = 0.0, 0
        for x, y in batches():
            logits = plain(x)
            loss = F.cross_entropy(logits, y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss_sum += loss.item() * len(y)
            right += int((logits.argmax(1) == y).sum())
        assert history[epoch].loss == pytest.approx(loss_sum / 18, rel=1e-5)
        assert history[epoch].accuracy == pytest.approx(right / 18)
    for actual, expected in zip(weights(model), weights(plain), strict=True):
        assert_within(actual, expected, 1e-6)


def test_batches_of_different_sizes_count_by_sample() -> None:
    (x, y), (x2, y2) = batches(2)
    uneven = [(x, y), (x2[:1], y2[:1])]
    model = tiny_net()
    record = fit(model, uneven, epochs=1, lr=0.0, progress=False)[0]
    logits = tiny_net()(torch.cat([x, x2[:1]]))
    labels = torch.cat([y, y2[:1]])
    assert record.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert record.accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())


@pytest.mark.parametrize("method", [Natural(), RAT(eps=0.1, wide=4, share=0.5, beta=0.01)])
def test_fit_repeats_with_its_seed(method: Method) -> None:
    runs: list[tuple[list[EpochRecord], list[Tensor]]] = []
    for seed in (0, 0, 1):
        model = tiny_net()
        torch.manual_seed(len(runs))  # the global generator plays no part
        history = fit(model, batches(), method, epochs=3, lr=0.01, seed=seed, progress=False)
        runs.append((history, weights(model)))
    assert runs[0][0] == runs[1][0]
    for first, again in zip(runs[0][1], runs[1][1], strict=True):
        assert_same_bits(first, again)
    drawn = any(not torch.equal(a, b) for a, b in zip(runs[0][1], runs[2][1], strict=True))
    assert drawn == isinstance(method, RAT)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_training(value: float) -> None:
    model = linear_net(torch.zeros(3, 4), torch.zeros(3))
    calls = []

    def late(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        calls.append(1)
        return output * (value if len(calls) > 4 else 1.0) + len(calls)

    model.register_forward_hook(late)
    before = weights(model)
    with pytest.raises(FloatingPointError, match=r"the loss became nan in epoch 1; lr is 0\.1875"):
        fit(model, batches(), epochs=3, lr=0.25, progress=False)
    assert len(calls) == 5
    for parameter in weights(model):
        assert parameter.isfinite().all()
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("empty", [[], DataLoader(TensorDataset(torch.rand(0, 1)), 3)])
def test_an_empty_loader_is_refused(empty: Any) -> None:
    with pytest.raises(ValueError, match="train_loader is empty, expected at least one batch"):
        fit(tiny_net(), empty, epochs=1, progress=False)


@pytest.mark.parametrize(
    ("epochs", "kind"), [(0, ValueError), (-3, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_impossible_epochs_are_refused(epochs: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"epochs is {epochs}.*expected an int"):
        fit(tiny_net(), batches(), epochs=epochs)


def test_fit_trains_in_training_mode() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), tiny_net()).eval()
    fit(model, batches(), epochs=1, progress=False)
    assert all(module.training for module in model.modules())
    assert not torch.equal(model[0].get_buffer("running_mean"), torch.zeros(1))


def test_fit_trains_leak_and_threshold() -> None:
    model = tiny_net(learn_leak=True, learn_threshold=True)
    neuron = next(module for module in model.modules() if isinstance(module, LIF))
    fit(model, batches(), epochs=2, lr=0.01, progress=False)
    assert neuron.get_parameter("leak").item() != 0.5
    assert neuron.threshold.item() != 0.5


def test_progress_can_be_silenced(capfd: pytest.CaptureFixture[str]) -> None:
    fit(tiny_net(), batches(), epochs=1, progress=False)
    assert capfd.readouterr() == ("", "")


# RAT


def test_rat_trains_on_what_the_drawn_attack_made() -> None:
    """In evaluation mode for the attack, in training mode for the loss: batch norm sees both."""
    x, y = batches(1, 12)[0]
    for seed in range(8):
        model = nn.Sequential(nn.BatchNorm2d(1), tiny_net()).train()
        nn.init.constant_(model[0].get_buffer("running_mean"), 0.3)
        plain = copy.deepcopy(model)
        loss, logits = next(RAT(eps=0.1).losses(model, x, y, Memory.seeded(seed)))
        draws = torch.Generator().manual_seed(seed)
        kind = int(torch.randint(4, (), generator=draws))
        attack = (
            FGSM(0.1),
            RFGSM(0.1),
            FGSM(0.1, gradient="rate"),
            RFGSM(0.1, gradient="rate"),
        )[kind]
        plain.eval()
        adversarial = attack(plain, x, y, draws)
        plain.train()
        expected = plain(adversarial)
        assert_within(logits.detach(), expected.detach(), 1e-6)
        assert_within(loss.detach(), F.cross_entropy(expected, y).detach(), 1e-6)
        # Exactly one pass in training mode.
        for buffer, other in zip(model.buffers(), plain.buffers(), strict=True):
            assert torch.equal(buffer, other)


def test_rat_draws_all_four_attacks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[tuple[str, Any], int] = {}
    for kind in (FGSM, RFGSM):
        right: Callable[..., Tensor] = kind.perturb

        def spy(
            self: FGSM, loss: Any, x: Tensor, generator: Any, right: Callable[..., Tensor] = right
        ) -> Tensor:
            key = (type(self).__name__, self.gradient)
            drawn[key] = drawn.get(key, 0) + 1
            assert self.eps == 0.07
            return right(self, loss, x, generator)

        monkeypatch.setattr(kind, "perturb", spy)
    model, (x, y) = tiny_net(2), batches(1)[0]
    memory = Memory.seeded(0)
    for _ in range(200):
        next(RAT(eps=0.07).losses(model, x, y, memory))
    assert set(drawn) == {
        ("FGSM", None),
        ("RFGSM", None),
        ("FGSM", "rate"),
        ("RFGSM", "rate"),
    }
    assert all(30 <= count <= 70 for count in drawn.values())  # 50 expected, deviation 6


def test_without_beta_the_weights_are_the_optimisers() -> None:
    model = tiny_net()
    before = weights(model)
    x, y = batches(1)[0]
    for method in (RAT(beta=0.0), Natural(), RAT(beta=0.01)):
        for actual, expected in zip(weights(model), before, strict=True):
            assert_same_bits(actual, expected)
        for _ in method.losses(model, x, y, Memory.seeded(0)):
            pass
    assert not torch.equal(weights(model)[0], before[0])


def test_fit_retracts_after_every_step() -> None:
    model, plain = tiny_net(), tiny_net()
    method = RAT(eps=0.0, beta=0.05)
    fit(model, batches(2), method, epochs=1, lr=0.01, progress=False)
    optimiser = torch.optim.Adam(plain.parameters(), lr=0.01)
    for x, y in batches(2):
        optimiser.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimiser.step()
        with torch.no_grad():
            for module in plain.modules():
                if isinstance(module, nn.Linear):
                    w = module.weight
                    w.copy_(w - 0.05 * (w @ w.T @ w - w))
    for actual, expected in zip(weights(model), weights(plain), strict=True):
        assert_within(actual, expected, 1e-5)


@pytest.mark.parametrize(
    "options",
    [{"eps": -0.1}, {"beta": math.nan}, {"beta": -1.0}, {"share": 1.5}, {"wide": 0.5}],
)
def test_impossible_methods_are_refused(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises((ValueError, TypeError), match=f"{name} is .*expected"):
        RAT(**options)


# The retraction


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=40)
def test_retraction_drives_singular_values_to_one(rows: int, columns: int, seed: int) -> None:
    layer = nn.Linear(columns, rows, dtype=torch.float64)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(rows, columns, generator=draws, dtype=torch.float64))
        bias = layer.bias.clone()
        # Well within where the iteration converges: below sqrt(1 + 1 / beta).
        layer.weight.mul_(1.5 / torch.linalg.matrix_norm(layer.weight, 2))
    u, before, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    for _ in range(400):
        orthogonal_retraction(layer, 0.1, 200, 0.3, torch.Generator())
    weight = layer.weight.detach()
    kept = before > 1e-4
    values = torch.linalg.svdvals(weight)
    assert_within(values[kept], torch.ones(int(kept.sum()), dtype=torch.float64), 1e-6)
    nearest = (u * kept) @ vh
    assert_within(weight @ nearest.T @ nearest, weight, 1e-3)
    assert torch.equal(layer.bias, bias)


@given(st.floats(0.0, 0.1), st.integers(0, 2**31))
@settings(max_examples=30)
def test_retraction_is_the_formula(beta: float, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 3, (2, 3), dtype=torch.float64),
        nn.Conv1d(4, 2, 3, groups=2, dtype=torch.float64),
        nn.BatchNorm2d(3, dtype=torch.float64),
        nn.Sequential(nn.Linear(5, 4, dtype=torch.float64)),
    )
    for parameter in model.parameters():
        parameter.detach().copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    orthogonal_retraction(model, beta, 200, 0.3, draws)
    for name, after in model.named_parameters():
        w = before[name]
        if w.dim() > 1:
            m = w.flatten(1)
            w = (m - beta * (m @ m.T @ m - m)).view(w.shape)
        assert_within(after.detach(), w, 1e-12, name)


def test_wide_layers_are_retracted_on_a_share_of_their_rows() -> None:
    changed = []
    for count, share, expected in ((10, 0.3, 3), (10, 0.35, 3), (9, 0.3, 9), (10, 0.0, 0)):
        layer = nn.Linear(4, count)
        before = layer.weight.detach().clone()
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            layer.weight.detach().copy_(before)
            orthogonal_retraction(layer, 0.1, 10, share, generator)
            rows = (layer.weight != before).any(1).nonzero().flatten()
            assert len(rows) == expected
            changed.append(rows)
            m = before[rows]
            assert_within(
                layer.weight.detach()[rows], m - 0.1 * (m @ m.T @ m - m), 1e-6, f"{count}"
            )
    assert not torch.equal(changed[0], changed[1])  # drawn anew in every step
    conv = nn.Conv2d(2, 10, 1)
    before = conv.weight.detach().clone()
    orthogonal_retraction(conv, 0.1, 10, 0.3, torch.Generator())
    assert (conv.weight != before).flatten(1).any(1).all()


def test_retraction_keeps_parameters_and_layouts() -> None:
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = nn.Conv2d(3, 4, 3)
    plain.load_state_dict(conv.state_dict())
    parameter = conv.weight
    for module in (conv, plain):
        orthogonal_retraction(module, 0.1, 200, 0.3, torch.Generator())
    assert conv.weight is parameter
    assert parameter.requires_grad
    assert parameter.grad_fn is None
    assert_within(conv.weight.detach(), plain.weight.detach(), 1e-6)


def test_retraction_is_exact_in_mixed_precision() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    plain = copy.deepcopy(layer)
    orthogonal_retraction(plain, 0.1, 200, 0.3, torch.Generator())
    with torch.autocast("cpu", torch.bfloat16):
        orthogonal_retraction(layer, 0.1, 200, 0.3, torch.Generator())
    assert_same_bits(layer.weight, plain.weight)


def test_golden_retraction(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {name: torch.from_numpy(value) for name, value in golden("snnrat_projection").items()}
    model = nn.ModuleDict(
        {
            "conv_w": nn.Conv2d(3, 8, 3),
            "lin_small_w": nn.Linear(24, 10),
            "lin_big_w": nn.Linear(20, 256),
        }
    ).double()
    for name, layer in model.items():
        layer.get_parameter("weight").detach().copy_(data[name])
    rest = [row for row in range(256) if row not in data["big_rows"].tolist()]
    order = torch.cat([data["big_rows"], torch.tensor(rest)])
    monkeypatch.setattr(torch, "randperm", lambda count, **_: order[:count])
    orthogonal_retraction(model, float(data["beta"]), 200, 0.3, torch.Generator())
    for name, layer in model.items():
        expected = data[f"{name}_after"]
        assert not torch.equal(expected, data[name])
        assert_within(layer.get_parameter("weight").detach(), expected, 1e-12, name)


# The branches of residual blocks


class Block(nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.branch_weights = nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.branch_weights.sum()


@pytest.mark.parametrize("count", [2, 3])
def test_golden_simplex_projection(count: int) -> None:
    data = golden("snnrat_projection")
    combinations = torch.from_numpy(data[f"comb{count}"])
    expected = torch.from_numpy(data[f"comb{count}_after"])
    assert_within(simplex_projection(combinations), expected, 1e-12)
    for row, after in zip(combinations, expected, strict=True):
        assert_within(simplex_projection(row), after, 1e-12)


@given(st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=50)
def test_the_projection_is_the_nearest_point(count: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=draws, dtype=torch.float64) * 2
    nearest = simplex_projection(x)
    assert nearest.min() >= 0
    assert nearest.sum().item() == pytest.approx(1)
    others = torch.rand(200, count, generator=draws, dtype=torch.float64).log()
    others = others / others.sum(1, keepdim=True)
    assert ((others - x).norm(dim=1) >= (nearest - x).norm() - 1e-12).all()
    assert_within(simplex_projection(nearest), nearest, 1e-12)


def test_rat_projects_branch_weights_after_the_step() -> None:
    for simplex in (True, False):
        block = Block(torch.tensor([0.9, 0.6]))
        model = nn.Sequential(tiny_net(), nn.Sequential(block))
        method = RAT(beta=0.0, mix=(), simplex=simplex)
        x, y = batches(1)[0]
        for loss, _ in method.losses(model, x, y, Memory.seeded(0)):
            assert_within(block.branch_weights.detach(), torch.tensor([0.9, 0.6]), 0.0)
            loss.backward()
        expected = torch.tensor([0.65, 0.35] if simplex else [0.9, 0.6])
        assert_within(block.branch_weights.detach(), expected, 1e-6)


def test_rat_without_attacks_is_natural_training_with_orthogonal_weights() -> None:
    x, y = batches(1)[0]
    model = tiny_net()
    (loss, logits), (plain, plain_logits) = (
        next(method.losses(model, x, y, Memory.seeded(0))) for method in (RAT(mix=()), Natural())
    )
    assert_same_bits(logits, plain_logits)
    assert_same_bits(loss, plain)


def test_rat_draws_from_the_given_attacks() -> None:
    x, y = batches(1)[0]
    model = tiny_net()
    loss, _ = next(RAT(eps=0.5, mix=(PGD(0.1, steps=2),)).losses(model, x, y, Memory.seeded(1)))
    draws = torch.Generator().manual_seed(1)
    torch.randint(1, (), generator=draws)
    adversarial = PGD(0.1, steps=2)(model, x, y, draws)
    assert_same_bits(loss, F.cross_entropy(model(adversarial), y))
