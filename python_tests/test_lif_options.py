"""The options of functional.lif together: backends, gradients, other libraries, papers, errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from python_tests.helpers import (
    COMPILED,
    EVERY_BACKEND,
    LAYOUTS,
    POINTWISE,
    RESETS,
    assert_same_bits,
    assert_within,
    golden,
    laid_out,
    lif,
    random,
    state_like,
    through,
)
from snnkern import functional, reference
from snnkern.functional import Backend, Charge, Reset, SpikeFormat, Synapse
from snnkern.nn import LIF
from snnkern.surrogate import (
    ASSG,
    ATan,
    Exponential,
    Rate,
    Sigmoid,
    SpikeTime,
    StraightThrough,
    Surrogate,
    Triangle,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")
EVERY_COMPILED = pytest.mark.parametrize("compiled", COMPILED)

CHARGES: tuple[Charge, ...] = ("leak", "euler", "euler_box", "decay_input", "decay")
SYNAPSES: tuple[Synapse, ...] = ("none", "charged", "decayed", "jump")
PACKED: tuple[SpikeFormat, ...] = ("uint8", "bits")
DELAYABLE = ("delayed_soft", "none")  # resets that leave a state from which a late spike is known
SPIKE_TIMES = (SpikeTime(), SpikeTime(1.0, 0.5), SpikeTime(0.7, 2.0))
RANGE = {"leak": (0.0, 1.0), "rate": (0.0, 1.0), "tau": (1.0, 3.0)} | {
    "threshold": (0.25, 1.5),
    "synapse_decay": (0.0, 1.0),
}
OUTPUTS = ("spikes", "state", "current")


def decay_name(charge: str) -> str:
    return functional.DECAYS[charge]


# Compiled backends against the reference.

# Around vectors and tiles, see test_lif.
NEURONS = (1, 2, 3, 7, 8, 9, 63, 65, 255, 257, 1000, 4097, 9001)
LARGEST_CASE = 40_000  # neuron-steps


class Case(NamedTuple):
    """What is drawn for one comparison."""

    timesteps: int
    step: tuple[int, ...]
    layout: str  # or "held", as timesteps=, or "held view", an expanded leaf
    ties: bool
    charge: Charge
    synapse: Synapse
    reset: Reset
    decay: tuple[str, float]  # number, scalar, channels or neurons; and where in the range it lies
    threshold: tuple[str, float]
    synapse_decay: tuple[str, float]
    v_init: str
    current_init: str
    numbers: dict[str, float]
    flags: dict[str, bool]
    surrogates: tuple[Surrogate, ...]  # one for all, or dealt out to the samples
    wanted: str  # whose gradients
    through: tuple[bool, ...]  # spikes, state and current are differentiated
    grad_layout: str
    seed: int

    @property
    def neuron_steps(self) -> int:
        return self.timesteps * torch.Size(self.step).numel()


@st.composite
def surrogates(draw: st.DrawFn) -> tuple[Surrogate, ...]:
    def normalized(surrogate: Surrogate) -> Surrogate:
        if draw(st.booleans()):
            return type(surrogate)(**vars(surrogate) | {"normalized": True})
        return surrogate

    if draw(st.integers(0, 2)):
        # ASSG: derivatives that are given to the kernel.
        one = draw(
            st.sampled_from((*POINTWISE, *SPIKE_TIMES, *SPIKE_TIMES, Rate(), ASSG(), ASSG()))
        )
        return (normalized(one),)
    several = draw(st.lists(st.sampled_from((*POINTWISE, *SPIKE_TIMES)), min_size=2, max_size=4))
    return tuple(map(normalized, several))


@st.composite
def cases(draw: st.DrawFn, charge: Charge, synapse: Synapse, reset: Reset) -> Case:
    timesteps = draw(st.integers(1, 13))
    wanted = draw(st.sampled_from([n for n in NEURONS if n * timesteps <= LARGEST_CASE]))
    dims = draw(st.integers(1, 4))
    sides = draw(st.tuples(*[st.sampled_from((1, 2, 3, 5, 8))] * (dims - 1)))
    where = draw(st.integers(0, dims - 1))
    step = (*sides[:where], max(1, wanted // torch.Size(sides).numel()), *sides[where:])
    kinds = ("number", "scalar", *["channels"] * (dims > 1), *["neurons"] * (dims > 2))
    parameter = st.tuples(st.sampled_from(kinds), st.sampled_from((0.0, 0.25, 0.5, 0.9, 1.0)))
    initial = st.sampled_from(("none", "number", "tensor", "permuted"))
    through = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    seen = through[1] or (through[2] and synapse != "none")
    return Case(
        timesteps,
        step,
        draw(st.sampled_from((*LAYOUTS, "held", "held view"))),
        draw(st.booleans()),
        charge,
        synapse,
        reset,
        draw(parameter),
        draw(parameter),
        draw(parameter),
        draw(initial),
        draw(initial),
        {
            "gain": draw(st.sampled_from((1.0, 1.0, 0.7, -1.5))),
            "v_rest": draw(st.sampled_from((0.0, 0.1, -0.375))) if charge != "leak" else 0.0,
            "v_reset": draw(st.sampled_from((0.0, 0.0, -0.3, 0.5))),
        },
        {
            "strict": draw(st.booleans()),
            "delayed_spike": draw(st.booleans()) and reset in DELAYABLE,
            "detach_reset": draw(st.booleans()),
        },
        draw(surrogates()),
        draw(st.sampled_from(("all", "all", "x", "states", "parameters"))),
        (through[0] or not seen, *through[1:]),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.integers(0, 1000)),
    )


def values(case: Case, shape: tuple[int, ...], seed: int) -> Tensor:
    """float64 values; with ties such that membranes reach thresholds exactly."""
    x = random(*shape, seed=case.seed + seed, dtype=torch.float64) + 0.25
    return (x * 8).round() / 8 if case.ties else x


def parameter(case: Case, kind: str, place: float, name: str, like: Tensor) -> float | Tensor:
    low, high = RANGE[name]
    value = low + (high - low) * place
    if kind == "number":
        return value
    shape = {"scalar": (), "channels": like.shape[2:3], "neurons": like.shape[2:]}[kind]
    spread = random(*shape, seed=case.seed + len(name), dtype=torch.float64).sigmoid()
    tensor = low + (high - low) * spread
    if shape:
        tensor.view(-1)[0] = value
    else:
        tensor = torch.tensor(value, dtype=torch.float64)
    return state_like(like, tensor)


def initial(case: Case, kind: str, seed: int, like: Tensor) -> float | Tensor | None:
    if kind == "none":
        return None
    if kind == "number":
        return 0.625
    start = state_like(like, values(case, like.shape[1:], seed))
    return start.mT.contiguous().mT if kind == "permuted" and start.dim() > 1 else start


class Call(NamedTuple):
    """A call of lif, its differentiable arguments and the gradients of what comes out."""

    x: Tensor
    options: dict[str, Any]
    leaves: dict[str, Tensor]
    grads: tuple[Tensor | None, ...]

    @property
    def timesteps(self) -> int:
        return int(self.options.get("timesteps", len(self.x)))


def call_of(case: Case, dtype: torch.dtype) -> Call:
    full = values(case, (case.timesteps, *case.step), 0).to(dtype)
    if case.layout == "held":
        x = full[:1].clone()
    elif case.layout == "held view":
        x = full[0].clone()
    else:
        x = laid_out(full, case.layout)
    decay = decay_name(case.charge)
    options: dict[str, Any] = {
        "charge": case.charge,
        "synapse": case.synapse,
        "reset": case.reset,
        decay: parameter(case, *case.decay, decay, full),
        "threshold": parameter(case, *case.threshold, "threshold", full),
        "v_init": initial(case, case.v_init, 1, full),
        **case.numbers,
        **case.flags,
    }
    if case.synapse != "none":
        options["synapse_decay"] = parameter(case, *case.synapse_decay, "synapse_decay", full)
        options["current_init"] = initial(case, case.current_init, 2, full)
    if case.layout == "held":
        options["timesteps"] = case.timesteps
    if len(case.surrogates) == 1:
        options["surrogate"] = case.surrogates[0]
    else:
        count = len(case.surrogates)
        options["surrogate"] = [case.surrogates[n % count] for n in range(full.shape[1])]

    groups = {"x": ("x",), "states": ("v_init", "current_init")}
    groups["parameters"] = (decay, "threshold", "synapse_decay")
    tensors = {"x": x} | {n: o for n, o in options.items() if isinstance(o, Tensor)}
    names = [n for n in tensors if case.wanted == "all" or n in groups[case.wanted]] or ["x"]
    leaves = {name: tensors[name].detach().requires_grad_() for name in names}
    options |= {name: leaf for name, leaf in leaves.items() if name != "x"}
    x = leaves.get("x", x)
    if case.layout == "held view":
        x = x.expand(case.timesteps, *x.shape)
    grads = (
        laid_out(random(*full.shape, seed=case.seed + 3).to(dtype), case.grad_layout),
        state_like(full, random(*full.shape[1:], seed=case.seed + 4)),
        state_like(full, random(*full.shape[1:], seed=case.seed + 5)),
    )[: 2 + (case.synapse != "none")]
    used = tuple(g if case.through[i] else None for i, g in enumerate(grads))
    return Call(x, options, leaves, used)


def outcome(call: Call, backend: Backend | None) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Spikes and states; and gradients."""
    outputs = lif(call.x, **call.options, return_state=True, backend=backend)
    used = [(out, g) for out, g in zip(outputs, call.grads, strict=True) if g is not None]
    grads = torch.autograd.grad(
        [out for out, _ in used],
        list(call.leaves.values()),
        [g for _, g in used],
        materialize_grads=True,  # through the rate most of them get none
    )
    return outputs, dict(zip(call.leaves, grads, strict=True))


def neuron_of(call: Call) -> reference.Neuron:
    options, x = call.options, call.x

    def broadcast(name: str) -> Tensor | None:
        if name not in options:
            return None
        dtype = reference.state_dtype(x.dtype)
        return reference.broadcast(torch.as_tensor(options[name], dtype=dtype).detach(), x)

    decay, threshold = broadcast(decay_name(options["charge"])), broadcast("threshold")
    assert decay is not None
    assert threshold is not None
    return reference.Neuron(
        decay,
        threshold,
        broadcast("synapse_decay"),
        reference.CHARGES.index(options["charge"]),
        options["v_rest"],
        options["gain"],
        reference.SYNAPSES.index(options["synapse"]),
        reference.RESETS.index(options["reset"]),
        options["v_reset"],
        options["strict"],
    )


def sums_of_magnitudes(call: Call) -> dict[str, Tensor]:
    """What the error of each gradient is measured against: the sum of all |terms| that it is made
    of, since a sum that happens to cancel says nothing about how well its terms are known.

    The backward scan over absolute values, in float64, along the membranes that the reference has
    in its own precision.
    """
    options, neuron, timesteps = call.options, neuron_of(call), call.timesteps
    dtype = reference.state_dtype(call.x.dtype)
    inputs = call.x.detach().to(dtype).expand(timesteps, *call.x.shape[1:])
    shape = inputs.shape[1:]

    def start(name: str) -> Tensor:
        value = options.get(name)
        return torch.zeros(shape, dtype=dtype) + (0 if value is None else value)

    states, synapses = [start("v_init").detach()], [start("current_init").detach()]
    membranes, currents = list(states), []
    for x_t in inputs:
        current, c = neuron.conduct(synapses[-1], x_t)
        membranes.append(neuron.charge(states[-1], current))
        states.append(neuron.carry(membranes[-1], neuron.fires(membranes[-1])))
        currents.append(current)
        synapses.append(c)

    zero = torch.zeros(shape, dtype=torch.float64)
    gs_all, g_state, g_current = (
        None if g is None else g.double().abs() for g in (*call.grads, None)[:3]
    )
    gs = list(torch.zeros_like(inputs, dtype=torch.float64) if gs_all is None else gs_all)
    given, at_start = gs, zero
    if options["delayed_spike"]:
        given, at_start = [*gs[1:], zero], gs[0]
    gradients = {"decay": zero, "threshold": zero, "synapse_decay": zero}
    steps: list[Tensor] = [zero] * timesteps
    g = gu = gc = zero
    surrogate = options["surrogate"]
    if isinstance(surrogate, Rate):
        steps = gs
    else:
        samples = surrogate if isinstance(surrogate, list) else [surrogate] * shape[0]
        looks_at_start = options["reset"] == "delayed_soft" or options["delayed_spike"]
        normalized = torch.tensor([s.normalized for s in samples])
        normalized = normalized.view(-1, *(1,) * (len(shape) - 1))
        ds_dv: list[Tensor] = []
        scale = torch.where(normalized, 1 / neuron.threshold, 1)
        z_shift = torch.where(normalized, 1, neuron.threshold)
        since = torch.full_like(zero, math.inf)
        if isinstance(surrogate, ASSG):
            z = torch.stack(membranes if looks_at_start else membranes[1:]) * scale - z_shift
            ds_dv = [*([] if looks_at_start else [zero]), *(surrogate.derivatives(z) * scale)]
        for number, v in enumerate([] if ds_dv else membranes):
            z, since = (v * scale - z_shift).double(), since + 1
            parts = zero.clone()
            for kind in set(samples):
                own = torch.tensor([s == kind for s in samples])
                argument = since if isinstance(kind, SpikeTime) else z
                parts[own] = kind.derivative(argument[own])
            ds_dv.append(parts * scale)
            fired = neuron.fires(v) if number or looks_at_start else torch.zeros_like(v).bool()
            since = torch.where(fired, 0, since)

        attached = 0.0 if options["detach_reset"] else 1.0

        def to_membrane(number: int, gs: Tensor, gu: Tensor, g_next: Tensor) -> Tensor:
            v = membranes[number]
            s, reset, g_reset = neuron.fires(v), options["reset"], g_next
            if reset == "hard":
                gs = gs + attached * gu * (options["v_reset"] - v).abs()
                gu = torch.where(s, 0, gu)
            elif reset in ("soft", "delayed_soft"):
                g_reset = gu if reset == "soft" else g_next
                gs = gs + attached * g_reset * neuron.threshold
                gradients["threshold"] = gradients["threshold"] + torch.where(s, g_reset, 0)
            through = gs * ds_dv[number]
            share = torch.where(normalized, (v / neuron.threshold).abs(), 1)
            gradients["threshold"] = gradients["threshold"] + through * share
            return gu + through

        gu = zero if g_state is None else g_state
        gc = zero if g_current is None else g_current
        for t in reversed(range(timesteps)):
            g = to_membrane(t + 1, given[t], gu, g)
            du, dx, ddecay = neuron.charge_derivatives(states[t], currents[t])
            gradients["decay"] = gradients["decay"] + g * ddecay.abs()
            gx, gc, share = neuron.conduct_gradient(dx * g, gc, synapses[t], inputs[t])
            gradients["synapse_decay"] = gradients["synapse_decay"] + torch.as_tensor(share).abs()
            steps[t] = gx.abs()
            gu = du * g
        if looks_at_start:
            gu = to_membrane(0, at_start, gu, g)

    # A gradient that comes back over k steps has k factors more, each an exponential that is
    # rounded to 2 units in the last place: an eighth of 1e-6 in float32.
    factors = 1 + torch.arange(timesteps, 0, -1, dtype=torch.float64) / 8
    of_x = torch.stack(steps) * factors.view(-1, *(1,) * len(shape))
    if "x" in call.leaves and len(call.leaves["x"]) != timesteps:
        of_x = of_x.sum(0, keepdim=True)
    if "x" in call.leaves and call.leaves["x"].dim() == len(shape):
        of_x = of_x.sum(0)
    sums = {"x": of_x, "v_init": gu * factors[0], "current_init": gc * factors[0]}
    for name, each in gradients.items():
        named = decay_name(options["charge"]) if name == "decay" else name
        leaf = call.leaves.get(named)
        if leaf is not None:
            kept = {0: (), 1: (1,)}.get(leaf.dim(), tuple(range(1, len(shape))))
            dims = [d for d in range(len(shape)) if d not in kept]
            sums[named] = each.sum(dims) * factors[0]
    return sums


# The kernels take an exponential below exp(-87) for zero.
EXP_FLOOR = 1e-35


def assert_gradients(call: Call, actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    tolerance = 1e-12 if call.x.dtype == torch.float64 else 1e-6
    magnitudes = sums_of_magnitudes(call)
    for name, gradient in actual.items():
        target, magnitude = expected[name], magnitudes[name]
        assert gradient.dtype == target.dtype == call.leaves[name].dtype
        allowed = tolerance * magnitude + EXP_FLOOR
        kind = torch.finfo(gradient.dtype)
        if gradient.element_size() == 2:  # rounded last: two floats on either side of a tie
            allowed = allowed + kind.eps * target.double().abs() + kind.smallest_normal
        fits = magnitude < kind.max / 16
        assert_within(gradient[fits], target[fits], allowed[fits], name)


def assert_packed(call: Call, spikes: Tensor, compiled: Backend) -> None:
    """uint8 and bits of both backends say what the spikes say."""
    in_memory = reference.in_memory_order(spikes)
    expected = np.packbits(in_memory.bool().numpy(), axis=1, bitorder="little")
    for backend in (compiled, "reference"):
        with torch.no_grad():
            as_bytes, bits = (
                lif(call.x, **call.options, spike_format=form, backend=backend) for form in PACKED
            )
        assert as_bytes.dtype == bits.dtype == torch.uint8
        if str(compiled) != "cuda_on_host":
            assert as_bytes.stride() == spikes.stride()
        assert torch.equal(as_bytes, spikes.to(torch.uint8))
        assert np.array_equal(bits.numpy(), expected)


@EVERY_COMPILED
@pytest.mark.parametrize(
    ("dtype", "examples"),
    [
        (torch.float32, 10),
        (torch.float64, 3),
        (torch.float16, 2),
        (torch.bfloat16, 2),
    ],
    ids=str,
)
def test_every_combination_of_options_is_that_of_the_reference(
    compiled: Backend, dtype: torch.dtype, examples: int
) -> None:
    """Spikes, states and packed spikes bit for bit, gradients of every tensor to the tolerance.

    So many examples for every charge, synapse and reset.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    leaves: Counter[str] = Counter()
    steps = spikes_seen = 0

    def compare(case: Case) -> None:
        nonlocal steps, spikes_seen
        call = call_of(case, dtype)
        (outputs, grads), (expected, target) = (outcome(call, b) for b in (compiled, "reference"))
        for name, actual, wanted in zip(OUTPUTS, outputs, expected, strict=False):
            assert_same_bits(actual.detach(), wanted.detach(), name)
            if str(compiled) != "cuda_on_host":  # whose steps never lie batch first, like a GPU's
                assert actual.stride() == wanted.stride(), name
        assert len(outputs) == len(expected) == len(call.grads)
        spikes = outputs[0].detach()
        alone = lif(call.x, **call.options, backend=compiled).detach()
        assert_same_bits(alone, spikes, "spikes without a state")
        assert_packed(call, spikes, compiled)
        assert_gradients(call, grads, target)
        steps += case.neuron_steps
        spikes_seen += int(spikes.sum(dtype=torch.float64))
        leaves.update(grads.keys())
        seen.update([(case.layout,)])
        kinds = {s.kind for s in case.surrogates}
        seen.update([("several" if len(case.surrogates) > 1 else "one", kind) for kind in kinds])

    # Without a seed of its own, each would get the same draws.
    for number, dynamics in enumerate(product(CHARGES, SYNAPSES, RESETS)):
        drawn = given(case=cases(*dynamics))(compare)
        seed(number)(settings(max_examples=examples)(drawn))()
    assert 0.1 * steps < spikes_seen < 0.9 * steps
    assert min(leaves.values()) >= 2 * examples
    assert set(leaves) == {"x", "leak", "rate", "tau", "threshold"} | {
        "synapse_decay",
        "v_init",
        "current_init",
    }
    if dtype == torch.float32:
        assert all(seen[layout,] for layout in (*LAYOUTS, "held", "held view"))
        kinds = list(reference.SURROGATES)
        assert all(seen["several", kind] and seen["one", kind] for kind in kinds)
        assert seen["one", "rate"]
        assert seen["one", "assg"]


# The closed-form gradient against autograd through the equations.


class Fire(torch.autograd.Function):
    """The spike; its derivative with respect to z is what it is given."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, fired: Tensor, derivative: Tensor) -> Tensor:
        ctx.save_for_backward(derivative)
        return fired.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (derivative,) = ctx.saved_tensors
        return grads[0] * derivative, None, None


def plain_loop(
    x: Tensor,
    parameters: dict[str, Tensor],
    *,
    charge: str,
    synapse: str,
    reset: str,
    gain: float,
    v_rest: float,
    v_reset: float,
    strict: bool,
    delayed_spike: bool,
    detach_reset: bool,
    surrogate: list[Surrogate],
) -> list[Tensor]:
    """The equations of functional.lif step by step, left to autograd: spikes, state, current."""

    def each(name: str) -> Tensor:
        values = parameters[name]
        return values.view(-1, *(1,) * (x.dim() - 3)) if values.dim() == 1 else values

    decay, threshold = each(decay_name(charge)), each("threshold")
    u, clock = parameters["v_init"], torch.full_like(x[0], math.inf)

    def fire(v: Tensor) -> Tensor:
        nonlocal clock
        fired = (v > threshold if strict else v >= threshold).detach()
        clock = clock + 1
        scaled, plain = v / threshold - 1, v - threshold
        z, derivatives = [], []
        for n, one in enumerate(surrogate):
            z.append((scaled if one.normalized else plain)[n])
            argument = clock[n] if isinstance(one, SpikeTime) else z[-1].detach()
            derivatives.append(one.derivative(argument))
        clock = torch.where(fired, 0, clock)
        spike: Tensor = Fire.apply(torch.stack(z), fired, torch.stack(derivatives))  # type: ignore[no-untyped-call]
        return spike

    looks_at_start = reset == "delayed_soft" or delayed_spike
    s = fire(u) if looks_at_start else torch.zeros_like(u)
    spikes = []
    c = parameters.get("current_init", torch.zeros_like(u))
    for x_t in x.unbind(0):
        if delayed_spike:
            spikes.append(s)
        i = gain * x_t
        if synapse == "charged":
            i = c = each("synapse_decay") * c + i
        elif synapse == "decayed":
            i = c = each("synapse_decay") * (c + i)
        elif synapse == "jump":
            i = c + i
            c = i - each("synapse_decay") * i
        v = {
            "leak": lambda u, i: decay * u + i,
            "euler": lambda u, i: u + decay * ((v_rest - u) + i),
            "euler_box": lambda u, i: u + decay * ((i + v_rest) - u),
            "decay_input": lambda u, i: u + ((v_rest - u) + i) / decay,
            "decay": lambda u, i: (u - (u - v_rest) / decay) + i,
        }[charge](u, i)
        if reset == "delayed_soft":
            v = v - threshold * (s.detach() if detach_reset else s)
        s = fire(v)
        in_reset = s.detach() if detach_reset else s
        if reset == "hard":
            u = v * (1 - in_reset) + v_reset * in_reset
        elif reset == "soft":
            u = v - threshold * in_reset
        else:
            u = v
        if not delayed_spike:
            spikes.append(s)
    return [torch.stack(spikes), u, c][: 2 + (synapse != "none")]


PER_SAMPLE: tuple[Surrogate, ...] = (
    SpikeTime(1.0, 0.5),
    Triangle(2.0, normalized=True),
    SpikeTime(0.7, 0.2, normalized=True),
    ATan(),
    Exponential(0.7, normalized=True),
)


def double_leaves(charge: str, synapse: str, number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A step of float64 currents, and every other tensor, parameters in turn of every shape."""
    shape = (len(PER_SAMPLE), 3, 4)
    names = [decay_name(charge), "threshold", "synapse_decay"]
    parameters = {}
    for place, name in enumerate(names[: 2 + (synapse != "none")]):
        low, high = RANGE[name]
        size = ((), shape[1:2], shape[1:])[(number + place) % 3]
        spread = random(*size, seed=number + place, dtype=torch.float64).sigmoid()
        parameters[name] = low + (high - low) * spread
    # Below the threshold: what a start above it means for a late spike has a test of its own.
    parameters["v_init"] = random(*shape, seed=number + 5, dtype=torch.float64).sigmoid() / 4
    if synapse != "none":
        parameters["current_init"] = random(*shape, seed=number + 6, dtype=torch.float64)
    x = random(6, *shape, seed=number + 7, dtype=torch.float64) + 0.25
    return x, {name: value.requires_grad_() for name, value in parameters.items()}


@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("charge", CHARGES)
@pytest.mark.parametrize("reset", RESETS)
def test_gradients_are_those_of_the_equations(
    charge: Charge, synapse: Synapse, reset: Reset
) -> None:
    place = CHARGES.index(charge) + 2 * SYNAPSES.index(synapse) + 3 * RESETS.index(reset)
    one = (*SPIKE_TIMES, *POINTWISE)[place % (len(SPIKE_TIMES) + len(POINTWISE))]
    for number in range(8):
        delayed_spike, detach_reset, mixed = (bool(number & bit) for bit in (1, 2, 4))
        if delayed_spike and reset not in DELAYABLE:
            continue
        surrogate = list(PER_SAMPLE) if mixed else [one] * len(PER_SAMPLE)
        full, parameters = double_leaves(charge, synapse, place + 10 * number)
        held = (place + number) % 3 == 0
        x = (full[0] if held else full).requires_grad_()
        options: dict[str, Any] = {
            "charge": charge,
            "synapse": synapse,
            "reset": reset,
            "gain": 0.75 if number % 3 else 1.0,
            "v_rest": 0.0 if charge == "leak" else -0.125 if number % 2 else 0.25,
            "v_reset": -0.25,
            "strict": bool((place + number) % 2),
            "delayed_spike": delayed_spike,
            "detach_reset": detach_reset,
        }
        every_step = x.expand_as(full) if held else x
        expected = plain_loop(every_step, parameters, surrogate=surrogate, **options)
        weights = [random(*out.shape, seed=place + 90, dtype=torch.float64) for out in expected]
        leaves = {"x": x} | parameters
        target = torch.autograd.grad(expected, list(leaves.values()), weights)
        for backend in EVERY_BACKEND:
            outputs = lif(
                x[None] if held else x,
                **parameters,
                **options,
                surrogate=surrogate if mixed else one,
                timesteps=len(full) if held else None,
                return_state=True,
                backend=backend,
            )
            assert torch.equal(outputs[0], expected[0])
            grads = torch.autograd.grad(outputs, list(leaves.values()), weights)
            for name, actual, wanted in zip(leaves, grads, target, strict=True):
                allowed = 1e-12 * max(1.0, float(wanted.abs().max()))
                assert_within(actual, wanted, allowed, f"{name}, {backend}, {number=}")


@pytest.mark.parametrize(
    ("reset", "delayed_spike"),
    [(reset, False) for reset in RESETS] + [(reset, True) for reset in DELAYABLE],
)
@pytest.mark.parametrize("synapse", ["none", "charged"])
def test_cutting_time_does_not_change_the_gradient(
    backend: Backend, reset: Reset, delayed_spike: bool, synapse: Synapse
) -> None:
    """Neither outputs nor gradients, when the states are handed on."""
    x = (random(9, 3, 4, 5, dtype=torch.float64) + 0.25).requires_grad_()
    threshold = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {
        "threshold": threshold,
        "reset": reset,
        "delayed_spike": delayed_spike,
        "return_state": True,
        "backend": backend,
        "surrogate": [Triangle(2.0), ATan(), Sigmoid(normalized=True)],
    }
    if synapse != "none":
        options |= {"synapse": synapse, "synapse_decay": 0.5}
    weights = random(9, 3, 4, 5, seed=1, dtype=torch.float64)
    whole = lif(x, 0.75, **options)
    expected = torch.autograd.grad(whole[0], (x, threshold), weights)
    for cut in (1, 4, 8):
        head = lif(x[:cut], 0.75, **options)
        states = dict(zip(("v_init", "current_init"), head[1:], strict=False))
        tail = lif(x[cut:], 0.75, **options | states)
        spikes = torch.cat([head[0], tail[0]])
        for actual, wanted in zip((spikes, *tail[1:]), whole, strict=True):
            assert torch.equal(actual, wanted)
        grads = torch.autograd.grad(spikes, (x, threshold), weights)
        for name, actual, wanted in zip(("x", "threshold"), grads, expected, strict=True):
            assert_within(actual, wanted, 1e-12 * float(wanted.abs().max()), f"{name}, {cut=}")


def test_spike_time_counts_the_steps_since_the_last_spike(backend: Backend) -> None:
    """Worked out by hand: fires at steps 1 and 4, is silent before, and nothing else is counted."""
    x = torch.tensor([0.0, 2.0, 0.0, 0.0, 2.0, 0.0, 0.0]).reshape(-1, 1).requires_grad_()
    spikes = lif(x, 0.0, surrogate=SpikeTime(1.0, 0.5), backend=backend)
    (gx,) = torch.autograd.grad(spikes.sum(), x)
    assert spikes.flatten().tolist() == [0, 1, 0, 0, 1, 0, 0]
    steps = torch.tensor([math.inf, math.inf, 1, 2, 3, 1, 2])
    assert_within(gx.flatten(), torch.exp(-0.5 * steps), 1e-7, "gx")


# Other libraries: their own step, written out, against lif; float32, spikes and states equal.

Step = Callable[[Tensor, dict[str, Tensor]], Tensor]


def currents(ties: bool) -> Tensor:
    """Of neurons that hardly fire, and of some that fire nearly all the time."""
    x = (random(24, 3, 7, 11, seed=3) * 0.9 + 0.45) * torch.linspace(0.25, 4, 11)
    return (x * 8).round() / 8 if ties else x


def heaviside(condition: Tensor) -> Tensor:
    return condition.float()


def spikingjelly_lif(tau: float, decay_input: bool, v_reset: float | None) -> Step:
    r = 0.0 if v_reset is None else v_reset

    def step(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        v = state["v"]
        h = v + (x - (v - r)) / tau if decay_input else v - (v - r) / tau + x
        s = heaviside((h - 1.0) >= 0)
        state["v"] = h - s * 1.0 if v_reset is None else s * v_reset + (1 - s) * h
        return s

    return step


def spikingjelly_plif(w: Tensor, v_reset: float | None) -> Step:
    r = 0.0 if v_reset is None else v_reset

    def step(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        v = state["v"]
        h = v + (x - (v - r)) * w.sigmoid()
        s = heaviside((h - 1.0) >= 0)
        state["v"] = h - s * 1.0 if v_reset is None else s * v_reset + (1 - s) * h
        return s

    return step


def spikingjelly_if(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    h = state["v"] + x
    s = heaviside((h - 1.0) >= 0)
    state["v"] = s * 0.0 + (1 - s) * h
    return s


def snntorch_leaky(parameters: tuple[Tensor, ...], mechanism: str) -> Step:
    beta, threshold = parameters

    def step(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        mem = state["v"]
        r = heaviside((mem - threshold) > 0)
        if mechanism == "subtract":
            u = beta.clamp(0, 1) * mem + x - r * threshold
        elif mechanism == "zero":
            u = beta.clamp(0, 1) * ((1 - r) * mem) + x
        else:
            u = beta.clamp(0, 1) * mem + x
        state["v"] = u
        return heaviside((u - threshold) > 0)

    return step


def snntorch_synaptic(alpha: Tensor, parameters: tuple[Tensor, ...], mechanism: str) -> Step:
    beta, threshold = parameters

    def step(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        mem = state["v"]
        r = heaviside((mem - threshold) > 0)
        state["c"] = alpha * state["c"] + x
        u = beta * mem + state["c"]
        if mechanism == "subtract":
            u = u - r * threshold
        state["v"] = u
        return heaviside((u - threshold) > 0)

    return step


def norse_lif(k_mem: Tensor, k_syn: Tensor, v_leak: float, v_reset: float) -> Step:
    def step(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        v = state["v"]
        i1 = state["c"] + x
        dv = k_mem * ((v_leak - v) + i1)
        vd = v + dv
        di = -k_syn * i1
        state["c"] = i1 + di
        z = heaviside((vd - 1.0) > 0)
        state["v"] = (1 - z) * vd + z * v_reset
        return z

    return step


def norse_box(k_mem: Tensor, v_leak: float, v_reset: float | None) -> Step:
    def step(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        v = state["v"]
        dv = k_mem * (x + v_leak - v)
        v = v + dv
        z = heaviside((v - 1.0) > 0)
        if v_reset is None:
            state["v"] = (1 - z) * v + z * (v - 1.0)
        else:
            state["v"] = (1 - z) * v + z * v_reset
        return z

    return step


def sinabs_lif(
    alpha: Tensor, alpha_syn: Tensor | None, norm_input: bool, to_zero: bool = False
) -> Step:
    def step(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        i = x
        if alpha_syn is not None:
            state["c"] = i = alpha_syn * (state["c"] + x)
        u = alpha * state["v"] + (1 - alpha) * i if norm_input else alpha * state["v"] + i
        s = heaviside(u - 1.0 >= 0)
        state["v"] = u * (s == 0) + 0.0 if to_zero else u - s * 1.0
        return s

    return step


def braincog_lif(tau: float) -> Step:
    def step(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        u = state["v"] + (x - state["v"]) / tau
        s = heaviside((u - 0.5) > 0)
        state["v"] = u * (1 - s)
        return s

    return step


def braincog_plif(w: Tensor) -> Step:
    def step(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        u = state["v"] + ((x - state["v"]) * w.sigmoid()) * 1.0
        s = heaviside((u - 0.5) > 0)
        state["v"] = u * (1 - s)
        return s

    return step


def spyx_lif(parameters: tuple[Tensor, ...]) -> Step:
    beta, threshold = parameters

    def step(x: Tensor, state: dict[str, Tensor]) -> Tensor:
        s = heaviside((state["v"] - threshold) > 0)
        state["v"] = beta.clamp(0, 1) * state["v"] + x - s * threshold
        return s

    return step


def library_neurons() -> Iterator[tuple[str, Step, dict[str, Any]]]:
    """Name, the library's step, and the options of lif that are the same neuron."""
    rest: dict[str, Any]
    neuron: dict[str, Any]
    for tau in (1.7, 2.0, 3.0):
        for v_reset in (0.0, -0.3, None):
            r = 0.0 if v_reset is None else v_reset
            rest = {"v_reset": r, "v_rest": r, "v_init": r}
            rest["reset"] = "soft" if v_reset is None else "hard"
            for decay_input in (True, False):
                charge = "decay_input" if decay_input else "decay"
                name = f"SpikingJelly LIF {tau=} {decay_input=} {v_reset=}"
                step = spikingjelly_lif(tau, decay_input, v_reset)
                yield name, step, {"charge": charge, "tau": tau, **rest}
            w = torch.tensor(-math.log(tau - 1))
            plif = {"charge": "euler", "rate": w.sigmoid(), **rest}
            yield f"SpikingJelly PLIF {tau=} {v_reset=}", spikingjelly_plif(w, v_reset), plif
        neuron = {"charge": "decay_input", "tau": tau, "threshold": 0.5, "strict": True}
        yield f"BrainCog LIF {tau=}", braincog_lif(tau), neuron
        w = torch.tensor(-math.log(tau - 1))
        neuron = {"charge": "euler", "rate": w.sigmoid(), "threshold": 0.5, "strict": True}
        yield f"BrainCog PLIF {tau=}", braincog_plif(w), neuron
    yield "SpikingJelly IF", spikingjelly_if, {"leak": 1.0}

    mechanisms = {"subtract": "delayed_soft", "none": "none"}
    per_neuron = random(7, 11, seed=5).sigmoid()
    for beta, threshold in (
        (torch.tensor(0.9), torch.tensor(1.0)),
        (random(7, seed=4).sigmoid(), torch.tensor(0.7)),
        (per_neuron, per_neuron + 0.5),
    ):
        wide = tuple(p.view(-1, 1) if p.dim() == 1 else p for p in (beta, threshold))
        shape = list(beta.shape)
        neuron = {"leak": beta, "threshold": threshold, "strict": True}
        for mechanism, reset_name in mechanisms.items():
            options = neuron | {"reset": reset_name}
            yield f"snnTorch Leaky {shape} {mechanism}", snntorch_leaky(wide, mechanism), options
            synaptic = snntorch_synaptic(torch.tensor(0.8), wide, mechanism)
            options = options | {"synapse": "charged", "synapse_decay": 0.8}
            yield f"snnTorch Synaptic {shape} {mechanism}", synaptic, options
        late = neuron | {"reset": "delayed_soft", "delayed_spike": True}
        yield f"spyx LIF {shape}", spyx_lif(wide), late

    # k_mem = dt * tau_mem_inv and k_syn = dt * tau_syn_inv, in float32 as there.
    for mem_inv, syn_inv in ((100.0, 200.0), (300.0, 70.0)):
        k_mem, k_syn = (0.001 * torch.tensor(inverse) for inverse in (mem_inv, syn_inv))
        for v_leak, v_reset in ((0.0, 0.0), (0.2, -0.1)):
            rest = {"rate": k_mem, "v_rest": v_leak, "v_init": v_leak, "strict": True}
            hard = rest | {"v_reset": v_reset}
            jump = {"charge": "euler", "synapse": "jump", "synapse_decay": k_syn}
            values = f"{mem_inv} {v_leak} {v_reset}"
            yield f"Norse LIF {values}", norse_lif(k_mem, k_syn, v_leak, v_reset), hard | jump
            box = {"charge": "euler_box"}
            yield f"Norse LIFBox {values}", norse_box(k_mem, v_leak, v_reset), hard | box
            soft = rest | box | {"reset": "soft"}
            yield f"Norse LIFBox {values} subtract", norse_box(k_mem, v_leak, None), soft

    for tau_mem in (2.0, 10.0):
        alpha, alpha_syn = (torch.exp(-1 / torch.tensor(tau)) for tau in (tau_mem, 3.0))
        synapse = {"synapse": "decayed", "synapse_decay": alpha_syn}
        neuron = {"leak": alpha, "reset": "soft"}
        gain = {"gain": (1 - alpha).item()}
        yield f"sinabs LIF {tau_mem}", sinabs_lif(alpha, None, False), neuron
        yield f"sinabs LIF {tau_mem} norm_input", sinabs_lif(alpha, None, True), neuron | gain
        yield f"sinabs LIF {tau_mem} tau_syn", sinabs_lif(alpha, alpha_syn, False), neuron | synapse
        zero = neuron | {"reset": "hard"}
        yield f"sinabs LIF {tau_mem} MembraneReset", sinabs_lif(alpha, None, False, True), zero


LIBRARIES = list(library_neurons())


@pytest.mark.parametrize(
    ("step", "options"), [entry[1:] for entry in LIBRARIES], ids=[entry[0] for entry in LIBRARIES]
)
def test_neurons_of_other_libraries(backend: Backend, step: Step, options: dict[str, Any]) -> None:
    """Spikes and membranes bit for bit; a zero may have the other sign."""
    for ties in (False, True):
        x = currents(ties)
        state = {
            "v": torch.full_like(x[0], options.get("v_init", 0.0)),
            "c": torch.zeros_like(x[0]),
        }
        spikes = torch.stack([step(x_t, state) for x_t in x])
        actual, *states = lif(x, **options, return_state=True, backend=backend)
        assert 0.02 < spikes.mean() < 0.98
        assert_same_bits(actual, spikes, "spikes")
        for name, mine in zip("vc", states, strict=False):
            assert torch.equal(mine, state[name]), name


def test_the_zero_reset_of_snntorch_is_a_hard_one(backend: Backend) -> None:
    """Its state is the one before the reset, so that only silent neurons have the same."""
    beta, threshold = torch.tensor(0.9), torch.tensor(1.0)
    for ties in (False, True):
        x = currents(ties)
        state = {"v": torch.zeros_like(x[0])}
        step = snntorch_leaky((beta, threshold), "zero")
        spikes = torch.stack([step(x_t, state) for x_t in x])
        actual, mine = lif(x, beta, threshold, strict=True, return_state=True, backend=backend)
        assert_same_bits(actual, spikes, "spikes")
        silent = spikes[-1] == 0
        assert torch.equal(mine[silent], state["v"][silent])
        assert not mine[~silent].any()


# The papers' own numbers. Tolerances as in test_golden.

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
CONVOLUTIONS = ("features.0", "features.3", "features.6")
LAYERS = (*CONVOLUTIONS, "classifier.0", "classifier.3")


def tensor(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.asarray(array)).to(dtype)


def assert_golden(actual: Tensor, expected: NDArray[Any], what: str) -> None:
    target = torch.from_numpy(np.asarray(expected))
    scale = max(1.0, float(target.abs().max()))
    assert_within(actual, target, TOLERANCE[actual.dtype] * scale, what)


def at_once(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer without time, applied to all steps."""
    merged = layer(x.flatten(0, 1))
    return merged.view(*x.shape[:2], *merged.shape[1:])


class Network:
    """conv-fire-pool-conv-fire-drop-conv-fire-pool-linear-fire-drop-linear, as all files have it.

    ``fire`` gets a layer's currents and its place, 0, 3, 6 or 9. Outputs of the stages named in the
    files are kept in ``seen``, the current of the first neurons in ``first``.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        fire: Callable[[Tensor, str], Tensor],
        masks: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.weights, self.fire, self.masks = weights, fire, masks
        self.seen: dict[str, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """The last layer, ``[T, N, classes]``."""
        seen = self.seen
        drop = self.masks or (torch.ones(()), torch.ones(()))

        def convolve(name: str, x: Tensor) -> Tensor:
            return at_once(lambda x: F.conv2d(x, self.weights[name], padding=1), x)

        self.first = convolve("features.0", x)
        seen["1"] = self.fire(self.first, "0")
        seen["2"] = at_once(lambda x: F.avg_pool2d(x, 2), seen["1"])
        seen["4"] = self.fire(convolve("features.3", seen["2"]), "3")
        seen["7"] = self.fire(convolve("features.6", seen["4"] * drop[0]), "6")
        seen["8"] = at_once(lambda x: F.avg_pool2d(x, 2), seen["7"])
        flat = F.linear(seen["8"].flatten(2), self.weights["classifier.0"])
        seen["10"] = self.fire(flat, "9")
        return F.linear(seen["10"] * drop[1], self.weights["classifier.3"])


def weights_of(data: dict[str, NDArray[Any]], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor(data[f"sd.{name}.weight"], dtype).requires_grad_() for name in LAYERS}


def test_spike_time_of_the_authors(backend: Backend) -> None:
    """A neuron that fires once and is then left alone shows the whole curve.

    The authors evaluate alpha (exp(-n))^beta. In float32 exp(-n) loses its digits from n = 88 on
    and is 0 from 104 on, in float64 from 746 on: a quirk of theirs, not of the formula.
    """
    data = golden("hybrid_surrogates")
    surrogate = SpikeTime(float(data["alpha"]), float(data["beta"]))
    n = torch.from_numpy(data["dt"]).long()
    formula = float(data["alpha"]) * np.exp(-float(data["beta"]) * data["dt"].astype(float))
    for dtype, name, exact, zero in (
        (torch.float32, "ds_f32", 88, 104),
        (torch.float64, "ds_f64", 709, 746),
    ):
        x = torch.zeros(int(n.max()) + 1, 1, dtype=dtype)
        x[0] = 2.0
        x.requires_grad_()
        spikes = lif(x, 0.0, surrogate=surrogate, backend=backend)
        (gx,) = torch.autograd.grad(spikes.sum(), x)
        assert spikes.flatten().nonzero().tolist() == [[0]]
        actual = gx.flatten()[n]
        assert_golden(actual[n < exact], data[name][n < exact], "before the quirk")
        within = (n >= exact) & (n < zero)
        assert_within(
            actual[within],
            torch.from_numpy(data[name])[within],
            0.01 * actual[within],
            "on its way",
        )
        assert not data[name][n >= zero].any()
        assert_golden(actual, formula, "the formula")
        assert_golden(surrogate.derivative(n.to(dtype)), formula, "the formula itself")


def test_linear_surrogate_of_the_authors(backend: Backend) -> None:
    data = golden("hybrid_surrogates")
    z = torch.from_numpy(data["lin_z_f32"])
    exact = (z + 1) - 1 == z
    assert exact.sum() > 60
    surrogate = Triangle(scale=0.3, normalized=True)
    x = (z + 1).view(1, 1, -1).requires_grad_()
    spikes = lif(x, strict=True, surrogate=surrogate, backend=backend)
    (gx,) = torch.autograd.grad(spikes.sum(), x)
    assert torch.equal(spikes.flatten()[exact], torch.from_numpy(data["lin_s_f32"])[exact])
    assert_golden(gx.flatten()[exact], data["lin_ds_f32"][exact.numpy()], "ds/dz")


def late_neurons(
    data: dict[str, NDArray[Any]], surrogate: Surrogate, backend: Backend
) -> Callable[[Tensor, str], Tensor]:
    def fire(x: Tensor, place: str) -> Tensor:
        spikes: Tensor = lif(
            x,
            float(data["leak"]),
            float(data[f"th.{place}"]),
            reset="delayed_soft",
            strict=True,
            delayed_spike=True,
            detach_reset=True,
            surrogate=surrogate,
            backend=backend,
        )
        return spikes

    return fire


HYBRID: dict[str, Surrogate] = {
    "Linear": Triangle(scale=0.3, normalized=True),
    "STDB": SpikeTime(normalized=True),
}


@DTYPES
@pytest.mark.parametrize("name", HYBRID)
def test_hybrid_network(backend: Backend, dtype: torch.dtype, name: str) -> None:
    data = golden("hybrid_network")
    weights = weights_of(data, dtype)
    masks = (tensor(data[f"{name}.mask.5"], dtype), tensor(data[f"{name}.mask.11"], dtype))
    network = Network(weights, late_neurons(data, HYBRID[name], backend), masks)
    x = tensor(data["in_spikes"], dtype).requires_grad_()
    out = network(x).sum(0)
    loss = F.cross_entropy(out, torch.from_numpy(data["labels"]))
    g_in, *g_weights = torch.autograd.grad(loss, (x, *weights.values()))
    assert_golden(out, data[f"{name}.out"], "out")
    assert_golden(loss, data[f"{name}.loss"], "loss")
    for stage, place in (("1", "0"), ("4", "3"), ("7", "6"), ("10", "9")):
        spikes = network.seen[stage].detach()
        clock = torch.full_like(spikes[0], -1000)
        for t, s in enumerate(spikes):
            clock = torch.where(s > 0, t - 1, clock)
        assert torch.equal(clock.double(), tensor(data[f"{name}.lastspike.{place}"], torch.float64))
    assert g_in.any()
    assert_golden(g_in, data[f"{name}.g_in"], "g_in")
    for layer, gradient in zip(weights, g_weights, strict=True):
        assert_golden(gradient, data[f"{name}.g.{layer}.weight"], layer)


@DTYPES
def test_sharmin_input_gradient(backend: Backend, dtype: torch.dtype) -> None:
    """What their attack takes for the gradient of the image: summed over the steps."""
    data = golden("sharmin_attack")
    weights = weights_of(data, dtype)
    network = Network(weights, late_neurons(data, HYBRID["Linear"], backend), None)
    spikes_in = tensor(data["in_spikes"], dtype).requires_grad_()
    out = network(spikes_in).sum(0) / int(data["T"])
    loss = F.cross_entropy(out, torch.from_numpy(data["labels"]))
    g_in, g_first = torch.autograd.grad(loss, (spikes_in, network.first))
    assert_golden(out, data["logits_over_T"], "logits")
    assert_golden(loss, data["loss"], "loss")
    assert_golden(g_first.sum(0), data["grad_mem1"], "grad_mem1")
    assert_golden(g_in.sum(0), data["input_grad"], "input_grad")


@DTYPES
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_hire_network(backend: Backend, dtype: torch.dtype, mode: str) -> None:
    data = golden("hire_network")
    weights = weights_of(data, dtype)
    learnt = {
        f"{kind}.{kind[0]}{key}": tensor(data[f"sd.{kind}.{kind[0]}{key}"], dtype).requires_grad_()
        for kind in ("threshold", "leak")
        for key in map(str, data["keys"])
    }

    def fire(x: Tensor, place: str) -> Tensor:
        spikes: Tensor = lif(
            x,
            learnt[f"leak.l{place}"],
            learnt[f"threshold.t{place}"],
            reset="soft",
            strict=True,
            detach_reset=True,
            surrogate=HYBRID["Linear"],
            backend=backend,
        )
        return spikes

    masks = (tensor(data[f"{mode}.mask.5"], dtype), tensor(data[f"{mode}.mask.11"], dtype))
    network = Network(weights, fire, masks)
    image = tensor(data["x"], dtype).requires_grad_()
    out = network(image.expand(int(data["T"]), *image.shape)).sum(0)
    loss = F.cross_entropy(out, torch.from_numpy(data["labels"]))
    leaves = learnt | {f"{name}.weight": weight for name, weight in weights.items()}
    gx, *grads = torch.autograd.grad(loss, (image, *leaves.values()))
    assert_golden(out, data[f"{mode}.out"], "out")
    assert_golden(loss, data[f"{mode}.loss"], "loss")
    assert_golden(gx, data[f"{mode}.gx"], "gx")
    for stage, seen in network.seen.items():
        count = (seen != 0).sum(0)
        assert torch.equal(count.double(), torch.from_numpy(data[f"{mode}.count.{stage}"])), stage
    for name, gradient in zip(leaves, grads, strict=True):
        assert_golden(gradient, data[f"{mode}.g.{name}"], name)


# A current that is held for all steps.

HELD: tuple[dict[str, Any], ...] = (
    {"leak": 0.75},
    {"leak": 0.75, "surrogate": Rate()},
    {"leak": 0.75, "reset": "delayed_soft", "delayed_spike": True, "surrogate": SpikeTime()},
    {"charge": "decay_input", "tau": 2.0, "surrogate": [Triangle(), ATan(), SpikeTime()]},
    {"charge": "euler", "rate": 0.5, "synapse": "jump", "synapse_decay": 0.25, "gain": 0.5},
)
EVERY_HELD = pytest.mark.parametrize("options", HELD, ids=[str(i) for i in range(len(HELD))])


def saved_by(call: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The result, and what was saved for backward."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return call(), saved


@EVERY_HELD
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last", "padded"])
def test_a_held_current_is_the_repeated_one(
    backend: Backend, layout: str, options: dict[str, Any]
) -> None:
    timesteps = 11
    step = laid_out(random(1, 3, 4, 5, seed=1), layout)[0] + 0.25
    options = options | {"threshold": 0.6, "backend": backend}
    weights = random(timesteps, 3, 4, 5, seed=2)

    every = step.expand(timesteps, *step.shape).clone().requires_grad_()
    expected = lif(every, **options)
    terms = torch.autograd.grad(expected, every, weights)[0].double()

    for as_number in (True, False):
        leaf = step.clone().requires_grad_()

        def call(leaf: Tensor = leaf, as_number: bool = as_number) -> Tensor:
            if as_number:
                spikes: Tensor = lif(leaf[None], **options, timesteps=timesteps)
            else:
                spikes = lif(leaf.expand(timesteps, *leaf.shape), **options)
            return spikes

        spikes, saved = saved_by(call)
        assert_same_bits(spikes.detach(), expected.detach(), "spikes")
        memory = [t.untyped_storage().nbytes() for t in saved]
        assert max(memory) <= 4 * step.numel()
        (gx,) = torch.autograd.grad(spikes, leaf, weights)
        assert_within(gx, terms.sum(0), 1e-6 * terms.abs().sum(0), f"{as_number=}")


def test_a_held_current_in_double_gets_the_exact_sum(backend: Backend) -> None:
    leaf = (random(3, 4, 5, dtype=torch.float64) + 0.25).requires_grad_()
    every = leaf.detach().expand(11, *leaf.shape).clone().requires_grad_()
    weights = random(11, 3, 4, 5, seed=2, dtype=torch.float64)
    spikes = lif(leaf[None], 0.75, 0.6, timesteps=11, backend=backend)
    expected = lif(every, 0.75, 0.6, backend=backend)
    (gx,) = torch.autograd.grad(spikes, leaf, weights)
    (target,) = torch.autograd.grad(expected, every, weights)
    assert_within(gx, target.sum(0), 1e-12 * max(1.0, float(target.abs().max())))


def expanded() -> tuple[Tensor, Tensor, Tensor]:
    """A step, its repetition in memory of its own, and upstream gradients."""
    step = random(2, 3, seed=1) + 0.25
    return step, step.expand(4, 2, 3).clone(), random(4, 2, 3, seed=2)


def repeated_gradient(backend: Backend) -> Tensor:
    _, every, weights = expanded()
    every.requires_grad_()
    spikes = lif(every, 0.75, 0.6, backend=backend)
    return torch.autograd.grad(spikes, every, weights)[0]


@pytest.mark.parametrize("detached", [True, False])
def test_an_expanded_leaf_gets_a_gradient_for_every_step(backend: Backend, detached: bool) -> None:
    step, _, weights = expanded()
    x = step.expand(4, 2, 3)
    x = (x.detach() if detached else x).requires_grad_()
    assert x.is_leaf
    spikes = lif(x, 0.75, 0.6, backend=backend)
    (gx,) = torch.autograd.grad(spikes, x, weights)
    assert_same_bits(gx, repeated_gradient(backend), "gx")


def test_the_gradient_of_an_expanded_view_can_be_asked_for(backend: Backend) -> None:
    step, _, weights = expanded()
    x = step.requires_grad_().expand(4, 2, 3)
    spikes = lif(x, 0.75, 0.6, backend=backend)
    gx, g_step = torch.autograd.grad(spikes, (x, step), weights)
    expected = repeated_gradient(backend)
    assert_same_bits(gx, expected, "x")
    assert_within(g_step, expected.sum(0), 1e-6, "step")


def test_hooks_on_an_expanded_view_are_called(backend: Backend) -> None:
    step, _, weights = expanded()
    x = step.requires_grad_().expand(4, 2, 3)
    x.retain_grad()
    lif(x, 0.75, 0.6, backend=backend).backward(weights)
    assert x.grad is not None
    assert_same_bits(x.grad, repeated_gradient(backend), "x")


def test_a_detached_expanded_view_stays_outside_the_graph(backend: Backend) -> None:
    x = expanded()[0].requires_grad_().expand(4, 2, 3).detach()
    assert not lif(x, 0.75, 0.6, backend=backend).requires_grad


# Formats and delays of spikes.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 2, 3, 4, 7), (3, 1, 1), (2, 9), (4, 3, 8), (1, 2, 4100)])
def test_packed_spikes_unpack_in_the_order_of_memory(
    backend: Backend, layout: str, shape: tuple[int, ...]
) -> None:
    x = laid_out(random(*shape, seed=1) + 0.5, layout)
    spikes = lif(x, 0.75, 0.75, backend=backend)
    as_bytes, bits = (lif(x, 0.75, 0.75, spike_format=form, backend=backend) for form in PACKED)
    neurons = spikes[0].numel()
    assert bits.shape == (shape[0], -(-neurons // 8))
    unpacked = np.unpackbits(bits.numpy(), axis=1, bitorder="little")
    assert not unpacked[:, neurons:].any()
    in_memory = spikes.as_strided((shape[0], neurons), (neurons, 1))
    assert np.array_equal(unpacked[:, :neurons], in_memory.numpy())
    assert as_bytes.stride() == spikes.stride()
    assert torch.equal(as_bytes, spikes.to(torch.uint8))


@pytest.mark.parametrize("form", PACKED)
def test_packed_spikes_of_a_differentiable_current_are_refused(
    backend: Backend, form: SpikeFormat
) -> None:
    x = torch.ones(3, 2, 4, requires_grad=True)
    message = rf"^spike_format is '{form}' and x requires a gradient, expected 'input'"
    for current, timesteps in ((x, None), (x[:1], 3), (x[0].expand(5, 2, 4), None)):
        with pytest.raises(ValueError, match=message):
            lif(current, spike_format=form, timesteps=timesteps, backend=backend)
    with torch.no_grad():
        assert lif(x, spike_format=form, backend=backend).any()
    threshold = torch.tensor(0.5, requires_grad=True)
    spikes, state = lif(
        x.detach(),
        0.5,
        threshold,
        spike_format=form,
        reset="soft",
        return_state=True,
        backend=backend,
    )
    assert not spikes.requires_grad
    (gradient,) = torch.autograd.grad(state.sum(), threshold)
    assert gradient.isfinite()


@pytest.mark.parametrize("reset", DELAYABLE)
@pytest.mark.parametrize("v_init", [0.0, 2.0])
@pytest.mark.parametrize("strict", [False, True])
def test_a_delayed_spike_leaves_one_step_later(
    backend: Backend, reset: Reset, v_init: float, strict: bool
) -> None:
    x = random(9, 2, 3, 5, seed=1) + 0.25
    options: dict[str, Any] = {
        "threshold": 0.75,
        "reset": reset,
        "v_init": v_init,
        "strict": strict,
        "return_state": True,
        "backend": backend,
    }
    spikes, state = lif(x, 0.75, **options)
    late, late_state = lif(x, 0.75, **options, delayed_spike=True)
    assert_same_bits(late[1:], spikes[:-1], "spikes")
    assert late[0].unique().tolist() == [float(v_init > 0.75)]
    assert_same_bits(late_state, state, "state")


# Bad arguments.


class Bad(NamedTuple):
    """Arguments that a good call is replaced by, and what the error says."""

    arguments: dict[str, Any]
    error: type[Exception]
    name: str
    parts: tuple[str, ...]


EULER: dict[str, Any] = {"charge": "euler", "rate": 0.5}
TAU: dict[str, Any] = {"charge": "decay_input", "tau": 2.0}
CHARGED: dict[str, Any] = {"synapse": "charged", "synapse_decay": 0.5}
SURROGATE = "expected a snnkern.surrogate.Surrogate"
NAN, INF = math.nan, math.inf


def bad_arguments() -> Iterator[Bad]:
    odd: Any
    value: Any
    parts: tuple[str, ...]
    arguments: dict[str, Any]
    lists = {
        "charge": "leak, euler, euler_box, decay_input, decay",
        "synapse": "none, charged, decayed, jump",
        "spike_format": "input, uint8, bits",
    }
    for name, choices in lists.items():
        for value in ("Leak", "", None, 0, True, ["leak"]):
            yield Bad({name: value}, ValueError, name, (repr(value), f"expected one of {choices}"))
    for value in (1, "yes", None):
        parts = (repr(value), "expected a bool")
        yield Bad({"delayed_spike": value}, TypeError, "delayed_spike", parts)
    for reset in ("hard", "soft"):
        late = {"delayed_spike": True, "reset": reset}
        yield Bad(late, ValueError, "delayed_spike", (repr(reset), "expected 'delayed_soft'"))
    for name in ("v_rest", "gain"):
        for odd in (None, "1", True, torch.tensor(1.0), [1.0]):
            parts = (type(odd).__name__, "expected a number")
            yield Bad(EULER | {name: odd}, TypeError, name, parts)
        for value in (NAN, INF, -INF, 1e39, 10**400):
            yield Bad(EULER | {name: value}, ValueError, name, (str(value), "expected"))

    yield Bad({"v_rest": 0.5}, ValueError, "v_rest", ("0.5", "charge is 'leak'", "expected 0"))

    for charge in CHARGES:
        needed = decay_name(charge)
        if needed != "leak":
            parts = ("None", f"expected a value for charge={charge!r}")
            yield Bad({"charge": charge}, ValueError, needed, parts)
        for other in sorted({"leak", "tau", "rate"} - {needed}):
            arguments = {"charge": charge, needed: 1.0, other: 1.0}
            parts = ("is given", repr(charge), f"expected {needed} instead")
            yield Bad(arguments, ValueError, other, parts)

    low, unit = "finite and at least 1", "in [0, 1]"
    for base, name, expected, wrong in (
        (TAU, "tau", low, (0.5, 0, -2.0, NAN, INF, 1 - 1e-9)),
        ({"charge": "decay"}, "tau", low, (0.999, NAN)),
        (EULER, "rate", unit, (-0.1, 1.5, NAN, INF, 1 + 1e-9)),
        ({"charge": "euler_box"}, "rate", unit, (-1, 2)),
        (CHARGED, "synapse_decay", unit, (-0.1, 1.5, NAN, INF)),
    ):
        for value in wrong:
            yield Bad(base | {name: value}, ValueError, name, (str(value), f"expected {expected}"))
            several = torch.ones(4, 5)
            several[2, 3] = value
            if several[2, 3] != 1:  # not float32's own 1
                parts = (f"{several[2, 3].item()}", f"expected {expected}")
                yield Bad(base | {name: several}, ValueError, name, parts)
        for odd, text in (("2", "'2' of type str"), (True, "True of type bool"), ([1.0], "list")):
            parts = (text, "expected a number or a tensor")
            yield Bad(base | {name: odd}, TypeError, name, parts)
        for shape in ((5,), (1,), (5, 4), (2, 4, 5), (1, 4, 5), (4, 1), (0,)):
            allowed = "expected [] or [4] (one per channel of x) or [4, 5] (one per neuron)"
            parts = (str(list(shape)), allowed)
            yield Bad(base | {name: torch.ones(shape)}, ValueError, name, parts)
        for odd, text, wanted in (
            (torch.ones(4, 5).long(), "torch.int64", "expected a floating-point tensor"),
            (torch.ones(4, 5).double(), "float64", f"pass {name} as float32"),
            (torch.ones(4, 5).to_sparse(), "sparse_coo", "expected a dense tensor"),
        ):
            yield Bad(base | {name: odd}, TypeError, name, (text, wanted))
        meta = torch.ones(4, 5, device="meta")
        yield Bad(base | {name: meta}, ValueError, name, ("on meta", "expected cpu like x"))

    parts = ("None", "expected a value for synapse='charged'")
    yield Bad({"synapse": "charged"}, ValueError, "synapse_decay", parts)
    for name in ("synapse_decay", "current_init"):
        parts = ("synapse is 'none'", f"expected no {name}, or a synapse")
        yield Bad({name: 0.5}, ValueError, name, parts)
    for odd, error, text, expected in (
        ("rest", TypeError, "'rest' of type str", "expected a number"),
        (True, TypeError, "True of type bool", "expected a number"),
        (NAN, ValueError, "nan", "expected a finite number"),
        (1e39, ValueError, "1e+39", "expected a number that torch.float32 can hold"),
        (torch.zeros(4, 5), ValueError, "[4, 5]", "expected [2, 4, 5], that of x[0]"),
        (torch.zeros(3, 2, 4, 5), ValueError, "[3, 2, 4, 5]", "expected [2, 4, 5]"),
        (torch.zeros(2, 4, 5).double(), TypeError, "float64", "expected torch.float32"),
        (torch.zeros(2, 4, 5).to_sparse(), TypeError, "sparse_coo", "expected a dense tensor"),
        (torch.zeros(2, 4, 5, device="meta"), ValueError, "on meta", "expected cpu like x"),
    ):
        arguments = CHARGED | {"current_init": odd}
        yield Bad(arguments, error, "current_init", (text, expected))

    for count in (0, 1, 3):
        parts = (f"has {count} entries", "expected 2, one for every sample")
        yield Bad({"surrogate": [Triangle()] * count}, ValueError, "surrogate", parts)
    for odd in ("triangle", {Triangle(), ATan()}, 1.0):
        parts = (f"of type {type(odd).__name__}", SURROGATE)
        yield Bad({"surrogate": odd}, TypeError, "surrogate", parts)
    for odd in ("triangle", None, Triangle):
        mixed = {"surrogate": (ATan(), odd)}
        yield Bad(mixed, TypeError, "surrogate[1]", (repr(odd), SURROGATE))
    rate = {"surrogate": [Rate(), Triangle()]}
    yield Bad(rate, ValueError, "surrogate[0]", ("Rate(", "expected one of a single step"))

    one_step = {"x": torch.ones(1, 2, 4, 5)}
    for odd in (True, 2.0, "3", torch.tensor(3)):
        parts = (f"of type {type(odd).__name__}", "expected an int")
        yield Bad(one_step | {"timesteps": odd}, TypeError, "timesteps", parts)
    for value in (0, -1):
        parts = (str(value), "expected an int of at least 1")
        yield Bad(one_step | {"timesteps": value}, ValueError, "timesteps", parts)
    for value in (1, 3, 4):
        parts = (str(value), "x has 3 steps", "expected one that is held")
        yield Bad({"timesteps": value}, ValueError, "timesteps", parts)


BAD = list(bad_arguments())


@pytest.mark.parametrize(
    "entry", BAD, ids=[f"{i}-{entry.name}-{entry.parts[0][:20]}" for i, entry in enumerate(BAD)]
)
def test_bad_option(entry: Bad) -> None:
    messages = set()
    for backend in EVERY_BACKEND:
        with pytest.raises(entry.error) as error:
            lif(**{"x": torch.ones(3, 2, 4, 5), "backend": backend} | entry.arguments)
        assert type(error.value) is entry.error
        messages.add(str(error.value))
    (text,) = messages
    assert text.startswith(f"{entry.name} ")
    for part in entry.parts:
        assert part in text


def test_options_on_the_edge_are_taken(backend: Backend) -> None:
    x = torch.ones(3, 2, 4, 5)
    for options in (
        {"charge": "decay", "tau": 1},
        {"charge": "decay_input", "tau": 1e30},
        {"charge": "euler", "rate": 0},
        {"charge": "euler_box", "rate": torch.ones(4, 5, dtype=torch.float16)},
        {"gain": 0},
        {"gain": -3},
        {"synapse": "jump", "synapse_decay": 0, "current_init": -1},
        {"synapse": "decayed", "synapse_decay": 1},
        {"surrogate": (Triangle(), SpikeTime())},
    ):
        spikes = lif(x, **options, backend=backend)
        assert ((spikes == 0) | (spikes == 1)).all()
    assert len(lif(x[:1], timesteps=1, backend=backend)) == 1


# The module.


@pytest.mark.parametrize("per", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("charge", CHARGES)
def test_a_layer_is_the_function_with_learnt_parameters(
    backend: Backend, charge: Charge, synapse: Synapse, per: str
) -> None:
    shape = {"layer": (), "channel": (4,), "neuron": (4, 5)}[per]
    names = [decay_name(charge), "threshold", *["synapse_decay"] * (synapse != "none")]
    options: dict[str, Any] = {
        "charge": charge,
        "synapse": synapse,
        "reset": "delayed_soft",
        "delayed_spike": True,
        "gain": 0.75,
        "v_rest": 0.0 if charge == "leak" else -0.25,
        "surrogate": SpikeTime(),
        "detach_reset": True,
        "strict": True,
        "v_init": 0.25,
        "return_state": True,
        "backend": backend,
    }
    values: dict[str, Any] = {}
    for place, name in enumerate(names):
        low, high = RANGE[name]
        values[name] = low + (high - low) * random(*shape, seed=place).sigmoid()
    x = random(7, 2, 4, 5, seed=9) * 2 + 2
    layer = LIF(
        learn_leak=True,
        learn_threshold=True,
        learn_synapse=synapse != "none",
        **values,
        **options,
    )
    assert list(layer.state_dict()) == names
    assert [name for name, _ in layer.named_parameters()] == names
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    outputs, expected = through(layer, x), lif(x, **leaves, **options)
    assert len(outputs) == len(expected) == 2 + (synapse != "none")
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_same_bits(actual.detach(), wanted.detach())
    loss, target = (
        sum((out * random(*out.shape, seed=20)).sum() for out in outs)
        for outs in (outputs, expected)
    )
    assert isinstance(loss, Tensor)
    assert isinstance(target, Tensor)
    loss.backward()
    target.backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        wanted_grad = leaves[name].grad
        assert wanted_grad is not None
        assert wanted_grad.any()
        assert_same_bits(parameter.grad, wanted_grad, name)


@pytest.mark.parametrize(
    ("options", "name", "outside", "bound", "sign"),
    [
        ({"charge": "decay", "tau": 1.0}, "tau", 0.5, 1.0, -1),
        ({"charge": "euler", "rate": 0.5}, "rate", 1.25, 1.0, 1),
        ({"charge": "euler", "rate": 0.5}, "rate", -0.25, 0.0, -1),
        ({"leak": 0.5} | CHARGED, "synapse_decay", 1.5, 1.0, 1),
    ],
)
def test_a_learnt_parameter_beyond_its_bound_acts_at_it_and_can_come_back(
    options: dict[str, Any], name: str, outside: float, bound: float, sign: int
) -> None:
    layer = LIF(learn_leak=True, learn_synapse="synapse" in options, return_state=True, **options)
    value = layer.get_parameter(name)
    with torch.no_grad():
        value.fill_(outside)
    x = random(4, 2, 3) + 0.5
    layer_outputs, expected = layer(x), lif(x, **options | {name: bound}, return_state=True)
    for actual, wanted in zip(layer_outputs, expected, strict=True):
        assert_same_bits(actual.detach(), wanted.detach())
    for direction in (1, -1):  # of the gradient; descent goes the other way
        (g,) = torch.autograd.grad(layer.dynamics()[name], value, torch.tensor(float(direction)))
        assert g.item() == (0 if direction == -sign else direction)


@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("cut", [1, 4])
def test_a_stateful_layer_carries_membrane_and_current(synapse: Synapse, cut: int) -> None:
    x = random(7, 2, 3, 4, seed=1) + 0.25
    options: dict[str, Any] = {"charge": "decay", "tau": 3.0, "threshold": 0.75, "v_rest": 0.125}
    if synapse != "none":
        options |= {"synapse": synapse, "synapse_decay": 0.5}
    layer = LIF(stateful=True, return_state=True, **options)
    whole = lif(x, **options, return_state=True)
    for _ in range(2):
        head, tail = layer(x[:cut]), layer(x[cut:])
        assert_same_bits(torch.cat([head[0], tail[0]]), whole[0], "spikes")
        for actual, wanted in zip(tail[1:], whole[1:], strict=True):
            assert_same_bits(actual, wanted, "state")
        layer.reset_state()
    assert list(layer.state_dict()) == [
        "tau",
        "threshold",
        *["synapse_decay"] * (synapse != "none"),
    ]


def test_a_layer_says_which_neuron_it_is() -> None:
    layer = LIF(
        threshold=0.5,
        charge="decay_input",
        tau=torch.full((4, 5), 2.0),
        v_rest=0.25,
        gain=0.5,
        synapse="jump",
        synapse_decay=0.75,
        learn_leak=True,
        learn_synapse=True,
        reset="delayed_soft",
        delayed_spike=True,
        surrogate=SpikeTime(),
        spike_format="input",
    )
    assert repr(layer) == (
        "LIF(tau=[2 to 2] x 20, threshold=0.5, synapse_decay=0.75, learns tau and synapse_decay, "
        "reset='delayed_soft', surrogate=SpikeTime(normalized=False, alpha=0.3, beta=0.01), "
        "charge='decay_input', v_rest=0.25, gain=0.5, synapse='jump', delayed_spike=True)"
    )
    assert "tau" not in repr(LIF())
    assert "spike_format='bits'" in repr(LIF(spike_format="bits"))


def test_a_layer_gives_packed_spikes(backend: Backend) -> None:
    x = random(3, 2, 5)
    for form in PACKED:
        packed = through(LIF(0.5, spike_format=form, backend=backend), x)
        assert torch.equal(packed, lif(x, 0.5, spike_format=form, backend=backend))


def test_straight_through_and_spike_time_of_neighbouring_samples_do_not_mix(
    backend: Backend,
) -> None:
    """Every sample gets just what it would get in a batch of its own surrogate."""
    for layout in LAYOUTS[:4]:
        x = laid_out(random(9, 4, 3, 35, seed=6) + 0.25, layout)
        four = [StraightThrough(), SpikeTime(), Sigmoid(normalized=True), SpikeTime(1.0, 1.0)]
        weights = random(*x.shape, seed=7)
        leaf = x.detach().requires_grad_()
        (mixed,) = torch.autograd.grad(
            lif(leaf, 0.75, 0.8, surrogate=four, backend=backend), leaf, weights
        )
        for n, one in enumerate(four):
            (alone,) = torch.autograd.grad(
                lif(leaf, 0.75, 0.8, surrogate=one, backend=backend), leaf, weights
            )
            scale = float(alone[:, n].abs().max())
            assert_within(mixed[:, n], alone[:, n], 1e-6 * scale, f"{layout}, {one}")


@EVERY_COMPILED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("timesteps", [64, 65, 150])
def test_more_steps_than_a_gpu_keeps_at_hand(
    compiled: Backend, dtype: torch.dtype, timesteps: int
) -> None:
    """Its backward pass goes through them in segments."""
    unusual: dict[str, Any] = {
        "charge": "decay_input",
        "synapse": "jump",
        "reset": "delayed_soft",
        "delayed_spike": True,
        "surrogate": SpikeTime(1.0, 0.5),
    }
    x = (random(timesteps, 2, 3, 7, seed=3) + 0.5).to(dtype)
    for options in ({"reset": "soft"}, {"reset": "hard", "v_reset": -0.25}, unusual):
        decay = "tau" if options is unusual else "leak"
        leaves = {
            "x": x.clone().requires_grad_(),
            decay: state_like(x, torch.tensor(2.0 if options is unusual else 0.5)).requires_grad_(),
            "v_init": state_like(x, random(2, 3, 7, seed=4)).requires_grad_(),
        }
        if options is unusual:
            leaves["synapse_decay"] = state_like(x, torch.tensor(0.5)).requires_grad_()
        results = []
        for backend in (compiled, "reference"):
            outputs = lif(**leaves, **options, return_state=True, backend=backend)
            weights = [random(*out.shape, seed=5).to(out.dtype) for out in outputs]
            results.append((outputs, torch.autograd.grad(outputs, list(leaves.values()), weights)))
        (outputs, grads), (expected, targets) = results
        for actual, wanted in zip(outputs, expected, strict=True):
            assert_same_bits(actual.detach(), wanted.detach())
        for name, actual, wanted in zip(leaves, grads, targets, strict=True):
            kind = torch.finfo(dtype if name == "x" else actual.dtype)
            assert_within(actual, wanted, 64 * kind.eps * float(wanted.abs().max()), name)
