"""Bad arguments: each refused by name, with its value and what was expected, alike everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from python_tests.helpers import RUNNABLE, lif, random
from snnkern import LIF, _load, functional
from snnkern.functional import Backend, checks
from snnkern.surrogate import Triangle

NAN, INF = math.nan, math.inf
HUGE = 10**400  # an int that no float can hold


class Bad(NamedTuple):
    """One call that is refused. `arguments` replace those of a good call."""

    arguments: Callable[[], dict[str, Any]]
    error: type[Exception]
    name: str  # of the argument that the message is about
    parts: tuple[str, ...]  # of the message: the value, and what was expected


def bad(error: type[Exception], name: str, value: Any, *parts: str) -> Bad:
    """A bad value of one argument."""
    return Bad(lambda: {name: value() if callable(value) else value}, error, name, parts)


def channels(*values: float) -> Callable[[], Tensor]:
    return lambda: torch.tensor(values)


def zeros(*shape: int, **options: Any) -> Callable[[], Tensor]:
    return lambda: torch.zeros(shape, **options)


DENSE = "expected a dense tensor"
SHAPE = "expected [T, N, ...]"
FLOATS = "expected float16, bfloat16, float32 or float64"
AT_LEAST = "expected at least one"
PARAMETER_SHAPE = "expected [] or [4]"

BAD = [
    # x
    bad(TypeError, "x", [[1.0]], "list", "expected a torch.Tensor"),
    bad(TypeError, "x", None, "NoneType", "expected a torch.Tensor"),
    bad(TypeError, "x", lambda: random(3, 2, 4).numpy(), "ndarray", "expected a torch.Tensor"),
    *(
        bad(TypeError, "x", zeros(3, 2, 4, dtype=dtype), str(dtype), FLOATS)
        for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
    ),
    bad(TypeError, "x", lambda: torch.zeros(3, 2, 4).to_sparse(), "sparse_coo", DENSE),
    bad(ValueError, "x", zeros(), "[]", SHAPE),
    bad(ValueError, "x", zeros(3), "[3]", SHAPE),
    bad(ValueError, "x", zeros(0, 2, 4), "[0, 2, 4]", "no time steps", AT_LEAST),
    bad(ValueError, "x", zeros(3, 0, 4), "[3, 0, 4]", "no samples", AT_LEAST),
    bad(ValueError, "x", zeros(3, 2, 0), "[3, 2, 0]", "no neurons", AT_LEAST),
    # leak and threshold
    *(
        bad(ValueError, "leak", value, str(value), "in [0, 1]")
        for value in (-0.1, 1.5, -1, 2, NAN, INF, -INF, 1 + 1e-9)
    ),
    *(
        bad(ValueError, "threshold", value, str(value), "finite and above 0")
        for value in (0, 0.0, -0.0, -1.0, NAN, INF, -INF)
    ),
    bad(ValueError, "leak", channels(0.5, 0.5, -0.25, 0.5), "-0.25", "in [0, 1]"),
    bad(ValueError, "leak", channels(0.5, 1.25, 0.5, 0.5), "1.25", "in [0, 1]"),
    bad(ValueError, "leak", channels(0.5, 0.5, 0.5, NAN), "nan", "in [0, 1]"),
    bad(ValueError, "threshold", channels(1.0, 1.0, 0.0, 1.0), "0.0", "finite and above 0"),
    bad(ValueError, "threshold", channels(-2.5, 1.0, 1.0, 1.0), "-2.5", "finite and above 0"),
    bad(ValueError, "threshold", channels(1.0, NAN, 1.0, 1.0), "nan", "finite and above 0"),
    bad(ValueError, "threshold", channels(1.0, INF, 1.0, 1.0), "inf", "finite and above 0"),
    bad(ValueError, "threshold", lambda: torch.tensor(0.0), "0.0", "finite and above 0"),
    bad(ValueError, "threshold", lambda: torch.tensor(NAN), "nan", "finite and above 0"),
    bad(ValueError, "leak", lambda: torch.tensor(NAN), "nan", "in [0, 1]"),
    # A float32 state cannot hold these, or holds them as 0 or inf.
    *(
        bad(ValueError, "threshold", value, str(value), "expected")
        for value in (1e-46, 1e-300, 1e39, HUGE)
    ),
    bad(TypeError, "threshold", None, "None of type NoneType", "expected a number or a tensor"),
    bad(ValueError, "v_reset", 1e39, "1e+39", "expected"),
    bad(ValueError, "v_reset", -HUGE, str(-HUGE), "expected"),
    bad(ValueError, "v_init", 1e39, "1e+39", "expected"),
    *(
        bad(error, name, value, text, expected)
        for name in ("leak", "threshold")
        for error, value, text, expected in (
            (TypeError, "half", "'half' of type str", "expected a number or a tensor"),
            (TypeError, True, "True of type bool", "expected a number or a tensor"),
            (TypeError, [0.5] * 4, "of type list", "expected a number or a tensor"),
            (TypeError, 0.5 + 0j, "of type complex", "expected a number or a tensor"),
            (
                TypeError,
                lambda: torch.ones(4, dtype=torch.int64),
                "torch.int64",
                "expected a floating-point tensor",
            ),
            (
                TypeError,
                lambda: torch.ones(4, dtype=torch.complex64),
                "torch.complex64",
                "expected a floating-point tensor",
            ),
            (TypeError, lambda: torch.ones(4).double(), "float64", "pass"),
            (TypeError, lambda: torch.ones(4).to_sparse(), "sparse_coo", "expected a dense tensor"),
            (ValueError, lambda: torch.ones(3), "[3]", PARAMETER_SHAPE),
            (ValueError, lambda: torch.ones(5), "[5]", PARAMETER_SHAPE),
            (ValueError, lambda: torch.ones(1), "[1]", PARAMETER_SHAPE),
            (ValueError, lambda: torch.ones(0), "[0]", PARAMETER_SHAPE),
            (ValueError, lambda: torch.ones(1, 4), "[1, 4]", PARAMETER_SHAPE),
            (ValueError, lambda: torch.ones(2, 4), "[2, 4]", PARAMETER_SHAPE),
            (ValueError, lambda: torch.ones(4, device="meta"), "on meta", "expected cpu like x"),
        )
    ),
    # v_init and v_reset
    bad(TypeError, "v_init", "rest", "'rest' of type str", "expected a number"),
    bad(TypeError, "v_init", False, "False of type bool", "expected a number"),
    bad(TypeError, "v_init", [0.0], "of type list", "expected a number"),
    bad(ValueError, "v_init", NAN, "nan", "expected a finite number"),
    bad(ValueError, "v_init", -INF, "-inf", "expected a finite number"),
    bad(ValueError, "v_init", zeros(4), "[4]", "expected [2, 4], that of x[0]"),
    bad(ValueError, "v_init", zeros(4, 2), "[4, 2]", "expected [2, 4], that of x[0]"),
    bad(ValueError, "v_init", zeros(1, 4), "[1, 4]", "expected [2, 4], that of x[0]"),
    bad(ValueError, "v_init", zeros(3, 2, 4), "[3, 2, 4]", "expected [2, 4], that of x[0]"),
    bad(TypeError, "v_init", zeros(2, 4, dtype=torch.float64), "float64", "torch.float32"),
    bad(TypeError, "v_init", zeros(2, 4, dtype=torch.float16), "float16", "torch.float32"),
    bad(TypeError, "v_init", zeros(2, 4, dtype=torch.int32), "int32", "torch.float32"),
    bad(ValueError, "v_init", zeros(2, 4, device="meta"), "on meta", "expected cpu like x"),
    bad(TypeError, "v_init", lambda: torch.zeros(2, 4).to_sparse(), "sparse_coo", DENSE),
    bad(TypeError, "v_reset", None, "None of type NoneType", "expected a number"),
    bad(TypeError, "v_reset", "0", "'0' of type str", "expected a number"),
    bad(TypeError, "v_reset", True, "True of type bool", "expected a number"),
    bad(TypeError, "v_reset", lambda: torch.tensor(0.0), "of type Tensor", "expected a number"),
    bad(ValueError, "v_reset", NAN, "nan", "expected a finite number"),
    bad(ValueError, "v_reset", INF, "inf", "expected a finite number"),
    # options
    *(
        bad(ValueError, "reset", value, repr(value), "hard, soft, delayed_soft, none")
        for value in ("Hard", "", None, 0, ["hard"])
    ),
    *(
        bad(TypeError, "surrogate", value, text, "expected a snnkern.surrogate.Surrogate")
        for value, text in (
            ("triangle", "'triangle' of type str"),
            (None, "None of type NoneType"),
            (lambda: torch.sigmoid, "of type builtin_function_or_method"),
            (lambda: Triangle, "of type type"),
        )
    ),
    *(
        bad(TypeError, name, value, repr(value), "expected a bool")
        for name in ("detach_reset", "strict", "return_state")
        for value in ("yes", 1, None)
    ),
]


def message(entry: Bad, backend: str, dtype: torch.dtype = torch.float32) -> str:
    arguments: dict[str, Any] = {"x": torch.ones(3, 2, 4, dtype=dtype), "backend": backend}
    with pytest.raises(entry.error) as error:
        functional.lif(**arguments | entry.arguments())
    assert type(error.value) is entry.error
    return str(error.value)


@pytest.mark.parametrize(
    "entry", BAD, ids=[f"{i}-{entry.name}-{entry.parts[0][:24]}" for i, entry in enumerate(BAD)]
)
def test_bad_argument(entry: Bad) -> None:
    messages = {message(entry, backend) for backend in RUNNABLE}
    assert len(messages) == 1
    (text,) = messages
    assert text.startswith(f"{entry.name} ")
    for part in entry.parts:
        assert part in text


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("gpu", ("'gpu'", "expected None or one of reference, cpu, cuda, triton")),
        ("", ("''", "expected None or one of")),
        (0, ("0", "expected None or one of")),
    ],
)
def test_unknown_backend(value: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"^backend is") as error:
        functional.lif(torch.ones(3, 2), backend=value)
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize("value", [name for name in functional.BACKENDS if name not in RUNNABLE])
def test_backend_that_cannot_run_here(value: Backend) -> None:
    with pytest.raises(
        RuntimeError, match=f"backend is '{value}', which cannot run here: .+"
    ) as error:
        functional.lif(torch.ones(3, 2), backend=value)
    assert functional.why_not(value, torch.device("cpu")) in str(error.value)
    assert "backend=None takes what is there" in str(error.value)


def test_the_cpu_backend_wants_tensors_on_the_cpu() -> None:
    with pytest.raises(RuntimeError, match="cannot run here: the tensor is on meta"):
        functional.lif(torch.ones(3, 2, device="meta"), backend="cpu")


def test_without_compiled_kernels_the_reference_runs_and_cpu_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_load, "why_not", "they were left out")
    with pytest.raises(RuntimeError, match=r"backend is 'cpu', .*: they were left out"):
        functional.lif(torch.ones(3, 2), backend="cpu")
    assert functional.lif(torch.ones(3, 2), backend="reference").all()


@pytest.mark.parametrize("name", ["leak", "threshold"])
def test_a_layer_without_channels_takes_scalars_only(backend: Backend, name: str) -> None:
    parameter = torch.ones(2)
    with pytest.raises(ValueError, match=rf"{name} has shape \[2\], expected \[\]$"):
        lif(torch.ones(3, 2), backend=backend, **{name: parameter})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_on_the_edge_is_taken(backend: Backend, dtype: torch.dtype) -> None:
    x = torch.ones(3, 2, 4, dtype=dtype)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    good: list[dict[str, Any]] = [
        {"leak": 0},
        {"leak": 1},
        {"leak": torch.tensor([0.0, 1.0, 0.5, 0.25])},
        {"leak": torch.ones(4, dtype=torch.float16)},
        {"threshold": 1e-38},
        {"threshold": 3e38},
        {"threshold": torch.full((4,), 1e-38)},
        {"threshold": torch.ones(8)[::2]},
        {"v_init": torch.zeros(2, 4, dtype=dtype)},
        {"v_init": torch.zeros(2, 4, dtype=state)},
        {"v_init": -3},
        {"v_init": torch.full((2, 4), NAN, dtype=state)},
        {"v_reset": -5},
    ]
    for options in good:
        spikes = lif(x, **options, backend=backend)
        assert (spikes.shape, spikes.dtype) == (x.shape, dtype)
        assert ((spikes == 0) | (spikes == 1)).all()


def test_a_float64_layer_takes_float64_parameters(backend: Backend) -> None:
    x = torch.ones(3, 2, 4, dtype=torch.float64)
    value = torch.tensor(0.1, dtype=torch.float64)
    spikes, state = lif(x, value, 1e300, v_init=1e200, return_state=True, backend=backend)
    assert not spikes.any()
    assert state.dtype == torch.float64
    assert state[0, 0].item() == pytest.approx(1e197)


def test_on_a_gpu_a_tensor_is_looked_at_once_per_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look waits for the device; here the CPU stands in for one."""
    monkeypatch.setattr(checks, "waits_for_device", lambda value: True)
    looks: list[str] = []
    check = checks.check_parameter

    def look(name: str, value: float | Tensor) -> None:
        if isinstance(value, Tensor):
            looks.append(name)
        check(name, value)

    monkeypatch.setattr(checks, "check_parameter", look)
    x, threshold = torch.ones(2, 3, 4), torch.ones(4)
    for _ in range(3):
        functional.lif(x, 0.5, threshold)
    assert looks == ["threshold"]
    with pytest.raises(ValueError, match="threshold is -1"):
        functional.lif(x, 0.5, threshold.neg_())
    with pytest.raises(ValueError, match="threshold is -1"):
        functional.lif(x, 0.5, threshold)
    looks.clear()
    layer = LIF(0.5, learn_leak=True, learn_threshold=True)
    layer(x)
    with torch.no_grad():
        layer(x)
    assert looks == []
