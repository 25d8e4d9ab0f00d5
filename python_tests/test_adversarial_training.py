"""AdversarialTraining, TRADES, MART and RobustFinetune: paper 002, Ozdenizci & Legenstein 2023."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from python_tests.helpers import assert_same_bits, assert_within, golden
from python_tests.networks import tiny_net
from snnkern import NormLIF
from snnkern.attacks import FGSM, PGD, RFGSM, Attack
from snnkern.data import digits, loader
from snnkern.models import Normalize, SpikingNetwork, fc_net
from snnkern.nn import LIF, MeanReadout, TimeDistributed, evaluation_mode
from snnkern.training import (
    MART,
    TRADES,
    AdversarialTraining,
    Memory,
    Method,
    RobustFinetune,
    fit,
    mart_loss,
    trades_loss,
)
from snnkern.training.robust_finetune import clamp_thresholds
from snnkern.training.trades import Divergence

METHODS: tuple[Method, ...] = (
    AdversarialTraining(0.2),
    TRADES(0.2),
    MART(0.2),
    RobustFinetune(0.2),
)
EVERY_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)


def batch(count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 2, 2, generator=draws, dtype=torch.float64)
    return x, torch.randint(3, (count,), generator=draws)


# The papers' numbers


class Lookup(nn.Module):
    """Logits of the clean images and of the others, as they are written down."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__()
        self.clean, self.adversarial = (
            nn.Parameter(torch.from_numpy(data[f"logits_{name}_T"])) for name in ("clean", "adv")
        )
        self.readout = MeanReadout()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.adversarial if x.any() else self.clean)
        return logits


class Whiten(Attack):
    """Black images become white."""

    def perturb(self, victim: Any, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.ones_like(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("tag", "method"),
    [
        ("at", AdversarialTraining(attack=Whiten())),
        ("trades", TRADES(beta=2.0, attack=Whiten())),
        ("trades", RobustFinetune(beta=2.0, attack=Whiten())),
        ("trades6", TRADES(attack=Whiten())),
        ("mart", MART(attack=Whiten())),
    ],
)
def test_golden_losses(tag: str, method: Method, dtype: torch.dtype) -> None:
    data = golden("robustconv_losses")
    model, y = Lookup(data).to(dtype), torch.from_numpy(data["labels"])
    ((loss, logits),) = method.losses(model, torch.zeros(6, 1, 1, 1), y, Memory.seeded(0))
    loss.backward()
    allowed = 1e-9 if dtype == torch.float64 else 2e-5
    assert_same_bits(logits, model.adversarial.mean(0))
    assert loss.item() == pytest.approx(float(data[f"{tag}.loss"]), rel=allowed)
    for name, side in (("clean", model.clean), ("adv", model.adversarial)):
        found = torch.zeros_like(side) if side.grad is None else side.grad
        assert_within(found, torch.from_numpy(data[f"{tag}.g_{name}"]), allowed, name)


def test_the_other_direction_is_the_papers() -> None:
    clean, adversarial = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([0, 1, 2, 3, 1])
    p, q = clean.softmax(1), adversarial.softmax(1)
    true = p[range(5), y]
    there, back = ((a * (a / b).log()).sum(1) for a, b in ((p, q), (q, p)))
    distances: dict[Divergence, Tensor] = {"kl": there, "reverse-kl": back}
    for divergence, distance in distances.items():
        loss = trades_loss(clean, adversarial, y, 3.0, divergence)
        expected = -true.log().mean() + 3 * distance.mean()
        assert_within(loss, expected, 1e-12)
        weighted = mart_loss(clean, adversarial, y, 5.0, divergence)
        boosted = mart_loss(clean, adversarial, y, 0.0)
        assert_within(weighted - boosted, 5 * (distance * (1 - true)).mean(), 1e-6)
    assert not torch.allclose(there, back)


# The algorithms, step by step


def grown_net() -> SpikingNetwork:
    """Batch norm, dropout and learnt thresholds, float64; statistics that are no longer 0 and 1."""
    torch.manual_seed(4)
    layers = nn.Sequential(
        TimeDistributed(nn.Conv2d(1, 4, 3, padding=1)),
        NormLIF(4, leak=0.9, learn_threshold=True),
        TimeDistributed(nn.Flatten()),
        nn.Dropout(0.2),
        TimeDistributed(nn.Linear(16, 8)),
        LIF(0.5, 0.5, learn_threshold=True),
        TimeDistributed(nn.Linear(8, 3)),
    )
    for parameter in [*layers[4].parameters(), *layers[6].parameters()]:
        nn.init.normal_(parameter, std=0.8)
    net = SpikingNetwork(5, Normalize([0.5], [0.5]), layers, MeanReadout())
    net.double().train()(batch(8, 5)[0])
    return net


def inner(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, sizes: list[float], loss: str, eps: float
) -> Tensor:
    """The inner maximisation by a plain loop, in evaluation mode.

    Where no spike differs from the clean image's the divergence is 0 and the sign of its gradient
    rounding noise; such cases are not for here.
    """
    with evaluation_mode(model):
        clean = model(x).softmax(1)
        adversarial = start
        for size in sizes:
            adversarial = adversarial.clone().requires_grad_()
            logits = model(adversarial)
            log_p = logits.log_softmax(1)
            value = {
                "ce": F.cross_entropy(logits, y, reduction="sum"),
                "kl": (clean * (clean.log() - log_p)).sum(),
                "reverse-kl": (log_p.exp() * (log_p - clean.log())).sum(),
            }[loss]
            (slope,) = torch.autograd.grad(value, adversarial)
            assert (slope.abs() > 1e-12).all() or loss == "ce"
            moved = adversarial.detach() + size * slope.sign()
            adversarial = torch.max(torch.min(moved, x + eps), x - eps).clamp(0, 1)
    return adversarial


@pytest.mark.parametrize(
    ("method", "loss", "start", "timesteps"),
    [
        (AdversarialTraining(0.1, steps=4), "ce", "uniform", 5),
        (TRADES(0.1, steps=4), "kl", "normal", 0),
        (TRADES(0.1, steps=4, divergence="reverse-kl"), "reverse-kl", "normal", 0),
        (MART(0.1, steps=4), "ce", "normal", 5),
        (MART(0.1, steps=4, divergence="reverse-kl"), "ce", "normal", 0),
        (RobustFinetune(0.6), "kl", "sign", 5),
        (RobustFinetune(0.4, alpha=0.3, divergence="reverse-kl"), "reverse-kl", "sign", 5),
    ],
    ids=str,
)
def test_a_batch_is_the_algorithm(method: Any, loss: str, start: str, timesteps: int) -> None:
    model = grown_net()
    model.timesteps = timesteps
    plain = copy.deepcopy(model)
    x, y = batch()
    eps = method.eps
    torch.manual_seed(0)
    ((actual, _),) = method.losses(model, x, y, Memory.seeded(4))
    actual.backward()

    torch.manual_seed(0)
    plain.train()
    only_adversarial = isinstance(method, AdversarialTraining)
    clean = None if only_adversarial else plain(x)  # before the attack: batch norm sees it first
    draws = torch.Generator().manual_seed(4)
    sizes = [2.5 * eps / 4] * 4
    if start == "uniform":
        noise = eps * (2 * torch.rand(x.shape, generator=draws, dtype=x.dtype) - 1)
    else:
        noise = torch.randn(x.shape, generator=draws, dtype=x.dtype)
        if start == "normal":
            noise = 0.001 * noise
        else:
            alpha = method.alpha or eps / 2
            noise, sizes = alpha * noise.sign(), [eps - alpha]
    adversarial = inner(plain, x, y, (x + noise).clamp(0, 1), sizes, loss, eps)
    logits = plain(adversarial)
    if clean is None:
        expected = F.cross_entropy(logits, y)
    else:
        objective = mart_loss if isinstance(method, MART) else trades_loss
        expected = objective(clean, logits, y, method.beta, method.divergence)
    expected.backward()
    assert_within(actual.detach(), expected.detach(), 1e-12)
    for (name, mine), its in zip(model.named_parameters(), plain.parameters(), strict=True):
        if timesteps or "threshold" not in name:
            assert mine.grad is not None, name
            assert its.grad is not None, name
            assert_within(mine.grad, its.grad, 1e-10, name)
            assert mine.grad.any(), name
    for (name, kept), its_own in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert_within(kept, its_own, 1e-12, name)
    assert model.training


@EVERY_METHOD
def test_batch_norm_sees_each_forward_pass_of_training(method: Method) -> None:
    model = grown_net()
    count = next(value for name, value in model.named_buffers() if "tracked" in name)
    before = count.item()
    for loss, _ in method.losses(model, *batch(), Memory.seeded(0)):
        loss.backward()
    assert count.item() == before + (1 if isinstance(method, AdversarialTraining) else 2)


@EVERY_METHOD
def test_noise_comes_from_the_samples_generator(method: Method) -> None:
    model, (x, y) = tiny_net().double(), batch(20)
    found: list[float] = []
    for weights, samples in ((0, 0), (1, 0), (0, 1)):
        one, other = (torch.Generator().manual_seed(seed) for seed in (weights, samples))
        memory = Memory(one, other)
        ((loss, _),) = method.losses(model, x, y, memory)
        found.append(loss.item())
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize("kind", [AdversarialTraining, TRADES, MART, RobustFinetune])
def test_another_attack_takes_the_place_of_the_papers(kind: Any) -> None:
    model, (x, y) = tiny_net().double(), batch(20)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ((_, logits),) = kind(attack=FGSM(0.3)).losses(model, x, y, Memory.seeded(0))
    assert_within(seen[-1], FGSM(0.3)(model, x, y), 1e-12)
    assert logits.requires_grad


@pytest.mark.parametrize("kind", [TRADES, RobustFinetune])
def test_the_attack_goes_the_way_of_the_objective(kind: Any) -> None:
    model, (x, y) = grown_net(), batch(100)
    model.timesteps = 0
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    found = []
    divergences: tuple[Divergence, ...] = ("kl", "reverse-kl")
    for divergence in divergences:
        next(kind(0.3, divergence=divergence).losses(model.eval(), x, y, Memory.seeded(0)))
        found.append(seen[-1])
        attack: Attack = RFGSM(0.3, loss=divergence)
        if kind is TRADES:
            attack = PGD(0.3, steps=10, start_deviation=0.001, loss=divergence)
        assert_same_bits(found[-1], attack(model, x, y, torch.Generator().manual_seed(0)))
    assert not torch.equal(*found)


def test_thresholds_are_kept_above_their_floor() -> None:
    model = tiny_net(4, learn_threshold=True, min_threshold=0.03)
    neuron = next(m for m in model.modules() if isinstance(m, LIF))
    neuron.threshold.detach().fill_(0.01)
    kept = tiny_net(4, threshold=0.01, min_threshold=0.03)
    x, y = batch()
    for method, expected in ((TRADES(steps=1), 0.01), (RobustFinetune(), 0.03)):
        next(method.losses(model, x.float(), y, Memory.seeded(0)))
        assert neuron.threshold.item() == pytest.approx(expected)
    data = golden("robustconv_lif")
    floored = LIF(1.0, 0.01, learn_threshold=True, min_threshold=0.03)
    assert torch.equal(
        floored(torch.from_numpy(data["clamp_x"])), torch.from_numpy(data["clamp_s"])
    )
    clamp_thresholds(floored)
    assert floored.threshold.item() == pytest.approx(float(data["clamp_vth_after"]))
    next(RobustFinetune().losses(kept, x.float(), y, Memory.seeded(0)))
    constant = next(m for m in kept.modules() if isinstance(m, LIF))
    assert constant.threshold.item() == pytest.approx(0.01)


# Training


def digits_net(timesteps: int) -> SpikingNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fc_net(
            timesteps=timesteps,
            input_shape=(1, 8, 8),
            hidden=(32,),
            leak=0.9,
            threshold=0.5,
            learn_threshold=True,
        )


@pytest.mark.parametrize(
    ("method", "timesteps"),
    [
        (AdversarialTraining(0.1, steps=3), 0),
        (TRADES(0.1, steps=3), 0),
        (MART(0.1, steps=3), 0),
        (RobustFinetune(0.1), 4),
    ],
    ids=str,
)
def test_fit_makes_the_digits_robust(method: Method, timesteps: int) -> None:
    split = digits()
    x, y = split.test.tensors
    share: dict[str, float] = {}
    for name, kind in (("natural", None), ("robust", method)):
        model = digits_net(timesteps)
        arguments = () if kind is None else (kind,)
        train = loader(split.train, shuffle=True, seed=0)
        history = fit(model, train, *arguments, epochs=5, lr=5e-3, progress=False)
        assert history[-1].loss < history[0].loss
        model.eval()
        assert (model(x).argmax(1) == y).double().mean() > 0.8
        attacked = PGD(0.1)(model, x, y, torch.Generator().manual_seed(0))
        share[name] = (model(attacked).argmax(1) == y).double().mean().item()
    assert share["robust"] > share["natural"] + 0.05


@EVERY_METHOD
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(method: Method, dtype: torch.dtype) -> None:
    seen = set()
    model = grown_net().float()
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear))
    linear.register_forward_hook(lambda m, inputs, output: seen.add(output.dtype))
    data = [(x.float(), y) for x, y in (batch(seed=seed) for seed in range(8))]
    history = fit(model, data, method, epochs=3, lr=0.02, autocast=dtype, progress=False)
    assert seen == {dtype}
    assert history[-1].loss < history[0].loss


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AdversarialTraining, {"eps": -1}, "eps is -1, expected"),
        (AdversarialTraining, {"steps": 0}, "steps is 0, expected"),
        (TRADES, {"eps": math.nan}, "eps is nan, expected"),
        (TRADES, {"beta": -1}, "beta is -1, expected"),
        (TRADES, {"steps": 0}, "steps is 0, expected"),
        (TRADES, {"divergence": "ce"}, "divergence is 'ce', expected 'kl' or 'reverse-kl'"),
        (MART, {"eps": -0.1}, "eps is -0.1, expected"),
        (MART, {"beta": math.inf}, "beta is inf, expected"),
        (MART, {"steps": -1}, "steps is -1, expected"),
        (MART, {"divergence": None}, "divergence is None, expected 'kl' or 'reverse-kl'"),
        (RobustFinetune, {"eps": -1}, "eps is -1, expected"),
        (RobustFinetune, {"eps": 0.1, "alpha": 0.2}, "alpha is 0.2, expected .* at most 0.1"),
        (RobustFinetune, {"beta": -2}, "beta is -2, expected"),
        (RobustFinetune, {"divergence": "js"}, "divergence is 'js', expected 'kl' or 'reverse-kl'"),
    ],
)
def test_impossible_methods_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}: {message}"):
        kind(**options)
