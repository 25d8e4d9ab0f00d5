"""The ops as Triton kernels, for NVIDIA GPUs: overload ``.triton`` of every op.

The kernels do what ``csrc`` does, bit for bit in float32, and are the place to try a neuron out:

- ``neuron.py``     charge, fire, reset, synapse and their derivatives; the only place with dynamics
- ``surrogate.py``  surrogate derivatives
- ``memory.py``     rows of steps, parameters, packed spikes, sums
- ``lif.py``        the two scans over time, forward and backward, for all neurons
- ``interval.py``  bounds through a neuron, and ``bounds.py``, their scans over time
- ``norm.py``, ``encoding.py``, ``packing.py``  what batch norm needs, rate coding, bits
- ``ops.py``        layout, outputs and launches: the only file that sees tensors

To add a neuron, say another way to charge:

1. Say what it is: a name in ``CHARGES`` of ``snnkern.reference``, and there its formula in
   ``Neuron.charge`` and its three derivatives in ``Neuron.charge_derivatives``. All backends are
   held to this.
2. Add the name's branch to ``charge``, ``charge_du``, ``charge_dx`` and ``charge_ddecay`` of
   ``neuron.py``. Both scans, all options, normalisation and gradients of parameters follow.
3. Name its parameter in ``snnkern.functional.DECAYS``.
4. ``python_tests/test_triton.py`` draws it from ``CHARGES`` and compares both with the reference,
   in Triton's interpreter, so without a GPU.

A surrogate goes the same way: ``SURROGATES`` of the reference and ``derivative`` of
``surrogate.py`` (and ``mixed_derivative``, by its number), and a class in ``snnkern.surrogate``.

Rules of the house. Products and quotients that the reference rounds go through ``multiply`` and
``divide``: a GPU would fuse one and approximate the other, and a spike would flip. Numbers that are
no tensors are compiled in, so float64 keeps its digits and another ``v_reset`` is another kernel:
half a second, once. Function names are unique across files, and functions are imported by name:
torch.compile writes all that a kernel calls into one file.

Triton itself is imported when the first kernel is wanted.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType

import torch

INSTALLED = find_spec("triton") is not None
# On tensors of the CPU, in Triton's interpreter.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def why_not(device: torch.device) -> str:
    """Why the kernels cannot run on ``device``; empty where they can."""
    if not INSTALLED:
        return "Triton is not installed; `pip install triton` brings it, on Linux"
    if device.type == "cpu":
        if INTERPRETED:
            return ""
        return "the tensor is on cpu, and Triton's kernels run on a GPU; move it with .cuda()"
    if device.type != "cuda":
        return f"the tensor is on {device}, and Triton's kernels are made for cuda"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install one that has it"
    return "" if torch.cuda.is_available() else "torch finds no GPU; see `nvidia-smi`"


@lru_cache
def load() -> ModuleType:
    """The module of the ops.

    Raises:
        RuntimeError: Triton is not installed.
    """
    if not INSTALLED:
        raise RuntimeError(why_not(torch.device("cuda")))
    from snnkern._triton import ops

    return ops
