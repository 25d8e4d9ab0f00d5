"""Auto-PGD: projected gradient steps whose size looks after itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from snnkern._ball import unit
from snnkern._checks import check_int, check_number
from snnkern.attacks.attack import Victim, random_like
from snnkern.attacks.iterated import Iterated, Search


def checkpoints(steps: int) -> Iterator[int]:
    """The steps after which the step size is looked at: 0.22 of all, then ever closer together.

    Croce & Hein 2020, section 4.1, in whole steps.
    """
    window, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    at = window
    while at <= steps:
        yield at
        window = max(window - less, least)
        at += window


class _State(NamedTuple):
    """Of every sample that is still worked on; the letters are those of the paper."""

    images: Tensor
    before: Tensor  # the images one step ago
    gradient: Tensor
    losses: Tensor
    step: Tensor  # eta
    rises: Tensor  # steps since the last checkpoint that made the loss larger
    best: Tensor  # x_max
    best_gradient: Tensor
    best_losses: Tensor  # f_max
    losses_then: Tensor  # f_max at the last checkpoint
    halved_then: Tensor


@dataclass(frozen=True)
class APGD(Iterated):
    """Auto-PGD, Croce & Hein 2020: steps with momentum, halved where they no longer lead up.

    At a checkpoint a sample whose loss rose in too few steps, or not at all since the one before,
    goes back to its best image with half the step size. ``loss="dlr"`` and ``"targeted-dlr"`` are
    the losses of the paper besides ``"ce"``. Gives the last image on the way that broke the sample,
    else the one of the highest loss.

    Args:
        steps: number of steps of a run.
        rho: share of steps that have to raise the loss.
    """

    steps: int = 100
    rho: float = 0.75

    def __post_init__(self) -> None:
        """Refuses steps that mean nothing."""
        super().__post_init__()
        check_int("APGD: steps", self.steps, 1)
        check_number("APGD: rho", self.rho, low=0, high=1)

    def run(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Algorithm 1 of the paper."""
        search = Search(victim, x, stop=self.stop, latest=True)
        images = self.start(x, generator)
        logits, losses, gradient = victim.look(images)
        samples = (len(x), *(1,) * (x.dim() - 1))
        state = _State(
            images,
            images,
            gradient,
            losses,
            x.new_full(samples, 2 * self.eps),
            torch.zeros_like(losses),
            images,
            gradient,
            losses,
            losses,
            torch.ones_like(losses, dtype=torch.bool),
        )
        state = _State(*search.see(images, logits, losses, *state)[1:])
        looks_at = set(checkpoints(self.steps))
        window_start = 0
        for number in range(1, self.steps + 1):
            if len(state.images) == 0:
                break
            moved = self._move(state, search.x, 0.75 if number > 1 else 1.0)
            look = search.victim.look(moved)
            state = self._climbed(state, moved, look.losses, look.gradient)
            state = _State(*search.see(moved, look.logits, look.losses, *state)[1:])
            if number in looks_at:
                state = self._checked(state, number - window_start)
                window_start = number
        return search.best.images

    def start(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """A random point on the surface of the ball around each image, projected."""
        if self.norm == "l2":
            return self.project(x + self.eps * unit(random_like(x, torch.randn, generator)), x)
        noise = 2 * random_like(x, torch.rand, generator) - 1
        largest = noise.abs().flatten(1).amax(1).view(-1, *(1,) * (x.dim() - 1))
        return self.project(x + self.eps * noise / torch.where(largest > 0, largest, 1), x)

    def _move(self, state: _State, x: Tensor, share: float) -> Tensor:
        images = state.images
        target = self.project(images + state.step * self.direction(state.gradient), x)
        momentum = (1 - share) * (images - state.before)
        return self.project(images + share * (target - images) + momentum, x)

    def _climbed(self, state: _State, moved: Tensor, losses: Tensor, gradient: Tensor) -> _State:
        higher = losses > state.best_losses
        pixels = higher.view(-1, *(1,) * (moved.dim() - 1))
        return state._replace(
            images=moved,
            before=state.images,
            gradient=gradient,
            losses=losses,
            rises=state.rises + (losses > state.losses),
            best=torch.where(pixels, moved, state.best),
            best_gradient=torch.where(pixels, gradient, state.best_gradient),
            best_losses=torch.where(higher, losses, state.best_losses),
        )

    def _checked(self, state: _State, window: int) -> _State:
        too_few = state.rises <= self.rho * window
        no_better = ~state.halved_then & (state.losses_then >= state.best_losses)
        halve = too_few | no_better
        pixels = halve.view(-1, *(1,) * (state.images.dim() - 1))
        return state._replace(
            images=torch.where(pixels, state.best, state.images),
            gradient=torch.where(pixels, state.best_gradient, state.gradient),
            step=torch.where(pixels, state.step / 2, state.step),
            rises=torch.zeros_like(state.rises),
            losses_then=state.best_losses,
            halved_then=halve,
        )
