"""Loads the compiled kernels, or keeps the reason why they are not there."""

from __future__ import annotations

import importlib
from typing import Any

import torch

build_info: dict[str, Any] | None = None
"""How the extension was built; None where it is not there."""

why_not = ""
"""Why the extension is not there; empty where it is."""

try:
    # Not `from snnkern import _C`: where the module is absent, that blames a circular import.
    build_info = importlib.import_module("snnkern._C").build_info()
except ModuleNotFoundError as error:
    if error.name != "snnkern._C":
        raise
    why_not = (
        "snnkern was installed without compiled kernels (SNNKERN_BUILD=none, or not installed at "
        "all); with a C++ compiler, `pip install -e .` builds them"
    )
except ImportError as error:
    why_not = f"the compiled kernels do not load: {error}; reinstall snnkern to build them anew"

has_cuda = build_info is not None and not build_info["cuda_absent"]
"""Whether CUDA kernels were compiled."""


def why_not_cuda(device: torch.device) -> str:
    """Why the CUDA kernels do not run for tensors on ``device``; empty where they do."""
    if build_info is None:
        return why_not
    if absent := build_info["cuda_absent"]:
        return f"snnkern was compiled without CUDA kernels: {absent}"
    if device.type != "cuda":
        return f"the tensor is on {device}"
    return "" if torch.cuda.is_available() else "torch finds no GPU"
