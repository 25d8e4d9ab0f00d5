"""One attack after the other, and the strongest such row that we know of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snnkern.attacks.apgd import APGD
from snnkern.attacks.attack import CLASSES, Attack, Loss, Norm, Victim
from snnkern.attacks.chance import follow
from snnkern.attacks.ensemble import DEFAULT_ENSEMBLE, Ensemble
from snnkern.attacks.patterns import Patterns
from snnkern.attacks.sapgd import SAPGD
from snnkern.attacks.stateless import stateless
from snnkern.nn import LIF, Gradient, check_stateless, evaluation_mode


@dataclass(frozen=True)
class Cascade(Attack):
    """Attacks one after the other, each on the samples that none before it broke.

    Gives the images of the attack that broke a sample, judged by the model as it is, and the clean
    image where none did.

    Args:
        attacks: in their order, all of one size and norm.
    """

    eps: float = field(init=False, repr=False)
    norm: Norm = field(init=False, repr=False, kw_only=True)
    gradient: Gradient | None = field(default=None, init=False, repr=False, kw_only=True)
    loss: Loss = field(default="ce", init=False, repr=False, kw_only=True)
    eot: int = field(init=False, repr=False, kw_only=True)
    attacks: Sequence[Attack]

    def __post_init__(self) -> None:
        """Takes over what the attacks share; refuses those that share it not."""
        attacks = tuple(self.attacks)
        if not attacks:
            raise ValueError("Cascade: attacks is empty, expected at least one")
        for attack in attacks:
            if not isinstance(attack, Attack):
                raise TypeError(f"Cascade: attacks has {attack!r}, expected attacks alone")
            if (attack.eps, attack.norm) != (attacks[0].eps, attacks[0].norm):
                raise ValueError(
                    f"Cascade: attacks has {attack} after {attacks[0]}, expected one eps and norm"
                )
        object.__setattr__(self, "attacks", attacks)
        for name in ("eps", "norm"):
            object.__setattr__(self, name, getattr(attacks[0], name))
        object.__setattr__(self, "eot", max(attack.eot for attack in attacks))

    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The images of the first attack that breaks a sample, else the clean ones."""
        images = x.clone()
        left = torch.arange(len(x), device=x.device)
        for attack in self.attacks:
            if len(left) == 0:
                break
            part = victim.only(left)
            found = attack(victim.network, x[left], part.y, generator)
            broken = part.broken(part.logits(found))
            images[left[broken]] = found[broken]
            left = left[~broken]
        return images


def strongest(model: nn.Module, x: Tensor, eps: float = 8 / 255, *, eot: int = 1) -> Cascade:
    """The strongest verdict on ``model`` that we know how to get, l_inf.

    APGD on the margin through ``DEFAULT_ENSEMBLE``, SA-PGD towards one wrong class after the other,
    and, where the network is small and holds its input over time, ``Patterns``. What is without
    spiking neurons of snnkern is attacked through its own gradient.
    ``python -m benchmarks.verdicts`` compares it with others, and with the exact verifier.

    Args:
        model: what will be attacked.
        x: images like those that will be, ``[N, ...]``; one is enough.
        eps: size of the perturbation.
        eot: see ``Attack``.

    Raises:
        ValueError: a layer of ``model`` carries state from call to call.
    """
    check_stateless(model)
    spiking = any(isinstance(m, LIF) and not m.is_relu for m in model.modules())
    own_chance = follow(torch.Generator(x.device), x.device)
    with torch.no_grad(), evaluation_mode(model), own_chance:
        classes = stateless(model)(x[:1]).shape[1]
        searched = eot == 1 and spiking and Patterns.why_not(model, x) is None
    margin = APGD(eps, steps=100, stop=True, loss="margin", eot=eot)
    attacks: list[Attack] = [Ensemble(margin, DEFAULT_ENSEMBLE) if spiking else margin]
    if classes >= CLASSES["targeted-dlr"]:
        own = DEFAULT_ENSEMBLE[0] if spiking else None
        attacks.append(SAPGD(eps, steps=100, stop=True, loss="targeted-dlr", gradient=own, eot=eot))
    if searched:
        attacks.append(Patterns(eps))
    return Cascade(attacks)
