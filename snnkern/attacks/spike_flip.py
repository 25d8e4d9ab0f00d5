"""Flipped spikes: attacks on event data, which is 0 or 1 and stays so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from snnkern._checks import check_int, check_number
from snnkern.attacks.attack import Norm, Victim, random_like
from snnkern.attacks.chance import draws_for
from snnkern.attacks.iterated import Iterated, Search


@dataclass(frozen=True)
class SpikeFlip(Iterated):
    """Gradients turned into flips of spikes, Liang et al. 2021 (arXiv 2001.01587).

    The attack of Liang et al. 2022 on events, eq. 6. In every step an element is drawn with the
    chance ``|g| / max |g|`` (G2S) and flipped if the gradient's sign asks for what it is not; where
    the gradient vanishes, elements are drawn with the chance ``flip_rate`` whatever it says (RSF).
    Of those drawn, the ones of the largest gradient are flipped, as far as the budgets go. A sample
    that is broken is left alone, unless ``stop`` is False. ``x`` ``[N, ...]`` holds events of any
    shape.

    Args:
        eps: share of a sample's elements that may differ in the end, rounded down to a number.
        steps: number of steps of a run.
        per_step: share of a sample's elements that one step flips; ``eps / 2`` unless given, as in
            Liang et al. 2022, and one element at least.
        flip_rate: see above.

    Raises:
        ValueError: an ``x`` that has other values than 0 and 1.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    eps: float = 0.005
    steps: int = 25
    per_step: float | None = None
    flip_rate: float = 0.05
    stop: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        """Refuses shares that mean nothing."""
        super().__post_init__()
        check_number("SpikeFlip: eps", self.eps, low=0, high=1)
        check_int("SpikeFlip: steps", self.steps, 1)
        if self.per_step is not None:
            check_number("SpikeFlip: per_step", self.per_step, low=0, high=1)
        check_number("SpikeFlip: flip_rate", self.flip_rate, low=0, high=1)

    def run(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """One step after the other."""
        if not bool(((x == 0) | (x == 1)).all()):
            raise ValueError("x has values between 0 and 1, expected events that are 0 or 1")
        elements = x[0].numel()
        budget = int(self.eps * elements)
        share = self.eps / 2 if self.per_step is None else self.per_step
        per_step = max(int(share * elements), 1)
        search = Search(victim, x, stop=self.stop)
        images = x
        for _ in range(self.steps):
            images, gradient = search.see(images, *search.victim.look(images))
            if len(images) == 0:
                break
            draws = draws_for(search.at, generator)
            images = self._flip(images, search.x, gradient, budget, per_step, draws)
        return search.end(images)

    def _flip(
        self,
        images: Tensor,
        x: Tensor,
        gradient: Tensor,
        budget: int,
        per_step: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """One step of G2S, or of RSF where the gradient vanishes."""
        now, origin = images.flatten(1), x.flatten(1)
        g = gradient.flatten(1).nan_to_num()
        size = g.abs()
        largest = size.amax(1, keepdim=True)
        vanished = largest == 0
        draws = random_like(now, torch.rand, generator)
        drawn = draws < torch.where(
            vanished, self.flip_rate, size / torch.where(vanished, 1, largest)
        )
        # Upwards where it is 0, downwards where it is 1: anything else would leave the range.
        drawn &= vanished | ((g > 0) == (now == 0)) & (g != 0)
        score = torch.where(vanished, draws, size)
        flipped = _first(drawn, score, torch.full_like(largest, per_step))
        back = flipped & (now != origin)
        room = budget - ((now != origin) & ~back).sum(1, keepdim=True)
        away = _first(flipped & ~back, score, room)
        return torch.where(back | away, 1 - now, now).view(images.shape)


def _first(candidates: Tensor, score: Tensor, count: Tensor) -> Tensor:
    """Of the candidates of each sample, the ``count`` of the highest score, ``[N, D]`` bool."""
    ranked = torch.where(candidates, score, -torch.inf)
    rank = ranked.argsort(stable=True, dim=1, descending=True).argsort(1)
    first: Tensor = candidates & (rank < count)
    return first
