"""Training methods, and the loop that runs them."""

from snnkern.training.adversarial_training import AdversarialTraining
from snnkern.training.certified import Certified, certified_loss
from snnkern.training.checkpoint import load_checkpoint, save_checkpoint
from snnkern.training.fit import fit
from snnkern.training.hire import HIRE
from snnkern.training.mart import MART, mart_loss
from snnkern.training.method import Losses, Memory, Method, Natural
from snnkern.training.rat import RAT, orthogonal_retraction, simplex_projection
from snnkern.training.robust_finetune import RobustFinetune
from snnkern.training.run import EpochRecord, read_metrics
from snnkern.training.spike_time_finetune import SpikeTimeFinetune
from snnkern.training.trades import TRADES, trades_loss

__all__ = [
    "HIRE",
    "MART",
    "RAT",
    "TRADES",
    "AdversarialTraining",
    "Certified",
    "EpochRecord",
    "Losses",
    "Memory",
    "Method",
    "Natural",
    "RobustFinetune",
    "SpikeTimeFinetune",
    "certified_loss",
    "fit",
    "load_checkpoint",
    "mart_loss",
    "orthogonal_retraction",
    "read_metrics",
    "save_checkpoint",
    "simplex_projection",
    "trades_loss",
]
