"""The ops of certification: against each other, against what neurons do, and against autograd."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from python_tests import helpers
from python_tests.helpers import (
    COMPILED,
    LAYOUTS,
    POINTWISE,
    RESETS,
    assert_same_bits,
    assert_within,
    laid_out,
    random,
)
from snnkern import reference
from snnkern.functional import backends, lif
from snnkern.surrogate import ATan, Rate, SpikeTime, Surrogate

# Called with unpacked and with wrong arguments, which mypy could not follow.
interval_lif: Any = helpers.interval_lif
relax_lif: Any = helpers.relax_lif
DTYPES = (torch.float32, torch.float64)
# The file, whose name in the package is that of the function.
in_reference = importlib.import_module("snnkern.reference.relax_lif")


def box(
    seed: int, layout: str = "contiguous", dtype: torch.dtype = torch.float32, timesteps: int = 5
) -> tuple[Tensor, Tensor]:
    """Currents on a lattice, so that membranes hit thresholds, some intervals empty."""
    x = (4 * random(timesteps, 2, 3, 4, seed=seed)).round() / 8
    width = (random(timesteps, 2, 3, 4, seed=seed + 1).abs() * 2).round() / 8
    return laid_out(x.to(dtype), layout), laid_out((x + width).to(dtype), layout)


def neuron(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, Any]:
    state = reference.state_dtype(dtype)
    channels = draw(st.booleans())
    leak = draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
    threshold = draw(st.sampled_from([0.25, 0.3, 0.5, 1.0]))
    return {
        "leak": torch.tensor([leak, 0.5, 0.7], dtype=state) if channels else leak,
        "threshold": torch.tensor([threshold, 0.5, 0.7], dtype=state) if channels else threshold,
        "reset": draw(st.sampled_from(RESETS)),
        "v_reset": draw(st.sampled_from([0.0, 0.0, -0.3, 0.25, 0.8])),
        "v_init": draw(st.sampled_from([0.0, 0.0, 0.1, 1.5])),
        "strict": draw(st.booleans()),
    }


@st.composite
def neurons(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> dict[str, Any]:
    dtype = draw(st.sampled_from(dtypes))
    return neuron(draw, dtype) | {"dtype": dtype, "seed": draw(st.integers(0, 2**20))}


SLOPES = ("edge", "paper", "given", "mixed")


def chosen(slope: str, rows: Tensor, seed: int) -> dict[str, Any]:
    """How relax_lif is told about a slope; given ones and shares are as they come."""
    drawn = 2 * random(*rows.shape, seed=seed, dtype=rows.dtype)
    if slope == "mixed":
        return {"mix": drawn.sigmoid() if seed % 2 else drawn}
    return {"slope": 3 * drawn if slope == "given" else slope}


# Intervals


# Every backend there is, the reference first; the tests without an extension have it alone.
EVERY = ("reference", *COMPILED)


def compare_intervals(options: dict[str, Any], layout: str, backends: tuple[str, ...]) -> None:
    """Of one case; the reference is one of the backends."""
    lower, upper = box(options.pop("seed"), layout, options.pop("dtype"))
    for wanted in (False, True):
        results = [
            interval_lif(lower, upper, **options, return_membranes=wanted, backend=backend)
            for backend in backends
        ]
        for expected, *others in zip(*results, strict=True):
            for actual in others:
                assert_same_bits(actual, expected)
                assert actual.stride() == expected.stride()


@given(neurons((*DTYPES, torch.float16, torch.bfloat16)), st.sampled_from(LAYOUTS))
@settings(max_examples=100)
def test_intervals_of_the_kernels_are_those_of_the_reference(
    options: dict[str, Any], layout: str
) -> None:
    compare_intervals(options, layout, EVERY)


@given(neurons())
@settings(max_examples=60)
def test_intervals_hold_membranes_and_spikes(options: dict[str, Any]) -> None:
    lower, upper = box(options.pop("seed"), dtype=options.pop("dtype"))
    surely, maybe, v_lower, v_upper = interval_lif(lower, upper, **options, return_membranes=True)
    for seed in range(30):
        share = random(*lower.shape, seed=seed, dtype=lower.dtype).sigmoid()
        share = share.round() if seed % 2 else share
        x = (lower + share * (upper - lower)).maximum(lower).minimum(upper)
        s = lif(x, **options)
        assert (surely <= s).all()
        assert (s <= maybe).all()
        for t in range(len(x)):
            # What a neuron without reset carries on is its membrane, but for what it owes.
            plain = options | {"reset": "none", "v_init": 0.0}
            if options["reset"] in ("hard", "soft"):
                state = lif(x[:t], **options, return_state=True)[1] if t else None
                start = options["v_init"] if state is None else state
                plain["v_init"] = start
                v = lif(x[t : t + 1], **plain, return_state=True)[1]
                assert (v_lower[t] <= v).all()
                assert (v <= v_upper[t]).all()


class Fire(torch.autograd.Function):
    """A spike with a surrogate derivative, by itself."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, threshold: Tensor, strict: bool, surrogate: Surrogate
    ) -> Tensor:
        ctx.save_for_backward(v, threshold)
        ctx.surrogate = surrogate
        return ((v > threshold) if strict else (v >= threshold)).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch.enable_grad():
            v, threshold = (t.detach().requires_grad_() for t in ctx.saved_tensors)
            z = v / threshold - 1 if ctx.surrogate.normalized else v - threshold
            height = reference.SURROGATES[ctx.surrogate.kind](z.detach(), *ctx.surrogate.args)
            gradients = torch.autograd.grad((z * height * grads[0]).sum(), (v, threshold))
        return (*gradients, None, None)


def composed(
    lower: Tensor, upper: Tensor, leak: Tensor, threshold: Tensor, options: dict[str, Any]
) -> tuple[Tensor, ...]:
    """The same bounds of torch's own operations, with every case as the paper tells it."""
    leak, threshold = leak[:, None], threshold[:, None]
    strict, surrogate = options["strict"], options["surrogate"]

    def fired(v: Tensor) -> Tensor:
        return (v > threshold) if strict else (v >= threshold)

    low = high = torch.full_like(lower[0], options["v_init"])
    outputs: list[list[Tensor]] = [[], [], [], []]
    for t in range(len(lower)):
        low, high = leak * low + lower[t], leak * high + upper[t]
        for out, end in zip(outputs, (low, high), strict=False):
            fire: Any = Fire.apply
            out.append(fire(end, threshold, strict, surrogate))
        outputs[2].append(low)
        outputs[3].append(high)
        surely, maybe = fired(low), fired(high)
        if options["reset"] == "hard":
            rest = torch.full_like(low, options["v_reset"])
            after = (rest, rest)
        elif options["reset"] == "soft":
            after = (low - threshold, high - threshold)
        else:
            continue
        rest = rest if options["reset"] == "hard" else torch.zeros_like(low)
        either = torch.where(low <= rest, low, rest)
        top = threshold.expand_as(high)
        either_high = torch.where(after[1] > top, after[1], top)
        low = torch.where(surely, after[0], torch.where(maybe, either, low))
        high = torch.where(surely, after[1], torch.where(maybe, either_high, high))
    return tuple(torch.stack(out) for out in outputs)


@given(neurons(), st.sampled_from(POINTWISE), st.booleans())
@settings(max_examples=60)
def test_gradients_of_intervals_are_those_of_autograd(
    options: dict[str, Any], surrogate: Surrogate, membranes: bool
) -> None:
    lower, upper = box(options.pop("seed"), dtype=torch.float64)
    options.pop("dtype")
    if options["reset"] == "delayed_soft":
        options["reset"] = "soft"
    options["surrogate"] = surrogate
    given_leak, given_threshold = options.pop("leak"), options.pop("threshold")
    leak = torch.as_tensor(given_leak).double().expand(3).contiguous()
    threshold = torch.as_tensor(given_threshold).double().expand(3).contiguous()
    inputs = [t.requires_grad_() for t in (lower, upper, leak, threshold)]
    expected = composed(lower, upper, leak, threshold, options)
    actual = interval_lif(*inputs, **options, return_membranes=True)
    weights = [random(*lower.shape, seed=k, dtype=torch.float64) for k in range(4)]
    used = 4 if membranes else 2
    gradients = []
    for outputs in (expected, actual):
        for a, e in zip(outputs, expected, strict=True):
            assert_within(a, e, 0.0)
        total = sum((w * o).sum() for w, o in zip(weights[:used], outputs, strict=False))
        gradients.append(torch.autograd.grad(total, inputs))
    for a, e in zip(gradients[1], gradients[0], strict=True):
        assert_within(a, e, 1e-12 * (1 + e.abs().max().item()))


def compare_gradients_of_intervals(
    options: dict[str, Any],
    surrogate: Surrogate,
    layout: str,
    membranes: bool,
    backends: tuple[str, ...],
) -> None:
    """Of one case; the reference is one of the backends."""
    dtype = options.pop("dtype")
    lower, upper = box(options.pop("seed"), layout, dtype)
    state = reference.state_dtype(dtype)
    parameters = [torch.as_tensor(options.pop(n), dtype=state) for n in ("leak", "threshold")]
    inputs = [t.detach().requires_grad_() for t in (lower, upper, *parameters)]
    results = []
    for backend in backends:
        outputs = interval_lif(
            *inputs,
            **options,
            surrogate=surrogate,
            return_membranes=membranes,
            backend=backend,
        )
        grads = [
            laid_out(random(*lower.shape, seed=k), layout).to(o) for k, o in enumerate(outputs)
        ]
        results.append(torch.autograd.grad(outputs, inputs, grads))
    allowed = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-2}[dtype]
    for expected, *others in zip(*results, strict=True):
        for actual in others:
            assert_within(actual, expected, allowed * (1 + expected.abs().max().item()))


@given(
    neurons((*DTYPES, torch.bfloat16)),
    st.sampled_from(POINTWISE),
    st.sampled_from(LAYOUTS),
    st.booleans(),
)
@settings(max_examples=80)
def test_gradients_of_the_kernels_are_those_of_the_reference(
    options: dict[str, Any], surrogate: Surrogate, layout: str, membranes: bool
) -> None:
    compare_gradients_of_intervals(options, surrogate, layout, membranes, EVERY)


def test_gradients_of_a_delayed_reset_by_hand() -> None:
    """The second membrane from one that may have fired: 0.5 [0.5, 1.5] + x, less 1 or not."""
    lower = torch.tensor([[[0.5]], [[0.0]]], dtype=torch.float64).requires_grad_()
    upper = torch.tensor([[[1.5]], [[0.0]]], dtype=torch.float64).requires_grad_()
    threshold = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    *_, low, high = interval_lif(
        lower, upper, 0.5, threshold, reset="delayed_soft", return_membranes=True
    )
    assert low[1].item() == 0.5 * 1.0 - 1.0
    assert high[1].item() == 0.5 * 1.0
    of_low = torch.autograd.grad(low[1].sum(), (lower, threshold), retain_graph=True)
    of_high = torch.autograd.grad(high[1].sum(), (upper, threshold))
    assert of_low[0].flatten().tolist() == [0.0, 1.0]
    assert of_low[1].item() == -0.5
    assert of_high[0].flatten().tolist() == [0.0, 1.0]
    assert of_high[1].item() == 0.5


# Lines


def rows_like(lower: Tensor, count: int, seed: int) -> Tensor:
    return random(count, *lower.shape, seed=seed, dtype=lower.dtype)


def compare_lines(
    options: dict[str, Any], layout: str, slope: str, backends: tuple[str, ...]
) -> None:
    """Of one case; the reference is one of the backends."""
    options, choice, (low, high) = membranes_and_choice(options, slope, layout)
    rows = rows_like(low, 3, 5)
    for stacked in (rows, rows.transpose(0, 1).contiguous().transpose(0, 1)):
        results = [
            relax_lif(stacked, low, high, **options, **choice, backend=backend)
            for backend in backends
        ]
        for expected, *others in zip(*results, strict=True):
            for actual in others:
                assert_same_bits(actual, expected)
                assert actual.stride() == expected.stride()


@given(neurons(), st.sampled_from(LAYOUTS), st.sampled_from(SLOPES))
@settings(max_examples=120)
def test_lines_of_the_kernels_are_those_of_the_reference(
    options: dict[str, Any], layout: str, slope: str
) -> None:
    compare_lines(options, layout, slope, EVERY)


def excess_of_lines(options: dict[str, Any], slope: str, samples: int = 40) -> float:
    """By how much lines exceed the weighted spikes that were found; above 0 they are wrong."""
    options = dict(options)
    seed = options.pop("seed")
    lower, upper = box(seed, dtype=options.pop("dtype"))
    *_, low, high = interval_lif(lower, upper, **options, return_membranes=True)
    rows = rows_like(lower, 4, seed)
    lines, bias = relax_lif(rows, low, high, **options, **chosen(slope, rows, seed + 1))
    worst = -float("inf")
    for number in range(samples):
        share = random(*lower.shape, seed=number, dtype=lower.dtype).sigmoid()
        share = share.round() if number % 2 else share
        x = (lower + share * (upper - lower)).maximum(lower).minimum(upper)
        found = (rows.double() * lif(x, **options)).sum(1)
        bound = (lines.double() * x.double()).sum(1) + bias
        worst = max(worst, (bound - found).max().item())
    return worst


@pytest.mark.parametrize("slope", SLOPES)
@given(neurons())
@settings(max_examples=60)
def test_lines_lie_below_the_spikes(slope: str, options: dict[str, Any]) -> None:
    assert excess_of_lines(options, slope) <= 0


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("slope", SLOPES)
def test_lines_lie_below_the_spikes_of_every_current_of_a_grid(reset: str, slope: str) -> None:
    for seed, strict in itertools.product(range(6), (False, True)):
        lower = (4 * random(4, 1, 5, seed=seed)).round() / 8
        upper = lower + 0.375 * (random(4, 1, 5, seed=seed + 99) > 0)
        neuron: dict[str, Any] = {"leak": 0.5, "threshold": 0.5, "reset": reset, "strict": strict}
        *_, low, high = interval_lif(lower, upper, **neuron, return_membranes=True)
        rows = rows_like(lower, 4, seed)
        lines, bias = relax_lif(rows, low, high, **neuron, **chosen(slope, rows, seed + 7))
        share = torch.tensor(list(itertools.product(range(4), repeat=4))) / 3
        x = lower + share.T[:, :, None] * (upper - lower)
        found = torch.einsum("rtk,tmk->rmk", rows[:, :, 0].double(), lif(x, **neuron).double())
        bound = torch.einsum("rtk,tmk->rmk", lines[:, :, 0].double(), x.double()) + bias
        assert (bound <= found).all()


@given(neurons((torch.float64,)))
@settings(max_examples=40)
def test_the_membrane_after_the_last_step_is_weighed(options: dict[str, Any]) -> None:
    """Its weight is that of a state which one more step of no current charges."""
    seed = options.pop("seed")
    lower, upper = box(seed, dtype=options.pop("dtype"))
    *_, low, high = interval_lif(lower, upper, **options, return_membranes=True)
    rows, after = rows_like(lower, 4, seed), random(4, 2, 3, 4, seed=seed + 1).double()
    lines, bias = relax_lif(rows, low, high, **options, after=after)
    spare = torch.zeros_like(lower[:1])
    for number in range(20):
        share = random(*lower.shape, seed=number, dtype=lower.dtype).sigmoid()
        x = (lower + (share.round() if number % 2 else share) * (upper - lower)).minimum(upper)
        _, state = lif(x, **options, return_state=True)
        final = {"reset": "delayed_soft" if options["reset"] == "delayed_soft" else "none"}
        plain = options | final | {"v_init": state}
        membrane = lif(spare, **plain, return_state=True)[1]
        found = (rows * lif(x, **options)).sum(1) + after * membrane
        assert ((lines * x).sum(1) + bias <= found + 1e-12).all()


def test_lines_touch_the_spikes_in_one_step() -> None:
    """The line of one step is attained at an end of a piece."""
    low, high = torch.tensor([[[-0.5]]]), torch.tensor([[[1.75]]])
    for weight in (-2.0, 1.5):
        rows = torch.full((1, 1, 1, 1), weight)
        for slope in ("edge", "paper"):
            lines, bias = relax_lif(rows, low, high, 0.5, 1.0, slope=slope)
            ends = torch.tensor([-0.5, 1.0, 1.0, 1.75])
            values = weight * torch.tensor([0.0, 0.0, 1.0, 1.0])
            gap = (values - lines.item() * ends - bias.item()).min().item()
            assert 0 <= gap < 1e-5


@given(neurons((torch.float64,)))
@settings(max_examples=60)
def test_lines_with_the_slopes_of_the_paper_have_its_intercepts(options: dict[str, Any]) -> None:
    """Eq. 8 and 10 as Liang et al. 2022 compose them, hard reset to 0, without rounding errors."""
    options = options | {"reset": "hard", "v_reset": 0.0, "v_init": 0.0}
    options.pop("dtype")
    seed = options.pop("seed")
    lower, upper = box(seed, dtype=torch.float64)
    surely, maybe, low, high = interval_lif(lower, upper, **options, return_membranes=True)
    unsure = (maybe - surely).bool()
    rows = rows_like(lower, 3, seed)
    lines, bias = relax_lif(rows, low, high, **options, slope="paper")
    leak, threshold = (
        torch.as_tensor(options[name], dtype=torch.float64).expand(3)[:, None]
        for name in ("leak", "threshold")
    )
    after, total = torch.zeros_like(rows[:, 0]), torch.zeros_like(rows[:, 0])
    for t in reversed(range(len(lower))):
        l, u, on_state = low[t], high[t], leak * after  # noqa: E741  as in the paper
        plane = torch.where(on_state > 0, on_state * l, on_state * threshold) * unsure[t]
        on_spike = rows[:, t] - plane
        wide = (u - threshold) >= (threshold - l)
        up, down = on_spike.clamp(min=0), on_spike.clamp(max=0)
        above = torch.where(unsure[t] & wide, 1 / (u - threshold), 0)
        below = torch.where(unsure[t] & ~wide, 1 / (threshold - l), 0)
        constant_up = torch.where(unsure[t], -above * threshold, surely[t])
        constant_down = torch.where(unsure[t] & ~wide, -below * l, maybe[t])
        after = up * above + down * below + on_state * (1 - maybe[t])
        total = total + plane + up * constant_up + down * constant_down
        assert_within(lines[:, t], after, 1e-9 * (1 + after.abs()))
    assert_within(bias, total, 1e-9 * (1 + lines.abs().amax(1)))


def test_shares_and_gradients_of_lines() -> None:
    lower, upper = box(3, dtype=torch.float64)
    *_, low, high = interval_lif(lower, upper, 0.5, 0.5, return_membranes=True)
    rows, slope = rows_like(lower, 2, 1), rows_like(lower, 2, 2)
    ends = [relax_lif(rows, low, high, 0.5, 0.5, mix=torch.full_like(rows, k)) for k in (0, 1)]
    edge = relax_lif(rows, low, high, 0.5, 0.5)
    either = [(a == b).float().mean() for a, b in zip(edge[0], ends[0][0], strict=True)]
    assert 0 < min(either) < 1  # the longer edge is now the left one, now the right one
    last = [lines[:, -1] for lines, _ in (edge, *ends)]
    assert ((last[0] == last[1]) | (last[0] == last[2])).all()
    inputs = [t.requires_grad_() for t in (rows, low, high)]
    outputs: Any = ()
    for chosen in ("edge", slope.requires_grad_()):
        outputs = relax_lif(*inputs, 0.5, 0.5, slope=chosen)
        for g in torch.autograd.grad(outputs[1].sum(), inputs):
            assert (g != 0).any()
    with torch.no_grad():
        expected = relax_lif(*inputs, 0.5, 0.5, slope=slope)
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_same_bits(actual.detach(), wanted)


def gradients_of_lines(
    options: dict[str, Any], choice: dict[str, Any], box_of_membranes: tuple[Tensor, Tensor]
) -> Callable[[Callable[..., Any]], tuple[list[Tensor], list[Tensor]]]:
    """What a function makes of one drawn case: gradients, and what they may be off by at 1."""
    low, high = box_of_membranes
    rows = rows_like(low, 3, 5)
    parameters = [
        torch.as_tensor(options[name], dtype=low.dtype).clone() for name in ("leak", "threshold")
    ]
    given = [choice[name] for name in ("slope", "mix", "after") if name in choice]
    tensors = [t for t in (rows, low, high, *parameters, *given) if isinstance(t, Tensor)]
    upstream = random(*rows.shape, seed=8, dtype=rows.dtype)
    of_bias = random(3, low.shape[1], seed=9, dtype=torch.float64)

    def run(function: Callable[..., Any]) -> tuple[list[Tensor], list[Tensor]]:
        leaves = {id(t): t.detach().clone().requires_grad_() for t in tensors}
        every = list(leaves.values())
        swap = {k: leaves.get(id(v), v) for k, v in (options | choice).items()}
        swap |= dict(zip(("leak", "threshold"), (leaves[id(t)] for t in parameters), strict=True))
        lines, bias = function(*(leaves[id(t)] for t in (rows, low, high)), **swap)
        total = (upstream * lines).sum() + (of_bias * bias.flatten(2).sum(2)).sum()
        weighed = (random(*bias.shape, seed=10, dtype=torch.float64) * bias).sum()
        per_neuron = torch.autograd.grad(weighed, every, retain_graph=True)
        return list(torch.autograd.grad(total, every)), list(per_neuron)

    return run


def membranes_and_choice(
    options: dict[str, Any], slope: str, layout: str = "contiguous"
) -> tuple[dict[str, Any], dict[str, Any], tuple[Tensor, Tensor]]:
    options = dict(options)
    seed = options.pop("seed")
    lower, upper = box(seed, layout, options.pop("dtype"))
    *_, low, high = interval_lif(lower, upper, **options, return_membranes=True)
    rows = rows_like(low, 3, seed)
    choice = chosen(slope, rows, seed + 1)
    if seed % 2:
        choice["after"] = random(3, 2, 3, 4, seed=seed + 2, dtype=rows.dtype)
    return options, choice, (low, high)


@given(neurons(), st.sampled_from(SLOPES))
@settings(max_examples=40)
def test_gradients_of_lines_are_those_of_autograd(options: dict[str, Any], slope: str) -> None:
    # Quarters: no membrane is so close to the threshold that what is subtracted for rounding, which
    # is constant in the derivative, would be steep.
    for name in ("leak", "threshold", "v_reset", "v_init"):
        options[name] = (4 * torch.as_tensor(options[name]).double()).round() / 4
        if options[name].dim() == 0:
            options[name] = options[name].item()
    case = membranes_and_choice(options | {"dtype": torch.float64}, slope)

    def composed(rows: Tensor, low: Tensor, high: Tensor, **given: Any) -> Any:
        slopes = given.get("mix", given.get("slope"))
        kind = reference.SLOPES.index(slope)
        return reference.relaxed(
            rows,
            low,
            high,
            given["leak"],
            given["threshold"],
            given["v_init"],
            RESETS.index(given["reset"]),
            given["v_reset"],
            given["strict"],
            kind,
            slopes if isinstance(slopes, Tensor) else None,
            given.get("after"),
        )

    run = gradients_of_lines(*case)
    for backend in EVERY:
        for expected, actual in zip(
            run(composed), run(partial(relax_lif, backend=backend)), strict=True
        ):
            for e, a in zip(expected, actual, strict=True):
                assert_within(a, e, 1e-9 * (1 + e.abs().max().item()))


def compare_gradients_of_lines(case: Any, backends: tuple[str, ...]) -> None:
    """Of one case; the reference is one of the backends."""
    run = gradients_of_lines(*case)
    results = [run(partial(relax_lif, backend=backend)) for backend in backends]
    for expected, *others in zip(*([*both[0], *both[1]] for both in results), strict=True):
        for actual in others:
            assert_within(actual, expected, 1e-6 * (1 + expected.abs().max().item()))


@given(neurons((torch.float32,)), st.sampled_from(SLOPES), st.sampled_from(LAYOUTS))
@settings(max_examples=40)
def test_gradients_of_lines_of_the_kernels_are_those_of_the_reference(
    options: dict[str, Any], slope: str, layout: str
) -> None:
    compare_gradients_of_lines(membranes_and_choice(options, slope, layout), EVERY)


# The checks notice broken lines


def forget_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    right = in_reference.lesser
    monkeypatch.setattr(in_reference, "lesser", lambda a, b: torch.where(right(a, b) == b, a, a))


def forget_the_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    right = in_reference.relaxed

    def relaxed(rows: Tensor, low: Tensor, high: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        lines, bias = right(rows, low, high, *rest)
        return lines, bias + 2.0**-20 * (lines.abs() * (1 + high.abs() + low.abs())).sum(1)

    monkeypatch.setattr(in_reference, "relaxed", relaxed)


def forget_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    right = in_reference.relaxed

    def relaxed(
        rows: Tensor, low: Tensor, high: Tensor, leak: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = right(rows, low, high, torch.zeros_like(leak), *rest)
        return found

    monkeypatch.setattr(in_reference, "relaxed", relaxed)


@pytest.mark.parametrize("broken", [forget_an_end, forget_the_slack, forget_the_next_step])
def test_the_search_finds_broken_lines(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    monkeypatch.setattr(backends, "overload_for", lambda *_: "reference")
    cases = (
        {
            "leak": 0.9,
            "threshold": 0.3,
            "reset": RESETS[seed % 4],
            "strict": seed % 3 == 0,
            "seed": seed,
            "dtype": DTYPES[0],
        }
        for seed in range(40)
    )
    assert any(excess_of_lines(case, "edge") > 0 for case in cases)


# As ops, and what is refused


@pytest.mark.parametrize("overload", ["default", "reference"])
@pytest.mark.parametrize("layout", ["channels_last", "constant"])
def test_opcheck(overload: str, layout: str) -> None:
    lower, upper = box(0, layout)
    options = (torch.full((3,), 0.5), torch.tensor(0.5), 0.0, 1, 0.0, True)
    ops = torch.ops.snnkern
    for wanted in (False, True):
        forward = getattr(ops.interval_lif_forward, overload)
        opcheck(forward, (lower, upper, *options, wanted))
        g = laid_out(random(*lower.shape, seed=1), layout)
        backward = getattr(ops.interval_lif_backward, overload)
        grads = (g, g, g if wanted else None, None)
        opcheck(backward, (*grads, lower, upper, *options, 0, [1.0, 1.0], False, wanted))
        rows = rows_like(lower, 2, 0)
        slopes = rows if wanted else None
        slope = reference.GIVEN if wanted else 0
        relax = getattr(ops.relax_lif, overload)
        ends = (lower.contiguous(), upper.contiguous())
        given = (*ends, *options, slope, slopes, rows[:, 0] if wanted else None)
        opcheck(relax, (rows, *given))
        lines, bias = relax(rows, *given)
        of_bias = bias if wanted else bias[:, :, :1, :1].expand(bias.shape)
        backward = getattr(ops.relax_lif_backward, overload)
        opcheck(backward, (lines, of_bias, rows, lines, *given, wanted))


def test_results_do_not_depend_on_the_number_of_threads(two_threads: None) -> None:
    lower = random(4, 8, 3000)
    upper = lower + random(4, 8, 3000, seed=1).abs()
    rows = rows_like(lower, 5, 2)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        *spikes, low, high = interval_lif(lower, upper, 0.9, return_membranes=True)
        leaves = [t.requires_grad_() for t in (rows.clone(), low.clone(), high.clone())]
        lines, bias = relax_lif(*leaves, 0.9)
        gradients = torch.autograd.grad(lines.sum() + bias.sum(), leaves)
        results.append([*spikes, low, high, lines.detach(), bias.detach(), *gradients])
    for one, two in zip(*results, strict=True):
        assert_same_bits(one, two)


X = torch.zeros(2, 1, 3)
ROWS = torch.zeros(2, 2, 1, 3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: interval_lif(X, X[:1]), ValueError, "expected two like tensors"),
        (lambda: interval_lif(X, X.double()), ValueError, "expected two like tensors"),
        (lambda: interval_lif(X, X, leak=1.5), ValueError, r"leak is 1\.5, expected in \[0, 1\]"),
        (lambda: interval_lif(X, X, threshold=0), ValueError, "threshold is 0"),
        (lambda: interval_lif(X, X, reset="firm"), ValueError, "reset is 'firm', expected one of"),
        (lambda: interval_lif(X, X, v_init=X[0]), TypeError, "v_init is tensor"),
        (lambda: interval_lif(X, X, strict=1), TypeError, "strict is 1"),
        (lambda: interval_lif(X, X, surrogate=Rate()), ValueError, "surrogate is Rate"),
        (lambda: interval_lif(X, X, surrogate=SpikeTime()), ValueError, "surrogate is SpikeTime"),
        (lambda: interval_lif(X, X, surrogate=[ATan()]), ValueError, "of the membrane alone"),
        (lambda: relax_lif(ROWS, X.half(), X.half()), TypeError, "v_lower has dtype"),
        (lambda: relax_lif(ROWS.double(), X, X), TypeError, "rows is torch.float64"),
        (lambda: relax_lif(ROWS[0], X, X), ValueError, r"expected \['R', 2, 1, 3\]"),
        (lambda: relax_lif(ROWS[:0], X, X), ValueError, "with R > 0"),
        (lambda: relax_lif(ROWS, X, X, slope="steep"), ValueError, "slope is 'steep'"),
        (lambda: relax_lif(ROWS, X, X, slope=ROWS[:1]), ValueError, "slope has shape"),
        (lambda: relax_lif(ROWS, X, X, mix=ROWS[:1]), ValueError, "mix has shape"),
        (lambda: relax_lif(ROWS, X, X, mix=ROWS, slope="paper"), ValueError, "expected one of"),
        (lambda: relax_lif(ROWS, X, X, after=ROWS), ValueError, "after has shape"),
    ],
)
def test_impossible_arguments_are_refused(
    call: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_a_second_derivative_is_refused() -> None:
    lower, upper = (t.requires_grad_() for t in box(1))
    spikes, _ = interval_lif(lower, upper, 0.5)
    (g,) = torch.autograd.grad(spikes.sum(), lower, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative of snnkern"):
        g.square().sum().backward()
    raw = torch.ops.snnkern.interval_lif_forward
    out = raw(lower, upper, torch.tensor(0.5), torch.tensor(0.5), 0.0, 0, 0.0, False, False)
    with pytest.raises(NotImplementedError, match=r"call snnkern\.functional\.interval_lif"):
        out[0].sum().backward()
