"""The surrogates: their formulas, as seen from Python and by the kernels, and their own checks."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from scipy import integrate
from torch import Tensor

from python_tests.helpers import POINTWISE, SURROGATES, assert_within, lif
from snnkern import _load, reference, surrogate
from snnkern.functional import Backend
from snnkern.surrogate import (
    ASSG,
    HART,
    KINDS,
    PDSG,
    RGA,
    ATan,
    Deferred,
    Erf,
    Exponential,
    FastSigmoid,
    Rate,
    Rectangle,
    Sigmoid,
    SpikeTime,
    StraightThrough,
    Surrogate,
    Triangle,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# At z = 0, and at +-z1, by hand.
BY_HAND: list[tuple[Surrogate, float, float, float]] = [
    (Triangle(), 1.0, 0.25, 0.75),
    (Triangle(2.0), 0.5, 0.5, 0.375),
    (Triangle(2.0), 0.5, 2.0, 0.0),
    (Triangle(0.5, scale=0.3), 0.15, 0.25, 0.075),
    (Rectangle(), 1.0, 0.25, 1.0),
    (Rectangle(), 1.0, 0.5, 0.0),  # the edge is outside
    (Rectangle(0.25), 4.0, 0.0625, 4.0),
    (Rectangle(2.0, scale=0.7), 0.7, 0.99, 0.7),
    (Exponential(), 1.0, 1.0, math.exp(-1)),
    (Exponential(0.3, slope=2.0), 0.3, 1.5, 0.3 * math.exp(-3)),
    (ATan(), 1.0, 1 / math.pi, 0.5),
    (ATan(alpha=1.0), 0.5, 2 / math.pi, 0.25),
    (Sigmoid(), 1.0, math.log(3) / 4, 4 * 0.75 * 0.25),
    (Sigmoid(alpha=1.0), 0.25, math.log(3), 0.75 * 0.25),
    (FastSigmoid(), 1.0, 0.04, 0.25),
    (FastSigmoid(slope=1.0), 1.0, 3.0, 0.0625),
    (Erf(), 2 / math.sqrt(math.pi), 0.5, 2 / math.sqrt(math.pi) * math.exp(-1)),
    (StraightThrough(), 1.0, 123.0, 1.0),
]


@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: f"{case[0]} at {case[2]:.3g}")
def test_values_worked_out_by_hand(
    backend: Backend, case: tuple[Surrogate, float, float, float]
) -> None:
    gradient, at_zero, z1, at_z1 = case
    z = torch.tensor([0.0, z1, -z1], dtype=torch.float64)
    expected = torch.tensor([at_zero, at_z1, at_z1], dtype=torch.float64)
    assert_within(gradient.derivative(z), expected, 1e-14, "derivative")
    # A neuron without leak sees each current alone; z comes from the initial state, exactly.
    start = (z + 0.0).requires_grad_()
    spikes = lif(
        torch.full((1, 3), 2.0**-60, dtype=torch.float64),
        1.0,
        2.0**-60,
        v_init=start,
        surrogate=gradient,
        backend=backend,
    )
    (grad,) = torch.autograd.grad(spikes.sum(), start)
    assert_within(grad, expected, 1e-14, "kernel")


@pytest.mark.parametrize("gradient", POINTWISE, ids=repr)
def test_derivatives_do_not_lose_precision(backend: Backend, gradient: Surrogate) -> None:
    """float64 keeps its digits, in Python and in the kernels; float32 rounds the same number."""
    z = torch.linspace(-3, 3, 1001, dtype=torch.float64)
    z = z[(z.abs() - 0.25).abs() > 1e-6]
    exact = exact_derivative(gradient, z)
    for dtype, tolerance in ((torch.float64, 4e-15), (torch.float32, 2e-6)):
        rounded = z.to(dtype)
        scale = max(1.0, float(exact.max()))
        target = exact if dtype == torch.float64 else exact_derivative(gradient, rounded.double())
        assert_within(gradient.derivative(rounded), target, tolerance * scale, f"{dtype}")
        x = rounded[None].requires_grad_()
        start = torch.ones_like(rounded)
        spikes = lif(x, 0.0, 1e-30, v_init=start, surrogate=gradient, backend=backend)
        (gx,) = torch.autograd.grad(spikes.sum(), x)
        assert_within(gx[0], target, tolerance * scale, f"{dtype} in {backend}")


def exact_derivative(gradient: Surrogate, z: Tensor) -> Tensor:
    """The formulas of the documentation, number by number."""

    def at(z: float) -> float:
        match gradient:
            case Triangle(width=width, scale=scale):
                return (1 / width**2 if scale is None else scale) * max(0.0, width - abs(z))
            case Rectangle(width=width, scale=scale):
                return (1 / width if scale is None else scale) if abs(z) < width / 2 else 0.0
            case Exponential(scale=scale, slope=slope):
                return scale * math.exp(-slope * abs(z))
            case ATan(alpha=alpha):
                return alpha / 2 / (1 + (math.pi / 2 * alpha * z) ** 2)
            case Sigmoid(alpha=alpha):
                return alpha / (2 + 2 * math.cosh(alpha * z))
            case FastSigmoid(slope=slope):
                return 1 / (1 + slope * abs(z)) ** 2
            case Erf(alpha=alpha):
                return alpha / math.sqrt(math.pi) * math.exp(-((alpha * z) ** 2))
            case _:
                assert isinstance(gradient, StraightThrough)
                return 1.0

    return torch.tensor([at(value) for value in z.tolist()], dtype=torch.float64)


@pytest.mark.parametrize(
    ("gradient", "area"),
    [
        (Triangle(0.5), 1.0),
        (Triangle(3.0), 1.0),
        (Rectangle(0.5), 1.0),
        (Exponential(0.3, 2.0), 0.3),
        (ATan(3.0), 1.0),
        (Sigmoid(2.0), 1.0),
        (FastSigmoid(5.0), 0.4),
        (Erf(0.7), 1.0),
    ],
    ids=str,
)
def test_the_area_is_the_height_of_the_step(gradient: Surrogate, area: float) -> None:
    """A surrogate that approximates the step integrates to 1, the others to what they say."""

    def density(z: float) -> float:
        return gradient.derivative(torch.tensor([z], dtype=torch.float64)).item()

    half, _ = integrate.quad(density, 0, 4, points=[0.25, 0.5, 3.0], limit=200)
    tail, _ = integrate.quad(lambda u: density(1 / u) / u**2 if u else 0.0, 0, 0.25, limit=200)
    assert 2 * (half + tail) == pytest.approx(area, abs=2e-3)


@pytest.mark.parametrize("gradient", POINTWISE, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_derivative_keeps_dtype_and_shape(gradient: Surrogate, dtype: torch.dtype) -> None:
    z = torch.linspace(-100, 100, 24, dtype=dtype).reshape(2, 3, 4)
    for view in (z, z.mT, z[0, 0, 0], z[:0]):
        derivative = gradient.derivative(view)
        assert derivative.dtype == dtype
        assert derivative.shape == view.shape
        assert derivative.isfinite().all()
        assert (derivative >= 0).all()


@pytest.mark.parametrize("gradient", POINTWISE, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_far_from_the_threshold(backend: Backend, dtype: torch.dtype, gradient: Surrogate) -> None:
    """No overflow, no NaN, and where an exponential is gone it is at most a denormal."""
    far = torch.logspace(0, 15, 400, dtype=dtype)
    x = torch.cat([far, -far])[None].requires_grad_()
    spikes = lif(x, threshold=1e-30, surrogate=gradient, backend=backend)
    (gx,) = torch.autograd.grad(spikes.sum(), x)
    expected = gradient.derivative(x.detach().double())[0]
    # exp(-a) is as good as its argument, which is rounded: a relative a * 2^-23 in float32.
    assert_within(gx[0], expected, 2e-5 * expected + 1e-35, "ds/dz")


@pytest.mark.parametrize("slope", [1.0, 30.0])
def test_the_exponential_of_the_kernels(backend: Backend, slope: float) -> None:
    """In float32 within a few units in the last place, wherever the result is a normal number."""
    z = torch.linspace(0, 120, 200_001) / slope
    x = z[None].requires_grad_()
    spikes = lif(x, 1.0, 1e-38, surrogate=Exponential(slope=slope), backend=backend)
    (gx,) = torch.autograd.grad(spikes.sum(), x)
    exact = torch.exp(-(slope * z).double())
    assert_within(gx[0], exact, 4 * 2.0**-24 * exact + 2e-38, "exp")


def test_kinds_and_options_are_those_of_the_compiled_kernels() -> None:
    if _load.build_info is None:
        pytest.skip("no compiled kernels")
    assert (*_load.build_info["surrogates"], "rate") == KINDS
    assert _load.build_info["charges"] == reference.CHARGES
    assert _load.build_info["synapses"] == reference.SYNAPSES
    assert _load.build_info["resets"] == reference.RESETS


def test_every_surrogate_is_tested() -> None:
    public = {
        value
        for value in vars(surrogate).values()
        if isinstance(value, type) and issubclass(value, Surrogate) and hasattr(value, "kind")
    }
    # SpikeTime is none of z: test_lif_options has it. Rules are no kinds of the ops: test_gradient.
    public -= {RGA, HART, PDSG, ASSG, Deferred}
    assert public == {type(gradient) for gradient in SURROGATES} | {SpikeTime}
    assert {kind.kind for kind in public} == set(KINDS)


@pytest.mark.parametrize("gradient", SURROGATES, ids=repr)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_surrogates_are_values(
    gradient: Surrogate, duplicate: Callable[[Surrogate], Surrogate]
) -> None:
    other = duplicate(gradient)
    assert other == gradient
    assert hash(other) == hash(gradient)
    assert other.args == gradient.args
    assert other != dataclasses.replace(gradient, normalized=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        gradient.normalized = True  # type: ignore[misc]


def test_rate_has_no_derivative_at_a_point() -> None:
    with pytest.raises(ValueError, match="Rate has no derivative at a point"):
        Rate().derivative(torch.zeros(1))


def test_the_base_class_is_no_surrogate() -> None:
    with pytest.raises(TypeError, match="Surrogate is a base class; use Triangle"):
        Surrogate()


PARAMETERS: list[tuple[type[Surrogate], str]] = [
    (Triangle, "width"),
    (Triangle, "scale"),
    (Rectangle, "width"),
    (Rectangle, "scale"),
    (Exponential, "scale"),
    (Exponential, "slope"),
    (ATan, "alpha"),
    (Sigmoid, "alpha"),
    (FastSigmoid, "slope"),
    (Erf, "alpha"),
    (RGA, "gamma"),
    (HART, "width"),
    (ASSG, "share"),
    (ASSG, "relax"),
    (ASSG, "decay"),
]


@pytest.mark.parametrize(("kind", "name"), PARAMETERS)
@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.nan, math.inf, -math.inf])
def test_parameters_are_finite_and_positive(kind: type[Surrogate], name: str, value: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number above 0") as error:
        kind(**{name: value})  # type: ignore[arg-type]
    assert f"{kind.__name__}: {name} is {value!r}" in str(error.value)


@pytest.mark.parametrize(("kind", "name"), PARAMETERS)
@pytest.mark.parametrize("value", ["1", True, [1.0], torch.tensor(1.0)], ids=repr)
def test_parameters_are_numbers(kind: type[Surrogate], name: str, value: object) -> None:
    with pytest.raises(TypeError, match="expected a number") as error:
        kind(**{name: value})  # type: ignore[arg-type]
    assert f"{kind.__name__}: {name} is {value!r} of type {type(value).__name__}" in str(
        error.value
    )


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_normalized_is_a_bool(value: object) -> None:
    for gradient in SURROGATES:
        with pytest.raises(TypeError, match=f"normalized is {value!r}, expected True or False"):
            type(gradient)(normalized=value)  # type: ignore[arg-type]
