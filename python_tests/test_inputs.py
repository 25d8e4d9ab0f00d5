"""Bounds for inputs of spikes: encoders whose draw is known, and events of which few may differ."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from python_tests.helpers import assert_within, golden, random
from python_tests.test_certify import CLASSES, Case, build, golden_network, margins_of, others
from snnkern import functional
from snnkern.certify import bounds, crown, ibp, inputs, spike_bounds, verify
from snnkern.models import SpikingNetwork
from snnkern.nn import RateCoding
from snnkern.nn.encoding import quantized
from snnkern.reference import Interval

METHODS: Any = ("ibp", "crown", "best")
CODINGS: Any = ("poisson", "signed_poisson", "bernoulli")


def coded_net(case: Case, coding: Any, rate: float = 1.0) -> SpikingNetwork:
    net = build(case).eval()
    net.encoder = RateCoding(case.timesteps, coding, rate)
    return net


# Draws


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("bits", [None, 2])
@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold_for_every_pixel_of_a_box_with_these_draws(
    coding: Any, seed: int, bits: int | None
) -> None:
    case = Case(("fc", "conv")[seed % 2], seed=seed, spiking_output=seed % 3 == 0)
    net = coded_net(case, coding, rate=(1.0, 0.9)[seed % 2])
    net.encoder.bits = bits
    x = random(3, 2, 2, 2, seed=seed).sigmoid()
    lower, upper = (x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1)
    y = torch.arange(3) % CLASSES
    draws = random(3, *x.shape, seed=seed + 1).sigmoid()
    points = lower[:, None] + torch.rand(3, 800, 2, 2, 2) * (upper - lower)[:, None]
    points[:, 0], points[:, 1] = lower, upper
    pixels = net.normalize(points.flatten(0, 1))
    if bits is not None:
        pixels = quantized(pixels, bits, low=-1.0 if coding == "signed_poisson" else 0.0)
    pixels = pixels * net.encoder.rate
    every = draws[:, :, None].expand(-1, -1, 800, -1, -1, -1).flatten(1, 2)
    spikes = functional.encode(pixels, coding=coding, draws=every)
    logits = net.readout(net.layers(spikes)).double().view(3, 800, -1)
    wrong = others(y)[:, None].expand(-1, 800, -1)
    found = (logits.gather(2, y[:, None, None].expand(-1, 800, -1)) - logits.gather(2, wrong)).amin(
        1
    )
    for method in METHODS:
        bound = bounds(net, lower, upper, y, method, draws=draws).double()
        slack = 1e-6 if case.spiking_output else 0.0  # rates of whole numbers
        assert (bound <= found + slack).all()
        point = bounds(net, x, x, y, method, draws=draws)
        assert (point >= bound - 1e-5).all()


@given(st.integers(0, 2**20), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.4]))
@settings(max_examples=60)
def test_the_least_sum_over_spikes_of_known_draws_is_exact(
    seed: int, timesteps: int, width: float
) -> None:
    for coding in CODINGS:
        low = random(2, 3, seed=seed)
        low = low if coding == "signed_poisson" else low.sigmoid()
        box = Interval(low, low + width)
        draws = random(timesteps, 2, 3, seed=seed + 1).sigmoid()
        spikes = inputs.coded(RateCoding(timesteps, coding), box, draws)
        rows = random(4, timesteps, 2, 3, seed=seed + 2)
        bound = inputs.least_of_draws(spikes, draws)(rows)
        pixels = low + torch.linspace(0, 1, 501).view(-1, 1, 1) * width
        events = torch.cat([draws, -draws]).clamp(*box)
        pixels = torch.cat([pixels, events, events + 1e-7]).clamp(*box)
        seen = functional.encode(
            pixels, coding=coding, draws=draws[:, None].expand(-1, len(pixels), -1, -1)
        )
        sums = torch.einsum("rtnf,tmnf->rmnf", rows.double(), seen.double())
        exact = sums.amin(1).sum(2)  # pixels are independent
        assert (bound <= exact).all()
        assert_within(bound, exact, 1e-9)
        loose = crown.least_in_box(rows, spikes, crown.TIGHT)
        assert (bound >= loose - 1e-9).all()


def test_a_certificate_names_the_draw_it_holds_for() -> None:
    net = coded_net(Case(seed=3, timesteps=6), "bernoulli")
    x = random(40, 2, 2, 2, seed=5).sigmoid()
    generator = torch.Generator().manual_seed(7)
    spikes = net.encoder(net.normalize(x), generator)
    y = net.readout(net.layers(spikes)).argmax(1)
    certificate = verify(net, x, y, 0.0, encoding_seed=7)
    assert certificate.encoding_seed == 7
    assert certificate.certified.float().mean() > 0.5
    another = verify(net, x, y, 0.0, encoding_seed=8)
    assert not torch.equal(certificate.margin, another.margin)
    assert verify(build(Case()), x, y, 0.0).encoding_seed is None
    small = verify(net, x, y, 0.02, encoding_seed=7)
    assert (small.margin <= certificate.margin + 1e-5).all()


# Events


def events(seed: int, bits: int = 24) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    spikes = torch.randint(2, (3, 1, 2, 2, 2), generator=draws).float()
    free = torch.zeros(24, dtype=torch.bool)
    free[torch.randperm(24, generator=draws)[:bits]] = True
    return spikes, free.view(3, 1, 2, 2, 2)


def changed(spikes: Tensor, free: Tensor, flips: int) -> Tensor:
    """All spikes with at most so many flips, as a batch."""
    places = free.flatten().nonzero().flatten().tolist()
    flat = [spikes.flatten()]
    for count in range(1, flips + 1):
        for chosen in itertools.combinations(places, count):
            one = spikes.flatten().clone()
            one[list(chosen)] = 1 - one[list(chosen)]
            flat.append(one)
    return torch.stack(flat).view(-1, 3, *spikes.shape[2:]).transpose(0, 1)


@pytest.mark.parametrize("flips", [0, 1, 2, 3, None])
@pytest.mark.parametrize("shape", ["fc", "conv"])
@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_for_all_events_within_the_budget(
    seed: int, shape: str, flips: int | None
) -> None:
    case = Case(shape, seed=seed, spiking_output=seed % 3 == 0, reset=("hard", "soft")[seed % 2])
    net = build(case).eval()
    spikes, free = events(seed, 9 if flips is None else 14)
    every = changed(spikes, free, 9 if flips is None else flips)
    y = torch.tensor([seed % CLASSES])
    logits = net.readout(net.layers(every)).double()
    exact = (logits[:, y] - logits[:, others(y)[0]]).amin(0)
    anything = spike_bounds(net, spikes, y, free=free).double()
    for method in METHODS:
        bound = spike_bounds(net, spikes, y, method, free=free, flips=flips).double()[0]
        assert (bound <= exact + (1e-6 if case.spiking_output else 0.0)).all()
        if flips == 0:
            assert_within(bound, exact, 1e-4)
    assert (spike_bounds(net, spikes, y, free=free, flips=flips) >= anything - 1e-5).all()


@given(st.integers(0, 2**20), st.integers(0, 5), st.integers(0, 24))
@settings(max_examples=60)
def test_the_least_sum_over_few_flips_is_exact(seed: int, flips: int, bits: int) -> None:
    spikes, free = events(seed, min(bits, 12))
    rows = random(2, *spikes.shape, seed=seed)
    bound = inputs.least_of_flips(spikes, free, flips)(rows)[:, 0]
    every = changed(spikes, free, min(flips, 3)).transpose(0, 1).flatten(1)
    exact = (rows.double().flatten(1) @ every.double().T).amin(1)
    assert (bound <= exact).all()
    if flips <= 3:
        assert_within(bound, exact, 1e-9)


@pytest.mark.parametrize("layer", [nn.Linear(8, 5), nn.Conv2d(2, 3, 2, padding=1, stride=2)])
def test_the_first_currents_of_few_flips_are_exact(layer: nn.Module) -> None:
    for seed, flips in itertools.product(range(4), range(4)):
        spikes, free = events(seed, 12)
        if isinstance(layer, nn.Linear):
            spikes, free = spikes.flatten(2), free.flatten(2)
        budgeted = ibp.Budgeted(layer, spikes, free, flips)
        box = Interval(torch.where(free, 0, spikes), torch.where(free, 1, spikes))
        every = changed(spikes, free, flips)
        with torch.no_grad():
            bound = ibp.propagate(budgeted, box)
            found = torch.stack([layer(step) for step in every])
        assert (bound.lower[:, 0] <= found.amin(1)).all()
        assert (bound.upper[:, 0] >= found.amax(1)).all()
        assert_within(bound.lower[:, 0], found.amin(1), 2e-5)
        assert_within(bound.upper[:, 0], found.amax(1), 2e-5)


def test_golden_events() -> None:
    data, net = golden("scrown_fc_event"), golden_network("scrown_fc_event")
    lower, upper = torch.from_numpy(data["in_L"]), torch.from_numpy(data["in_U"])
    y = torch.from_numpy(data["labels"])
    bound = {m: spike_bounds(net, lower, y, m, free=lower != upper) for m in METHODS}
    assert_within(bound["ibp"], torch.from_numpy(data["ibp_L"]), 1e-9)
    exact = torch.from_numpy(data["exact_min_margin"])
    for method in METHODS:
        assert (bound[method] <= exact + 1e-9).all()
    assert (bound["best"] >= torch.from_numpy(data["crown_L"]) - 1e-9).all()


def test_golden_draws() -> None:
    for name in ("scrown_fc", "scrown_conv"):
        data, net = golden(name), golden_network(name)
        net.encoder = RateCoding(int(data["T_prime"]), "bernoulli")
        x, eps = torch.from_numpy(data["x"]), float(data["eps_half_width"])
        y, draws = torch.from_numpy(data["labels"]), torch.from_numpy(data["rand"])
        bound = {m: bounds(net, x - eps, x + eps, y, m, draws=draws) for m in METHODS}
        assert_within(bound["ibp"], torch.from_numpy(data["ibp_L"]), 1e-9)
        assert (bound["best"] >= torch.from_numpy(data["crown_L"]) - 1e-9).all()


def test_forgotten_flips_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    layers: Any = inputs.with_flips
    sums: Any = inputs.least_of_flips
    monkeypatch.setattr(inputs, "with_flips", lambda *given: layers(*given[:-1], given[-1] - 1))
    monkeypatch.setattr(inputs, "least_of_flips", lambda *given: sums(*given[:-1], given[-1] - 1))
    noticed = 0
    for seed, shape in itertools.product(range(8), ("fc", "conv")):
        try:
            test_bounds_hold_for_all_events_within_the_budget(seed, shape, 1)
        except AssertionError:
            noticed += 1
    assert noticed > 3


# What is refused


def test_draws_and_events_that_do_not_fit_are_refused() -> None:
    net, coded = build(Case()).eval(), coded_net(Case(), "bernoulli")
    x, y = torch.rand(2, 2, 2, 2), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="draws are not given and the model's encoder is RateC"):
        bounds(coded, x, x, y)
    with pytest.raises(ValueError, match="draws are given and the model's encoder is Direct"):
        bounds(net, x, x, y, draws=torch.rand(3, 2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"draws is torch.float32 \[2, 2, 2, 2, 2\], expected"):
        bounds(coded, x, x, y, draws=torch.rand(2, 2, 2, 2, 2))
    spikes = torch.ones(3, 2, 2, 2, 2)
    for wrong, message in (
        ({"spikes": spikes / 2}, "expected 0 and 1"),
        ({"spikes": spikes.half()}, "expected float32 or float64"),
        ({"free": spikes}, "free is torch.float32"),
        ({"flips": -1}, "flips is -1"),
        ({"y": y[:1]}, r"expected int64 labels \[2\]"),
        ({"method": "exact"}, "method is 'exact'"),
    ):
        arguments: dict[str, Any] = {"spikes": spikes, "y": y} | wrong
        with pytest.raises((TypeError, ValueError), match=message):
            spike_bounds(net, **arguments)
    assert margins_of(net, x[:, None], y).shape == (2, 1, 2)
