"""The exact verifier, and all bounds against margins that it found."""

from __future__ import annotations

import copy
import importlib
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from python_tests.exact_networks import COUNT, Solved, solved
from python_tests.helpers import assert_within, need
from python_tests.test_certify import CLASSES, margins_of, sample
from python_tests.test_crown import random_net, residual_net
from snnkern.certify import bounds, exact, slopes, split, verify
from snnkern.certify.bounds import METHODS
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import LIF, MeanReadout, NormLIF, RateCoding, TimeDistributed

need("scipy")
bounds_module = importlib.import_module("snnkern.certify.bounds")


def margins_at(net: SpikingNetwork, images: Tensor, y: Tensor) -> Tensor:
    """Of images [K - 1, ...] the one margin each that they were found for."""
    return margins_of(net, images[None], y)[0].diagonal().detach()


# Frozen networks


def test_the_frozen_witnesses_have_their_margins() -> None:
    closed = 0
    for case in map(solved, range(COUNT)):
        assert (case.lower <= case.witness).all()
        assert (case.witness <= case.upper).all()
        found = margins_at(case.net, case.witness, case.y)
        assert_within(found, case.margin, 1e-12)
        assert (case.bound <= case.margin + 1e-9).all()
        closed += int((case.margin - case.bound < 1e-3).sum())
    assert closed >= 2 * COUNT - 2  # of the others, the closed set goes further than any input


def gaps(case: Solved) -> dict[str, Tensor]:
    """How far every method stays below the witness; below 0 it is wrong."""
    found = {}
    for method in METHODS:
        bound = bounds(case.net, case.lower, case.upper, case.y, method)  # type: ignore[arg-type]
        found[method] = case.margin - bound[0]
    return found


def test_no_bound_exceeds_the_exact_margins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slopes, "STEPS", 8)
    monkeypatch.setattr(split, "ROUNDS", 3)
    total = dict.fromkeys(METHODS, 0.0)
    certified = dict.fromkeys(METHODS, 0)
    for case in map(solved, range(COUNT)):
        found = gaps(case)
        assert (found["split"] <= found["tight"] + 1e-12).all()
        for method, gap in found.items():
            assert (gap >= -1e-12).all()
            total[method] += gap.sum().item()
            certified[method] += int((case.margin - gap > 0).sum())
    assert total["split"] < total["tight"] < total["best"] < min(total["ibp"], total["crown"])
    assert max(certified["ibp"], certified["crown"]) <= certified["best"]
    assert certified["best"] <= certified["tight"] <= certified["split"]


def test_no_bound_of_float32_exceeds_the_margins_there() -> None:
    for case in map(solved, range(COUNT)):
        net = copy.deepcopy(case.net).float()
        lower, upper = case.lower.float(), case.upper.float()
        points = torch.cat([case.witness.float()[None], sample(lower, upper, 100, 0)], 1)
        found = margins_of(net, points.maximum(lower).minimum(upper), case.y).amin(1)
        for method in ("ibp", "crown", "best"):
            bound = bounds(net, lower, upper, case.y, method).double()
            assert (bound <= found + 1e-7).all()  # rates are quotients, rounded


def test_solving_anew_finds_the_frozen_margins() -> None:
    for case in map(solved, range(COUNT)):
        again = exact.margins(case.net, case.lower, case.upper, case.y)
        assert_within(again.lower[0], case.bound, 1e-5)
        assert_within(again.found[0], case.margin, 1e-3)


# Against inputs


@pytest.mark.parametrize("options", [{}, {"reset": "soft"}, {"spiking_output": True}])
def test_no_input_goes_below_what_is_exact(options: dict[str, Any]) -> None:
    for seed in range(4):
        net, x, y = random_net(100 + seed, 4, 6, 3, **options)
        net, x = net.double(), x.double()
        lower, upper = x - 0.1, x + 0.1
        solution = exact.margins(net, lower, upper, y)
        found = margins_of(net, sample(lower, upper, 5000, seed), y).amin(1)
        assert (solution.lower - exact.TOLERANCE <= found).all()
        assert_within(margins_at(net, solution.inputs[0], y), solution.found[0], 1e-12)
        assert (solution.found <= found + 1e-2).all()


def test_norms_convolutions_and_channels_are_written_down() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        leaks = torch.tensor([0.5, 0.9])
        layers = nn.Sequential(
            TimeDistributed(nn.Conv2d(1, 2, 2)),
            NormLIF(2, leak=leaks, threshold=0.5, v_reset=0.125),
            TimeDistributed(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 4))),
            LIF(0.5, 0.5, v_init=0.25, reset="none"),
            TimeDistributed(nn.Linear(4, CLASSES)),
        )
        net = SpikingNetwork(3, Normalize([0.5], [0.25]), layers, MeanReadout()).double().eval()
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.8)
        x, y = torch.rand(1, 1, 3, 3).double(), torch.tensor([seed])
        lower, upper = x - 0.05, x + 0.05
        solution = exact.margins(net, lower, upper, y)
        found = margins_of(net, sample(lower, upper, 3000, seed), y).amin(1)
        assert (solution.lower - exact.TOLERANCE <= found).all()
        assert (solution.found <= found + 1e-2).all()
        assert (bounds(net, lower, upper, y) <= solution.found).all()


def test_images_are_certified_broken_or_neither() -> None:
    counts = {"certified": 0, "broken": 0, "more": 0}
    for seed in range(6):
        net, x, _ = random_net(seed, 6, 8, 3)
        x = torch.rand(4, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
        y = net(x).argmax(1)
        certificate = verify(net, x, y, 0.08, "exact")
        assert certificate.broken is not None
        assert certificate.counterexamples is not None
        assert not (certificate.certified & certificate.broken).any()
        wrong = net(certificate.counterexamples).argmax(1) != y
        ties = net(certificate.counterexamples).topk(2, 1).values.diff(dim=1).abs()[:, 0] == 0
        assert ((wrong | ties) | ~certificate.broken).all()
        cheap = verify(net, x, y, 0.08)
        assert (certificate.certified | ~cheap.certified).all()
        counts["certified"] += int(certificate.certified.sum())
        counts["broken"] += int(certificate.broken.sum())
        counts["more"] += int((certificate.certified & ~cheap.certified).sum())
    assert min(counts.values()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counterexamples_are_within_the_radius_to_the_last_bit(dtype: torch.dtype) -> None:
    """And are themselves what the network was seen to take for another class."""
    broken = 0
    for seed in range(6):
        net, x, _ = random_net(seed, 6, 8, 3)
        net = net.to(dtype)
        x = torch.rand(4, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
        x[0, ..., :3] = torch.tensor([0.0, 0.03, 1.0])
        y = net(x).argmax(1)
        found = verify(net, x, y, 0.08, "exact")
        assert found.broken is not None
        assert found.counterexamples is not None
        assert found.counterexamples.dtype == x.dtype
        images, pixels = (t.double().flatten().tolist() for t in (found.counterexamples, x))
        assert all(0 <= image <= 1 for image in images)
        radius = Fraction(0.08)
        assert all(
            abs(Fraction(a) - Fraction(b)) <= radius for a, b in zip(images, pixels, strict=True)
        )
        logits = net(found.counterexamples)
        own = logits.gather(1, y[:, None])[:, 0]
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        assert torch.equal(found.broken, found.broken & (others >= own))
        broken += int(found.broken.sum())
    assert broken > 0


def test_an_image_next_to_the_ball_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The neuron fires from the first number outside on, where HiGHS steps over the end."""
    eps = 0.0625
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    edge = x + eps
    last = nn.Linear(1, 2)
    layers = nn.Sequential(
        TimeDistributed(nn.Flatten()),
        LIF(0.5, torch.nextafter(edge, x + 1).item()),
        TimeDistributed(last),
    )
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[0.0], [1.0]]))
        last.bias.copy_(torch.tensor([0.5, 0.0]))
    net = SpikingNetwork(1, Normalize([0.0], [1.0]), layers, MeanReadout()).eval()
    assert net(edge).argmax() == 0
    assert net(torch.nextafter(edge, x + 1)).argmax() == 1
    monkeypatch.setattr(exact._Program, "solve", lambda *_: (-1.0, np.array([2.0])))
    found = verify(net, x, y, eps, "exact")
    assert found.broken is not None
    assert found.counterexamples is not None
    assert not found.certified.any()
    assert not found.broken.any()
    assert torch.equal(found.counterexamples, edge)


def test_out_of_time_both_ends_still_hold() -> None:
    net, x, y = random_net(1, 8, 16, 16, 3)
    net, x = net.double(), x.double()
    solution = exact.margins(net, x - 0.05, x + 0.05, y, time_limit=0.05)
    found = margins_of(net, sample(x - 0.05, x + 0.05, 1000, 0), y).amin(1)
    assert (solution.lower - exact.TOLERANCE <= found).all()
    assert (solution.lower - exact.TOLERANCE <= solution.found).all()


def test_a_solver_that_fails_certifies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = random_net(0, 6, 8, 3)
    for answer in (float("inf"), float("-inf")):
        monkeypatch.setattr(exact._Program, "solve", lambda *_, answer=answer: (answer, None))
        monkeypatch.setattr(bounds_module, "bounds", lambda *_, **__: torch.full((1, 2), -1.0))
        certificate = verify(net, x, y, 0.05, "exact")
        assert not certificate.certified.any()
        assert certificate.broken is not None
        assert not certificate.broken.any()


# What is refused


def test_what_cannot_be_written_down_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = random_net(0, 6, 8, 3)
    delayed, _, _ = random_net(0, 6, 8, 3, reset="delayed_soft")
    with pytest.raises(TypeError, match="reset='delayed_soft', expected hard, soft or none"):
        exact.margins(delayed, x, x, y)
    net.timesteps = 0
    with pytest.raises(TypeError, match="expected Direct of a spiking network"):
        exact.margins(net, x, x, y)
    net.timesteps = 3
    net.encoder = RateCoding(3)
    with pytest.raises(TypeError, match="expected Direct of a spiking network"):
        exact.margins(net, x, x, y)
    net = residual_net(0, weighted=False, first=True).double()
    image = torch.rand(1, 2, 4, 4).double()
    with pytest.raises(TypeError, match="a Residual with neurons in it"):
        exact.margins(net, image, image, y)
    linear = SpikingNetwork(
        2,
        Normalize([0.0], [1.0]),
        nn.Sequential(TimeDistributed(nn.Flatten()), TimeDistributed(nn.Linear(6, 3))),
        MeanReadout(),
    )
    with pytest.raises(TypeError, match="no spiking neurons"):
        exact.margins(linear, x, x, y)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        exact.margins(linear, x, x, y)
