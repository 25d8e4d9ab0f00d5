"""Training methods, and the loop that runs them."""

from snnkern.training.fit import EpochRecord, fit
from snnkern.training.method import Method, Natural
from snnkern.training.rat import RAT, orthogonal_retraction

__all__ = ["RAT", "EpochRecord", "Method", "Natural", "fit", "orthogonal_retraction"]
