"""The Triton kernels against the reference, in Triton's interpreter. See test_triton.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from python_tests import test_bounds, test_lif_options
from python_tests.helpers import (
    POINTWISE,
    RESETS,
    assert_same_bits,
    assert_within,
    laid_out,
    lif,
    random,
    raw_neuron,
)
from snnkern import _triton, functional, reference
from snnkern._layout import empty_steps
from snnkern.functional import CODINGS, Coding, encode
from snnkern.surrogate import ASSG, ATan, SpikeTime, Surrogate, Triangle

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def test_it_is_the_interpreter() -> None:
    assert _triton.INTERPRETED
    assert not _triton.why_not(torch.device("cpu"))


def test_every_combination_of_options_is_that_of_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small cases of test_lif_options; up to 5 steps in one block, more in blocks of up to 3."""
    monkeypatch.setattr(test_lif_options, "LARGEST_CASE", 600)
    monkeypatch.setattr(_triton.load(), "WHOLE_STEPS", 5)
    monkeypatch.setattr(_triton.load(), "BLOCK_STEPS", 3)
    test_lif_options.test_every_combination_of_options_is_that_of_the_reference(
        "triton", torch.float32, 2
    )


@pytest.mark.parametrize("timesteps", [8, 37, 40])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("surrogate", [ATan(), SpikeTime(), ASSG()])
def test_many_steps_and_dtypes(timesteps: int, dtype: torch.dtype, surrogate: Surrogate) -> None:
    x = (random(timesteps, 2, 3, 4) + 0.25).to(dtype)
    results = []
    for backend in ("triton", "reference"):
        leaf, leak = (
            x.clone().requires_grad_(),
            torch.tensor(0.9, dtype=reference.state_dtype(dtype)).requires_grad_(),
        )
        outputs = lif(
            leaf, leak, reset="soft", surrogate=surrogate, return_state=True, backend=backend
        )
        upstream = [random(*o.shape, seed=3).to(o.dtype) for o in outputs]
        results.append((*outputs, *torch.autograd.grad(outputs, [leaf, leak], upstream)))
    (spikes, state, of_x, of_leak), (their_spikes, their_state, their_x, their_leak) = results
    assert_same_bits(spikes.detach(), their_spikes.detach())
    assert_same_bits(state.detach(), their_state.detach())
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    rounding = 0 if dtype.itemsize > 2 else torch.finfo(dtype).eps
    assert_within(of_x, their_x, (4 * tolerance + rounding) * their_x.double().abs().max())
    assert_within(of_leak, their_leak, 1e-6 * of_x.double().abs().sum())


NORM_SHAPES = ((3, 5), (2, 4, 3, 3), (2, 3, 16, 20), (1, 300, 2), (4, 1, 7))


def op(name: str, overload: str) -> Any:
    return getattr(getattr(torch.ops.snnkern, name), overload)


@pytest.mark.parametrize("shape", NORM_SHAPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "padded", "constant"])
@pytest.mark.parametrize("surrogate", [0, 3])
def test_normalised_inputs(shape: tuple[int, ...], layout: str, surrogate: int) -> None:
    # The interpreter cuts bfloat16 off where it should round.
    dtype = (torch.float32, torch.float16)[len(shape) % 2]
    x, gs = (laid_out(random(5, *shape, seed=i).to(dtype), layout) for i in (0, 1))
    scale, shift, mean = (random(shape[1], seed=2 + i) for i in range(3))
    neuron = raw_neuron(torch.tensor(0.75), scale.abs() + 0.5, reset=surrogate % 3)[1:]
    affine = (x, scale, shift)
    outputs = [op("norm_lif_forward", o)(*affine, *neuron, 0, True) for o in OVERLOADS]
    for actual, expected in zip(*outputs, strict=True):
        assert_same_bits(actual, expected)
        assert actual.stride() == expected.stride()
    spiking = (False, surrogate, [1.0, 1.0], False, None, None, True)
    # Of a sum, what its terms come to without their signs.
    largest = 5 * x[0].numel() * (1 + x.float().abs().max() + mean.abs().max())
    for sums in (True, False):
        arguments = (gs, None, None, *affine, mean, *neuron, *spiking, sums)
        grads = [op("norm_lif_backward", o)(*arguments) for o in OVERLOADS]
        for number, (actual, expected) in enumerate(zip(*grads, strict=True)):
            assert actual.stride() == expected.stride()
            size = expected.abs().max() if number == 0 and expected.numel() else largest
            assert_within(actual, expected, (1e-6 if number else torch.finfo(dtype).eps) * size)
    moments = [op("channel_moments", o)(x, mean) for o in OVERLOADS]
    for actual, expected in zip(*moments, strict=True):
        assert_within(actual, expected, 1e-6 * largest**2)
    in_place = [empty_steps(x, dtype, 5).copy_(gs) for _ in OVERLOADS]
    for overload, g in zip(OVERLOADS, in_place, strict=True):
        op("norm_backward_", overload)(g, x, mean, scale, shift, mean)
    assert_same_bits(in_place[0], in_place[1])


OVERLOADS = ("triton", "reference")


def test_opcheck() -> None:
    x = random(5, 2, 3, 4)
    neuron = raw_neuron(torch.tensor(0.5), torch.full((3,), 0.75), x[0], reset=2)
    opcheck(op("lif_forward", "triton"), (x, *neuron, 0, True))
    for spike_format in (2, 3):
        opcheck(op("lif_forward", "triton"), (x, *neuron, spike_format, False))
    table = torch.tensor([[0.0, 1.0, 1.0, 0.0], [8.0, 0.3, 0.01, 1.0]], dtype=torch.float64)
    given = random(6, *x.shape[1:], seed=1)  # the state before the first step in front
    for derivatives in ((table, None), (None, given)):
        spiking = (False, 0, [0.0, 0.0], False, *derivatives, True)
        opcheck(op("lif_backward", "triton"), (x, x[1], None, x, *neuron, *spiking))
    leaf = x.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match=r"call snnkern.functional.lif instead"):
        op("lif_forward", "triton")(leaf, *neuron, 0, True)[0].sum().backward()


def test_parameter_gradients_are_the_same_every_time() -> None:
    x = random(4, 3, 700)

    def gradient() -> Tensor:
        threshold = torch.ones(700, requires_grad=True)
        functional.lif(x, 0.5, threshold, surrogate=Triangle(), backend="triton").sum().backward()
        assert threshold.grad is not None
        return threshold.grad

    assert_same_bits(gradient(), gradient())


# Rate coding.


@pytest.mark.parametrize("coding", CODINGS)
def test_rates_are_the_values_and_steps_are_independent(coding: Coding) -> None:
    values = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    x = values.repeat_interleave(2000)
    generator = torch.Generator().manual_seed(1)
    spikes = encode(x, 6, coding, generator=generator, backend="triton")
    again = encode(x, 6, coding, generator=generator, backend="triton")
    # Three and a half standard deviations of the least certain of these means.
    assert (spikes.view(6, 5, -1).mean((0, 2)) - values).abs().max() < 0.016
    assert (spikes.view(6, 5, -1).mean(2) - values[None]).abs().max() < 0.04
    centred = spikes - x
    for apart in range(1, 6):  # steps of one draw of four, and of two
        assert (centred[apart:] * centred[:-apart]).mean().abs() < 0.004
    assert (centred[:, 1:] * centred[:, :-1]).mean().abs() < 0.004
    assert (centred * (again - x)).mean().abs() < 0.004
    generator.manual_seed(1)
    assert torch.equal(encode(x, 6, coding, generator=generator, backend="triton"), spikes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_signs_extremes_and_layouts(dtype: torch.dtype) -> None:
    x = torch.tensor([[-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]], dtype=dtype).mT
    spikes = encode(x, 5, "signed_poisson", backend="triton")
    assert spikes.dtype == dtype
    assert spikes.stride()[1:] == x.stride()
    assert torch.equal(spikes, x.expand(5, 3, 2))
    inside = torch.full((3, 2), 0.5, dtype=dtype)
    assert 0 < encode(inside.clamp(0, 1), 9, "bernoulli", backend="triton").mean() < 1


def test_the_gradient_of_a_code_passes_straight_through() -> None:
    x = torch.rand(3, 4).requires_grad_()
    upstream = torch.randn(5, 3, 4)
    spikes = encode(x, 5, backend="triton")
    (gradient,) = torch.autograd.grad(spikes, x, upstream)
    assert torch.equal(gradient, upstream.sum(0))
    with pytest.raises(ValueError, match=r"backend is 'cpu' and only 'triton' draws in a kernel"):
        encode(x, 5, backend="cpu")
    with pytest.raises(ValueError, match=r"backend is 'triton' and draws are given"):
        encode(x, draws=upstream, backend="triton")


def test_the_reference_draws_too() -> None:
    x = torch.tensor([0.0, 0.3, 1.0]).repeat(20_000, 1)
    spikes = op("rate_code", "reference")(x, torch.tensor(5), 3, reference.BERNOULLI)
    assert (spikes.mean((0, 1)) - x[0]).abs().max() < 0.01


# Spikes as bits.


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "padded", "constant"])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.bool]
)
def test_spikes_as_bits(dtype: torch.dtype, layout: str) -> None:
    spikes = laid_out((random(5, 2, 3, 4, 71) > 0).to(dtype), layout)
    outputs = [op("pack_spikes", o)(spikes) for o in OVERLOADS]
    for actual, expected in zip(*outputs, strict=True):
        assert torch.equal(actual, expected)
    unpacked = [
        op("unpack_spikes", o)(outputs[0][0], spikes.shape, spikes.stride(), dtype)
        for o in OVERLOADS
    ]
    assert torch.equal(unpacked[0], spikes)
    assert unpacked[0].stride() == unpacked[1].stride()


def test_what_is_no_spike_is_named() -> None:
    spikes = (random(4, 2, 900) > 0).float()
    spikes[2, 1, 30], spikes[3, 0, 0] = 0.5, 7.0
    with pytest.raises(ValueError, match=r"spikes has the value 0\.5, expected 0 and 1"):
        functional.pack_spikes(spikes, backend="triton")


# Bounds.


def bound_options(number: int) -> dict[str, Any]:
    """Every reset with every slope; float32 and float64, one leak and one per channel."""
    dtype = (torch.float32, torch.float64)[number // 2 % 2]
    return {
        "leak": torch.tensor([0.9, 0.5, 0.7], dtype=dtype) if number % 3 else 0.9,
        "threshold": 0.5 if number % 3 else torch.tensor([0.5, 0.3, 0.7], dtype=dtype),
        "reset": RESETS[number % 4],
        "v_reset": (0.0, -0.3, 0.8)[number % 3],
        "v_init": (0.0, 1.5)[number % 2],
        "strict": number % 5 == 0,
        "dtype": dtype,
        "seed": number,
    }


@pytest.mark.parametrize("number", range(16))
def test_bounds_are_those_of_the_reference(number: int) -> None:
    options, slope = bound_options(number), reference.SLOPES[number // 4]
    layout = ("contiguous", "channels_last", "padded", "batch_last", "constant")[number % 5]
    test_bounds.compare_intervals(dict(options), layout, OVERLOADS)
    test_bounds.compare_lines(dict(options), layout, slope, OVERLOADS)
    surrogate = POINTWISE[number % len(POINTWISE)]
    test_bounds.compare_gradients_of_intervals(
        dict(options), surrogate, layout, number % 2 == 0, OVERLOADS
    )
    case = test_bounds.membranes_and_choice(options, slope, layout)
    test_bounds.compare_gradients_of_lines(case, OVERLOADS)


def test_opcheck_of_bounds() -> None:
    test_bounds.test_opcheck("triton", "channels_last")
