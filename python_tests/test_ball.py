"""What attacks promise: images never leave the ball or ``[0, 1]``, checked in exact numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from python_tests.helpers import assert_same_bits, assert_within
from snnkern._ball import (
    inward,
    lengths,
    project_l2,
    project_linf,
    rounded_down,
    unit,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EPS = st.one_of(
    st.floats(0, 2.5),
    st.sampled_from([1 / 255, 2 / 255, 8 / 255, 0.1, 1 / 3, 1.0, 1e-8, 1e-40, 5e-324]),
)


def exactly(x: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in x.double().flatten().tolist()]


def distances(one: Tensor, other: Tensor) -> list[Fraction]:
    return [abs(a - b) for a, b in zip(exactly(one), exactly(other), strict=True)]


def images(dtype: torch.dtype, seed: int, shape: tuple[int, ...] = (3, 1, 4, 4)) -> Tensor:
    """Pixels of every size, the ends of the range and subnormal ones among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    x *= 10.0 ** (-12 * torch.rand(shape, generator=generator, dtype=torch.float64)).round()
    x = x.to(dtype)
    x[0, 0, 0] = torch.tensor([0.0, 1.0, torch.finfo(dtype).smallest_normal / 2, 0.5]).to(dtype)
    return x


def far(x: Tensor, seed: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return (x.double() + scale * noise).to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@given(EPS, st.integers(0, 2**31), st.floats(1e-6, 4))
@settings(max_examples=60)
def test_linf(dtype: torch.dtype, eps: float, seed: int, scale: float) -> None:
    x = images(dtype, seed)
    adversarial = far(x, seed + 1, scale * eps)
    projected = project_linf(adversarial, x, eps)
    assert projected.dtype == dtype
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert max(distances(projected, x)) <= Fraction(eps)
    # What is inside stays; what is not comes to the last number that is.
    inside = adversarial.clamp(0, 1)
    outside = projected != inside
    size = rounded_down(min(eps, 1.0), dtype)
    assert size <= eps
    beyond = torch.nextafter(projected, inside)
    for distance, was_outside in zip(distances(beyond, x), outside.flatten(), strict=True):
        assert not was_outside or distance > Fraction(size)
    assert_same_bits(project_linf(projected, x, eps), projected)


@pytest.mark.parametrize("dtype", DTYPES)
@given(EPS, st.integers(0, 2**31), st.floats(1e-6, 4), st.booleans())
@settings(max_examples=80)
def test_l2(dtype: torch.dtype, eps: float, seed: int, scale: float, black: bool) -> None:
    # Where x is 0 no rounding of x + step hides that of the step.
    x = torch.zeros(3, 1, 4, 4, dtype=dtype) if black else images(dtype, seed)
    adversarial = far(x, seed + 1, scale * eps)
    if black:
        adversarial = adversarial.abs()
    projected = project_l2(adversarial, x, eps)
    assert projected.dtype == dtype
    assert projected.min() >= 0
    assert projected.max() <= 1
    for here, there in zip(projected, x, strict=True):
        assert sum(d * d for d in distances(here, there)) <= Fraction(eps) ** 2
    # Where the way is long enough to be told from rounding, it is the nearest point.
    if dtype == torch.float64 and eps > 1e-6:
        way = adversarial - x
        expected = (x + way * (eps / lengths(way)).clamp(max=1)).clamp(0, 1)
        assert_within(projected, expected, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(0, 2**31), st.floats(-1, 1))
@settings(max_examples=60)
def test_a_step_is_never_longer_than_asked_for(dtype: torch.dtype, seed: int, size: float) -> None:
    x = images(dtype, seed)
    step = torch.full_like(x, size)
    moved = inward(x, step)
    assert_same_bits(inward(x, step[0, 0, 0, 0].item()), moved)
    for there, asked, here in zip(exactly(moved), exactly(step), exactly(x), strict=True):
        assert abs(there - here) <= abs(asked)
        assert (there - here) * asked >= 0
    nearest = x + step
    assert (torch.nextafter(nearest, x) == moved).logical_or(nearest == moved).all()


@given(st.floats(0, 1e9))
def test_rounded_down(value: float) -> None:
    for dtype in (torch.float32, torch.float64):
        below = rounded_down(value, dtype)
        assert below <= value
        assert torch.tensor(below, dtype=dtype).item() == below
        above = torch.nextafter(torch.tensor(below, dtype=dtype), torch.tensor(torch.inf).to(dtype))
        assert above.item() > value


def test_unit() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-30, -4e-30], [torch.nan, 2.0]])
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, -0.8], [0.0, 1.0]])
    assert_within(unit(x), expected, 1e-7)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        overflown = torch.tensor([[-torch.inf, torch.inf], [torch.inf, 1.0]], dtype=dtype)
        wanted = torch.tensor([[-(0.5**0.5), 0.5**0.5], [1.0, 0.0]], dtype=dtype)
        assert_within(unit(overflown), wanted, 1e-4)
