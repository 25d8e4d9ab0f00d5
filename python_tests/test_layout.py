"""How tensors lie in memory: read in place, kept, and foretold by the fakes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

from python_tests.helpers import (
    LAYOUTS,
    RUNNABLE,
    assert_same_bits,
    laid_out,
    lif,
    random,
    raw_neuron,
)
from snnkern import functional
from snnkern._layout import empty_step, empty_steps, step_strides
from snnkern.functional import Backend
from snnkern.surrogate import ATan, Triangle

LEAK, THRESHOLD = torch.tensor(0.5), torch.tensor(1.0)


def outputs(x: Tensor, backend: str) -> dict[str, Tensor]:
    """Every output of both ops that follows the layout of x."""
    overload = "reference" if backend == "reference" else "default"
    leak, threshold = (p.to(x.device) for p in (LEAK, THRESHOLD))
    v_init = torch.zeros(x.shape[1:], device=x.device)
    neuron = raw_neuron(leak, threshold, v_init)
    forward = getattr(torch.ops.snnkern.lif_forward, overload)
    backward = getattr(torch.ops.snnkern.lif_backward, overload)
    spikes, state, _ = forward(x, *neuron, 0, True)
    gx, _, _, _, g_init, _ = backward(
        torch.ones_like(spikes),
        None,
        None,
        x,
        *neuron,
        False,
        0,
        [1.0, 1.0],
        False,
        None,
        None,
        False,
    )
    return {"spikes": spikes, "state": state, "grad_x": gx, "grad_v_init": g_init}


def assert_foretold(x: Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        foretold = {name: t.stride() for name, t in outputs(mode.from_tensor(x), "cpu").items()}
    for backend in RUNNABLE:
        for name, t in outputs(x, backend).items():
            assert t.stride() == foretold[name], (name, backend, x.shape, x.stride())


SHAPES = ((2, 3, 4, 5), (2, 1, 4, 5), (1, 3, 1, 5), (1, 1, 1, 1), (2, 2, 2, 2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fakes_foretell_the_strides_of_every_permutation(shape: tuple[int, ...]) -> None:
    for order in itertools.permutations(range(1, 5)):
        inverse = [0, *(order.index(d) + 1 for d in range(1, 5))]
        stored = random(3, *(shape[d - 1] for d in order))
        x = stored.permute(inverse)
        assert x.shape[1:] == shape
        assert_foretold(x)
        assert_foretold(x[:1].expand(x.shape))
        assert_foretold(x[..., ::2])
        assert step_strides(x) == x.stride()[1:]
        for t in outputs(x, "cpu" if "cpu" in RUNNABLE else "reference").values():
            assert t.stride()[-4:] == x.stride()[1:]


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5), (3, 4, 5, 6), (2, 3, 4, 5, 6)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes_foretell_the_strides_of_every_layout(shape: tuple[int, ...], layout: str) -> None:
    assert_foretold(laid_out(random(4, *shape), layout))


@st.composite
def strided(draw: st.DrawFn) -> Tensor:
    """Any view whatsoever, overlapping ones included."""
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    strides = draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)))
    return random(200).as_strided(shape, strides)


@settings(max_examples=300)
@given(x=strided())
def test_any_strides_at_all(x: Tensor) -> None:
    """Foretold, dense, time outermost, and read right."""
    assert_foretold(x)
    expected = outputs(x.contiguous(), "reference")
    for backend in RUNNABLE:
        for name, t in outputs(x, backend).items():
            assert_same_bits(t, expected[name], name)
            numel = x[0].numel()
            if "state" not in name and "init" not in name:
                assert t.stride(0) == numel
            step = t.as_strided(x.shape[1:], t.stride()[-x.dim() + 1 :])
            memory = t.as_strided((numel,), (1,))
            assert memory.sort().values.equal(step.flatten().sort().values)


def test_steps_that_are_not_dense_become_contiguous() -> None:
    x = laid_out(random(3, 2, 4, 5), "padded")
    assert step_strides(x) == (20, 5, 1)
    steps, step = empty_steps(x, torch.float64, 3), empty_step(x, torch.float16)
    assert (steps.shape, steps.stride(), steps.dtype) == (x.shape, (40, 20, 5, 1), torch.float64)
    assert (step.shape, step.stride(), step.dtype) == (x.shape[1:], (20, 5, 1), torch.float16)


STEP = 2 * 3 * 4 * 5
COPIED = {
    "padded": 16 * STEP,
    "constant padded": STEP,
    "batch first": 16 * STEP,
    "time last": 16 * STEP,
    "one sample for all": 16 * STEP,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_layouts_are_read_in_place(layout: str) -> None:
    """Nothing is copied but steps with holes, and of a constant current only the one step."""
    if "cpu" not in RUNNABLE:
        pytest.skip("no compiled kernels")
    x = laid_out(random(16, 2, 3, 4, 5), layout).requires_grad_()
    for gradient in (False, True):
        spikes = lif(x, backend="cpu")
        gs = torch.ones_like(spikes)
        with torch.profiler.profile(record_shapes=True) as profile:
            if gradient:
                torch.autograd.grad(spikes, x, gs)
            else:
                lif(x, backend="cpu")
        events = profile.events() or ()
        assert any(
            e.name == f"snnkern::lif_{'backward' if gradient else 'forward'}" for e in events
        )
        copied = sum(
            torch.Size(e.input_shapes[0]).numel() for e in events if e.name == "aten::copy_"
        )
        assert copied == COPIED.get(layout, 0)


BATCH_FIRST = {
    "scalars": {},
    "per channel": {"leak": torch.tensor([0.25, 0.5, 0.75])},
    "per neuron": {"leak": torch.rand(3, 20, 19, generator=torch.Generator().manual_seed(1))},
    "synapse": {"synapse": "charged", "synapse_decay": 0.5, "gain": 1.5},
    "delayed": {"reset": "delayed_soft", "delayed_spike": True},
    "samples": {"surrogate": [ATan(2.0), Triangle(), Triangle(), Triangle(2.0)]},
    "bytes": {"spike_format": "uint8"},
}


@pytest.mark.parametrize("options", BATCH_FIRST.values(), ids=BATCH_FIRST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_large_samples_stay_batch_first(
    options: dict[str, Any], dtype: torch.dtype, backend: Backend
) -> None:
    """On the CPU, nothing is copied, and all is as for the same with time outermost."""
    if backend not in ("cpu", "reference"):
        pytest.skip("others copy")
    wide = random(4, 6, 3, 20, 19).to(dtype) + 0.25
    gs = random(6, 4, 3, 20, 19, seed=2).to(dtype)
    v_init = random(4, 3, 20, 19, seed=3).to(torch.float64 if dtype == torch.float64 else None)
    learns = options.get("spike_format") != "uint8"
    parameters = {"leak": torch.tensor(0.5), "threshold": torch.tensor(1.0), "v_init": v_init}
    ends = []
    for view in (wide.transpose(0, 1), wide.transpose(0, 1).contiguous()):
        x = view.detach().requires_grad_(learns)
        learnt = {
            name: options.get(name, value).clone().requires_grad_(learns)
            for name, value in parameters.items()
        }
        out = functional.lif(x, return_state=True, backend=backend, **options | learnt)
        ends.append([t.detach() for t in out])
        if learns:
            ones = [torch.ones_like(state) for state in out[1:]]
            ends[-1] += torch.autograd.grad(out, (x, *learnt.values()), (gs, *ones))
    for apart, together in zip(*ends, strict=True):
        assert torch.equal(apart, together)
    over_time = [t for t in ends[0] if t.shape == gs.shape]
    assert len(over_time) == 1 + learns
    assert all(t.transpose(0, 1).is_contiguous() for t in over_time)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_do_not_depend_on_the_layout(backend: Backend, layout: str) -> None:
    x = laid_out(random(5, 3, 4, 6, 7), layout)
    leak = torch.tensor([0.0, 0.5, 0.75, 1.0])
    v_init = random(3, 4, 6, 7, seed=1)
    spikes, state = lif(x, leak, v_init=v_init, return_state=True, backend=backend)
    plain = lif(x.contiguous(), leak, v_init=v_init, return_state=True, backend="reference")
    assert_same_bits(spikes, plain[0], "spikes")
    assert_same_bits(state, plain[1], "state")
