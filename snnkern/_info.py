"""What is installed and what runs."""

from __future__ import annotations

import os
import platform

import torch

from snnkern import _load
from snnkern._version import __version__
from snnkern.functional import BACKENDS, why_not


def backends() -> dict[str, str]:
    """Every backend, with the reason why it cannot run; an empty reason where it can."""
    devices = {"reference": "cpu", "cpu": "cpu", "cuda": "cuda", "triton": "cuda"}
    return {name: why_not(name, torch.device(devices[name])) for name in BACKENDS}


def machine() -> str:
    """The processor in words."""
    model = ""
    if os.path.exists("/proc/cpuinfo"):  # noqa: PTH110  a file of the system, not of ours
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            names = [
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            ]
        model = names[0] if names else ""
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def info() -> str:
    """Version, torch, machine, the backends, and for each one that does not run, why."""
    built = _load.build_info
    lines = [
        f"snnkern   {__version__}",
        f"torch     {torch.__version__}, {torch.get_num_threads()} threads",
        f"python    {platform.python_version()} on {platform.system()}",
        f"machine   {machine()}",
    ]
    if built:
        archs = f", GPUs {built['cuda_archs']}" if built["cuda_archs"] else ""
        lines.append(f"built     with {built['compiler']} for torch {built['torch']}{archs}")
    on_gpu = "cuda" if _load.has_cuda else "triton"
    taken = {"reference" if _load.why_not else "cpu": "CPU", on_gpu: "CUDA"}
    for name, reason in backends().items():
        note = f"no: {reason}" if reason else "yes"
        if name in taken and not reason:
            note += f", and what backend=None takes for {taken[name]} tensors"
        lines.append(f"{name:<9} {note}")
    lines.append(f"bounds    {'reference' if _load.why_not else 'cpu'}; on a GPU the reference")
    return "\n".join(lines)
