from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import snnkern
from python_tests.helpers import assert_same_bits, assert_within, golden
from python_tests.networks import (
    assert_unchanged,
    linear_net,
    rat_smallnet,
    robustconv_net,
    snapshot,
    tiny_net,
)
from snnkern.attacks import (
    APGD,
    BIM,
    FGSM,
    PGD,
    RFGSM,
    SAPGD,
    Attack,
    Cascade,
    GaussianNoise,
    Patterns,
    Square,
    Transfer,
)
from snnkern.surrogate import ATan, Exponential, Rate, Rectangle, StraightThrough, Triangle

KINDS: dict[str, Callable[[float], Attack]] = {
    "FGSM": FGSM,
    "FGSM l2": lambda eps: FGSM(eps, norm="l2"),
    "RFGSM": RFGSM,
    "RFGSM all": lambda eps: RFGSM(eps, alpha=eps),
    "PGD": PGD,
    "PGD far": lambda eps: PGD(eps, step_size=3 * eps, steps=3),
    "PGD l2": lambda eps: PGD(eps, norm="l2"),
    "PGD rate": lambda eps: PGD(eps, gradient="rate"),
    "PGD best": lambda eps: PGD(eps, restarts=2, keep="best", stop=True),
    "PGD eot": lambda eps: PGD(eps, steps=2, eot=2, loss="margin"),
    "TPGD": lambda eps: PGD(eps, start_deviation=0.001, loss="kl"),
    "BIM": BIM,
    "BIM ATan": lambda eps: BIM(eps, gradient=ATan()),
    "CBA": lambda eps: FGSM(eps, gradient="relu"),
    "APGD": lambda eps: APGD(eps, steps=8),
    "APGD dlr": lambda eps: APGD(eps, steps=8, loss="dlr", restarts=2, stop=True),
    "APGD l2": lambda eps: APGD(eps, steps=8, norm="l2"),
    "SAPGD": lambda eps: SAPGD(eps, steps=8),
    "SAPGD start": lambda eps: SAPGD(eps, steps=8, random_start=False),
    "Square": lambda eps: Square(eps, queries=20, restarts=2),
    "Square l2": lambda eps: Square(eps, queries=20, norm="l2"),
    "Patterns": lambda eps: Patterns(eps, 2, 8, 4, 10, 3),
    "Cascade": lambda eps: Cascade([PGD(eps), Square(eps, queries=20), BIM(eps, steps=3)]),
    "GN": GaussianNoise,
    "GN l2": lambda eps: GaussianNoise(eps, norm="l2"),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
# Another generator gives other images, or the same ones.
DRAWING = (
    "RFGSM",
    "PGD",
    "PGD l2",
    "TPGD",
    "APGD",
    "APGD l2",
    "SAPGD",
    "Square",
    "Square l2",
    "GN",
    "GN l2",
)
CERTAIN = ("FGSM", "FGSM l2", "BIM", "BIM ATan", "CBA", "SAPGD start")


def batch(count: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 2, 2, generator=generator, dtype=dtype)
    x[0, 0, 0, 0], x[0, 0, 1, 1] = 0.0, 1.0
    return x, torch.randint(3, (count,), generator=generator)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# What holds for all of them


@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from([0.0, 1e-3, 8 / 255, 0.3, 1.0, 2.5]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.integers(0, 2**31),
)
@settings(max_examples=100)
def test_results_stay_near_and_are_images(
    name: str, eps: float, dtype: torch.dtype, seed: int
) -> None:
    net = tiny_net(seed=seed % 5).to(dtype)
    x, y = batch(4, seed, dtype)
    attack = KINDS[name](eps)
    adversarial = attack(net, x, y, generator(seed))
    assert adversarial.shape == x.shape
    assert adversarial.dtype == dtype
    assert not adversarial.requires_grad
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    # Exact: these pixels are multiples of at most 2^-53, between 0 and 1.
    distance = (adversarial.double() - x.double()).flatten(1)
    if attack.norm == "linf" and name != "GN":
        assert distance.abs().max() <= eps
    elif attack.norm == "l2":
        assert distance.norm(dim=1).max() <= eps * (1 + 1e-14)
    if eps == 0:
        assert_same_bits(adversarial, x)


@EVERY_KIND
def test_it_moves_the_images(kind: Callable[[float], Attack]) -> None:
    x, y = batch()
    adversarial = kind(0.1)(tiny_net(), x, y, generator())
    assert (adversarial != x).flatten(1).any(1).sum() >= 3


@pytest.mark.parametrize("name", KINDS)
def test_it_repeats_with_a_generator(name: str) -> None:
    net, (x, y) = tiny_net(), batch()
    attack = KINDS[name](0.1)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = attack(net, x, y, generator(3))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same_bits(attack(net, x, y, generator(3)), first)
    other = attack(net, x, y, generator(4))
    assert name not in DRAWING or not torch.equal(other, first)
    assert name not in CERTAIN or torch.equal(other, first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", KINDS)
def test_it_runs_on_a_gpu(name: str) -> None:
    x, y = (t.cuda() for t in batch())
    net, attack = tiny_net().cuda(), KINDS[name](0.1)
    before = torch.cuda.get_rng_state()
    first, second = (attack(net, x, y, torch.Generator("cuda").manual_seed(3)) for _ in range(2))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert_same_bits(first.cpu(), second.cpu())
    assert first.device == x.device
    assert first.min() >= 0
    assert first.max() <= 1
    assert name == "GN" or (first.double() - x.double()).abs().max() <= 0.1


@EVERY_KIND
def test_the_callers_tensors_stay(kind: Callable[[float], Attack]) -> None:
    x, y = batch()
    x.requires_grad_()
    before, labels = x.detach().clone(), y.clone()
    with torch.no_grad():  # whatever the caller is doing
        adversarial = kind(0.2)(tiny_net(), x, y, generator())
    assert_same_bits(x.detach(), before)
    assert torch.equal(y, labels)
    assert x.grad is None
    assert x.requires_grad
    assert adversarial.data_ptr() != x.data_ptr()


@EVERY_KIND
def test_the_model_sees_images_only(kind: Callable[[float], Attack]) -> None:
    net, (x, y) = tiny_net(), batch(40)
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    kind(0.2)(net, x.round(), y, generator())
    assert all(images.min() >= 0 and images.max() <= 1 for images in seen)


class Breaks(nn.Module):
    """Raises at its second call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise KeyError("broken")
        return x


def mixed_model(*more: nn.Module) -> nn.Module:
    """Batch norm, dropout, neurons; every module in a mode of its own, gradients waiting."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), tiny_net(learn_threshold=True), *more)
    x, y = batch(8, 1)
    F.cross_entropy(model(x), y).backward()
    for number, module in enumerate(model.modules()):
        module.training = number % 3 != 0
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    return model


@EVERY_KIND
def test_the_model_stays_as_it_was(kind: Callable[[float], Attack]) -> None:
    model, (x, y) = mixed_model(), batch()
    assert len({module.training for module in model.modules()}) == 2
    before = snapshot(model)
    first = kind(0.2)(model, x, y, generator())
    assert_unchanged(model, before)
    # In evaluation mode: no dropout, and no image changes what another becomes.
    model.eval()
    assert_same_bits(kind(0.2)(model, x, y, generator()), first)


@pytest.mark.parametrize("g", [None, "rate", "relu", Triangle(2.0)])
def test_the_model_stays_as_it_was_when_it_raises(g: Any) -> None:
    breaks = Breaks()
    model, (x, y) = mixed_model(breaks), batch()
    breaks.calls = 0
    before = snapshot(model)
    with pytest.raises(KeyError, match="broken"):
        PGD(0.1, steps=3, gradient=g)(model, x, y)
    assert breaks.calls == 2
    assert_unchanged(model, before)


def test_batch_norm_statistics_stay() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), tiny_net()).train()
    before = snapshot(model)
    x, y = batch()
    PGD(0.1)(model, x, y)
    assert_unchanged(model, before)
    assert torch.equal(model[0].get_buffer("running_mean"), torch.zeros(1))


def test_it_runs_in_evaluation_mode() -> None:
    modes: list[bool] = []
    model = nn.Sequential(tiny_net(), nn.Dropout(1.0)).train()
    model[1].register_forward_hook(lambda module, *_: modes.append(module.training))
    x, y = batch()
    FGSM(0.1)(model, x, y)
    assert modes == [False]


def test_the_gradient_is_the_one_asked_for() -> None:
    net, (x, y) = tiny_net(4, leak=0.9), batch(40)
    gradients: tuple[Any, ...] = (None, ATan(20.0), "rate", "relu")
    results: list[Tensor] = []
    for g in gradients:
        results.append(FGSM(0.1, gradient=g)(net, x, y))
        with snnkern.gradient(net, g):
            assert_same_bits(FGSM(0.1)(net, x, y), results[-1])
    for i, one in enumerate(results):
        for other in results[:i]:
            assert not torch.equal(one, other)


# One attack after the other, against plain loops


def slope(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    F.cross_entropy(net(x), y).backward()
    assert x.grad is not None
    return x.grad


def clip(adversarial: Tensor, x: Tensor, eps: float) -> Tensor:
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    return torch.minimum(torch.maximum(adversarial, low), high)


def test_fgsm_is_one_step() -> None:
    net = tiny_net().double()
    x, y = batch(20, dtype=torch.float64)
    expected = (x + 0.1 * slope(net, x, y).sign()).clamp(0, 1)
    assert_within(FGSM(0.1)(net, x, y), expected, 1e-15)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.03, 0.1])
def test_rfgsm_is_a_random_step_and_one_of_the_gradient(alpha: float | None) -> None:
    net = tiny_net().double()
    x, y = batch(20, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator(7), dtype=x.dtype).sign()
    random_step = 0.05 if alpha is None else alpha
    start = (x + random_step * noise).clamp(0, 1)
    expected = clip(start + (0.1 - random_step) * slope(net, start, y).sign(), x, 0.1)
    assert_within(RFGSM(0.1, alpha)(net, x, y, generator(7)), expected, 1e-12)


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize(("step_size", "steps"), [(None, 1), (None, 7), (0.02, 5), (0.3, 2)])
def test_pgd_is_a_loop_of_steps(random_start: bool, step_size: float | None, steps: int) -> None:
    net = tiny_net().double()
    x, y = batch(20, dtype=torch.float64)
    expected = x
    if random_start:
        noise = 2 * torch.rand(x.shape, generator=generator(7), dtype=x.dtype) - 1
        expected = (x + 0.1 * noise).clamp(0, 1)
    for _ in range(steps):
        size = 2.5 * 0.1 / steps if step_size is None else step_size
        expected = clip(expected + size * slope(net, expected, y).sign(), x, 0.1)
    actual = PGD(0.1, step_size, steps, random_start)(net, x, y, generator(7))
    assert_within(actual, expected, 1e-12)


def test_bim_is_pgd_from_the_image() -> None:
    net, (x, y) = tiny_net(), batch(20)
    expected = PGD(0.1, 0.02, 5, random_start=False)(net, x, y)
    assert_same_bits(BIM(0.1, 0.02, 5)(net, x, y), expected)
    assert BIM().random_start is False
    assert PGD().random_start is True
    assert PGD().steps == 7
    assert FGSM().eps == PGD().eps == RFGSM().eps == BIM().eps == 8 / 255


def test_the_noise_of_a_random_start_fills_the_ball() -> None:
    x = torch.full((4000, 1, 2, 2), 0.5)
    net = linear_net(torch.zeros(2, 4), torch.zeros(2))  # no slope: nothing moves but the noise
    y = torch.zeros(4000, dtype=torch.int64)
    noise = (PGD(0.2)(net, x, y, generator()) - x) / 0.2
    assert noise.min() < -0.99
    assert noise.max() > 0.99
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.square().mean().item() - 1 / 3) < 0.02
    normal = PGD(0.2, start_deviation=0.03)(net, x, y, generator()) - x
    assert normal.std().item() == pytest.approx(0.03, rel=0.02)
    assert normal.abs().max() > 0.1
    signs = ((RFGSM(0.2)(net, x, y, generator()) - x) / 0.1).round()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean().item()) < 0.04


@given(st.integers(0, 2**31), st.sampled_from([0.01, 0.1, 0.7]), st.sampled_from(["fgsm", "pgd"]))
@settings(max_examples=40)
def test_a_linear_model_is_driven_to_its_worst(seed: int, eps: float, name: str) -> None:
    draws = generator(seed)
    weight = torch.randn(2, 4, generator=draws, dtype=torch.float64)
    net = linear_net(weight, torch.randn(2, generator=draws, dtype=torch.float64))
    x = torch.rand(6, 1, 2, 2, generator=draws, dtype=torch.float64)
    y = torch.randint(2, (6,), generator=draws)
    attack = FGSM(eps) if name == "fgsm" else PGD(eps, steps=10)
    logits = net(attack(net, x, y, draws))
    margin = logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])
    # Every pixel at the end of its range that hurts: a closed form.
    direction = (weight[y] - weight[1 - y]).view(6, 1, 2, 2)
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    worst = net(torch.where(direction > 0, low, high))
    expected = worst.gather(1, y[:, None]) - worst.gather(1, 1 - y[:, None])
    assert_within(margin.detach(), expected.detach(), 1e-12)


# Golden data of SNN-RAT


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *itertools.product(["fgsm", "pgd"], ["bptt", "bptr", "act"]),
        *itertools.product(["rfgsm"], ["bptt", "bptr"]),
    ],
)
def test_golden(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = golden("snnrat_attacks")
    net, _ = rat_smallnet()
    inputs = golden("snnrat_smallnet")
    x, y = torch.from_numpy(inputs["images"]), torch.from_numpy(inputs["labels"])
    eps = float(data["eps"])
    uniform = (torch.from_numpy(data["pgd_noise"]) / eps + 1) / 2
    normal = torch.from_numpy(data["rfgsm_randn"])
    assert uniform.min() >= 0
    assert uniform.max() <= 1

    def drawn(x: Tensor, kind: Callable[..., Tensor], _: torch.Generator | None) -> Tensor:
        return {torch.rand: uniform, torch.randn: normal}[kind]

    monkeypatch.setattr("snnkern.attacks.fgsm.random_like", drawn)
    monkeypatch.setattr("snnkern.attacks.pgd.random_like", drawn)
    g: Any = {"bptt": None, "bptr": "rate", "act": "relu"}[mode]
    attack: Attack = {
        "fgsm": FGSM(eps, gradient=g),
        "pgd": PGD(eps, 0.01, 7, gradient=g),
        "rfgsm": RFGSM(eps, gradient=g),
    }[name]
    expected = torch.from_numpy(data[f"{name}_{mode}"])
    assert_within(attack(net, x, y), expected, 1e-9)
    assert not torch.equal(expected, x)


# Golden data of Ozdenizci & Legenstein 2023


def robustconv() -> tuple[Any, nn.Module, Tensor, Tensor]:
    data = golden("robustconv_attacks")
    net = robustconv_net(data).train()  # attacks are crafted in evaluation mode all the same
    return data, net, torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])


EPS = 8 / 255


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        ("rfgsm_kl", RFGSM(EPS, loss="kl")),
        ("rfgsm_ce", RFGSM(EPS, EPS / 4)),
        ("tpgd", PGD(EPS, EPS / 4, 10, start_deviation=0.001, loss="kl")),
        ("mart_pgd", PGD(EPS, EPS / 4, 10, start_deviation=0.001)),
        ("pgd", PGD(EPS, EPS / 8, 20)),
    ],
)
def test_golden_robustconv(name: str, attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    data, net, x, y = robustconv()
    assert float(data["eps"]) == EPS
    normal, uniform = (torch.from_numpy(data[key]) for key in ("randn", "unif"))
    draws = {torch.randn: normal, torch.rand: (uniform / EPS + 1) / 2}
    for module in ("fgsm", "pgd"):
        monkeypatch.setattr(f"snnkern.attacks.{module}.random_like", lambda x, kind, _: draws[kind])
    adversarial, expected = attack(net, x, y), torch.from_numpy(data[name])
    # Elsewhere no spike changes, and the sign of the gradient is that of rounding noise.
    comparable = data["tpgd_comparable"] if name == "tpgd" else [True] * 4
    for here, there, compare in zip(adversarial, expected, comparable, strict=True):
        if compare:
            assert_within(here, there, 1e-9, name)


MEMBERS: tuple[Any, ...] = (
    *(("PCW", width, Triangle(width)) for width in (1.0, 2.0, 3.0, 0.5, 0.25)),
    *(("EXP-D", slope, Exponential(0.3, slope)) for slope in (0.5, 1.0, 2.0)),
    *(("EXP", slope, Exponential(1.0, slope)) for slope in (0.5, 1.0, 2.0)),
    *(("RECT", width, Rectangle(width)) for width in (0.25, 0.5, 1.0, 2.0, 4.0)),
    ("STE", 1.0, StraightThrough()),
    ("BPTR", None, "rate"),
    ("CBA", None, "relu"),
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("family", "size", "g"), MEMBERS)
def test_golden_robustconv_members(
    family: str, size: float | None, g: Any, dtype: torch.dtype
) -> None:
    name = family if size is None else f"{family}_{size}"
    data, net, x, y = robustconv()
    assert name in data["members"]
    assert len(MEMBERS) == len(data["members"])
    if dtype == torch.float64:  # elsewhere tiny gradients have other signs
        adversarial = FGSM(EPS, gradient=g)(net, x, y)
        assert_within(adversarial, torch.from_numpy(data[f"fgsm_{name}"]), 1e-9)
    net.eval().to(dtype)
    x = x.to(dtype).requires_grad_()
    thresholds = [m.threshold for m in net.modules() if isinstance(m, snnkern.LIF)]
    with snnkern.gradient(net, g):
        logits = net(x)
        loss = F.cross_entropy(logits, y)
        slope, *slopes = torch.autograd.grad(loss, (x, *thresholds), allow_unused=True)
    of_thresholds = torch.stack([torch.zeros(()) if s is None else s for s in slopes])
    for found, key in ((logits, "logits"), (slope, "gimg"), (of_thresholds, "gth")):
        expected = torch.from_numpy(data[f"{key}_{name}"]).nan_to_num()  # NaN: none
        scale = max(1.0, float(expected.abs().max()))
        allowed = (1e-9 if dtype == torch.float64 else 2e-5) * scale
        assert_within(found.detach(), expected, allowed, key)


# Arguments


def test_attacks_are_frozen_configurations() -> None:
    attack = PGD(0.1, steps=3, gradient=Rate())
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.eps = 0.2  # type: ignore[misc]
    assert attack == PGD(0.1, steps=3, gradient=Rate())
    assert hash(attack) == hash(PGD(0.1, steps=3, gradient=Rate()))
    assert "eps=0.1" in str(attack)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: FGSM(-0.1), ValueError, r"FGSM: eps is -0\.1, expected .* at least 0"),
        (lambda: PGD(math.nan), ValueError, "PGD: eps is nan, expected a finite number"),
        (lambda: BIM(math.inf), ValueError, "BIM: eps is inf, expected a finite number"),
        (
            lambda: FGSM("8/255"),  # type: ignore[arg-type]
            TypeError,
            "FGSM: eps is '8/255' of type str, expected a number",
        ),
        (lambda: FGSM(True), TypeError, "FGSM: eps is True"),
        (lambda: PGD(0.1, -0.01), ValueError, r"PGD: step_size is -0\.01, expected"),
        (lambda: PGD(0.1, math.nan), ValueError, "PGD: step_size is nan"),
        (lambda: PGD(steps=0), ValueError, "PGD: steps is 0, expected an int of at least 1"),
        (
            lambda: BIM(steps=2.0),  # type: ignore[arg-type]
            TypeError,
            r"BIM: steps is 2\.0 of type float, expected an int",
        ),
        (
            lambda: PGD(start_deviation=-1),
            ValueError,
            "PGD: start_deviation is -1, expected a finite number of at least 0",
        ),
        (
            lambda: BIM(start_deviation=0.1),
            ValueError,
            "BIM: start_deviation is 0.1 and random_start is False, expected None",
        ),
        (lambda: RFGSM(0.1, 0.2), ValueError, r"alpha is 0\.2, expected .* at most 0\.1"),
        (lambda: RFGSM(0.1, -0.2), ValueError, r"RFGSM: alpha is -0\.2, expected"),
        (
            lambda: Transfer(nn.Identity(), Transfer(nn.Identity(), PGD())),
            TypeError,
            r"Transfer: attack is Transfer\(.*expected one on source_model itself",
        ),
    ],
)
def test_impossible_attacks_are_refused(
    make: Callable[[], Attack], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("g", ["bptt", Triangle, 3])
def test_an_unknown_gradient_is_refused(g: Any) -> None:
    net, (x, y) = tiny_net(), batch()
    before = snapshot(net)

    def run() -> None:
        FGSM(0.1, gradient=g)(net, x, y)

    with pytest.raises(TypeError, match=r" is .*expected a snnkern\.surrogate\.Surrogate"):
        run()
    assert_unchanged(net, before)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(2, 1, 2, 2) + 0.5, r"x has values between .*expected pixels in \[0, 1\]"),
        (torch.full((2, 1, 2, 2), -1e-6), "x has values between"),
        (torch.full((2, 1, 2, 2), math.nan), "x has values between nan"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), "x is torch.uint8"),
        (torch.zeros(0, 1, 2, 2), "x is torch.float32.*at least one image"),
        ([[0.5]], "x is list"),
    ],
)
def test_what_is_no_image_is_refused(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FGSM()(tiny_net(), x, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"y is torch.int64 \[3\], expected int64 labels \[2\]"),
        (torch.zeros(2), r"y is torch.float32 \[2\]"),
        (torch.zeros(2, 3), r"y is torch.float32 \[2, 3\]"),
        ([0, 1], "y is list"),
        (torch.tensor([0, -100]), "y has a label -100, expected classes from 0 on"),
    ],
)
def test_what_is_no_label_is_refused(y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FGSM()(tiny_net(), torch.rand(2, 1, 2, 2), y)


def test_a_gradient_needs_neurons() -> None:
    net = linear_net(torch.randn(2, 4), torch.zeros(2))
    x, y = batch()
    with pytest.raises(ValueError, match="holds no neuron of snnkern"):
        FGSM(gradient="rate")(net, x, y.clamp(max=1))


def test_attacks_work_where_the_caller_wants_no_gradients() -> None:
    net, x, y = tiny_net(), torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    expected = PGD(0.2)(net, x, y, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        # Made here, images cannot be differentiated themselves.
        adversarial = PGD(0.2)(net, x.clone(), y.clone(), torch.Generator().manual_seed(0))
    assert torch.equal(adversarial, expected)


@EVERY_KIND
def test_transferred_images_are_those_of_the_source(kind: Callable[[float], Attack]) -> None:
    source, target, (x, y) = tiny_net(seed=1), tiny_net(seed=2), batch(20)
    eps = 0.4  # enough for a random search to see the network in l_2 too
    attack = kind(eps)
    transfer = Transfer(source, attack)
    assert (transfer.eps, transfer.gradient) == (eps, attack.gradient)
    assert str(transfer) == f"Transfer(attack={attack})"
    before = snapshot(source), snapshot(target)
    transferred = transfer(target, x, y, generator(3))
    assert_same_bits(transferred, attack(source, x, y, generator(3)))
    blind = attack == RFGSM(eps, alpha=eps) or isinstance(attack, GaussianNoise)
    if not blind:
        assert not torch.equal(transferred, attack(target, x, y, generator(3)))
    assert_unchanged(source, before[0])
    assert_unchanged(target, before[1])
