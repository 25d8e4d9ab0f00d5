"""What attacks in many steps share: restarts, one target after the other, what they keep."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from snnkern._checks import check_int
from snnkern.attacks.attack import Attack, Loss, Victim
from snnkern.attacks.chance import draws_for
from snnkern.nn import adapting

Keep = Literal["last", "best"]


class Best:
    """The best images so far of all samples: broken ones first, then those of the highest loss.

    Args:
        x: what stands until something is seen.
        latest: of several broken images of a sample, take the one seen last.
    """

    def __init__(self, x: Tensor, *, latest: bool = False) -> None:
        self.images = x.clone()
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.losses = torch.full((len(x),), -torch.inf, device=x.device, dtype=torch.float64)
        self.latest = latest

    def see(self, at: Tensor, images: Tensor, losses: Tensor, broken: Tensor) -> None:
        """Takes over what is better; ``at`` says which samples these are."""
        was = self.broken[at]
        higher = losses.double() > self.losses[at]
        better = torch.where(broken == was, higher | (broken & self.latest), broken)
        where = at[better]
        self.images[where] = images[better]
        self.losses[where] = losses[better].double()
        self.broken[where] = broken[better]


class Search:
    """One run: the samples that are still worked on, and the best image of each so far.

    Attributes:
        victim, x: of the samples that are still worked on.
        best: of all samples.
    """

    def __init__(
        self, victim: Victim, x: Tensor, *, stop: bool, keep: Keep = "best", latest: bool = False
    ) -> None:
        self.victim, self.x = victim, x
        self.at = torch.arange(len(x), device=x.device)
        self.best = Best(x, latest=latest)
        self.stop = stop
        self.keep: Keep = keep
        for moments in adapting(victim.network):
            moments.restart()

    def see(
        self, images: Tensor, logits: Tensor, losses: Tensor, *more: Tensor
    ) -> tuple[Tensor, ...]:
        """Keeps what is best. Gives ``images`` and ``more`` of the samples to go on with."""
        if self.keep == "last" and not self.stop:
            return images, *more
        broken = self.victim.broken(logits)
        self.best.see(self.at, images, losses, broken)
        if not (self.stop and broken.any()):
            return images, *more
        if self.victim.eot > 1:  # what the mean of some draws breaks, others may not
            at = broken.nonzero()[:, 0]
            part = self.victim.only(at)
            broken = broken.index_put((at,), part.broken(part.logits(images[at])))
        on = ~broken
        self.victim, self.x, self.at = self.victim.only(on), self.x[on], self.at[on]
        for moments in adapting(self.victim.network):
            moments.only(on)
        return tuple(part[on] for part in (images, *more))

    def end(self, images: Tensor) -> Tensor:
        """What the run found, ``images`` being the last of the samples still worked on."""
        if self.keep == "best" and len(images):
            logits = self.victim.logits(images)
            self.see(images, logits, self.victim.losses(logits))
        elif len(images):
            self.best.images[self.at] = images
        return self.best.images


@dataclass(frozen=True)
class Iterated(Attack):
    """Base of attacks in many steps.

    Which samples are broken is judged by what the attack sees: with ``gradient="relu"`` by the ReLU
    network, in a ``Transfer`` by the source.

    Args:
        restarts: runs, each on the samples that none before broke; a sample that none breaks keeps
            the image of the highest loss.
        stop: end with a sample as soon as it is broken; with ``eot``, as soon as a second mean of
            draws is broken too.
        targets: with ``loss="targeted-dlr"``, the number of wrong classes that are aimed at one
            after the other, the likeliest first.
    """

    own_losses: ClassVar[tuple[Loss, ...]] = (*Attack.own_losses, "targeted-dlr")

    restarts: int = field(default=1, kw_only=True)
    stop: bool = field(default=False, kw_only=True)
    targets: int = field(default=9, kw_only=True)

    def __post_init__(self) -> None:
        """Refuses counts that mean nothing."""
        super().__post_init__()
        for name in ("restarts", "targets"):
            check_int(f"{type(self).__name__}: {name}", getattr(self, name), 1)

    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The best of all runs."""
        victims = [victim]
        if self.loss == "targeted-dlr":
            assert victim.clean is not None
            wrong = max(victim.clean.shape[1] - 1, 1)  # too few classes are refused by the loss
            victims = [victim.aiming(rank) for rank in range(min(self.targets, wrong))]
        runs = [aimed for aimed in victims for _ in range(self.restarts)]
        if len(runs) == 1:
            return self.run(runs[0], x, generator)
        best = Best(x)
        for aimed in runs:
            left = (~best.broken).nonzero()[:, 0]
            if len(left) == 0:
                break
            part = aimed.only(left)
            images = self.run(part, x[left], draws_for(left, generator))
            logits = part.logits(images)
            best.see(left, images, part.losses(logits), part.broken(logits))
        return best.images

    @abstractmethod
    def run(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """One run from one start."""
