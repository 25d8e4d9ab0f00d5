"""Every compiled backend against the reference, over drawn shapes, layouts, values and options."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from python_tests.helpers import (
    COMPILED,
    LAYOUTS,
    POINTWISE,
    RESETS,
    assert_same_bits,
    assert_within,
    laid_out,
    lif,
    random,
    state_like,
)
from snnkern import functional, reference
from snnkern.functional import Backend
from snnkern.surrogate import Exponential, Rate, Rectangle, Surrogate, Triangle

pytestmark = pytest.mark.usefixtures("poisoned_memory")
EVERY_COMPILED = pytest.mark.parametrize("compiled", COMPILED)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Around the block of four steps, the vectors of 64, the smallest and the largest tile (of 256 and
# 4096 neurons), and the sizes from which tiles grow (4096) and have grown (65536).
TIMESTEPS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 31, 40)
NEURONS = (
    1,
    2,
    7,
    63,
    64,
    65,
    255,
    256,
    257,
    511,
    1000,
    4095,
    4096,
    4097,
    8191,
    65535,
    65537,
    70001,
)
LARGEST_CASE = 600_000  # neuron-steps

VALUES = ("normal", "ties", "huge", "tiny", "mixed")


class Case(NamedTuple):
    """What is drawn for one comparison."""

    timesteps: int
    step: tuple[int, ...]
    layout: str
    values: str
    leak: tuple[str, float]  # number, scalar or channels; and where in the range it lies
    threshold: tuple[str, float]
    v_init: str
    reset: functional.Reset
    v_reset: float
    strict: bool
    seed: int

    @property
    def neuron_steps(self) -> int:
        return self.timesteps * torch.Size(self.step).numel()


@st.composite
def cases(draw: st.DrawFn, values: tuple[str, ...] = VALUES, largest: int = LARGEST_CASE) -> Case:
    timesteps = draw(st.sampled_from(TIMESTEPS))
    wanted = draw(st.sampled_from([n for n in NEURONS if n * timesteps <= largest]))
    dims = draw(st.integers(1, 4))
    step: tuple[int, ...] = (wanted,)
    if dims > 1:
        sides = draw(st.tuples(*[st.sampled_from((1, 2, 3, 5, 8))] * (dims - 1)))
        long = max(1, round(wanted / torch.Size(sides).numel()))
        where = draw(st.integers(0, dims - 1))
        step = (*sides[:where], long, *sides[where:])
    kinds = ("number", "scalar") if dims == 1 else ("number", "scalar", "channels")
    parameter = st.tuples(st.sampled_from(kinds), st.sampled_from((0.0, 0.25, 0.5, 0.9, 1.0)))
    return Case(
        timesteps,
        step,
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from(values)),
        draw(parameter),
        draw(parameter),
        draw(st.sampled_from(("none", "number", "tensor", "permuted", "of x's dtype"))),
        draw(st.sampled_from(RESETS)),
        draw(st.sampled_from((0.0, 0.0, -0.375, 0.5, 2.0))),
        draw(st.booleans()),
        draw(st.integers(0, 1000)),
    )


def valued(case: Case, shape: tuple[int, ...], seed: int) -> Tensor:
    """float64 values; of the kind "ties" such that membranes reach thresholds exactly."""
    x = random(*shape, seed=seed, dtype=torch.float64)
    if case.values == "ties":
        return (x * 8).round() / 8
    if case.values == "huge":
        return x * 2e38
    if case.values == "tiny":
        return x * 1e-39
    if case.values == "mixed":
        return x * 10 ** random(*shape, seed=seed + 1, dtype=torch.float64).mul(12)
    return x


def parameter(case: Case, name: str, x: Tensor) -> float | Tensor:
    kind, place = getattr(case, name)
    value: float = place
    if name == "threshold":
        value = 0.25 + place
        if case.values == "tiny":
            value *= 1e-39
    if kind == "number":
        # Denormal float32 numbers cannot be told from the float64 that they are rounded from.
        return value
    if kind == "scalar":
        return state_like(x, torch.tensor(value, dtype=torch.float64))
    spread = torch.arange(x.shape[2], dtype=torch.float64) / 8 * value
    values = (value - spread % (value or 1)).clamp(min=0) if name == "leak" else value + spread
    return state_like(x, values)


def initial(case: Case, x: Tensor) -> float | Tensor | None:
    if case.v_init == "none":
        return None
    if case.v_init == "number":
        return 0.625
    values = valued(case, x.shape[1:], case.seed + 2)
    if case.v_init == "of x's dtype":
        return values.to(x.dtype)
    values = state_like(x, values)
    if case.v_init == "permuted":
        return values.mT.contiguous().mT if values.dim() > 1 else values
    return values


def arguments(case: Case, dtype: torch.dtype) -> tuple[Tensor, dict[str, Any]]:
    shape = (case.timesteps, *case.step)
    x = laid_out(valued(case, shape, case.seed).to(dtype), case.layout)
    return x, {
        "leak": parameter(case, "leak", x),
        "threshold": parameter(case, "threshold", x),
        "v_init": initial(case, x),
        "reset": case.reset,
        "v_reset": case.v_reset,
        "strict": case.strict,
    }


def test_ci_has_the_compiled_kernels() -> None:
    if os.environ.get("CI") == "true":
        assert COMPILED


@EVERY_COMPILED
@pytest.mark.parametrize(
    ("dtype", "examples", "wanted"),
    [
        (torch.float32, 500, 10_000_000),
        (torch.float64, 100, 1_000_000),
        (torch.float16, 100, 1_000_000),
        (torch.bfloat16, 100, 1_000_000),
    ],
    ids=str,
)
def test_spikes_and_states_are_those_of_the_reference(
    compiled: Backend, dtype: torch.dtype, examples: int, wanted: int
) -> None:
    """Bit for bit, over at least `wanted` neuron-steps."""
    compared = spikes_seen = 0

    @settings(max_examples=examples)
    @given(case=cases())
    def compare(case: Case) -> None:
        nonlocal compared, spikes_seen
        x, options = arguments(case, dtype)
        spikes, state = functional.lif(x, **options, return_state=True, backend=compiled)
        expected = functional.lif(x, **options, return_state=True, backend="reference")
        assert_same_bits(spikes, expected[0], "spikes")
        assert_same_bits(state, expected[1], "state")
        alone = functional.lif(x, **options, backend=compiled)
        assert_same_bits(alone, spikes, "spikes without a state")
        compared += case.neuron_steps
        spikes_seen += int(spikes.sum(dtype=torch.float64))

    compare()
    assert compared >= wanted
    assert 0.1 * compared < spikes_seen < 0.9 * compared


class BackwardCase(NamedTuple):
    """What is drawn for the gradient on top of a case."""

    case: Case
    surrogate: Surrogate
    detach_reset: bool
    grad_layout: str
    final_state: bool
    spikes: bool
    wanted: tuple[bool, bool, bool, bool]  # gradients of x, leak, threshold, v_init


@st.composite
def backward_cases(draw: st.DrawFn, surrogates: tuple[Surrogate, ...]) -> BackwardCase:
    surrogate = draw(st.sampled_from(surrogates))
    if draw(st.booleans()):
        surrogate = type(surrogate)(**vars(surrogate) | {"normalized": True})
    through_state = draw(st.booleans())
    wanted = draw(
        st.sampled_from(
            [
                (True, True, True, True),
                (True, False, False, False),
                (True, False, True, False),
                (False, True, False, False),
                (False, False, False, True),
            ]
        )
    )
    return BackwardCase(
        draw(cases(("normal", "ties"), largest=100_000)),
        surrogate,
        draw(st.booleans()),
        draw(st.sampled_from(LAYOUTS)),
        through_state,
        draw(st.booleans()) or not through_state,
        wanted,
    )


class Differentiable(NamedTuple):
    """A call with every tensor argument as a leaf."""

    inputs: dict[str, Tensor]  # those that want a gradient
    x: Tensor
    options: dict[str, Any]
    grad_spikes: Tensor | None
    grad_state: Tensor | None


def differentiable(drawn: BackwardCase, dtype: torch.dtype) -> Differentiable:
    case = drawn.case
    x, options = arguments(case, dtype)
    tensors = {"x": x} | {
        name: options[name]
        for name in ("leak", "threshold", "v_init")
        if isinstance(options[name], Tensor)
    }
    asked = dict(zip(("x", "leak", "threshold", "v_init"), drawn.wanted, strict=True))
    inputs = {name: t.detach().requires_grad_() for name, t in tensors.items() if asked[name]}
    if not inputs:
        inputs = {"x": x.detach().requires_grad_()}
    options |= {name: t for name, t in inputs.items() if name != "x"}
    options |= {
        "surrogate": drawn.surrogate,
        "detach_reset": drawn.detach_reset,
        "return_state": True,
    }
    gs = laid_out(random(*x.shape, seed=case.seed + 3).to(dtype), drawn.grad_layout)
    g_state = state_like(x, random(*x.shape[1:], seed=case.seed + 4))
    return Differentiable(
        inputs,
        inputs.get("x", x),
        options,
        gs if drawn.spikes else None,
        g_state if drawn.final_state else None,
    )


def gradients(call: Differentiable, backend: Backend) -> dict[str, Tensor]:
    outputs = functional.lif(call.x, **call.options, backend=backend)
    used = [
        (out, g)
        for out, g in zip(outputs, (call.grad_spikes, call.grad_state), strict=True)
        if g is not None
    ]
    grads = torch.autograd.grad(
        [out for out, _ in used],
        list(call.inputs.values()),
        [g for _, g in used],
        materialize_grads=True,  # through the rate most of them get none
    )
    return dict(zip(call.inputs, grads, strict=True))


def sums_of_magnitudes(call: Differentiable) -> dict[str, Tensor]:
    """What the error of each gradient is measured against: the sum of all |terms| that it is made
    of.

    A gradient is a sum whose terms cancel, over time and, for a parameter, over neurons. Each term
    is known to a relative 1e-7 or so, which says nothing about a sum that happens to be near zero,
    so the honest measure is the same scan over absolute values, here in float64 on the membranes
    that the reference has in its own precision.
    """
    x, options = call.x.detach(), call.options
    dtype = reference.state_dtype(x.dtype)
    surrogate: Surrogate = options["surrogate"]
    hard, soft, delayed = (options["reset"] == name for name in ("hard", "soft", "delayed_soft"))

    def parameter_values(name: str) -> Tensor:
        values = torch.as_tensor(options[name], dtype=dtype).detach()
        return values.reshape(-1, *(1,) * (x.dim() - 3)) if values.dim() else values

    leak, threshold = parameter_values("leak"), parameter_values("threshold")
    neuron = reference.Neuron(
        leak,
        threshold,
        reset=RESETS.index(options["reset"]),
        v_reset=options["v_reset"],
        strict=options["strict"],
    )
    v_init = options["v_init"]
    u = torch.zeros(x.shape[1:], dtype=dtype)
    if v_init is not None:
        u = u + torch.as_tensor(v_init).detach().to(dtype)
    carried, membranes = [u], [u]
    for x_t in x.to(dtype):
        membranes.append(neuron.charge(carried[-1], x_t))
        carried.append(neuron.carry(membranes[-1], neuron.fires(membranes[-1])))

    attached = 0.0 if options["detach_reset"] else 1.0
    scale = 1 / threshold if surrogate.normalized else torch.ones_like(threshold)
    shift = torch.ones_like(threshold) if surrogate.normalized else threshold
    start = carried[0]
    g_state = torch.zeros_like(start) if call.grad_state is None else call.grad_state
    gs_all = torch.zeros_like(x) if call.grad_spikes is None else call.grad_spikes
    g = torch.zeros_like(start, dtype=torch.float64)
    g_leak, g_threshold = torch.zeros_like(g), torch.zeros_like(g)
    g_x = torch.zeros(x.shape, dtype=torch.float64)
    for t in reversed(range(len(membranes))):
        if t == 0 and not delayed:  # the initial state is charged, no spike looks at it
            g_leak += g * start.abs()
            g = leak.double() * g
            break
        v, s = membranes[t], neuron.fires(membranes[t])
        gu = leak.double() * g
        g_spike = torch.zeros_like(g)
        if t > 0:
            g_spike = gs_all[t - 1].double().abs()
            if t == len(membranes) - 1:
                gu = gu + g_state.double().abs()
        if hard:
            g_spike = g_spike + attached * gu * (options["v_reset"] - v.double()).abs()
        elif soft:
            g_spike = g_spike + attached * threshold * gu
            g_threshold += torch.where(s, gu, 0)
        elif delayed:
            g_spike = g_spike + attached * threshold * g
            g_threshold += torch.where(s, g, 0)
        gz = g_spike * surrogate.derivative((v * scale - shift).double()).abs()
        g_leak += g * carried[t].abs()
        g_threshold += gz * ((v * scale * scale).abs() if surrogate.normalized else 1)
        g = (torch.where(s, 0, gu) if hard else gu) + gz * scale
        if t > 0:
            g_x[t - 1] = g

    def total(name: str, per_neuron: Tensor) -> Tensor:
        channels = torch.as_tensor(options[name]).dim()
        dims = [d for d in range(per_neuron.dim()) if not channels or d != 1]
        return per_neuron.sum(dims)

    # A gradient that comes back over k steps has k factors more, each an exponential that is
    # rounded to 2 units in the last place: an eighth of 1e-6 in float32.
    factors = 1 + torch.arange(len(x), 0, -1, dtype=torch.float64) / 8
    return {
        "x": g_x * factors.reshape(-1, *(1,) * start.dim()),
        "leak": total("leak", g_leak) * factors[0],
        "threshold": total("threshold", g_threshold) * factors[0],
        "v_init": g * factors[0],
    }


# The kernels take an exponential below exp(-87) for zero.
EXP_FLOOR = 1e-35


@EVERY_COMPILED
@pytest.mark.parametrize(
    ("dtype", "tolerance", "examples"),
    [
        (torch.float32, 1e-6, 600),
        (torch.float64, 1e-12, 150),
        (torch.float16, 1e-6, 100),
        (torch.bfloat16, 1e-6, 100),
    ],
    ids=str,
)
def test_gradients_are_those_of_the_reference(
    compiled: Backend, dtype: torch.dtype, tolerance: float, examples: int
) -> None:
    """Of x, leak, threshold and v_init, relative to the sum of magnitudes that each is made of."""
    seen: dict[str, int] = dict.fromkeys(("x", "leak", "threshold", "v_init"), 0)

    @settings(max_examples=examples)
    @given(drawn=backward_cases(POINTWISE))
    def compare(drawn: BackwardCase) -> None:
        call = differentiable(drawn, dtype)
        actual, expected = (gradients(call, name) for name in (compiled, "reference"))
        magnitudes = sums_of_magnitudes(call)
        for name, gradient in actual.items():
            seen[name] += 1
            target = expected[name]
            assert gradient.dtype == target.dtype == call.inputs[name].dtype
            allowed = tolerance * magnitudes[name] + EXP_FLOOR
            kind = torch.finfo(gradient.dtype)
            if gradient.element_size() == 2:  # rounded last: two floats on either side of a tie
                allowed = allowed + kind.eps * target.double().abs() + kind.smallest_normal
            fits = magnitudes[name] < kind.max / 16  # some gradients explode over the steps
            assert_within(gradient[fits], target[fits], allowed[fits], name)

    compare()
    assert min(seen.values()) >= examples / 20


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_through_the_rate_only_the_current_of_neurons_that_fired_gets_a_gradient(
    backend: Backend, dtype: torch.dtype
) -> None:
    @settings(max_examples=60)
    @given(drawn=backward_cases((Rate(),)))
    def compare(drawn: BackwardCase) -> None:
        call = differentiable(drawn, dtype)
        fired = functional.lif(call.x, **call.options, backend="reference")[0].bool().any(0)
        given = call.grad_spikes
        for name, gradient in gradients(call, backend).items():
            if name == "x" and given is not None:
                expected = torch.where(fired, given, 0)
            else:
                expected = torch.zeros_like(gradient)
            assert_same_bits(gradient, expected, name)

    compare()


def everything(x: Tensor, backend: str | None, **options: Any) -> dict[str, Tensor]:
    """Spikes, state and all gradients of one call with every argument a tensor."""
    leaves = {
        "x": x.detach().requires_grad_(),
        "leak": torch.linspace(0.5, 1, x.shape[2]).requires_grad_(),
        "threshold": torch.linspace(0.5, 1.5, x.shape[2]).requires_grad_(),
        "v_init": random(*x.shape[1:], seed=5).requires_grad_(),
    }
    spikes, state = lif(**leaves, return_state=True, backend=backend, **options)
    grads = torch.autograd.grad(
        (spikes, state),
        list(leaves.values()),
        (random(*x.shape, seed=6), random(*state.shape, seed=7)),
    )
    return {"spikes": spikes, "state": state} | dict(zip(leaves, grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_read_and_rounded_like_torch_does(
    backend: Backend, dtype: torch.dtype
) -> None:
    """All 65536 bit patterns: subnormal, infinite and NaN ones, and results halfway between two."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(1, 1, -1)
    _, state = functional.lif(every, reset="none", return_state=True, backend=backend)
    assert_same_bits(state, every[0].float() + 0.0, "read")
    for scale in (0.7, 1.0 + 2.0**-8, 1.0 + 2.0**-11, 0.5, 2.0**-9):
        x = torch.zeros_like(every, requires_grad=True)
        spikes = functional.lif(x, surrogate=Rectangle(4.0, scale), reset="none", backend=backend)
        (gx,) = torch.autograd.grad(spikes, x, every)
        assert_same_bits(gx, (every.float() * scale + 0.0).to(dtype), f"rounded, {scale=}")


@pytest.mark.parametrize("reset", RESETS)
def test_results_do_not_depend_on_threads_or_time(
    backend: Backend, reset: functional.Reset, two_threads: None
) -> None:
    # Sixteen tiles, the last one short, and neighbours with different parameters.
    x = laid_out(random(6, 3, 5, 1333, seed=1), "channels_last")
    runs = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        runs.append(everything(x, backend, reset=reset, surrogate=Exponential()))
    for other in runs[1:]:
        for name, value in other.items():
            assert_same_bits(value, runs[0][name], name)


@pytest.mark.parametrize("shared", [True, False])
def test_parameter_gradients_are_summed_in_more_than_float32(
    backend: Backend, shared: bool
) -> None:
    """Between two terms of 2^30 that cancel, a float32 sum would lose every other one."""
    x = torch.full((1, 2, 1, 70001), 0.5)  # Triangle: ds/dz is 1/2
    weights = torch.ones_like(x)
    for i, sign in ((0, 1), (-1, -1)):
        x.view(-1)[i] = 1.0  # ds/dz is 1
        weights.view(-1)[i] = sign * 2.0**30
    threshold = torch.ones(() if shared else (1,), requires_grad=True)
    spikes = functional.lif(x, 1.0, threshold, surrogate=Triangle(1.0), backend=backend)
    (grad,) = torch.autograd.grad(spikes, threshold, weights)
    assert grad.item() == -0.5 * (x.numel() - 2)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_current_touches_one_neuron(
    backend: Backend, reset: functional.Reset, value: float
) -> None:
    x = random(9, 2, 3, 50, seed=2)
    bad = x.clone()
    bad[4, 1, 2, 17] = value

    def outcome(x: Tensor) -> dict[str, Tensor]:
        leaf = x.clone().requires_grad_()
        v_init = torch.zeros(x.shape[1:], requires_grad=True)
        spikes, state = functional.lif(
            leaf, 0.75, 0.5, reset=reset, v_init=v_init, return_state=True, backend=backend
        )
        loss = (spikes * random(*x.shape, seed=3)).sum() + state[state.isfinite()].sum()
        gx, g_init = torch.autograd.grad(loss, (leaf, v_init))
        return {"spikes": spikes, "state": state[None], "x": gx, "v_init": g_init[None]}

    good, other = outcome(x), outcome(bad)
    for name, expected in good.items():
        others = torch.ones_like(expected, dtype=torch.bool)
        others[:, 1, 2, 17] = False
        assert_same_bits(other[name][others], expected[others], name)
    spikes = other["spikes"][:, 1, 2, 17]
    assert torch.equal(spikes[:4], good["spikes"][:4, 1, 2, 17])
    if value != value:
        assert not spikes[4:].any()
        assert other["state"][0, 1, 2, 17].isnan()
    elif value > 0:
        assert spikes[4] == 1
        if reset != "hard":
            assert spikes[4:].all()
            assert other["state"][0, 1, 2, 17] == value
    else:
        assert not spikes[4:].any()
        assert other["state"][0, 1, 2, 17] == value


def test_a_hard_reset_brings_an_infinite_neuron_back(backend: Backend) -> None:
    x = random(9, 4, 70, seed=4)
    x[3] = float("inf")
    after, state = functional.lif(x, 0.9, 0.75, v_reset=-0.25, return_state=True, backend=backend)
    fresh, expected = functional.lif(
        x[4:], 0.9, 0.75, v_reset=-0.25, v_init=-0.25, return_state=True, backend=backend
    )
    assert after[3].all()
    assert_same_bits(after[4:], fresh, "spikes")
    assert_same_bits(state, expected, "state")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reset", RESETS)
def test_arguments_are_left_as_they_were(
    backend: Backend, layout: str, reset: functional.Reset
) -> None:
    leaves = {
        "x": laid_out(random(5, 2, 3, 7), layout).requires_grad_(),
        "leak": torch.tensor([0.25, 0.5, 0.75], requires_grad=True),
        "threshold": torch.tensor(0.5, requires_grad=True),
        "v_init": random(2, 3, 7, seed=1).requires_grad_(),
    }
    grads = {"spikes": laid_out(random(5, 2, 3, 7, seed=2), layout), "state": random(2, 3, 7)}
    given_tensors = leaves | grads
    before = {name: (t.detach().clone(), t._version) for name, t in given_tensors.items()}
    spikes, state = lif(**leaves, reset=reset, return_state=True, backend=backend)
    results = torch.autograd.grad(
        (spikes, state), list(leaves.values()), (grads["spikes"], grads["state"])
    )
    for name, (value, version) in before.items():
        assert_same_bits(given_tensors[name].detach(), value, name)
        assert given_tensors[name]._version == version
    mine = {t.untyped_storage().data_ptr() for t in (spikes, state, *results)}
    assert mine.isdisjoint(t.untyped_storage().data_ptr() for t in given_tensors.values())


def test_a_state_carries_a_sequence_over(backend: Backend) -> None:
    """Cutting time anywhere and handing the state on changes nothing."""
    x = random(11, 3, 5, 33, seed=8)
    for reset in RESETS:
        whole, end = functional.lif(
            x, 0.8, 0.6, reset=reset, v_init=0.5, return_state=True, backend=backend
        )
        for cut in (1, 4, 6, 8, 10):
            head, state = functional.lif(
                x[:cut], 0.8, 0.6, reset=reset, v_init=0.5, return_state=True, backend=backend
            )
            tail, last = functional.lif(
                x[cut:], 0.8, 0.6, reset=reset, v_init=state, return_state=True, backend=backend
            )
            assert_same_bits(torch.cat([head, tail]), whole, "spikes")
            assert_same_bits(last, end, "state")


def test_fresh_memory_is_poisoned() -> None:
    """What the other tests rely on to find an element that was not written."""
    for count in (10, 100, 1000, 100_000, 3_000_000):
        for dtype in DTYPES:
            fresh = torch.empty(count, dtype=dtype)
            assert fresh.isnan().all()


@pytest.mark.slow
@EVERY_COMPILED
def test_more_neurons_than_fit_31_bits(compiled: Backend) -> None:
    """Indices do not wrap."""
    count = 2**31 + 64
    x = torch.zeros(1, 1, count, dtype=torch.float16)
    fired = torch.tensor([0, 2**31 - 1, 2**31, count - 1])
    x[0, 0, fired] = 2.0
    (bits,) = functional.lif(x, spike_format="bits", backend=compiled)
    places = bits.nonzero().flatten()
    assert places.tolist() == (fired // 8).tolist()
    assert bits[places].tolist() == (1 << fired % 8).tolist()
