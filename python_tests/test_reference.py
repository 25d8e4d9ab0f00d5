"""The reference itself: sequences worked out by hand, and its gradient against autograd.

Whatever holds for the reference is checked on every backend here: a short hand-made sequence costs
nothing, and it stays true when reference and kernel go wrong together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.helpers import POINTWISE, RESETS, assert_within, lif, random
from snnkern import functional
from snnkern.functional import Backend, Reset
from snnkern.surrogate import (
    ATan,
    Erf,
    Exponential,
    FastSigmoid,
    Rate,
    Rectangle,
    Sigmoid,
    StraightThrough,
    Surrogate,
    Triangle,
)

INF = math.inf

# name, x, spikes, final state, options. Every number is exact in float16.
SEQUENCES: list[tuple[str, list[float], list[int], float, dict[str, Any]]] = [
    # 0.75 | 0.375 + 0.75 = 1.125 fires | -0.25 / 2 + 0.25 | 0.0625 + 1 fires
    ("hard", [0.75, 0.75, 0.25, 1.0], [0, 1, 0, 1], -0.25, {"v_reset": -0.25}),
    # 1.75 fires, 0.75 stays | 0.375 + 0.5 | 0.4375 + 0.5 | 0.46875 + 1 fires, 0.46875 stays
    ("soft", [1.75, 0.5, 0.5, 1.0], [1, 0, 0, 1], 0.46875, {}),
    # 2.5 fires, 1.5 stays | 0.75 + 0.5 fires, 0.25 stays | 0.125
    ("soft", [2.5, 0.5, 0.0], [1, 1, 0], 0.125, {}),
    # 1.5 fires | 0.75 + 0.5 - 1 = 0.25 | 0.125 + 1 fires | 0.5625 + 0.25 - 1
    ("delayed_soft", [1.5, 0.5, 1.0, 0.25], [1, 0, 1, 0], -0.1875, {}),
    # The start at 1.25 counts as fired: 0.625 + 1 - 1 | 0.3125 + 1 fires
    ("delayed_soft", [1.0, 1.0], [0, 1], 1.3125, {"v_init": 1.25}),
    ("delayed_soft", [1.0], [0], 0.5, {"v_init": 1.0}),
    ("delayed_soft", [1.0], [1], 1.5, {"v_init": 1.0, "strict": True}),
    # A spike of the last step is subtracted from no state.
    ("delayed_soft", [1.25], [1], 1.25, {}),
    # 1.5 fires | 1.25 fires | 0.625 + 0.25
    ("none", [1.5, 0.5, 0.25], [1, 1, 0], 0.875, {}),
    # Exactly at the threshold, with and without strict; the leak is 1.
    ("hard", [1.0, 0.5], [1, 0], 0.5, {"leak": 1.0}),
    ("hard", [1.0, 0.5], [0, 1], 0.0, {"leak": 1.0, "strict": True}),
    ("soft", [0.5, 0.5, 0.5], [0, 1, 0], 0.5, {"leak": 1.0}),
    ("soft", [0.5, 0.5, 0.5], [0, 0, 1], 0.5, {"leak": 1.0, "strict": True}),
    ("delayed_soft", [1.0, 0.5], [1, 0], 0.5, {"leak": 1.0}),
    ("delayed_soft", [1.0, 0.5], [0, 1], 1.5, {"leak": 1.0, "strict": True}),
    ("none", [1.0, 0.0, -0.5], [1, 1, 0], 0.5, {"leak": 1.0}),
    ("none", [1.0, 0.0, 0.5], [0, 0, 1], 1.5, {"leak": 1.0, "strict": True}),
    # No leak at all keeps nothing; a start that is not rest; another threshold.
    ("hard", [0.75, 0.75, 1.5], [0, 0, 1], 0.0, {"leak": 0.0}),
    ("soft", [0.25, 0.75], [1, 1], 0.25, {"v_init": 0.5, "threshold": 0.5, "leak": 0.5}),
    # The state after a hard reset may itself be above the threshold.
    ("hard", [1.0, 0.0, 0.0], [1, 1, 1], 2.0, {"v_reset": 2.0}),
    # An infinite current fires and a hard reset recovers; a soft one has no way back.
    ("hard", [INF, 0.5, 1.0], [1, 0, 1], 0.0, {}),
    ("soft", [INF, 0.5, -8.0], [1, 1, 1], INF, {}),
    ("hard", [-INF, 8.0], [0, 0], -INF, {}),
]


@pytest.mark.parametrize(
    ("reset", "x", "spikes", "state", "options"),
    SEQUENCES,
    ids=[f"{i}-{sequence[0]}" for i, sequence in enumerate(SEQUENCES)],
)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_sequence_worked_out_by_hand(
    backend: Backend,
    dtype: torch.dtype,
    reset: Reset,
    x: list[float],
    spikes: list[int],
    state: float,
    options: dict[str, Any],
) -> None:
    current = torch.tensor(x, dtype=dtype).reshape(-1, 1)
    arguments = {"leak": 0.5, "threshold": 1.0, "reset": reset, "backend": backend} | options
    s, u = functional.lif(current, **arguments, return_state=True)
    assert s.flatten().tolist() == spikes
    assert u.item() == state
    assert s.dtype == dtype
    assert u.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_each_channel_has_its_own_parameters(backend: Backend) -> None:
    x = torch.tensor([0.75, 0.75]).reshape(2, 1, 1, 1).expand(2, 2, 3, 2)
    spikes, state = functional.lif(
        x,
        torch.tensor([0.0, 0.5, 1.0]),
        torch.tensor([0.5, 1.0, 2.0]),
        reset="none",
        return_state=True,
        backend=backend,
    )
    assert spikes[:, 0, :, 0].tolist() == [[1, 0, 0], [1, 1, 0]]
    assert state[0, :, 0].tolist() == [0.75, 1.125, 1.5]
    assert torch.equal(spikes, spikes[:, :1, :, :1].expand_as(spikes))


def test_gradient_worked_out_by_hand(backend: Backend) -> None:
    """Two steps, leak 1/2, threshold 1, a soft reset, the straight-through surrogate.

    x = (1.5, 0.25), start 1: v1 = 1/2 + 1.5 = 2 fires, u1 = 1; v2 = 1/2 + 1/4 = 3/4 does not fire.
    dL/ds = (1, 2). With ds/dv = 1 and ds/dth = -1:
    dL/dv2 = 2; dL/du1 = 1; dL/dv1 = 1 (spike) + 1 (membrane) - th * 1 (spike in the reset) = 1;
    detached: 2. dL/dleak = dL/dv2 * u1 + dL/dv1 * 1. dL/dth = -(2 + 1) (both spikes)
    - 1 (the threshold that was subtracted) + 1 (the spike in the reset, attached only).
    dL/dstart = dL/dv1 / 2.
    """
    for detach_reset, first, g_leak, g_threshold in (
        (False, 1.0, 3.0, -3.0),
        (True, 2.0, 4.0, -4.0),
    ):
        x = torch.tensor([[1.5], [0.25]], requires_grad=True)
        leak, threshold = (torch.tensor(value, requires_grad=True) for value in (0.5, 1.0))
        start = torch.ones(1, requires_grad=True)
        spikes = functional.lif(
            x,
            leak,
            threshold,
            reset="soft",
            v_init=start,
            surrogate=StraightThrough(),
            detach_reset=detach_reset,
            backend=backend,
        )
        grads = torch.autograd.grad(
            spikes, (x, leak, threshold, start), torch.tensor([[1.0], [2.0]])
        )
        assert spikes.flatten().tolist() == [1, 0]
        assert [g.tolist() for g in grads] == [[[first], [2.0]], g_leak, g_threshold, [first / 2]]


def test_rate_gate_worked_out_by_hand(backend: Backend) -> None:
    """The gradient of a spike reaches the current of its step, in neurons that fired at all."""
    x = torch.tensor([[0.5, 0.25], [0.5, 0.25], [0.5, 0.25]], requires_grad=True)
    threshold = torch.tensor(1.0, requires_grad=True)
    start = torch.zeros(2, requires_grad=True)
    gs = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    spikes, state = functional.lif(
        x, 1.0, threshold, v_init=start, surrogate=Rate(), return_state=True, backend=backend
    )
    gx, g_threshold, g_start = torch.autograd.grad(
        (spikes, state), (x, threshold, start), (gs, torch.ones(2)), allow_unused=True
    )
    assert spikes.tolist() == [[0, 0], [1, 0], [0, 0]]
    assert gx.tolist() == [[1, 0], [3, 0], [5, 0]]
    assert all(g is None or not g.any() for g in (g_threshold, g_start))


class Fire(torch.autograd.Function):
    """[z >= 0] or [z > 0], or a smooth curve instead; its derivative is the surrogate's."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, surrogate: Surrogate, curve: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(z)
        ctx.surrogate = surrogate
        return curve(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.derivative(z), None, None


def plain_loop(
    x: Tensor,
    leak: Tensor,
    threshold: Tensor,
    u: Tensor,
    *,
    reset: Reset,
    v_reset: float,
    detach_reset: bool,
    surrogate: Surrogate,
    curve: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The equations of functional.lif step by step, left to autograd."""
    if leak.dim():
        leak, threshold = (p.reshape(-1, *(1,) * (x.dim() - 3)) for p in (leak, threshold))

    def fire(v: Tensor) -> Tensor:
        z = v / threshold - 1 if surrogate.normalized else v - threshold
        fired: Tensor = Fire.apply(z, surrogate, curve)  # type: ignore[no-untyped-call]
        return fired

    spikes = []
    for x_t in x:
        v = leak * u + x_t
        if reset == "delayed_soft":
            before = fire(u)
            v = v - threshold * (before.detach() if detach_reset else before)
        s = fire(v)
        spikes.append(s)
        in_reset = s.detach() if detach_reset else s
        if reset == "hard":
            u = v * (1 - in_reset) + v_reset * in_reset
        elif reset == "soft":
            u = v - threshold * in_reset
        else:
            u = v
    return torch.stack(spikes), u


def step_at(z: Tensor) -> Tensor:
    return (z >= 0).double()


def step_above(z: Tensor) -> Tensor:
    return (z > 0).double()


def leaves(channels: bool, seed: int) -> list[Tensor]:
    shape = (3,) if channels else ()
    tensors = [
        random(7, 2, 3, 5, seed=seed, dtype=torch.float64),
        random(*shape, seed=seed + 1, dtype=torch.float64).sigmoid(),
        random(*shape, seed=seed + 2, dtype=torch.float64).exp() / 2,
        random(2, 3, 5, seed=seed + 3, dtype=torch.float64),
    ]
    return [t.requires_grad_() for t in tensors]


@pytest.mark.parametrize("surrogate", POINTWISE, ids=repr)
@pytest.mark.parametrize("normalized", [False, True], ids=["", "normalized"])
@pytest.mark.parametrize("detach_reset", [False, True], ids=["attached", "detached"])
@pytest.mark.parametrize("reset", RESETS)
def test_gradients_are_those_of_a_plain_loop(
    backend: Backend, reset: Reset, detach_reset: bool, normalized: bool, surrogate: Surrogate
) -> None:
    surrogate = type(surrogate)(**vars(surrogate) | {"normalized": normalized})
    for channels, strict, through in (
        (False, False, "spikes"),
        (True, True, "both"),
        (True, False, "state"),
    ):
        tensors = leaves(channels, seed=11)
        outputs = functional.lif(
            tensors[0],
            tensors[1],
            tensors[2],
            reset=reset,
            v_reset=-0.25,
            v_init=tensors[3],
            surrogate=surrogate,
            detach_reset=detach_reset,
            strict=strict,
            return_state=True,
            backend=backend,
        )
        expected = plain_loop(
            *tensors,
            reset=reset,
            v_reset=-0.25,
            detach_reset=detach_reset,
            surrogate=surrogate,
            curve=step_above if strict else step_at,
        )
        assert torch.equal(outputs[0], expected[0])
        used = [i for i, name in enumerate(("spikes", "state")) if through in (name, "both")]
        weights = [random(*out.shape, seed=20, dtype=torch.float64) for out in expected]
        actual, target = (
            torch.autograd.grad(
                [out[i] for i in used], tensors, [weights[i] for i in used], materialize_grads=True
            )
            for out in (outputs, expected)
        )
        for name, g, wanted in zip(
            ("x", "leak", "threshold", "v_init"), actual, target, strict=True
        ):
            allowed = 1e-12 * max(1.0, float(wanted.abs().max()))
            assert_within(g, wanted, allowed, f"{name}, {channels=}, {strict=}, {through=}")


# The curves whose derivatives the surrogates are.
CURVES: list[tuple[Surrogate, Callable[[Tensor], Tensor]]] = [
    (Sigmoid(3.0), lambda z: torch.sigmoid(3 * z)),
    (ATan(1.5), lambda z: torch.atan(math.pi / 2 * 1.5 * z) / math.pi + 0.5),
    (Erf(1.2), lambda z: torch.erf(1.2 * z) / 2 + 0.5),
    (FastSigmoid(4.0), lambda z: z / (1 + 4 * z.abs())),
    (Exponential(0.7, 2.0), lambda z: 0.35 * z.sign() * (1 - torch.exp(-2 * z.abs()))),
    (StraightThrough(), lambda z: z.clone()),
    # 1/2 + z/w - sign(z) z^2 / (2 w^2) inside the support, 0 and 1 outside
    (
        Triangle(2.0),
        lambda z: 0.5 + z.clamp(-2, 2) / 2 - z.sign() * z.clamp(-2, 2).square() / 8,
    ),
]


@pytest.mark.parametrize(("surrogate", "curve"), CURVES, ids=[repr(pair[0]) for pair in CURVES])
@pytest.mark.parametrize("normalized", [False, True], ids=["", "normalized"])
@pytest.mark.parametrize("reset", RESETS)
def test_the_plain_loop_passes_gradcheck_with_a_smooth_spike(
    reset: Reset,
    normalized: bool,
    surrogate: Surrogate,
    curve: Callable[[Tensor], Tensor],
) -> None:
    """So that the loop that the gradients are held to is itself right, surrogates included."""
    surrogate = type(surrogate)(**vars(surrogate) | {"normalized": normalized})

    def loop(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return plain_loop(
            *tensors,
            reset=reset,
            v_reset=-0.25,
            detach_reset=False,
            surrogate=surrogate,
            curve=curve,
        )

    tensors = leaves(True, seed=31)
    tensors[0] = tensors[0].detach()[:3, :1].requires_grad_()
    tensors[3] = tensors[3].detach()[:1].requires_grad_()
    assert torch.autograd.gradcheck(loop, tensors)


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("reset", RESETS)
def test_the_final_state_passes_gradcheck_between_spikes(
    backend: Backend, reset: Reset, channels: bool
) -> None:
    """As long as no spike comes or goes, the state is smooth, and its gradient the true one."""

    def state(*tensors: Tensor) -> Tensor:
        return functional.lif(
            *tensors[:3],
            reset=reset,
            v_reset=-0.25,
            v_init=tensors[3],
            surrogate=Rectangle(1e-9),  # blind to spikes
            return_state=True,
            backend=backend,
        )[1]

    tensors = leaves(channels, seed=41)
    spikes = lif(*tensors[:3], reset=reset, v_init=tensors[3], backend=backend)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.autograd.gradcheck(state, tensors, eps=1e-7, atol=1e-6)
