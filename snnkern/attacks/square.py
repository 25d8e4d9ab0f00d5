"""Square: random search that sees nothing of a model but its logits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from snnkern._checks import check_int, check_number
from snnkern.attacks.attack import Loss, Norm, Victim, random_like
from snnkern.attacks.iterated import Iterated, Search
from snnkern.nn import Gradient

# Of 10000 queries, those after which the share of changed pixels is halved.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Square(Iterated):
    """Square attack, Andriushchenko et al. 2020: squares of noise, kept where the margin shrinks.

    Starts with vertical stripes. Works on what has the shape of images, ``[N, C, H, W]``; of other
    samples the last two dimensions are height and width, or the last one is the width. A sample
    that is broken is left alone.

    Args:
        queries: number of squares that are tried.
        share: of all pixels in the first squares.
        rescale: shrink the squares as fast as ``queries`` asks for; otherwise as for 10000 of them,
            as AutoAttack does.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    own_losses: ClassVar[tuple[Loss, ...]] = ("margin",)

    queries: int = 5000
    share: float = 0.8
    rescale: bool = False
    gradient: Gradient | None = field(default=None, init=False, repr=False)
    loss: Loss = field(default="margin", init=False, repr=False)
    stop: bool = field(default=True, init=False, repr=False)
    targets: int = field(default=1, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses squares that mean nothing."""
        super().__post_init__()
        check_int("Square: queries", self.queries, 1)
        check_number("Square: share", self.share, low=0, high=1, open_low=True)

    def run(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """One query after the other."""
        search = Search(victim, x, stop=True)
        *others, height, width = (1, 1, *x.shape[1:])
        planes = math.prod(others)

        def signs(*shape: int) -> Tensor:
            return 1 - 2 * random_like(x.new_empty(shape), torch.rand, generator).round()

        stripes = signs(len(x), planes, 1, width).expand(-1, -1, height, -1).reshape(x.shape)
        images = self.project(x + self.eps * stripes, x)
        logits = victim.logits(images)
        losses = victim.losses(logits)
        images, losses = search.see(images, logits, losses, losses)
        for query in range(self.queries):
            count = len(images)
            if count == 0:
                break
            area = self._share_at(query) * height * width
            rows = min(max(round(math.sqrt(area)), 1), height)
            columns = min(max(round(area / rows), 1), width)
            window = self._window(x, count, height, rows, generator)[:, None, :, None]
            window = window & self._window(x, count, width, columns, generator)[:, None, None, :]
            square = 2 * self.eps * signs(count, planes, 1, 1) * window
            tried = self.project(images + square.reshape(images.shape), search.x)
            logits = search.victim.logits(tried)
            found = search.victim.losses(logits)
            better = found > losses
            images = torch.where(better.view(-1, *(1,) * (x.dim() - 1)), tried, images)
            losses = torch.where(better, found, losses)
            images, losses = search.see(tried, logits, found, images, losses)[1:]
        return search.best.images

    def _share_at(self, query: int) -> float:
        at = query * 10000 // self.queries if self.rescale else query
        return float(self.share / 2 ** sum(at > halving for halving in HALVINGS))

    def _window(
        self, x: Tensor, count: int, size: int, side: int, generator: torch.Generator | None
    ) -> Tensor:
        """``side`` of ``size`` places in a row, drawn ``count`` times, ``[count, size]``."""
        draw = random_like(x.new_empty(count, dtype=torch.float32), torch.rand, generator)
        start = (draw * (size - side + 1)).long().clamp(max=size - side)[:, None]
        places = torch.arange(size, device=x.device)
        return (places >= start) & (places < start + side)
