"""The backends of the ops, and why one cannot run."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from snnkern import _load, _triton

Backend = Literal["reference", "cpu", "cuda", "triton"]
BACKENDS = ("reference", "cpu", "cuda", "triton")


def why_not(backend: str, device: torch.device) -> str:
    """Why ``backend`` cannot run on ``device``; empty where it can."""
    if backend == "reference":
        return ""
    if backend == "cpu":
        if device.type != "cpu":
            return f"the tensor is on {device}"
        return _load.why_not
    if backend == "cuda":
        return _load.why_not_cuda(device)
    return _triton.why_not(device)


def overload_for(backend: str | None, x: Tensor) -> str:
    """The overload of an op that is ``backend`` for ``x``; raises where that cannot run."""
    if backend is None:
        return "default"
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected None or one of {', '.join(BACKENDS)}")
    if reason := why_not(backend, x.device):
        raise RuntimeError(
            f"backend is {backend!r}, which cannot run here: {reason}. backend=None takes what is "
            "there"
        )
    return backend if backend in ("reference", "triton") else "default"
