"""SA-PGD: projected gradient steps scaled by the moments of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from snnkern._checks import check_int
from snnkern.attacks.apgd import checkpoints
from snnkern.attacks.attack import Norm, Victim, random_like
from snnkern.attacks.iterated import Iterated, Search


@dataclass(frozen=True)
class SAPGD(Iterated):
    """SA-PGD, PGD that is stable and adaptive, Wang et al. 2025 (arXiv 2512.22522).

    With ``m <- 0.5 m + g / mean|g|`` and ``v <- 0.8 v + g^2 / mean g^2``, a pixel moves by
    ``m / sqrt(v)`` step sizes, one at most. The step size starts at ``eps`` and is halved at
    the checkpoints of APGD. Gives the best image on the way: one that breaks the sample if there is
    one, of these that of the highest loss.

    Args:
        steps: number of steps of a run.
        random_start: start at uniform noise of size ``eps`` instead of at ``x``.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    steps: int = 100
    random_start: bool = True

    def __post_init__(self) -> None:
        """Refuses steps that mean nothing."""
        super().__post_init__()
        check_int("SAPGD: steps", self.steps, 1)

    def run(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """One step after the other."""
        search = Search(victim, x, stop=self.stop)
        images, step_size = x, self.eps
        if self.random_start:
            noise = random_like(x, torch.rand, generator) * 2 - 1
            images = self.project(x + self.eps * noise, x)
        # Not in half precision, which one pixel among many exceeds in units of the mean.
        moments = torch.promote_types(x.dtype, torch.float32)
        first = second = torch.zeros_like(x, dtype=moments)
        looks_at = set(checkpoints(self.steps))
        for number in range(1, self.steps + 1):
            look = search.victim.look(images)
            images, gradient, first, second = search.see(images, *look, first, second)
            if len(images) == 0:
                break
            g = gradient.nan_to_num().double()
            first = (0.5 * first + _in_units_of_its_mean(g)).to(moments)
            second = (0.8 * second + _in_units_of_its_mean(g.square())).to(moments)
            step = step_size * first / torch.where(second > 0, second.sqrt(), 1)
            step = step.clamp(-step_size, step_size).to(x.dtype)
            images = self.project(images + step, search.x)
            if number in looks_at:
                step_size /= 2
        return search.end(images)


def _in_units_of_its_mean(values: Tensor) -> Tensor:
    """Every sample over the mean size of its values; zeros stay."""
    mean = values.abs().flatten(1).mean(1).view(-1, *(1,) * (values.dim() - 1))
    return values / torch.where(mean > 0, mean, 1)
