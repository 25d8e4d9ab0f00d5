"""Rate coding: what fires, how often, and what the gradient makes of it."""

from __future__ import annotations

import pytest
import torch

from python_tests.helpers import golden
from snnkern import functional, nn
from snnkern.functional import CODINGS, Coding, encode


def test_golden_signed_poisson() -> None:
    data = golden("hybrid_poisson")
    x, draws = torch.from_numpy(data["x"]), torch.from_numpy(data["rand"])[None]
    spikes = encode(x, coding="signed_poisson", draws=draws)
    assert torch.equal(spikes[0], torch.from_numpy(data["spikes"]))
    spikes = encode(0.9 * x, coding="signed_poisson", draws=draws)
    assert torch.equal(spikes[0], torch.from_numpy(data["spikes_resnet_rate0p9"]))


def test_ties_and_extremes() -> None:
    x = torch.tensor([0.0, 0.5, 1.0, -0.5])
    draws = torch.tensor([0.0, 0.5, 0.999, 0.5]).expand(1, 4)
    assert encode(x, coding="poisson", draws=draws).tolist() == [[1, 1, 1, 0]]
    assert encode(x, coding="bernoulli", draws=draws).tolist() == [[0, 0, 1, 0]]
    assert encode(x, coding="signed_poisson", draws=draws).tolist() == [[0, 1, 1, -1]]


@pytest.mark.parametrize("coding", CODINGS)
def test_rates_are_the_values_and_steps_are_independent(coding: Coding) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    spikes = encode(x, 40_000, coding, generator=generator)
    assert (spikes.mean(0) - x).abs().max() < 0.01
    centred = spikes - spikes.mean(0)
    assert (centred[1:] * centred[:-1]).mean(0).abs().max() < 0.005
    again = encode(x, 40_000, coding, generator=torch.Generator().manual_seed(1))
    assert torch.equal(spikes, again)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_gradient_passes_straight_through(coding: Coding, dtype: torch.dtype) -> None:
    x = torch.rand(3, 4, dtype=torch.float64).to(dtype).requires_grad_()
    spikes = encode(x, 5, coding)
    assert spikes.dtype == dtype
    upstream = torch.randn(5, 3, 4, dtype=torch.float64).to(dtype)
    (gradient,) = torch.autograd.grad(spikes, x, upstream)
    assert torch.equal(gradient, upstream.sum(0))


def test_the_layer() -> None:
    layer = nn.RateCoding(6, "bernoulli", rate=0.5)
    x = torch.rand(2, 3)
    seed = torch.Generator().manual_seed(3)
    expected = encode(0.5 * x, 6, "bernoulli", generator=torch.Generator().manual_seed(3))
    assert torch.equal(layer(x, seed), expected)
    assert repr(layer) == "RateCoding(timesteps=6, coding='bernoulli', rate=0.5)"
    with nn.gradient(torch.nn.Sequential(layer, nn.LIF()), "relu"):
        assert torch.equal(layer(x), 0.5 * x[None])


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("coding", CODINGS)
def test_quantised_input(coding: Coding, bits: int) -> None:
    low = -1.0 if coding == "signed_poisson" else 0.0
    levels = [low + (1 - low) * k / (2**bits - 1) for k in range(2**bits)]
    x = torch.linspace(low, 1, 1001, dtype=torch.float64).requires_grad_()
    layer = nn.RateCoding(5, coding, rate=0.5, bits=bits)
    with nn.gradient(torch.nn.Sequential(layer, nn.LIF()), "relu"):  # what it draws at the rate of
        rounded = 2 * layer(x)[0]
    nearest = torch.tensor(levels, dtype=torch.float64)
    assert (rounded.detach()[:, None] - nearest).abs().min(1).values.max() < 1e-15
    assert len(rounded.unique()) == 2**bits
    assert (rounded - x).abs().max() <= (1 - low) / (2**bits - 1) / 2 + 1e-12
    assert rounded[0] == low
    assert rounded[-1] == 1
    draws = [torch.Generator().manual_seed(0) for _ in range(2)]
    spikes = layer(x, draws[0])
    plain = nn.RateCoding(5, coding, rate=0.5)
    assert torch.equal(spikes, plain(rounded, draws[1]))
    upstream = torch.rand_like(spikes)
    (gradient,) = torch.autograd.grad(spikes, x, upstream)
    torch.testing.assert_close(gradient, 0.5 * upstream.sum(0))
    assert repr(layer).endswith(f"rate=0.5, bits={bits})")


def test_bad_arguments() -> None:
    x = torch.rand(2, 3)
    with pytest.raises(TypeError, match=r"x has dtype torch.int64, expected a floating-point"):
        encode(torch.ones(2, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match=r"coding is 'rate', expected one of poisson"):
        encode(x, 3, "rate")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"timesteps is 0, expected an int of at least 1"):
        encode(x, 0)
    with pytest.raises(TypeError, match=r"timesteps is None of type NoneType, expected an int"):
        encode(x)
    with pytest.raises(ValueError, match=r"draws has shape \[3, 2\], expected \['T', 2, 3\]"):
        encode(x, draws=torch.rand(3, 2))
    with pytest.raises(ValueError, match=r"rate is 0, expected a finite number above 0"):
        nn.RateCoding(3, rate=0)
    with pytest.raises(ValueError, match="bits is 0, expected an int of at least 1"):
        nn.RateCoding(3, bits=0)
    with pytest.raises(ValueError, match=r"coding is 'x', expected one of poisson"):
        nn.RateCoding(3, "x")  # type: ignore[arg-type]
    assert functional.CODINGS == CODINGS
