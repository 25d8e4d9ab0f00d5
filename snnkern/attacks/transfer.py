"""Attacks by those who cannot see into the network that they attack."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn

from snnkern.attacks.attack import Attack, Loss, Norm, Victim
from snnkern.nn import Gradient


@dataclass(frozen=True)
class Transfer(Attack):
    """Images crafted on another network, Papernot et al. 2016: the black-box attack of the papers.

    Args:
        source_model: the network that ``attack`` sees, on the device of the images.
        attack: what is run on it; size, norm, gradient, loss and draws are its own.
    """

    eps: float = field(init=False, repr=False)
    norm: Norm = field(init=False, repr=False, kw_only=True)
    gradient: Gradient | None = field(init=False, repr=False, kw_only=True)
    loss: Loss = field(init=False, repr=False, kw_only=True)
    eot: int = field(init=False, repr=False, kw_only=True)
    source_model: nn.Module = field(repr=False)
    attack: Attack

    def __post_init__(self) -> None:
        """Takes over what the attack says of itself.

        Raises:
            TypeError: an attack that is none, or that has a source of its own.
        """
        if not isinstance(self.attack, Attack) or isinstance(self.attack, Transfer):
            raise TypeError(
                f"Transfer: attack is {self.attack!r}, expected one on source_model itself"
            )
        for part in fields(Attack):
            object.__setattr__(self, part.name, getattr(self.attack, part.name))

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Adversarial images for ``source_model``, whatever ``model`` is."""
        return super().__call__(self.source_model, x, y, generator)

    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The attack's images; ``victim`` is ``source_model``."""
        return self.attack.perturb(victim, x, generator)
