"""Adversarial attacks and the evaluation of models under them."""

from snnkern.attacks.apgd import APGD
from snnkern.attacks.attack import Attack
from snnkern.attacks.cascade import Cascade, strongest
from snnkern.attacks.checks import check
from snnkern.attacks.ensemble import DEFAULT_ENSEMBLE, SURROGATE_ENSEMBLE, Ensemble
from snnkern.attacks.evaluate import evaluate
from snnkern.attacks.fgsm import FGSM, RFGSM
from snnkern.attacks.noise import GaussianNoise
from snnkern.attacks.patterns import Patterns
from snnkern.attacks.pgd import BIM, PGD
from snnkern.attacks.results import Check, Evaluation
from snnkern.attacks.sandwich import ContradictionError
from snnkern.attacks.sapgd import SAPGD
from snnkern.attacks.sharpness import fitted_assg
from snnkern.attacks.spike_flip import SpikeFlip
from snnkern.attacks.square import Square
from snnkern.attacks.stateless import Stateless
from snnkern.attacks.transfer import Transfer

__all__ = [
    "APGD",
    "BIM",
    "DEFAULT_ENSEMBLE",
    "FGSM",
    "PGD",
    "RFGSM",
    "SAPGD",
    "SURROGATE_ENSEMBLE",
    "Attack",
    "Cascade",
    "Check",
    "ContradictionError",
    "Ensemble",
    "Evaluation",
    "GaussianNoise",
    "Patterns",
    "SpikeFlip",
    "Square",
    "Stateless",
    "Transfer",
    "check",
    "evaluate",
    "fitted_assg",
    "strongest",
]
