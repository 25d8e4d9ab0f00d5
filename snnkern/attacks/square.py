"""Square: random search that sees nothing of a model but its logits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from snnkern._ball import unit
from snnkern._checks import check_int, check_number
from snnkern.attacks.attack import Loss, Victim, random_like
from snnkern.attacks.iterated import Iterated, Search
from snnkern.nn import Gradient

# Of 10000 queries, those after which the share of changed pixels is halved.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Of the first perturbation of l_2, in a row and in a column.
TILES = 5


@dataclass(frozen=True)
class Square(Iterated):
    """Square attack, Andriushchenko et al. 2020: squares of noise, kept where the margin shrinks.

    In l_inf it starts with vertical stripes and makes squares lighter or darker; in l_2 it starts
    with tiles of bumps and moves the size of one square window to another. Works on what has the
    shape of images, ``[N, C, H, W]``; of other samples the last two dimensions are height and
    width, or the last one is the width. A sample that is broken is left alone.

    Args:
        queries: number of squares that are tried.
        share: of all pixels in the first squares.
        rescale: shrink the squares as fast as ``queries`` asks for; otherwise as for 10000 of them,
            as AutoAttack does.
    """

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
        first, change = self._stripes, self._square
        if self.norm == "l2":
            first, change = self._tiles, self._shift
        images = self.project(first(x, generator), x)
        logits = victim.logits(images)
        losses = victim.losses(logits)
        images, losses = search.see(images, logits, losses, losses)
        for query in range(self.queries):
            if len(images) == 0:
                break
            tried = change(images, search.x, self._share_at(query), generator)
            tried = self.project(tried, search.x)
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

    def _stripes(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Images where every column of every plane is lighter or darker."""
        planes, height, width = _planes(x)
        stripes = _signs(x, (len(x), planes, 1, width), generator).expand(-1, -1, height, -1)
        return x + self.eps * stripes.reshape(x.shape)

    def _square(
        self, images: Tensor, x: Tensor, share: float, generator: torch.Generator | None
    ) -> Tensor:
        """Images where one square of every plane is lighter or darker."""
        (planes, height, width), count = _planes(x), len(x)
        area = share * height * width
        rows = min(max(round(math.sqrt(area)), 1), height)
        columns = min(max(round(area / rows), 1), width)
        window = _window(x, height, rows, generator)[:, None, :, None]
        window = window & _window(x, width, columns, generator)[:, None, None, :]
        square = 2 * self.eps * _signs(x, (count, planes, 1, 1), generator) * window
        return images + square.reshape(images.shape)

    def _tiles(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Images under tiles of bumps, five in a row and column, at l_2 distance ``eps``."""
        planes, height, width = _planes(x)
        tile = max(height // TILES, 1), max(width // TILES, 1)
        grid = math.ceil(height / tile[0]), math.ceil(width / tile[1])
        bumps = _bumps(x, *tile, generator)[:, None].repeat(1, 1, *grid)[..., :height, :width]
        signs = _signs(x, (len(x), planes, *grid), generator)
        signs = signs.repeat_interleave(tile[0], 2).repeat_interleave(tile[1], 3)
        return self._at_distance((bumps * signs[..., :height, :width]).view(x.shape), x)

    def _shift(
        self, images: Tensor, x: Tensor, share: float, generator: torch.Generator | None
    ) -> Tensor:
        """Images where one window of the perturbation went to another, on a bump: algorithm 3.

        What goes is its size; the other keeps its own direction, half and half with the bump. What
        clamping to [0, 1] left of ``eps`` comes on top.
        """
        planes, height, width = _planes(x)
        side = max(round(math.sqrt(share * height * width)), 3) | 1
        # Smaller than the plane, or nothing could move.
        rows, columns = min(side, max(height - 1, 1)), min(side, max(width - 1, 1))
        wide = torch.promote_types(x.dtype, torch.float32)
        change = (images.to(wide) - x.to(wide)).view(len(x), planes, -1)
        into, out_of = (
            _places(x, (height, width), (rows, columns), generator).expand(-1, planes, -1)
            for _ in range(2)
        )
        bump = _bumps(x, rows, columns, generator).to(wide).view(len(x), 1, -1)
        bump = bump * _signs(x, (len(x), planes, 1), generator).to(wide)
        there = change.gather(2, into)
        new = bump + there / _length(there).clamp(min=1e-12)
        unused = (self.eps**2 - change.square().sum((1, 2), keepdim=True)).clamp(min=0)
        without = change.scatter(2, out_of, 0.0).scatter(2, into, 0.0)
        moved = change.square().sum(2, keepdim=True) - without.square().sum(2, keepdim=True)
        size = (moved.clamp(min=0) + unused / planes).sqrt()
        change = without.scatter(2, into, new / _length(new).clamp(min=1e-12) * size)
        return self._at_distance(change.to(x.dtype).view(x.shape), x)

    def _at_distance(self, change: Tensor, x: Tensor) -> Tensor:
        return x + self.eps * unit(change)


def _planes(x: Tensor) -> tuple[int, int, int]:
    """How many planes a sample has, their height and their width."""
    *others, height, width = (1, 1, *x.shape[1:])
    return math.prod(others), height, width


def _signs(x: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return 1 - 2 * random_like(x.new_empty(shape), torch.rand, generator).round()


def _start(x: Tensor, size: int, side: int, generator: torch.Generator | None) -> Tensor:
    """Where ``side`` of ``size`` places in a row begin, drawn for every sample, ``[N, 1]``."""
    draw = random_like(x.new_empty(len(x), dtype=torch.float32), torch.rand, generator)
    return (draw * (size - side + 1)).long().clamp(max=size - side)[:, None]


def _window(x: Tensor, size: int, side: int, generator: torch.Generator | None) -> Tensor:
    """The places themselves as a mask, ``[N, size]``."""
    start = _start(x, size, side, generator)
    places = torch.arange(size, device=x.device)
    return (places >= start) & (places < start + side)


def _places(
    x: Tensor, size: tuple[int, int], sides: tuple[int, int], generator: torch.Generator | None
) -> Tensor:
    """The pixels of a window in a plane of that size, by number, ``[N, 1, pixels]``."""
    rows, columns = (
        _start(x, extent, side, generator) + torch.arange(side, device=x.device)
        for extent, side in zip(size, sides, strict=True)
    )
    return (rows[:, :, None] * size[1] + columns[:, None, :]).flatten(1)[:, None]


def _length(change: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(change, dim=2, keepdim=True)
    return length


def _bumps(x: Tensor, height: int, width: int, generator: torch.Generator | None) -> Tensor:
    """Two bumps of opposite sign beside or above each other, drawn for every sample.

    ``[N, height, width]``, of l_2 length 1; equation 2 of the paper.
    """
    pair = torch.stack([_above(height, width), _above(width, height).t()])
    pair = pair / torch.linalg.vector_norm(pair, dim=(1, 2), keepdim=True)
    draw = random_like(x.new_empty(len(x), dtype=torch.float32), torch.rand, generator)
    bumps: Tensor = pair.to(x)[(draw < 0.5).long()]
    return bumps


def _above(height: int, width: int) -> Tensor:
    return torch.cat([_bump(height // 2, width), -_bump(height - height // 2, width)])


def _bump(height: int, width: int) -> Tensor:
    """Sums of ``1 / k^2`` over all k that are larger than a pixel is far from the middle."""
    most = max(height, width) // 2 + 1
    heights = (1 / torch.arange(1, most + 1, dtype=torch.float64).square()).flip(0).cumsum(0)
    rows, columns = ((torch.arange(size) - size // 2).abs() for size in (height, width))
    far = torch.maximum(rows[:, None], columns[None, :])
    return heights.flip(0)[far]
