"""TRADES: right on the images, and alike near them (Zhang et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from snnkern._checks import check_int, check_number
from snnkern.attacks import PGD, Attack
from snnkern.attacks.losses import kl_divergence
from snnkern.training.method import Losses, Memory, Method

Divergence = Literal["kl", "reverse-kl"]


def trades_loss(
    clean: Tensor, adversarial: Tensor, y: Tensor, beta: float, divergence: Divergence = "kl"
) -> Tensor:
    """``CE(clean, y) + beta KL(p_clean || p_adv)``, means over the batch.

    The gradient flows into both sides of the divergence.

    Args:
        clean: logits of the images, ``[N, K]``.
        adversarial: logits of the adversarial images, ``[N, K]``.
        y: labels, ``[N]``.
        beta: weight of the divergence.
        divergence: ``"kl"``, as Zhang et al. and the code of Ozdenizci & Legenstein 2023 have it,
            or ``"reverse-kl"``, ``KL(p_adv || p_clean)``, as these print it (eq. 5 and 9).
    """
    pair = (clean, adversarial) if divergence == "kl" else (adversarial, clean)
    return F.cross_entropy(clean, y) + beta * kl_divergence(*pair).mean()


def check_divergence(method: str, divergence: object) -> None:
    """Raises unless it is one."""
    if divergence not in ("kl", "reverse-kl"):
        raise ValueError(f"{method}: divergence is {divergence!r}, expected 'kl' or 'reverse-kl'")


@dataclass(frozen=True)
class TRADES(Method):
    """Cross entropy on the images, and the divergence of what is predicted near them.

    The adversarial images make the divergence large: PGD in evaluation mode from normal noise of
    deviation 0.001, with steps of ``2.5 eps / steps``. In Ozdenizci & Legenstein 2023 the forward
    pass of the images comes first, so batch norm has seen them when the others are crafted.

    Args:
        eps: size of the perturbation.
        beta: weight of the divergence; Ozdenizci & Legenstein: 6 for CIFAR-10, else 3.
        steps: of PGD.
        divergence: which way round, in the loss and in the attack; see ``trades_loss``.
        attack: what crafts the images, instead of that PGD.
    """

    eps: float = 2 / 255
    beta: float = 6.0
    steps: int = 10
    divergence: Divergence = "kl"
    attack: Attack | None = None

    def __post_init__(self) -> None:
        """Refuses what means nothing."""
        check_number("TRADES: eps", self.eps, low=0)
        check_number("TRADES: beta", self.beta, low=0)
        check_int("TRADES: steps", self.steps, 1)
        check_divergence("TRADES", self.divergence)

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        """The objective; its logits are those of the attacked images."""
        clean = model(x)
        attack = self.attack or PGD(
            self.eps, steps=self.steps, start_deviation=0.001, loss=self.divergence
        )
        adversarial = model(attack(model, x, y, memory.noise))
        yield trades_loss(clean, adversarial, y, self.beta, self.divergence), adversarial
