"""Attacks in many steps, and those that see no gradient: step by step, and in golden numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.helpers import assert_same_bits, assert_within, golden
from python_tests.networks import (
    assert_unchanged,
    linear_net,
    rat_smallnet,
    robustconv_net,
    snapshot,
    tiny_net,
)
from snnkern import LIF, NormLIF, evaluate
from snnkern.attacks import (
    APGD,
    BIM,
    FGSM,
    PGD,
    RFGSM,
    SAPGD,
    Attack,
    GaussianNoise,
    SpikeFlip,
    Square,
    Stateless,
    fitted_assg,
)
from snnkern.attacks.apgd import checkpoints
from snnkern.attacks.attack import Victim
from snnkern.attacks.iterated import Search
from snnkern.attacks.losses import decide, dlr, margin, targeted_dlr
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import MeanReadout, RateCoding, TimeDistributed
from snnkern.surrogate import ASSG


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 20, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, 2, 2, generator=generator(), dtype=dtype)
    return x, torch.randint(3, (count,), generator=generator(1))


def pixels(per_sample: Tensor) -> Tensor:
    return per_sample.view(-1, 1, 1, 1)


# Losses


def test_losses_of_known_logits() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0], [1.0, 4.0, 4.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    y = torch.tensor([0, 1, 2])
    assert margin(logits, y).tolist() == [-2, 0, 0]
    assert dlr(logits, y).tolist() == pytest.approx([-2 / 3, 0, 0])
    assert dlr(logits, torch.tensor([2, 0, 0])).tolist() == pytest.approx([2 / 3, 3 / 3, 0])
    # The scale of the second row: 4 - (1 + 0) / 2.
    aimed = targeted_dlr(logits, y, torch.tensor([3, 2, 0]))
    assert aimed.tolist() == pytest.approx([-3 / (5 - 1.5), 0, 0])
    # A tie is no right answer.
    assert decide(logits, y).tolist() == [0, 2, 0]
    assert decide(logits, torch.tensor([1, 2, 0])).tolist() == [0, 1, 1]


def test_ties_have_finite_losses_and_gradients() -> None:
    for loss in (dlr, lambda z, y: targeted_dlr(z, y, (y + 1) % 4)):
        logits = torch.zeros(2, 4, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(logits, torch.tensor([0, 1])).sum(), logits)
        assert gradient.isfinite().all()
        assert (gradient[:, :2] != 0).any(1).all()


def test_targets_are_the_likeliest_wrong_classes() -> None:
    clean = torch.tensor([[5.0, 1.0, 3.0, 2.0], [1.0, 4.0, 4.5, 0.0]])
    victim = Victim(nn.Identity(), torch.tensor([0, 1]), "targeted-dlr", clean)
    aims = [victim.aiming(rank).target for rank in range(3)]
    assert [aim.tolist() for aim in aims if aim is not None] == [[2, 2], [3, 0], [1, 3]]


# Golden data


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("eps", [8, 2])
def test_golden_apgd(loss: Any, eps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data, name = golden("robustconv_attacks"), f"apgd_{loss}_{eps}"
    found = {key: torch.from_numpy(data[f"{name}_{key}"]) for key in ("unif", "xbest", "xbestadv")}
    right = torch.from_numpy(data["correct"])
    x, y = torch.from_numpy(data["images"])[right], torch.from_numpy(data["labels"])[right]
    monkeypatch.setattr("snnkern.attacks.apgd.random_like", lambda *_: found["unif"])
    attack = APGD(float(data[f"{name}_eps"]), 20, loss=loss)
    net = robustconv_net(data)
    adversarial = attack(net, x, y)
    unbroken = torch.from_numpy(data[f"{name}_acc"])
    expected = torch.where(pixels(unbroken), found["xbest"], found["xbestadv"])
    assert_within(adversarial, expected, 1e-9)
    victim = Victim(net.eval(), y, loss)
    logits = victim.logits(adversarial)
    assert torch.equal(victim.broken(logits), ~unbroken)
    losses = torch.from_numpy(data[f"{name}_lossbest"])
    assert_within(victim.losses(victim.logits(found["xbest"])), losses, 1e-9)
    # The whole batch gives the same, but for what the authors leave as it was.
    assert_within(torch.from_numpy(data[name])[right][~unbroken], adversarial[~unbroken], 1e-9)


def test_golden_gaussian_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    data, inputs = golden("snnrat_attacks"), golden("snnrat_smallnet")
    noise = torch.from_numpy(data["gn_randn"])
    monkeypatch.setattr("snnkern.attacks.noise.random_like", lambda *_: noise)
    x, y = torch.from_numpy(inputs["images"]), torch.from_numpy(inputs["labels"])
    adversarial = GaussianNoise(float(data["eps"]))(rat_smallnet()[0], x, y)
    assert_within(adversarial, torch.from_numpy(data["gn"]), 1e-9)


# Step by step, against plain loops


def test_checkpoints_are_those_of_the_paper() -> None:
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(20)) == [4, 7, 9, *range(10, 21)]
    assert list(checkpoints(1)) == [1]


def slope(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), x)[0]


def test_sapgd_is_a_loop_of_steps() -> None:
    net, (x, y) = tiny_net().double(), batch()
    eps, steps = 0.2, 9
    tried, size = [x], eps
    first = second = torch.zeros_like(x)
    for number in range(1, steps + 1):
        g = slope(net, tried[-1], y)
        mean, square = (pixels(v.flatten(1).mean(1)) for v in (g.abs(), g**2))
        first = first / 2 + (g / mean).nan_to_num()
        second = 0.8 * second + (g**2 / square).nan_to_num()
        way = (size * first / second.sqrt()).nan_to_num().clamp(-size, size)
        low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
        tried.append((tried[-1] + way).minimum(high).maximum(low))
        if number in (1, 2, 3, 4, 5, 6, 7, 8, 9):  # every one is a checkpoint of so short a run
            size /= 2
    assert list(checkpoints(steps)) == list(range(1, 10))
    expected = best_of(net, tried, y)
    assert_within(SAPGD(eps, steps, random_start=False)(net, x, y), expected, 1e-12)


@pytest.mark.parametrize("size", [1.0, 1e5])  # the larger one overflows: a gradient of infinity
def test_sapgd_moves_in_half_precision(size: float) -> None:
    class Two(nn.Module):
        """Looks at two pixels of many: their gradient is large in units of the mean."""

        def forward(self, x: Tensor) -> Tensor:
            seen = x[:, :2].mean(1) * 300 * (size / 300)
            return torch.stack([1 - seen, seen - 1], 1)

    x, y = torch.zeros(2, 150000, dtype=torch.float16), torch.zeros(2, dtype=torch.int64)
    x[:, 2:] = 0.5
    attack = SAPGD(0.1, 5, random_start=False, loss="margin")
    adversarial = attack(Two(), x, y)
    assert_within(adversarial[:, :2], torch.full((2, 2), 0.1, dtype=torch.float16), 1e-3)
    assert torch.equal(adversarial[:, 2:], x[:, 2:])


def best_of(net: nn.Module, tried: list[Tensor], y: Tensor) -> Tensor:
    """Of every sample what breaks it, else what comes closest: of equals the largest loss."""
    ranks = []
    for images in tried:
        logits = net(images).detach()
        ranks.append(F.cross_entropy(logits, y, reduction="none") + 1e3 * (logits.argmax(1) != y))
    choice = torch.stack(ranks).argmax(0)
    return torch.stack(tried)[choice, torch.arange(len(y))]


def test_the_best_is_kept() -> None:
    net, (x, y) = tiny_net(seed=2).double(), batch(200)
    eps, size = 0.15, 0.1
    tried = [x]
    for _ in range(6):
        moved = tried[-1] + size * slope(net, tried[-1], y).sign()
        tried.append(moved.minimum((x + eps).clamp(max=1)).maximum((x - eps).clamp(min=0)))
    last, best = (BIM(eps, size, 6, keep=keep)(net, x, y) for keep in ("last", "best"))
    assert_within(last, tried[-1], 1e-12)
    assert_within(best, best_of(net, tried, y), 1e-12)
    assert not torch.equal(last, best)


@pytest.mark.parametrize(
    "attack", [BIM(0.1, 0.03, 8), BIM(0.1, keep="best"), APGD(0.1, 12), SAPGD(0.1, 12)], ids=str
)
def test_broken_samples_leave_the_batch(attack: Any) -> None:
    net, (x, y) = tiny_net(seed=3).double(), batch(60)
    sizes: list[int] = []
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    stopping = type(attack)(**{**vars(attack), "stop": True})
    victim = Victim(net, y)

    def broken(images: Tensor) -> Tensor:
        return victim.broken(victim.logits(images))

    whole = attack(net, x, y, generator(5))
    assert set(sizes) == {60}
    sizes.clear()
    early = stopping(net, x, y, generator(5))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]
    # To break a sample on the way is enough; none is lost.
    assert (broken(early) | ~broken(whole)).all()
    if attack != BIM(0.1, 0.03, 8):
        assert torch.equal(broken(early), broken(whole))
    unbroken = ~broken(early) & ~broken(whole)
    assert 0 < unbroken.sum() < 60
    assert_within(early[unbroken], whole[unbroken], 1e-12)


def test_a_batch_that_is_broken_at_once_is_done() -> None:
    net, (x, _) = tiny_net().double(), batch()
    wrong = net(x).argmin(1)
    for attack in (PGD(0.1, stop=True), APGD(0.1, 5, stop=True), Square(0.1, 5)):
        assert Victim(net, wrong).broken(net(attack(net, x, wrong, generator()))).all()


def test_restarts_only_add() -> None:
    net, (x, _) = tiny_net(seed=1).double(), batch(200)
    y = net(x).argmax(1)
    victim = Victim(net, y)
    before = torch.zeros(200, dtype=torch.bool)
    counts = []
    for restarts in (1, 2, 6):
        images = PGD(0.2, 0.01, 1, restarts=restarts)(net, x, y, generator())
        broken = victim.broken(victim.logits(images))
        assert (broken | ~before).all()
        before = broken
        counts.append(int(broken.sum()))
    assert counts[0] < counts[-1]


def test_every_target_gets_its_run() -> None:
    # Class 4 is the only one that a small step reaches, and the least likely of all at first.
    weight = torch.tensor([[0.0, 0], [0.5, 0], [0.45, 0], [0.4, 0], [0, 10]], dtype=torch.float64)
    bias = torch.tensor([1.0, 0.2, 0.2, 0.2, -5.5], dtype=torch.float64)
    net, x, y = linear_net(weight, bias), torch.full((1, 2), 0.5), torch.tensor([0])
    x = x.double()

    def breaks(targets: int) -> bool:
        attack = BIM(0.2, steps=10, loss="targeted-dlr", targets=targets)
        return bool(Victim(net, y).broken(net(attack(net, x, y, generator()))))

    assert [breaks(targets) for targets in (1, 3, 4, 9)] == [False, False, True, True]


@pytest.mark.parametrize("make", [FGSM, BIM, APGD, lambda eps, norm: PGD(eps, eps, 30, norm=norm)])
def test_l2_of_a_linear_model_is_a_closed_form(make: Callable[..., Attack]) -> None:
    weight = torch.randn(2, 4, generator=generator(), dtype=torch.float64)
    net = linear_net(weight, torch.zeros(2, dtype=torch.float64))
    x, y = torch.full((5, 1, 2, 2), 0.5, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])
    moved = make(0.3, norm="l2")(net, x, y, generator())
    way = weight[1 - y] - weight[y]
    expected = x + (0.3 * way / way.norm(dim=1, keepdim=True)).view(x.shape)
    assert_within(moved, expected, 1e-3)


# Chance


def stochastic_net() -> SpikingNetwork:
    net = tiny_net(timesteps=6)
    net.encoder = RateCoding(6)
    return net


@pytest.mark.parametrize("attack", [FGSM(0.2), PGD(0.2, eot=3), SAPGD(0.2, 5), Square(0.2, 5)])
def test_chance_inside_the_model_follows_the_generator(attack: Attack) -> None:
    net, (x, y) = stochastic_net(), batch(dtype=torch.float32)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    chance = generator()
    first, second = attack(net, x, y, chance), attack(net, x, y, chance)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert_same_bits(attack(net, x, y, generator()), first)
    assert torch.equal(torch.random.get_rng_state(), torch.random.manual_seed(4).get_state())


def test_an_evaluation_repeats_where_there_is_chance() -> None:
    net, (x, y) = stochastic_net(), batch(dtype=torch.float32)
    before = torch.random.get_rng_state()
    attacks: dict[str, Attack] = {"pgd": PGD(0.2)}
    first, second, other = (
        evaluate(net, [(x, y)], attacks, seed=seed, progress=False) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    for name in ("clean", "pgd"):
        assert torch.equal(first.predictions[name], second.predictions[name])
    assert any(
        not torch.equal(first.predictions[name], other.predictions[name])
        for name in ("clean", "pgd")
    )


def test_a_certain_model_takes_nothing_from_the_generator() -> None:
    chance, (x, y) = generator(), batch(dtype=torch.float32)
    FGSM(0.2)(tiny_net(), x, y, chance)
    assert torch.equal(chance.get_state(), generator().get_state())


def test_a_look_is_the_mean_of_its_draws() -> None:
    net, (x, y) = stochastic_net(), batch(dtype=torch.float32)
    one, three = Victim(net, y), Victim(net, y, eot=3)
    torch.manual_seed(0)
    draws = [one.look(x) for _ in range(3)]
    torch.manual_seed(0)
    for found, *parts in zip(three.look(x), *draws, strict=True):
        assert_within(found, torch.stack(parts).mean(0), 1e-6)
    assert not torch.equal(draws[0].gradient, draws[1].gradient)
    torch.manual_seed(0)
    mean = torch.stack([draw.logits for draw in draws]).mean(0)
    assert_within(three.logits(x), mean, 1e-6)


# What is computed


class Ops(TorchDispatchMode):
    """Keeps the ops that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls.append((str(function), args))
        return function(*args, **(kwargs or {}))

    def named(self, part: str) -> list[tuple[Any, ...]]:
        return [args for name, args in self.calls if part in name]


@pytest.mark.parametrize("g", [None, "rate"])
def test_weights_get_no_gradients(g: Any) -> None:
    """Of each layer the backward pass computes what goes on to the image, and nothing else."""
    layers = nn.Sequential(
        TimeDistributed(nn.Conv2d(1, 2, 3, padding=1)),
        TimeDistributed(nn.BatchNorm2d(2)),
        LIF(0.9, 0.5, learn_leak=True, learn_threshold=True),
        TimeDistributed(nn.Conv2d(2, 2, 3, padding=1)),
        NormLIF(2, learn_threshold=True),
        TimeDistributed(nn.Sequential(nn.Flatten(), nn.Linear(8, 4))),
        LIF(0.9, 0.5),
        TimeDistributed(nn.Linear(4, 3)),
    )
    net = SpikingNetwork(3, Normalize([0.5], [0.5]), layers, MeanReadout())
    x, y = batch(5, torch.float32)
    with Ops() as ops:
        FGSM(0.1, gradient=g)(net, x, y)
    convolutions = ops.named("convolution_backward")
    assert len(convolutions) == 2
    assert all(args[-1] == [True, False, False] for args in convolutions)
    assert all(args[-1] == [True, False, False] for args in ops.named("batch_norm_backward"))
    if g is None:
        assert [args[-1] for args in ops.named("snnkern.lif_backward")] == [False, False]
        assert [args[-2:] for args in ops.named("norm_lif_backward")] == [(False, False)]
    # One product for each linear layer on the way back, where weights would take another.
    products = [args for name, args in ops.calls if name.startswith("aten.mm.")]
    assert len(products) == 2
    with Ops() as training:
        F.cross_entropy(net(x), y).backward()
    assert any(args[-1][1] for args in training.named("convolution_backward"))


def test_square_sees_no_gradient() -> None:
    enabled: list[bool] = []
    net, (x, y) = tiny_net(), batch(dtype=torch.float32)
    net.register_forward_pre_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
    Square(0.01, 5)(net, x, y)
    assert enabled
    assert not any(enabled)


@pytest.mark.parametrize("shape", [(12,), (3, 5), (1, 7, 7), (2, 3, 4, 6)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_takes_any_shape(shape: tuple[int, ...], norm: Any) -> None:
    features = math.prod(shape)
    weight = torch.randn(4, features, generator=generator())
    net = linear_net(weight, torch.zeros(4))
    x = torch.rand(30, *shape, generator=generator())
    y = net(x).argmax(1)
    few, many = (Square(0.05, n, norm=norm)(net, x, y, generator()) for n in (1, 300))
    far = torch.linalg.vector_norm((many - x).flatten(1), math.inf if norm == "linf" else 2, dim=1)
    assert far.max() <= 0.05 + 1e-7
    assert far.min() >= 0.9 * 0.05
    margins = [margin(net(images), y).mean() for images in (few, many)]
    assert margins[0] < margins[1]


def test_squares_shrink_as_in_the_paper() -> None:
    square = Square(0.1, queries=5000)
    shares = [square._share_at(query) for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001)]
    assert shares == [0.8 / 2**n for n in (0, 0, 1, 2, 3, 4, 5, 6, 7)]
    assert Square(0.1, queries=100, rescale=True)._share_at(99) == 0.8 / 2**9


# Events


def events(count: int = 20) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 4, 10, generator=generator()).lt(0.3).float()
    return x, torch.randint(3, (count,), generator=generator(1))


def event_net(scale: float = 1.0) -> nn.Module:
    weight = scale * torch.randn(3, 40, generator=generator(2))
    return linear_net(weight, torch.zeros(3))


@pytest.mark.parametrize("eps", [0.0, 0.02, 0.1, 0.55, 1.0])
@pytest.mark.parametrize("scale", [1.0, 0.0])  # 0: no gradient, only random flips
def test_flips_stay_spikes_and_within_their_number(eps: float, scale: float) -> None:
    x, y = events()
    net = event_net(scale)
    y = net(x).argmax(1) if scale else y
    flipped = SpikeFlip(eps, 30)(net, x, y, generator())
    assert ((flipped == 0) | (flipped == 1)).all()
    differing = (flipped != x).flatten(1).sum(1)
    assert differing.max() <= int(eps * 40)
    if eps > 0.05 and scale:
        assert differing.max() > 0
    assert_same_bits(SpikeFlip(eps, 30)(net, x, y, generator()), flipped)


def test_more_flips_break_more() -> None:
    x, _ = events(100)
    net = event_net()
    y = net(x).argmax(1)
    shares = []
    for eps in (0.025, 0.1, 0.3):
        flipped = SpikeFlip(eps, per_step=0.05)(net, x, y, generator())
        shares.append((net(flipped).argmax(1) != y).float().mean().item())
    assert shares == sorted(shares)
    assert shares[0] < 0.9
    assert shares[-1] > 0.95


def test_flips_are_the_ones_that_hurt() -> None:
    # Only the first ten elements count, for class 0; the rest is asked for nothing.
    weight = torch.zeros(2, 40)
    weight[0, :10] = 1
    net = linear_net(weight, torch.tensor([0.0, 0.5]))
    x, y = torch.ones(4, 40), torch.zeros(4, dtype=torch.int64)
    flipped = SpikeFlip(0.25, 30, per_step=0.05)(net, x, y, generator())
    assert (flipped[:, :10] == 0).all()
    assert (flipped[:, 10:] == 1).all()


def test_what_is_broken_is_flipped_no_more() -> None:
    x, _ = events()
    net = event_net()
    y = (net(x).argmax(1) + 1) % 3
    assert torch.equal(SpikeFlip(0.5)(net, x, y, generator()), x)
    assert not torch.equal(SpikeFlip(0.5, stop=False)(net, x, y, generator()), x)


def test_only_events_are_flipped() -> None:
    x, y = events()
    with pytest.raises(ValueError, match="x has values between 0 and 1, expected events"):
        SpikeFlip()(event_net(), x / 2, y)


# Models that carry state


class Counting(nn.Module):
    """Its answer depends on how often it was asked, and maybe on chance."""

    def __init__(self, keep: str, noise: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.keep = keep
        self.noise = noise
        self.membranes: list[Tensor] = []
        self.membrane = torch.zeros(())
        self.rest()

    def rest(self) -> None:
        if self.keep == "in place":
            self.membrane.zero_()
        elif self.keep == "list":
            self.membranes[:] = [torch.zeros(())]
        else:
            self.membrane = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        if self.keep == "in place":
            self.membrane += 1
        elif self.keep == "list":
            self.membranes[0] = self.membranes[0] + 1
        else:
            self.membrane = self.membrane + 1
        count = self.membranes[0] if self.keep == "list" else self.membrane
        noise = self.noise * torch.rand(())
        logits: Tensor = self.linear(x.flatten(1)) * (count.clone() + noise)
        return logits


@pytest.mark.parametrize("keep", ["in place", "list", "attribute"])
def test_a_model_that_carries_state_is_refused_or_put_at_rest(keep: str) -> None:
    x, y = batch(dtype=torch.float32)
    for noise in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"model carries state .* in membrane(s\[0\])?: exp"):
            PGD(0.1)(Counting(keep, noise), x, y)
    model = Counting(keep)
    model.membrane = membrane = torch.tensor(7.0)
    model.membranes = membranes = [membrane]
    before = snapshot(model)
    at_rest = Stateless(model, lambda _: model.rest())
    adversarial = PGD(0.1, random_start=False)(at_rest, x, y)
    assert model.membrane is membrane
    assert model.membranes is membranes
    assert membranes == [membrane]
    assert membrane == 7
    assert_unchanged(model, before)
    # As if it were asked for the first time, every time.
    same = nn.Sequential(nn.Flatten(), model.linear)
    assert_same_bits(PGD(0.1, random_start=False)(same, x, y), adversarial)


def test_what_is_kept_for_later_is_no_state() -> None:
    class Remembers(nn.Linear):
        seen: Tensor | None = None

        def forward(self, input: Tensor) -> Tensor:
            self.seen = input
            return super().forward(input)

    x, y = batch(dtype=torch.float32)
    PGD(0.1)(nn.Sequential(nn.Flatten(), Remembers(4, 3)), x, y)


def test_without_a_reset_there_is_no_rest() -> None:
    with pytest.raises(ValueError, match="reset is None and Linear holds no layer of SpikingJelly"):
        Stateless(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        (nn.Identity(), r"\[20, 1, 2, 2\]"),
        (nn.Flatten(0), r"\[80\]"),
        (nn.LSTM(2, 2), "tuple"),
    ],
)
def test_what_is_no_logits_is_refused(model: nn.Module, shown: str) -> None:
    x, y = batch(dtype=torch.float32)
    x = x.flatten(1, 2) if isinstance(model, nn.LSTM) else x
    with pytest.raises(ValueError, match=rf"model gives {shown}, expected logits \[20, K\]"):
        FGSM(0.1)(model, x, y)


def test_ties_count_against_the_model() -> None:
    net = linear_net(torch.zeros(3, 4), torch.zeros(3))
    x, _ = batch(dtype=torch.float32)
    y = torch.zeros(len(x), dtype=torch.int64)
    report = evaluate(net, [(x, y)], {"fgsm": FGSM(0.1)}, progress=False)
    assert report.accuracy() == report.accuracy("fgsm") == 0


# Arguments


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: APGD(steps=0), ValueError, "APGD: steps is 0, expected an int of at least 1"),
        (lambda: APGD(rho=2), ValueError, "APGD: rho is 2, expected .* at most 1"),
        (lambda: APGD(restarts=0), ValueError, "APGD: restarts is 0, expected"),
        (lambda: APGD(targets=0), ValueError, "APGD: targets is 0, expected"),
        (lambda: PGD(eot=0), ValueError, "PGD: eot is 0, expected an int of at least 1"),
        (lambda: PGD(keep="first"), ValueError, "PGD: keep is 'first', expected 'last' or 'best'"),  # type: ignore[arg-type]
        (lambda: FGSM(norm="l1"), ValueError, "FGSM: norm is 'l1', expected 'linf' or 'l2'"),  # type: ignore[arg-type]
        (lambda: RFGSM(norm="l2"), ValueError, "RFGSM: norm is 'l2', expected 'linf'"),
        (lambda: SAPGD(norm="l2"), ValueError, "SAPGD: norm is 'l2', expected 'linf'"),
        (lambda: FGSM(loss="targeted-dlr"), ValueError, "FGSM: loss is 'targeted-dlr', expected"),
        (lambda: APGD(loss="cw"), ValueError, "APGD: loss is 'cw', expected 'ce' or"),  # type: ignore[arg-type]
        (lambda: SAPGD(steps=0), ValueError, "SAPGD: steps is 0"),
        (lambda: Square(queries=0), ValueError, "Square: queries is 0"),
        (lambda: Square(share=0), ValueError, "Square: share is 0, expected .* above 0"),
        (lambda: SpikeFlip(1.5), ValueError, r"SpikeFlip: eps is 1\.5, expected .* at most 1"),
        (lambda: SpikeFlip(per_step=-1), ValueError, "SpikeFlip: per_step is -1"),
        (lambda: SpikeFlip(flip_rate=2), ValueError, "SpikeFlip: flip_rate is 2"),
    ],
)
def test_impossible_attacks_are_refused(
    make: Callable[[], Attack], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "classes", "least"), [("dlr", 2, 3), ("targeted-dlr", 3, 4), ("targeted-dlr", 1, 4)]
)
def test_too_few_classes_are_refused(loss: Any, classes: int, least: int) -> None:
    net = linear_net(torch.zeros(classes, 4), torch.zeros(classes))
    x, y = batch(dtype=torch.float32)
    expected = f"loss is '{loss}' and model gives {classes} classes, expected {least} or more"
    with pytest.raises(ValueError, match=expected):
        APGD(0.1, loss=loss)(net, x, y.clamp(max=min(1, classes - 1)))


class Answers(nn.Module):
    """Gives logits of a list, whatever it is asked."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.logits = list(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.pop(0)[: len(x)]


def test_with_draws_a_sample_is_left_when_others_break_it_too() -> None:
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    x, y = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    # Of the two that the first draws break, the second is right in the mean of the next two.
    again = [torch.stack([wrong, 3 * right]), torch.stack([wrong, wrong])]
    model = Answers(*again)
    search = Search(Victim(model, y, eot=2), x, stop=True)
    logits = torch.stack([wrong, wrong, right])
    (images,) = search.see(x, logits, torch.zeros(3))
    assert search.at.tolist() == [1, 2]
    assert_same_bits(images, x[1:])
    assert search.best.broken.tolist() == [True, True, False]
    assert model.logits == []
    search = Search(Victim(model, y), x, stop=True)
    search.see(x, logits, torch.zeros(3))
    assert search.at.tolist() == [2]


def test_the_share_of_assg_is_the_best_that_was_tried() -> None:
    x, y = torch.rand(40, 1, 2, 2, generator=generator()), torch.zeros(40, dtype=torch.int64)
    net = tiny_net(classes=3)
    y = net(x).argmax(1)
    attack = PGD(0.1, steps=3)
    shares = (0.1, 0.49)

    def left(share: float) -> int:
        images = replace(attack, gradient=ASSG(share))(net, x, y, generator(5))
        return int((decide(net(images), y) == y).sum())

    found = fitted_assg(net, x, y, attack, low=shares[0], high=shares[1], rounds=4, seed=5)
    assert shares[0] < found.share < shares[1]
    third = (shares[1] - shares[0]) / 3
    first = (shares[0] + third, shares[1] - third)
    assert left(found.share) <= min(map(left, first))
    # One round: the better of the two points.
    once = fitted_assg(net, x, y, attack, low=shares[0], high=shares[1], rounds=1, seed=5)
    assert left(once.share) == min(map(left, first))
    with pytest.raises(ValueError, match=r"low is 0\.4 and high is 0\.3"):
        fitted_assg(net, x, y, attack, low=0.4, high=0.3)
