"""Adversarial attacks and the evaluation of models under them."""

from snnkern.attacks.attack import Attack
from snnkern.attacks.evaluate import Evaluation, evaluate
from snnkern.attacks.fgsm import FGSM, RFGSM
from snnkern.attacks.pgd import BIM, PGD
from snnkern.attacks.transfer import Transfer

__all__ = ["BIM", "FGSM", "PGD", "RFGSM", "Attack", "Evaluation", "Transfer", "evaluate"]
