"""functional.lif and the surrogates against numbers of the papers' own code (golden/).

Tolerances, scaled by max(1, largest reference): 1e-9 in float64, 2e-5 in float32. No membrane of
these files comes closer to a threshold than float32 rounds, so spikes are equal in both.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from python_tests.helpers import assert_within, golden, lif
from snnkern import surrogate
from snnkern.functional import Backend
from snnkern.surrogate import Surrogate

pytestmark = pytest.mark.usefixtures("poisoned_memory")

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
FAMILIES: dict[str, Any] = {
    "PCW": surrogate.Triangle,
    "EXP-D": lambda slope: surrogate.Exponential(0.3, slope),
    "EXP": lambda slope: surrogate.Exponential(1.0, slope),
    "RECT": surrogate.Rectangle,
}
NAMES = [str(name) for name in golden("robustconv_surrogates")["names"]]


def surrogate_named(name: str) -> Surrogate:
    if name == "BPTR":
        return surrogate.Rate()
    if name == "STE_1.0":
        return surrogate.StraightThrough()
    family, parameter = name.split("_")
    return cast(Surrogate, FAMILIES[family](float(parameter)))


def tensor(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.asarray(array)).to(dtype)


def assert_golden(actual: Tensor, expected: NDArray[Any], what: str) -> None:
    reference = torch.from_numpy(np.asarray(expected))
    scale = max(1.0, float(reference.abs().max()))
    assert_within(actual, reference, TOLERANCE[actual.dtype] * scale, what)


def run(
    data: dict[str, NDArray[Any]],
    row: str,
    dtype: torch.dtype,
    leak: float,
    threshold: float,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Spikes, and the gradients of the current, the threshold and the leak."""
    x = tensor(data[f"x{row}"], dtype).requires_grad_()
    parameters = [
        torch.tensor(value, dtype=dtype, requires_grad=True) for value in (leak, threshold)
    ]
    spikes = lif(x, *parameters, **options)
    gout = tensor(data[f"gout{row}"], dtype) if f"gout{row}" in data else torch.ones_like(x)
    gx, g_leak, g_threshold = torch.autograd.grad(spikes, (x, *parameters), gout, allow_unused=True)
    assert gx is not None
    return spikes, gx, g_threshold, g_leak


def assert_spikes(actual: Tensor, expected: NDArray[Any]) -> None:
    assert torch.equal(actual.double(), torch.from_numpy(expected))


@DTYPES
@pytest.mark.parametrize("row", range(4))
def test_snnrat_lif_bptt(backend: Backend, dtype: torch.dtype, row: int) -> None:
    data = golden("snnrat_lif_bptt")
    leak, threshold, width = map(float, data["cfg_tau_th_gamma"][row])
    spikes, gx, _, _ = run(
        data,
        str(row),
        dtype,
        leak,
        threshold,
        surrogate=surrogate.Triangle(width),
        backend=backend,
    )
    assert_spikes(spikes, data[f"s{row}"])
    assert_golden(gx, data[f"gx{row}"], "gx")


@DTYPES
def test_snnrat_bptr(backend: Backend, dtype: torch.dtype) -> None:
    data = golden("snnrat_bptr")
    options = {"surrogate": surrogate.Rate(), "strict": True, "backend": backend}
    spikes, gx, _, _ = run(data, "", dtype, 1.0, 1.0, **options)
    assert_spikes(spikes, data["s"])
    assert_golden(gx, data["gx"], "gx")


@DTYPES
@pytest.mark.parametrize(
    ("mode", "strict", "gradient"),
    [("bptt", False, surrogate.Triangle()), ("bptr", True, surrogate.Rate())],
)
def test_snnrat_ties(
    backend: Backend, dtype: torch.dtype, mode: str, strict: bool, gradient: Surrogate
) -> None:
    data = golden("snnrat_ties")
    options = {"surrogate": gradient, "strict": strict, "backend": backend}
    spikes, gx, _, _ = run(data, "", dtype, 1.0, 1.0, **options)
    assert_spikes(spikes, data[f"s_{mode}"])
    assert_golden(gx, data[f"gx_{mode}"], "gx")


@DTYPES
@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("name", [*NAMES, "BPTR"])
def test_robustconv_lif(backend: Backend, dtype: torch.dtype, row: int, name: str) -> None:
    data = golden("robustconv_lif")
    leak, threshold, soft = map(float, data["cfg_tau_th_soft"][row])
    spikes, gx, g_threshold, g_leak = run(
        data,
        str(row),
        dtype,
        leak,
        threshold,
        reset="soft" if soft else "hard",
        surrogate=surrogate_named(name),
        backend=backend,
    )
    assert_spikes(spikes, data[f"s{row}"])
    assert_golden(gx, data[f"gx{row}_{name}"], "gx")
    expected = data[f"gth{row}_{name}"]
    if name == "BPTR":
        assert np.isnan(expected)
        assert all(g is None or not g.any() for g in (g_threshold, g_leak))
    else:
        assert g_threshold is not None
        assert_golden(g_threshold, expected, "gth")


@DTYPES
@pytest.mark.parametrize("name", NAMES)
def test_robustconv_surrogates(dtype: torch.dtype, name: str) -> None:
    data = golden("robustconv_surrogates")
    derivative = surrogate_named(name).derivative(tensor(data["z"], dtype))
    assert derivative.dtype == dtype
    assert_golden(derivative, data[f"ds_{name}"], "ds/dz")


@DTYPES
@pytest.mark.parametrize("name", NAMES)
def test_robustconv_surrogates_in_the_kernel(
    backend: Backend, dtype: torch.dtype, name: str
) -> None:
    """One step of a neuron at rest: the spike is [z >= 0] and the gradient is ds/dz itself."""
    data = golden("robustconv_surrogates")
    z = tensor(data["z"], dtype)
    # Where 1 + z is rounded, z at the neuron is another one, maybe across the edge of a support.
    exact = (z + 1) - 1 == z
    assert exact.sum() > 200
    x = (z + 1).reshape(1, 1, -1).requires_grad_()
    spikes = lif(x, surrogate=surrogate_named(name), backend=backend)
    (gx,) = torch.autograd.grad(spikes.sum(), x)
    assert_spikes(spikes.flatten()[exact], data["s"][exact.numpy()])
    assert_golden(gx.flatten()[exact], data[f"ds_{name}"][exact.numpy()], "ds/dz")


@DTYPES
@pytest.mark.parametrize("row", range(3))
def test_hire_neuron(backend: Backend, dtype: torch.dtype, row: int) -> None:
    data = golden("hire_neuron")
    spikes, gx, g_threshold, g_leak = run(
        data,
        str(row),
        dtype,
        float(data[f"lk{row}"]),
        float(data[f"th{row}"]),
        reset="soft",
        detach_reset=True,
        strict=True,
        surrogate=surrogate.Triangle(scale=0.3, normalized=True),
        backend=backend,
    )
    assert_spikes(spikes, data[f"s{row}"])
    assert_spikes(spikes.sum(0), data[f"count{row}"])
    assert g_threshold is not None
    assert g_leak is not None
    for name, actual in (("gx", gx), ("gth", g_threshold), ("glk", g_leak)):
        assert_golden(actual, data[f"{name}{row}"], name)
