"""Attacks by those who cannot see into the network that they attack."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snnkern.attacks.attack import Attack, Loss, Victim
from snnkern.nn import Gradient


@dataclass(frozen=True)
class Transfer(Attack):
    """Images crafted on another network, Papernot et al. 2016: the black-box attack of the papers.

    Args:
        source_model: the network that ``attack`` sees, on the device of the images.
        attack: what is run on it; size, gradient and loss are its own.
    """

    eps: float = field(init=False, repr=False)
    gradient: Gradient | None = field(init=False, repr=False, kw_only=True)
    loss: Loss = field(init=False, repr=False, kw_only=True)
    source_model: nn.Module = field(repr=False)
    attack: Attack

    def __post_init__(self) -> None:
        """Takes over what the attack says of itself."""
        for name in ("eps", "gradient", "loss"):
            object.__setattr__(self, name, getattr(self.attack, name))

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Adversarial images for ``source_model``, whatever ``model`` is."""
        return super().__call__(self.source_model, x, y, generator)

    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The attack's images; ``victim`` is ``source_model``."""
        return self.attack.perturb(victim, x, generator)
