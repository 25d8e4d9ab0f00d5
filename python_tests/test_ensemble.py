"""The ensemble of gradients: the sequential protocol's results, in fewer passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import snnkern
from python_tests.helpers import assert_same_bits, assert_within, golden
from python_tests.networks import assert_unchanged, robustconv_net, snapshot, tiny_net
from python_tests.test_golden import surrogate_named
from snnkern.attacks import (
    APGD,
    BIM,
    DEFAULT_ENSEMBLE,
    FGSM,
    PGD,
    SAPGD,
    SURROGATE_ENSEMBLE,
    Attack,
    Ensemble,
    Square,
    Transfer,
)
from snnkern.attacks.ensemble import Riders
from snnkern.nn import Gradient, gradient
from snnkern.surrogate import ASSG, HART, PDSG, RGA, ATan, StraightThrough, Triangle

ORDER = (
    *(f"PCW_{width}" for width in ("1.0", "2.0", "3.0", "0.5", "0.25")),
    *(f"{kind}_{slope}" for kind in ("EXP-D", "EXP") for slope in ("0.5", "1.0", "2.0")),
    *(f"RECT_{width}" for width in ("0.25", "0.5", "1.0", "2.0", "4.0")),
    "STE_1.0",
    "BPTR",
    "CBA",
)


def member(name: str) -> Gradient:
    """A member of the golden ensemble by its name there."""
    return {"BPTR": "rate", "CBA": "relu"}.get(name) or surrogate_named(name)  # type: ignore[return-value]


def test_the_members_are_those_of_the_paper() -> None:
    assert len(SURROGATE_ENSEMBLE) == 19
    assert tuple(map(member, ORDER)) == SURROGATE_ENSEMBLE
    assert Ensemble(FGSM()).gradients == SURROGATE_ENSEMBLE


# Golden data of Ozdenizci & Legenstein


def golden_batch() -> tuple[Tensor, Tensor]:
    data = golden("robustconv_attacks")
    return torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])


@pytest.mark.parametrize("name", ORDER)
def test_golden_member(name: str) -> None:
    data = golden("robustconv_attacks")
    net, (x, y) = robustconv_net(data).eval(), golden_batch()
    images = x.clone().requires_grad_()
    with gradient(net, member(name)):
        logits = net(images)
    thresholds = [p for n, p in net.named_parameters() if n.endswith("threshold")]
    given = (images, *thresholds)
    found = torch.autograd.grad(F.cross_entropy(logits, y), given, allow_unused=True)
    expected = data[f"gth_{name}"]
    assert len(expected) == len(thresholds)
    for actual, golden_value in zip(found[1:], expected, strict=True):
        if np.isnan(golden_value):
            assert actual is None or actual == 0
        else:
            assert actual is not None
            assert_within(actual, torch.tensor(golden_value), 1e-6)
    assert_within(logits.detach(), torch.from_numpy(data[f"logits_{name}"]), 1e-6)
    assert found[0] is not None
    assert_within(found[0], torch.from_numpy(data[f"gimg_{name}"]), 1e-6)
    fgsm = FGSM(float(data["eps"]), gradient=member(name))(net, x, y)
    assert_within(fgsm, torch.from_numpy(data[f"fgsm_{name}"]), 1e-9)


@pytest.mark.parametrize("eps", [2, 8])
@pytest.mark.parametrize("batch_size", [None, 1, 3, 1000])
def test_golden_ensemble(eps: int, batch_size: int | None) -> None:
    data = golden("robustconv_attacks")
    net, (x, y) = robustconv_net(data), golden_batch()
    found = Ensemble(FGSM(eps / 255), batch_size=batch_size)(net, x, y)
    assert_within(found, torch.from_numpy(data[f"ens_fgsm_{eps}"]), 1e-9)


# Equal to one member after the other


def conv_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Two convolutions with norm, one linear layer; images 2x6x6."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Sequential(
            snnkern.nn.Direct(4),
            snnkern.nn.TimeDistributed(nn.Conv2d(2, 6, 3, padding=1)),
            snnkern.NormLIF(6, leak=0.9, threshold=0.6),
            snnkern.nn.TimeDistributed(nn.Conv2d(6, 6, 3, padding=1)),
            snnkern.LIF(0.8, 0.3, reset="soft"),
            snnkern.nn.TimeDistributed(nn.Sequential(nn.AvgPool2d(2), nn.Flatten())),
            snnkern.nn.TimeDistributed(nn.Linear(54, 4)),
            snnkern.nn.MeanReadout(),
        )
        for parameter in layers.parameters():
            nn.init.normal_(parameter, std=0.3)
    return layers.to(dtype).eval()


def conv_batch(count: int = 40) -> tuple[Tensor, Tensor]:
    """Images, of which the network tells most right."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 2, 6, 6, generator=generator, dtype=torch.float64)
    y = conv_net()(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4
    return x, y


def one_after_the_other(
    attack: Attack, gradients: Any, net: nn.Module, x: Tensor, y: Tensor
) -> Any:
    """The protocol in words: full batches, a generator for every member; and who broke what."""
    seeds = torch.randint(2**63 - 1, (len(gradients),), generator=generator()).tolist()
    images, by = x.clone(), torch.full((len(x),), -1)
    for number, (g, seed) in enumerate(zip(gradients, seeds, strict=True)):
        found = replace(attack, gradient=g)(net, x, y, torch.Generator().manual_seed(seed))
        broken = (net(found).argmax(1) != y) & (by < 0)
        images[broken], by[broken] = found[broken], number
    return images, by


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


MIXED: tuple[Any, ...] = (
    Triangle(0.25),
    ATan(),
    None,
    Triangle(3.0),
    StraightThrough(),
    "rate",
    HART(),
    RGA(),
    Triangle(1.0),
    ATan(0.5),
    "relu",
    ASSG(),
)


@pytest.mark.parametrize(
    ("attack", "gradients"),
    [
        (FGSM(0.1), SURROGATE_ENSEMBLE),
        (PGD(0.1, steps=4), SURROGATE_ENSEMBLE),
        (BIM(0.1, steps=4), SURROGATE_ENSEMBLE),
        (PGD(0.1, steps=3, stop=True), MIXED),
        (APGD(0.1, steps=6), MIXED),
        (SAPGD(0.1, steps=3), DEFAULT_ENSEMBLE),
        (SAPGD(0.1, steps=5, stop=True), MIXED),
        (APGD(0.1, steps=4, loss="dlr"), SURROGATE_ENSEMBLE),
        (PGD(0.1, steps=3, loss="kl", norm="linf"), MIXED),
        (PGD(0.1, steps=3, norm="l2"), MIXED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_results_are_those_of_one_member_after_the_other(attack: Attack, gradients: Any) -> None:
    net, (x, y) = conv_net(), conv_batch()
    expected, by = one_after_the_other(attack, gradients, net, x, y)
    # Something is broken at once, something later, and something never.
    assert len(by[by >= 0].unique()) >= 3
    assert (by == -1).any()
    for batch_size in (None, 1000, 7):
        found = Ensemble(attack, gradients, batch_size=batch_size)(net, x, y, generator())
        broken = net(found).argmax(1) != y
        assert torch.equal(broken, by >= 0), batch_size
        assert_within(found, expected, 1e-12, f"batch size {batch_size}")


@pytest.mark.parametrize(
    "attack",
    [
        PGD(0.1, steps=3, restarts=3),
        APGD(0.1, steps=3, restarts=2),
        APGD(0.1, steps=3, loss="targeted-dlr", targets=2),
    ],
    ids=lambda attack: f"{type(attack).__name__} {attack.loss}",
)
def test_restarts_do_not_depend_on_who_shares_the_batch(attack: Attack) -> None:
    net, (x, y) = conv_net(), conv_batch(10)
    expected = Ensemble(attack, batch_size=1)(net, x, y, generator())
    assert not torch.equal(expected, x)
    for batch_size in (None, 1000):
        found = Ensemble(attack, batch_size=batch_size)(net, x, y, generator())
        assert_within(found, expected, 1e-12)


def test_a_riders_gradient_is_the_members_own() -> None:
    """In float64, where linear layers do not round by the size of the batch, bit for bit."""
    net = tiny_net(4).double().eval()
    x = torch.rand(5, 1, 2, 2, generator=generator(), dtype=torch.float64)
    y = torch.arange(5) % 3
    chosen = [g for g in SURROGATE_ENSEMBLE if not isinstance(g, str)]
    moved = torch.stack([(x + 0.01 * i).clamp(0, 1) for i in range(len(chosen))])
    number = torch.arange(len(chosen)).repeat_interleave(5)
    alike, others = (torch.stack([(y + s * i) % 3 for i in range(len(chosen))]) for s in (0, 1))
    same = x.expand(moved.shape)
    # The second with one forward pass; not the third, equal images of other samples.
    for images, labels in ((moved, alike), (same, alike), (same, others)):
        riders = Riders(net, labels.flatten(), network=net, gradients=tuple(chosen), member=number)
        look = riders.look(images.reshape(-1, 1, 2, 2))
        for i, g in enumerate(chosen):
            with gradient(net, g):
                own = images[i].clone().requires_grad_()
                loss = F.cross_entropy(net(own), labels[i], reduction="sum")
                (expected,) = torch.autograd.grad(loss, own)
            assert_within(look.gradient.view(moved.shape)[i], expected, 1e-15, str(g))
            assert look.logits.shape == (len(number), 3)


# What it costs


class Counts(nn.Module):
    """Hands images on; keeps the sizes of batches and whether a gradient is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append((len(x), x.requires_grad))
        return x


def test_one_forward_pass_serves_the_first_step_of_all_that_ride() -> None:
    counts = Counts()
    net, (x, y) = nn.Sequential(counts, conv_net()), conv_batch(4)
    Ensemble(FGSM(1e-9), batch_size=1000)(net, x[3:], y[3:])
    # 17 of one sample ride: one forward pass of it, one of their images; then two by themselves.
    assert counts.sizes == [(1, True), (17, False), (1, True), (1, False), (1, True), (1, False)]


def test_samples_that_are_broken_leave_and_members_fill_the_batch() -> None:
    counts = Counts()
    net, (x, y) = nn.Sequential(counts, conv_net()), conv_batch(24)
    Ensemble(PGD(0.1, steps=2))(net, x, y, generator())
    largest = [size for size, _ in counts.sizes]
    assert max(largest) == 24
    _, by = one_after_the_other(PGD(0.1, steps=2), SURROGATE_ENSEMBLE, conv_net(), x, y)
    expected, first = 0, 0
    while first < 19:
        left = int(((by < 0) | (by >= first)).sum())
        count = 1 if first >= 17 else max(1, min(24 // left, 17 - first))
        expected, first = expected + 3 * count * left, first + count
    assert sum(largest) == expected
    assert expected < 3 * 19 * 24 / 1.3


def test_no_batch_is_larger_than_it_may_be() -> None:
    counts = Counts()
    net, (x, y) = nn.Sequential(counts, conv_net()), conv_batch(10)
    Ensemble(FGSM(0.1), batch_size=4)(net, x, y)
    assert max(size for size, _ in counts.sizes) == 4


def test_nothing_of_the_model_changes() -> None:
    net, (x, y) = conv_net().train(), conv_batch(6)
    before, images = snapshot(net), x.clone()
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    found = Ensemble(PGD(0.05, steps=2), MIXED)(net, x, y, generator())
    assert_unchanged(net, before)
    assert_same_bits(x, images)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (found - x).abs().max() <= 0.05
    assert_same_bits(Ensemble(FGSM(0.0))(net, x, y), x)


def test_every_member_counts_in_an_evaluation() -> None:
    net, (x, y) = conv_net(), conv_batch()
    attacks = {"alone": BIM(0.1, steps=4), "ensemble": Ensemble(BIM(0.1, steps=4))}
    result = snnkern.evaluate(net, [(x, y)], attacks, progress=False)
    _, by = one_after_the_other(BIM(0.1, steps=4), SURROGATE_ENSEMBLE, net, x, y)
    assert torch.equal(result.correct("ensemble"), by < 0)
    assert result.accuracy("ensemble") < result.accuracy("alone") < result.accuracy()
    source = Transfer(net, Ensemble(BIM(0.1, steps=4)))
    assert torch.equal(net(source(conv_net(), x, y)).argmax(1) == y, by < 0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Ensemble(PGD(gradient="rate")), ValueError, "expected one without a gradient"),
        (lambda: Ensemble(Ensemble(PGD())), TypeError, "expected one on the model itself"),
        (lambda: Ensemble(Transfer(nn.Identity(), PGD())), TypeError, "Transfer.*expected one on"),
        (lambda: Ensemble("pgd"), TypeError, "attack is 'pgd', expected one on the model itself"),  # type: ignore[arg-type]
        (lambda: Ensemble(PGD(), ()), ValueError, "gradients is empty"),
        (lambda: Ensemble(PGD(), ("bptt",)), TypeError, r"gradients\[0\] is 'bptt', expected"),  # type: ignore[arg-type]
        (lambda: Ensemble(PGD(), batch_size=0), ValueError, "batch_size is 0, expected an int"),
    ],
)
def test_what_is_no_ensemble_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_an_attack_that_draws_for_whom_it_was_not_given_is_refused() -> None:
    net, (x, y) = conv_net(), conv_batch(8)
    with pytest.raises(ValueError, match=r"draws for \d+ samples, expected \d+"):
        Ensemble(Square(0.1, queries=50), (Triangle(), ATan()))(net, x, y, generator())


def test_it_is_a_configuration() -> None:
    one, other = Ensemble(PGD(), [Triangle(), PDSG()]), Ensemble(PGD(), (Triangle(), PDSG()))
    assert one == other
    assert hash(one) == hash(other)
    assert one.eps == PGD().eps
    assert "Triangle" in str(one)


def test_images_may_lie_in_any_layout() -> None:
    net, (x, y) = conv_net(), conv_batch(12)
    expected = Ensemble(BIM(0.1, steps=2))(net, x, y)
    found = Ensemble(BIM(0.1, steps=2))(net, x.to(memory_format=torch.channels_last), y)
    assert_within(found, expected, 1e-12)
