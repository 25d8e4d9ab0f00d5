"""Iterated attacks by projected gradient steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from snnkern._ball import unit
from snnkern._checks import check_int, check_number
from snnkern.attacks.attack import Victim, random_like
from snnkern.attacks.iterated import Iterated, Keep, Search


@dataclass(frozen=True)
class PGD(Iterated):
    """Projected gradient descent, Madry et al. 2018.

    Args:
        step_size: size of one step; ``2.5 eps / steps`` unless given.
        steps: number of steps.
        random_start: start at ``x`` plus uniform noise of size ``eps``, clipped, instead of at
            ``x``.
        start_deviation: of normal noise for the random start, instead of the uniform: 0.001 in
            TRADES (Zhang et al. 2019) and MART (Wang et al. 2020).
        keep: ``"last"``, the image after the last step, as the papers do; ``"best"``, of the
            images on the way one that breaks the sample if there is one, of these that of the
            highest loss.
    """

    step_size: float | None = None
    steps: int = 7
    random_start: bool = True
    start_deviation: float | None = None
    keep: Keep = field(default="last", kw_only=True)

    def __post_init__(self) -> None:
        """Refuses steps that mean nothing."""
        super().__post_init__()
        name = type(self).__name__
        if self.step_size is not None:
            check_number(f"{name}: step_size", self.step_size, low=0)
        check_int(f"{name}: steps", self.steps, 1)
        if self.start_deviation is not None:
            check_number(f"{name}: start_deviation", self.start_deviation, low=0)
            if not self.random_start:
                raise ValueError(
                    f"{name}: start_deviation is {self.start_deviation} and random_start is False, "
                    "expected None"
                )
        if self.keep not in ("last", "best"):
            raise ValueError(f"{name}: keep is {self.keep!r}, expected 'last' or 'best'")

    def run(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Steps along the gradient, each projected."""
        step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        search = Search(victim, x, stop=self.stop, keep=self.keep)
        adversarial = self.start(x, generator) if self.random_start else x
        for _ in range(self.steps):
            look = search.victim.look(adversarial)
            adversarial, gradient = search.see(adversarial, *look)
            if len(adversarial) == 0:
                break
            step = step_size * self.direction(gradient)
            adversarial = self.project(adversarial + step, search.x)
        return search.end(adversarial)

    def start(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """A point drawn from the ball around each image, as ``start_deviation`` says."""
        if self.start_deviation is not None:
            return self.project(
                x + self.start_deviation * random_like(x, torch.randn, generator), x
            )
        if self.norm == "linf":
            noise = random_like(x, torch.rand, generator) * 2 - 1
            return self.project(x + self.eps * noise, x)
        way = unit(random_like(x, torch.randn, generator))
        one_each = x.flatten(1)[:, 0].view(-1, *(1,) * (x.dim() - 1))
        # The volume within a radius grows with its power D.
        radius = random_like(one_each, torch.rand, generator) ** (1 / x[0].numel())
        return self.project(x + self.eps * radius * way, x)


@dataclass(frozen=True)
class BIM(PGD):
    """Basic iterative method, Kurakin et al. 2017: PGD that starts at the image itself."""

    random_start: bool = False
