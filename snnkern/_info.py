"""What is installed and what runs."""

from __future__ import annotations

import os
import platform

import torch
from torch import nn

from snnkern import _load
from snnkern._version import __version__
from snnkern.functional import BACKENDS, why_not
from snnkern.nn.packed import EventDriven


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


def _layers(model: nn.Module) -> str:
    """A line for every layer that chooses between events and dense products."""
    rows = [("layer", "density", "goes by", "because", "events", "dense")]
    for name, module in model.named_modules():
        if isinstance(module, EventDriven):
            choice = module.choice
            events, dense = (
                f"{1e3 * choice.seconds[way]:.2f} ms" if way in choice.seconds else ""
                for way in ("events", "dense")
            )
            rows.append(
                (
                    name or type(module).__name__,
                    "" if choice.density is None else f"{choice.density:.3f}",
                    "events" if choice.by_events else "dense",
                    choice.reason,
                    events,
                    dense,
                )
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def info(model: nn.Module | None = None) -> str:
    """Version, torch, machine, the backends, and for each one that does not run, why.

    Args:
        model: its layers instead that choose between events and dense products: the density of
            the input at the last look, the choice and why, and the seconds that the last call took
            either way.
    """
    if model is not None:
        return _layers(model)
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
