"""MART: adversarial training that minds what is misclassified (Wang et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from snnkern._checks import check_int, check_number
from snnkern.attacks import PGD, Attack
from snnkern.attacks.losses import kl_divergence
from snnkern.training.method import Losses, Memory, Method
from snnkern.training.trades import Divergence, check_divergence


def mart_loss(
    clean: Tensor, adversarial: Tensor, y: Tensor, beta: float, divergence: Divergence = "kl"
) -> Tensor:
    """``BCE(p_adv, y) + beta KL(p_clean || p_adv) (1 - p_clean[y])``, means over the batch.

    The boosted cross entropy is ``-log p_adv[y] - log(1 - max_j p_adv[j])``, j other than y. The
    gradient flows into all of it. The ones are 1.0001 and 1.0000001, as in the authors' code.

    Args:
        clean: logits of the images, ``[N, K]``.
        adversarial: logits of the adversarial images, ``[N, K]``.
        y: labels, ``[N]``.
        beta: weight of the divergence.
        divergence: as for ``trades_loss``; eq. 6 of Ozdenizci & Legenstein 2023 has the reverse.
    """
    true = y[:, None]
    other = adversarial.softmax(1).scatter(1, true, 0).max(1).values
    boosted = F.cross_entropy(adversarial, y) - (1.0001 - other).log().mean()
    pair = (clean, adversarial) if divergence == "kl" else (adversarial, clean)
    doubt = 1.0000001 - clean.softmax(1).gather(1, true)[:, 0]
    return boosted + beta * (kl_divergence(*pair) * doubt).mean()


@dataclass(frozen=True)
class MART(Method):
    """Boosted cross entropy on adversarial images, and the divergence weighted by doubt.

    The adversarial images make the cross entropy large: PGD in evaluation mode from normal noise of
    deviation 0.001, with steps of ``2.5 eps / steps``.

    Args:
        eps: size of the perturbation.
        beta: weight of the divergence; 4 in Ozdenizci & Legenstein 2023.
        steps: of PGD.
        divergence: which way round; see ``mart_loss``.
        attack: what crafts the images, instead of that PGD.
    """

    eps: float = 2 / 255
    beta: float = 4.0
    steps: int = 10
    divergence: Divergence = "kl"
    attack: Attack | None = None

    def __post_init__(self) -> None:
        """Refuses what means nothing."""
        check_number("MART: eps", self.eps, low=0)
        check_number("MART: beta", self.beta, low=0)
        check_int("MART: steps", self.steps, 1)
        check_divergence("MART", self.divergence)

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        """The objective; its logits are those of the attacked images."""
        clean = model(x)
        attack = self.attack or PGD(self.eps, steps=self.steps, start_deviation=0.001)
        adversarial = model(attack(model, x, y, memory.noise))
        yield mart_loss(clean, adversarial, y, self.beta, self.divergence), adversarial
