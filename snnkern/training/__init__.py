"""Training methods, and the loop that runs them."""

from snnkern.training.checkpoint import load_checkpoint, save_checkpoint
from snnkern.training.fit import fit
from snnkern.training.hire import HIRE
from snnkern.training.method import Losses, Memory, Method, Natural
from snnkern.training.rat import RAT, orthogonal_retraction, simplex_projection
from snnkern.training.run import EpochRecord, read_metrics

__all__ = [
    "HIRE",
    "RAT",
    "EpochRecord",
    "Losses",
    "Memory",
    "Method",
    "Natural",
    "fit",
    "load_checkpoint",
    "orthogonal_retraction",
    "read_metrics",
    "save_checkpoint",
    "simplex_projection",
]
