"""Values as spikes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from snnkern import reference
from snnkern._checks import check_int
from snnkern.autograd import KernelRateCode, RateCode
from snnkern.functional import backends
from snnkern.functional.backends import Backend
from snnkern.functional.checks import FLOAT_DTYPES

Coding = Literal["poisson", "signed_poisson", "bernoulli"]
CODINGS = reference.CODINGS


def encode(
    x: Tensor,
    timesteps: int | None = None,
    coding: Coding = "poisson",
    *,
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Rate coding: spikes ``[T, N, ...]`` drawn anew in every step at the rate of ``x``.

    With uniform draws r in ``[0, 1)``: ``"poisson"`` fires where ``r <= x``, ``"bernoulli"`` where
    ``r < x`` (eq. 5 of Liang et al. 2022); ``"signed_poisson"`` gives ``sign(x)`` where ``r <=
    |x|``, for inputs in ``[-1, 1]`` (the code of Sharmin et al. 2020).

    Args:
        x: values ``[N, ...]``, floating point.
        timesteps: T, at least 1; not needed with ``draws``.
        coding: see above.
        generator: makes the draws repeatable.
        draws: the draws themselves, ``[T, N, ...]``, instead of new ones.
        backend: ``"triton"`` draws inside the kernel (Philox, float32 draws whatever the dtype),
            where no draw is ever stored; None draws with ``torch.rand``. The same generator gives
            the same spikes on the same backend and device, other ones elsewhere.

    Returns:
        Spikes of the dtype of ``x``. The gradient passes straight through the draw: that of ``x``
        is the sum over time.

    Raises:
        TypeError: ``x`` is no floating-point tensor.
        ValueError: an unknown coding, no time steps, draws of another shape, or a backend that does
            not draw.
        RuntimeError: ``backend`` cannot run here; the message says why.
    """
    if not isinstance(x, Tensor) or x.dtype not in FLOAT_DTYPES:
        kind = f"dtype {x.dtype}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise TypeError(f"x has {kind}, expected a floating-point tensor [N, ...]")
    if coding not in CODINGS:
        raise ValueError(f"coding is {coding!r}, expected one of {', '.join(CODINGS)}")
    number = CODINGS.index(coding)
    if backend is not None:
        if backend != "triton" or draws is not None:
            given = "draws are given" if draws is not None else "only 'triton' draws in a kernel"
            raise ValueError(f"backend is {backend!r} and {given}, expected None")
        check_int("timesteps", timesteps, 1)
        overload = backends.overload_for(backend, x)
        drawn: Tensor = KernelRateCode.apply(x, generator, timesteps, number, overload)
        return drawn
    if draws is None:
        check_int("timesteps", timesteps, 1)
        shape = (timesteps, *x.shape)
        draws = torch.rand(shape, dtype=x.dtype, device=x.device, generator=generator)
    elif draws.shape[1:] != x.shape or timesteps not in (None, len(draws)):
        raise ValueError(
            f"draws has shape {list(draws.shape)}, expected {[timesteps or 'T', *x.shape]}"
        )
    spikes: Tensor = RateCode.apply(x, draws, number)
    return spikes
