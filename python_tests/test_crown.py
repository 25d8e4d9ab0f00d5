"""S-CROWN against golden data, enumeration, sampled inputs, and bounds broken on purpose."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from python_tests.helpers import RESETS, assert_within, golden, random
from python_tests.test_certify import (
    CLASSES,
    GOLDEN,
    Case,
    boxes,
    build,
    cases,
    excess,
    golden_network,
    margins_of,
    others,
    sample,
)
from snnkern import functional
from snnkern.autograd import TransposedConv2d
from snnkern.certify import backward, bounds, crown, first, ibp, neurons, slopes
from snnkern.certify.backward import Backward, Options, Traced
from snnkern.functional import lif
from snnkern.models import Normalize, SpikingNetwork, fc_net
from snnkern.nn import (
    LIF,
    MeanReadout,
    NormLIF,
    Residual,
    SharedDropout,
    SumReadout,
    TimeDistributed,
    packed,
)
from snnkern.reference import Interval
from snnkern.training import certified_loss

PAPER = Options("paper", exact_first=False, once_over_time=False)


def layers_of(net: SpikingNetwork) -> list[nn.Module]:
    assert isinstance(net.layers, nn.Sequential)
    return list(net.layers)


# The paper's


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bounds(name: str) -> None:
    data, net = golden(name), golden_network(name).eval()
    box = Interval(torch.from_numpy(data["in_L"]), torch.from_numpy(data["in_U"]))
    if name.endswith("direct"):  # one step, seen T times
        box = box.map(lambda t: t[:1].expand(t.shape))
    y = torch.from_numpy(data["labels"])
    with torch.no_grad():
        bound = crown.totals(layers_of(net), box, y, PAPER) / int(data["T_prime"])
        tight = crown.totals(layers_of(net), box, y) / int(data["T_prime"])
        steps = crown.totals(layers_of(net), box, y, PAPER._replace(once_over_time=True))
    assert_within(bound, torch.from_numpy(data["crown_L"]), 1e-9)
    assert (steps / int(data["T_prime"]) >= bound - 1e-9).all()
    if "exact_min_margin" in data:
        exact = torch.from_numpy(data["exact_min_margin"])
        assert (bound <= exact).all()
        assert (tight <= exact).all()


def golden_loss(bound: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of the worst logits: 0 for the class itself, minus the margin for others."""
    worst = bound.new_zeros(len(y), bound.shape[1] + 1)
    return nn.functional.cross_entropy(
        worst.scatter(1, ibp.other_classes(y, worst.shape[1]), -bound), y
    )


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("slope", ["edge", "paper"])
def test_training_bounds_differ_by_rounding_alone(name: str, slope: Any) -> None:
    data, net = golden(name), golden_network(name).eval()
    box = Interval(torch.from_numpy(data["in_L"]), torch.from_numpy(data["in_U"]))
    if name.endswith("direct"):
        box = box.map(lambda t: t[:1].expand(t.shape))
    y = torch.from_numpy(data["labels"])
    parameters = [p for p in net.parameters() if p.requires_grad]
    results = []
    for outward in (True, False):
        options = Options(slope, exact_first=False, outward=outward)
        total = crown.totals(layers_of(net), box, y, options)
        results.append((total, *torch.autograd.grad(certified_loss(total, y), parameters)))
    for certified, trained in zip(*results, strict=True):
        assert_within(trained.detach(), certified.detach(), 1e-9)


@pytest.mark.parametrize(
    ("channels", "geometry"),
    [
        ((1, 16), ((2, 2), (1, 1), (1, 1), 1)),
        ((1, 12), ((2, 1), (0, 1), (1, 2), 1)),
        ((4, 6), ((2, 2), (1, 1), (1, 1), 2)),
    ],
)
def test_transposed_convolutions(channels: tuple[int, int], geometry: tuple[Any, ...]) -> None:
    before, after = channels
    weight = random(after, before // geometry[-1], 3, 3, dtype=torch.float64).requires_grad_()
    bias = random(after, seed=1, dtype=torch.float64).requires_grad_()
    x = random(5, before, 9, 8, seed=2, dtype=torch.float64).requires_grad_()
    y = nn.functional.conv2d(x, weight, bias, *geometry)
    rows = random(*y.shape, seed=3, dtype=torch.float64).requires_grad_()
    run: Any = TransposedConv2d.apply
    weights, constants = run(rows, weight, bias, x.shape, geometry)
    # What the convolution weighs is linear in its input, but for the bias.
    found, wanted = (weights * x).sum((1, 2, 3)) + constants, (rows * y).sum((1, 2, 3))
    assert_within(found.detach(), wanted.detach(), 1e-12)
    assert torch.autograd.gradcheck(lambda *t: run(*t, x.shape, geometry), (rows, weight, bias))


# Soundness


CASES = cases(0.0, 1 / 256, 0.02, 0.125)


@given(CASES)
@settings(max_examples=150)
def test_no_bound_exceeds_a_margin(case: Case) -> None:
    assert excess(case, method="crown") <= 0


@pytest.mark.parametrize(
    "options", [PAPER, Options(exact_first=False), crown.TIGHT, Options(rivals=1)]
)
@pytest.mark.parametrize("seed", range(8))
def test_bounds_of_spike_boxes_hold_for_all_their_spikes(seed: int, options: Options) -> None:
    case = Case(seed=seed, reset=RESETS[seed % 4], strict=seed % 3 == 0, threshold=0.25)
    case = replace(case, spiking_output=seed % 2 == 0, lattice=seed % 5 == 0)
    net = build(case).eval()
    draws = torch.Generator().manual_seed(seed)
    fixed = torch.randint(2, (3, 1, 8), generator=draws).float()
    free = torch.randperm(24, generator=draws)[:10]
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=10)))
    spikes = fixed.view(1, 24).repeat(len(patterns), 1)
    spikes[:, free] = patterns
    spikes = spikes.view(-1, 3, 8).transpose(0, 1)
    box = Interval(spikes.amin(1, keepdim=True), spikes.amax(1, keepdim=True))
    y = torch.tensor([seed % CLASSES])
    with torch.no_grad():
        bound = crown.totals(layers_of(net), box, y, options)
        logits = net.layers(spikes).double().sum(0)
    exact = (logits[:, y] - logits[:, others(y)[0]]).amin(0)
    assert (bound <= exact).all()


def many_layers(seed: int, norm: bool, hooked: bool = False) -> SpikingNetwork:
    torch.manual_seed(seed)
    kind: Any = packed if seed % 2 else nn
    neuron: dict[str, Any] = {
        "leak": (0.5, 1.0)[seed % 2],
        "threshold": 0.4,
        "reset": RESETS[seed % 4],
    }
    layers: list[nn.Module] = [TimeDistributed(kind.Conv2d(2, 4, 3, padding=1))]
    if norm:
        layers.append(NormLIF(4, **neuron))
    else:
        layers += [TimeDistributed(nn.BatchNorm2d(4)), LIF(**neuron)]
    layers += [
        SharedDropout(0.5),
        TimeDistributed(
            nn.Sequential(
                kind.AvgPool2d(2),
                kind.Conv2d(4, 5, 3, stride=2, padding=1, padding_mode="zeros"),
                nn.Identity(),
                nn.Flatten(),
                nn.BatchNorm1d(5 * 4),
            )
        ),
        nn.Sequential(LIF(**neuron), TimeDistributed(nn.Linear(20, 6)), NormLIF(6, **neuron)),
        TimeDistributed(kind.Linear(6, CLASSES)),
    ]
    net = SpikingNetwork(
        3, Normalize([0.3, 0.5], [0.5, 0.3]), nn.Sequential(*layers), MeanReadout()
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | NormLIF):
            for value in (module.weight, module.bias, module.running_mean):
                assert value is not None
                nn.init.normal_(value, std=0.7)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.eval()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_bounds_hold_through_norms_pooling_and_convolutions(seed: int, norm: bool) -> None:
    net = many_layers(seed, norm)
    x = torch.rand(3, 2, 8, 8)
    radius = 0.005 * (seed + 1) * (torch.rand_like(x) < 0.3)
    lower, upper = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
    y = torch.arange(3) % CLASSES
    found = margins_of(net, sample(lower, upper, 300, seed), y).amin(1)
    for method in ("ibp", "crown"):
        bound = bounds(net, lower, upper, y, method)
        assert bound.isfinite().all()
        assert (bound.double() <= found).all()
        point = bounds(net, x, x, y, method).double()
        assert_within(point, margins_of(net, x[:, None], y)[:, 0].detach(), 1e-3)


def residual_net(seed: int, weighted: bool, first: bool) -> SpikingNetwork:
    """Blocks whose branches are added up; ``first``: the image itself goes past one of them."""
    torch.manual_seed(seed)
    neuron: dict[str, Any] = {"leak": 0.5, "threshold": 0.4, "reset": ("hard", "soft")[seed % 2]}

    def conv(inputs: int) -> TimeDistributed:
        return TimeDistributed(nn.Conv2d(inputs, 3, 3, padding=1))

    branch = nn.Sequential(conv(2 if first else 3), LIF(**neuron), conv(3), NormLIF(3, **neuron))
    shortcut = nn.Sequential(conv(2 if first else 3)) if first or seed % 3 else None
    block = Residual(branch, shortcut, weighted=weighted)
    start = [] if first else [conv(2), LIF(**neuron)]
    plain = Residual(TimeDistributed(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))))
    end = [TimeDistributed(nn.Flatten()), TimeDistributed(nn.Linear(48, CLASSES))]
    layers = nn.Sequential(*start, block, LIF(**neuron), plain, LIF(**neuron), *end)
    net = SpikingNetwork(3, Normalize([0.3, 0.5], [0.5, 0.3]), layers, MeanReadout())
    if weighted:
        with torch.no_grad():
            block.get_parameter("branch_weights").copy_(torch.tensor([0.7, -0.6]))
    return net.eval()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_bounds_hold_through_residual_sums(weighted: bool, first: bool) -> None:
    for seed in range(6):
        net = residual_net(seed, weighted, first)
        x = torch.rand(2, 2, 4, 4)
        radius = 0.01 * (torch.rand_like(x) < 0.5)
        lower, upper = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
        y = torch.arange(2) % CLASSES
        found = margins_of(net, sample(lower, upper, 300, seed), y).amin(1)
        for method in ("ibp", "crown", "best"):
            bound = bounds(net, lower, upper, y, method)
            assert bound.isfinite().all()
            assert (bound.double() <= found).all()
            point = bounds(net, x, x, y, method).double()
            assert_within(point, margins_of(net, x[:, None], y)[:, 0].detach(), 1e-3)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net = many_layers(1, True)
    x, y = torch.rand(2, 2, 8, 8), torch.tensor([0, 2])
    whole = bounds(net, x - 0.01, x + 0.01, y, "crown")
    monkeypatch.setattr(backward, "CHUNK", 1)
    assert_within(bounds(net, x - 0.01, x + 0.01, y, "crown"), whole, 1e-5)


def test_rivals_are_those_whose_intervals_are_worst() -> None:
    """Their margins are those of all by S-CROWN, the others S-IBP's, and so are the gradients."""
    torch.manual_seed(0)
    for spiking in (True, False):
        net = fc_net(
            7,
            5,
            input_shape=(1, 4, 4),
            hidden=[9],
            spiking_output=spiking,
            leak=0.25,
            threshold=0.25,
        )
        layers, parameters = layers_of(net), list(net.parameters())
        images, y = torch.rand(40, 1, 4, 4), torch.arange(40) % 7
        box = Interval(*((images + side).expand(5, -1, -1, -1, -1) for side in (-0.03, 0.03)))
        training = Options("paper", exact_first=False, outward=False)
        lines, few = (crown.totals(layers, box, y, training._replace(rivals=k)) for k in (6, 2))
        assert torch.equal(lines, crown.totals(layers, box, y, training))
        intervals = ibp.margins(layers, SumReadout(), box, y)
        lowest, worst = intervals.sort(1)
        clear = (lowest[:, 1] < lowest[:, 2]).nonzero()[:, 0]  # which two are the worst
        assert len(clear) > 5
        expected = intervals.double().scatter(1, worst[:, :2], lines.gather(1, worst[:, :2]))
        assert not torch.allclose(expected, lines)
        assert_within(few[clear].detach(), expected[clear].detach(), 1e-6)
        found, wanted = (
            torch.autograd.grad(certified_loss(t[clear], y[clear]), parameters)
            for t in (few, expected)
        )
        for one, other in zip(found, wanted, strict=True):
            assert_within(one, other, 1e-5)


def test_the_relu_network_is_bounded_too() -> None:
    tighter = 0
    for seed in range(12):
        case = Case(shape="conv" if seed % 2 else "fc", seed=seed, radius=0.05)
        net = build(case).eval()
        net.timesteps = 0
        lower, upper, y = boxes(case)
        found = margins_of(net, sample(lower, upper, 500, seed), y).amin(1)
        bound = bounds(net, lower, upper, y, "crown")
        assert (bound.double() <= found).all()
        tighter += int((bound > bounds(net, lower, upper, y, "ibp")).sum())
    assert tighter > 20


def test_the_best_is_the_better_of_both_for_every_margin() -> None:
    better = {"ibp": 0, "crown": 0}
    for seed in range(20):
        case = Case(radius=0.02, seed=seed, timesteps=4, reset=("hard", "soft")[seed % 2])
        net = build(case).eval()
        lower, upper, y = boxes(case)
        found = {m: bounds(net, lower, upper, y, m) for m in ("ibp", "crown", "best")}
        assert (found["best"] >= torch.maximum(found["ibp"], found["crown"])).all()
        for method in better:
            better[method] += int((found[method] >= found["best"]).sum())
    assert min(better.values()) > 5


@given(CASES)
@settings(max_examples=40)
def test_no_bound_with_optimised_slopes_exceeds_a_margin(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slopes, "STEPS", 4)
        patch.setattr(slopes, "RATE", 0.5)
        assert excess(case, method="tight") <= 0


def random_net(seed: int, *widths: int, **options: Any) -> tuple[SpikingNetwork, Tensor, Tensor]:
    """A network of normal weights, an image and the class it sees there."""
    inputs, *hidden, classes = widths
    shape = (1, 1, inputs)
    net = fc_net(classes, 3, input_shape=shape, hidden=hidden, leak=0.9, threshold=1.0, **options)
    draws = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=1.0 if parameter.dim() > 1 else 0.3, generator=draws)
    x = torch.rand(1, *shape, generator=draws)
    return net.eval(), x, net(x).argmax(1)


def test_every_part_closes_some_of_the_gap() -> None:
    gaps: dict[str, float] = dict.fromkeys(("paper", "ibp", "crown", "best", "tight"), 0.0)
    for seed in range(10):
        net, x, y = random_net(seed, 6, 8, 3)
        lower, upper = x - 0.05, x + 0.05
        found = margins_of(net, sample(lower, upper, 2000, seed), y).amin(1).detach()
        for name in ("ibp", "crown", "best", "tight"):
            bound = bounds(net, lower, upper, y, name)
            assert (bound <= found).all()
            gaps[name] += (found - bound).mean().item()
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(first, "fits", lambda neuron, box: False)
            box = Interval(lower, upper).map(lambda t: t.expand(3, *t.shape))
            by_crown = crown.totals(layers_of(net), box, y, PAPER) / 3
            theirs = torch.maximum(by_crown, bounds(net, lower, upper, y, "ibp"))
        gaps["paper"] += (found - theirs).mean().item()
    assert gaps["best"] < min(gaps["ibp"], gaps["crown"])
    assert gaps["best"] < 0.6 * gaps["paper"]
    assert gaps["tight"] < 0.75 * gaps["best"]


def test_membranes_bounded_by_rows_tighten_the_margins() -> None:
    gain = 0.0
    for seed in range(6):
        net, x, y = random_net(seed, 6, 10, 8, 3, reset=("soft", "hard")[seed % 3 == 2])
        box = Interval(x - 0.03, x + 0.03).map(lambda t: t.expand(3, *t.shape))
        found = margins_of(net, sample(x - 0.03, x + 0.03, 1000, seed), y).amin(1).detach()
        with torch.no_grad():
            plain = crown.totals(layers_of(net), box, y) / 3
            tight = crown.totals(layers_of(net), box, y, Options(membranes=True)) / 3
        assert (tight <= found).all()
        gain += (tight - plain).sum().item()
    assert gain > 0.5


def forget_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    right = neurons._by_rows

    def broken(neuron: dict[str, Any], box: Interval, before: Backward) -> Any:
        return right(neuron | {"leak": 0.0}, box, before)

    monkeypatch.setattr(neurons, "_by_rows", broken)


def test_membranes_that_forget_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_the_past(monkeypatch)
    monkeypatch.setattr(slopes, "STEPS", 2)
    cases = (replace(case, shape=("fc", "conv")[n % 2]) for n, case in enumerate(SEARCHED))
    assert any(excess(case, method="tight") > 0 for case in cases)


def test_layers_without_a_rule_are_refused() -> None:
    """Square ones among them, for which nothing else would notice."""
    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    flat, last = TimeDistributed(nn.Flatten()), TimeDistributed(nn.Linear(4, CLASSES))
    within: dict[str, nn.Module] = {
        "Normalize": TimeDistributed(Normalize([0.3], [0.5])),
        "BatchNorm1d that sees a tensor of 3": nn.BatchNorm1d(2).eval(),
    }
    for name, layer in within.items():
        order = [layer, flat] if name == "Normalize" else [flat, layer]
        layers = nn.Sequential(*order, LIF(0.5, 0.5), last)
        net = SpikingNetwork(2, Normalize([0.0], [1.0]), layers, MeanReadout())
        with pytest.raises(TypeError, match=name):
            bounds(net, x - 0.01, x + 0.01, y, "crown")


def test_a_linear_layer_needs_no_container() -> None:
    torch.manual_seed(0)
    layers = [TimeDistributed(nn.Flatten()), nn.Linear(4, 4), LIF(0.5, 0.3), nn.Linear(4, 4)]
    last = [LIF(0.5, 0.3), TimeDistributed(nn.Linear(4, CLASSES))]
    net = SpikingNetwork(3, Normalize([0.0], [1.0]), nn.Sequential(*layers, *last), MeanReadout())
    x, y = torch.rand(3, 1, 2, 2), torch.arange(3)
    lower, upper = x - 0.1, x + 0.1
    found = margins_of(net.eval(), sample(lower, upper, 500, 0), y).amin(1)
    for method in ("ibp", "crown"):
        assert (bounds(net, lower, upper, y, method).double() <= found).all()


# The first neurons of a constant current


@st.composite
def constant_currents(draw: st.DrawFn) -> tuple[dict[str, Any], Interval]:
    neuron = {
        "leak": draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])),
        "threshold": draw(st.sampled_from([0.25, 0.3, 1.0])),
        "reset": "hard",
        "v_reset": 0.0,
        "v_init": 0.0,
        "strict": draw(st.booleans()),
    }
    if draw(st.booleans()):
        neuron["leak"] = torch.tensor([neuron["leak"], 0.5, 0.7])
    seed, timesteps = draw(st.integers(0, 2**20)), draw(st.integers(2, 7))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    if dtype == torch.float64 and isinstance(neuron["leak"], Tensor):
        neuron["leak"] = neuron["leak"].double()
    low = 0.5 * random(2, 3, 4, seed=seed).to(dtype)
    if draw(st.booleans()):
        low = (8 * low).round() / 8
    width = draw(st.sampled_from([0.0, 0.125, 0.5])) * random(2, 3, 4, seed=seed + 1).abs().to(
        dtype
    )
    return neuron, Interval(low, low + width).map(lambda t: t.expand(timesteps, *t.shape))


@given(constant_currents(), st.integers(0, 100))
@settings(max_examples=150)
def test_the_first_neurons_are_exact(drawn: tuple[dict[str, Any], Interval], seed: int) -> None:
    neuron, box = drawn
    assert first.fits(neuron, box)
    timesteps = len(box.lower)
    share = torch.linspace(0, 1, 201, dtype=box.lower.dtype).view(-1, 1, 1, 1)
    current = (box.lower[0] + share * (box.upper - box.lower)[0]).clamp(*(end[0] for end in box))
    trains = lif(current.expand(timesteps, *current.shape).flatten(1, 2), **neuron)
    trains = trains.view(timesteps, 201, *box.lower.shape[1:])
    trains_of = first.Trains(neuron, box)
    tight, loose = trains_of.spikes, functional.interval_lif(*box, **neuron)
    assert (tight.lower <= trains.amin(1)).all()
    assert (tight.upper >= trains.amax(1)).all()
    assert (tight.lower >= loose[0]).all()
    assert (tight.upper <= loose[1]).all()
    rows = random(3, *box.lower.shape, seed=seed).to(box.lower.dtype)
    tilt = random(*rows[:, 0].shape, seed=seed + 1) if seed % 2 else None
    lines, bias = trains_of.lines(rows, tilt)
    found = torch.einsum("rtnck,tmnck->rmn", rows.double(), trains.double())
    bound = torch.einsum("rnck,mnck->rmn", lines[:, 0].double(), current.double())
    assert (bound + bias[:, None] <= found).all()


def test_the_first_neurons_are_attained() -> None:
    """At a wide interval every train is reachable; lines touch the sums of weights somewhere."""
    neuron: dict[str, Any] = {"leak": 0.5, "threshold": 0.5, "reset": "hard", "v_reset": 0.0}
    neuron |= {"v_init": 0.0, "strict": False}
    low, high = torch.full((1, 1, 1), 0.2), torch.full((1, 1, 1), 0.7)
    box = Interval(low, high).map(lambda t: t.expand(4, 1, 1))
    current = torch.linspace(0.2, 0.7, 2001).view(-1, 1)
    trains = lif(current.expand(4, 2001, 1).contiguous(), **neuron)
    known = first.Trains(neuron, box)
    tight = known.spikes
    assert torch.equal(tight.lower[:, 0], trains.amin(1))
    assert torch.equal(tight.upper[:, 0], trains.amax(1))
    for seed in range(20):
        rows = random(1, 4, 1, 1, seed=seed)
        lines, bias = known.lines(rows)
        found = torch.einsum("t,tm->m", rows.flatten(), trains[..., 0])
        gap = found - lines.item() * current[:, 0] - bias.item()
        assert -1e-6 < gap.min() < 3e-3
        middle = gap[1000]
        # The hull's own value there, by every chord around the middle.
        left, right = found[:1001], found[1000:]
        x, z = current[:1001, 0], current[1000:, 0]
        share = (current[1000] - x[:, None]) / (z[None] - x[:, None]).clamp(min=1e-9)
        hull = (left[:, None] + share * (right[None] - left[:, None])).min()
        assert middle <= found[1000] - hull + 5e-3


# The checks notice broken bounds


def forget_the_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    right = functional.relax_lif

    def broken(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        lines, bias = right(*arguments, **options)
        return lines, bias.clamp(min=0)

    monkeypatch.setattr(functional, "relax_lif", broken)


def swap_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    right = crown.least_in_box
    monkeypatch.setattr(
        crown,
        "least_in_box",
        lambda rows, box, options: right(rows, Interval(box.upper, box.lower), options),
    )


def forget_the_middle_of_the_hull(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chord over both pieces instead of a line below."""
    right = functional.relax_lif

    def broken(rows: Tensor, low: Tensor, high: Tensor, *rest: Any, **options: Any) -> Any:
        middle = (low + high) / 2
        return right(rows, middle, middle, *rest, **options)

    monkeypatch.setattr(functional, "relax_lif", broken)


def forget_trains_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    right = first._periods
    monkeypatch.setattr(first, "_periods", lambda *arguments: (right(*arguments)[0],) * 2)


def add_up_the_last_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    right = crown._affine

    def broken(module: TimeDistributed, its: ibp.Affine, box: Interval, options: Options) -> Traced:
        traced = right(module, its, box, options)
        return traced._replace(back=lambda rows: traced.back(rows[:, -1:].expand(rows.shape)))

    monkeypatch.setattr(crown, "_affine", broken)


SEARCHED = [
    Case(
        shape=("fc", "conv", "current")[seed % 3],
        reset=("hard", "soft")[seed // 5 % 2],
        strict=seed % 4 < 2,
        leak=(0.5, 1.0)[seed // 2 % 2],
        threshold=0.25,
        lattice=seed % 5 == 0,
        radius=(0.0, 0.02, 0.125)[seed // 3 % 3],
        timesteps=4,
        seed=seed,
    )
    for seed in range(40)
]


def test_the_search_finds_nothing_in_bounds_that_hold() -> None:
    assert all(excess(case, method="crown") <= 0 for case in SEARCHED)


@pytest.mark.parametrize(
    "broken",
    [
        forget_the_bias,
        swap_the_ends,
        forget_the_middle_of_the_hull,
        forget_trains_in_between,
        add_up_the_last_step_alone,
    ],
)
def test_the_search_finds_broken_bounds(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    assert any(excess(case, method="crown") > 0 for case in SEARCHED)
