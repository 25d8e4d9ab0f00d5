"""Search among the spike trains of the first neurons: where no gradient through spikes leads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from snnkern import reference
from snnkern._checks import check_int
from snnkern.attacks import losses
from snnkern.attacks.attack import Attack, Loss, Norm, Victim
from snnkern.attacks.sapgd import SAPGD
from snnkern.autograd import is_constant
from snnkern.nn import LIF, Direct, Gradient, RateCoding, watch_neurons
from snnkern.surrogate import FastSigmoid

# Trains that are changed at once, at most.
FLIPS = 4
# How far inside of its thresholds a current is aimed at, in units of the threshold: more than
# float32 rounds off.
INSIDE = 4e-5
# Neurons whose derivative is worth keeping as a matrix, times pixels.
MOST = 2**25
# Numbers that a batch of candidates may have, neurons times candidates.
AT_ONCE = 2**22


@dataclass(frozen=True)
class Patterns(Attack):
    """Search over the spike trains of the first neurons, each solved for an image.

    Where an image is held over time, the current of the first neurons is constant and affine in the
    image, so that each has one of T + 1 spike trains, by the thresholds that its current lies
    between; the rest of the network sees nothing else. Every round takes the images of the largest
    margins, changes a few trains, the likelier the more they raise the margin to first order and
    the nearer they are, and seeks an image in the ball with these trains: by accelerated projected
    gradient steps on the squared distances of the currents from where they belong (Beck & Teboulle
    2009). A train that only helps may come all the same. What is found is judged by the network.

    The search begins where SA-PGD ends from random starts. It finds images in regions too narrow
    for steps along a gradient; a round costs ``candidates * iterations`` products with the
    derivative of the first layer, which is what it can afford on small networks alone.

    Args:
        rounds: of the search, at most; a sample that is broken is left alone.
        candidates: images of a sample that are sought in a round.
        pool: images of a sample that a round begins with.
        iterations: steps of every solution.
        steps: of SA-PGD.
        gradient: for the margin behind the first neurons, and for SA-PGD.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    own_losses: ClassVar[tuple[Loss, ...]] = ("margin",)

    rounds: int = 10
    candidates: int = 128
    pool: int = 32
    iterations: int = 100
    steps: int = 100
    gradient: Gradient | None = field(default=FastSigmoid(25.0), kw_only=True)
    loss: Loss = field(default="margin", init=False, repr=False)
    eot: int = field(default=1, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses counts that mean nothing."""
        super().__post_init__()
        for name in ("rounds", "candidates", "pool", "iterations", "steps"):
            check_int(f"Patterns: {name}", getattr(self, name), 1)

    @staticmethod
    def why_not(model: nn.Module, x: Tensor) -> str | None:
        """What of ``model`` the search cannot deal with, for images like ``x``; None for nothing.

        Only what comes first is looked at: an ordinary network of ``snnkern.models`` with direct
        coding and a hard reset to 0 suits.
        """
        coding = [m for m in model.modules() if isinstance(m, Direct | RateCoding)]
        if len(coding) != 1 or not isinstance(coding[0], Direct) or coding[0].is_relu:
            return "it does not hold its input over time (snnkern.nn.Direct)"
        with torch.no_grad(), _watching(model) as seen:
            model(torch.cat([x[:1], x[:1] / 2, torch.zeros_like(x[:1])]))
        if not seen:
            return "it has no spiking neurons"
        layer, current, _ = seen[0]
        if len(current) > 1 and not is_constant(current):
            return "the current of its first neurons is not constant in time"
        plain = layer.charge == "leak" and layer.synapse == "none" and layer.gain == 1
        rests = layer.reset == "hard" and layer.v_reset == 0 and not layer.v_init
        if not plain or not rests or layer.delayed_spike or layer.spike_format != "input":
            return f"its first neurons are {layer}, not of charge 'leak' with a hard reset to 0"
        whole, half, none = current[0].double()
        rounding = torch.finfo(x.dtype).eps ** 0.5
        if not torch.allclose(2 * half, whole + none, rtol=rounding, atol=rounding):
            return "the current of its first neurons is not affine in the image"
        size = none.numel() * x[0].numel()
        if size > MOST:
            return f"its first layer has {size:,} derivatives, more than {MOST:,}"
        return None

    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The image of the largest margin that was found, of every sample."""
        if reason := self.why_not(victim.network, x):
            raise ValueError(f"model cannot be searched by Patterns: {reason}")
        first = _First.of(victim.network, x)
        each = max(1, AT_ONCE // (self.candidates * len(first.least[0])))
        samples = torch.arange(len(x), device=x.device)
        found = [self._search(victim, x, part, first, generator) for part in samples.split(each)]
        return torch.cat(found)

    def _search(
        self,
        victim: Victim,
        x: Tensor,
        rows: Tensor,
        first: _First,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The best image of each of these samples, ``[rows, ...]``."""
        at = rows.repeat_interleave(self.pool)
        sapgd = SAPGD(self.eps, steps=self.steps, loss="margin")
        images = sapgd.run(victim.only(at), x[at], generator)
        images = images.unflatten(0, (len(rows), self.pool))
        with torch.no_grad():
            trains, margins = first.look(victim.only(at), images.flatten(0, 1))
        trains, margins = (t.unflatten(0, (len(rows), self.pool)) for t in (trains, margins))
        best = x[rows]
        left = torch.arange(len(rows), device=x.device)
        for _ in range(self.rounds):
            top = margins.argmax(1)
            best[left] = images[torch.arange(len(left), device=x.device), top]
            on = margins.amax(1) < 0
            if not on.any():
                return best
            left, images, trains, margins = left[on], images[on], trains[on], margins[on]
            tried = self._candidates(victim, x, rows[left], images, trains, first, generator)
            at = rows[left].repeat_interleave(self.candidates)
            with torch.no_grad():
                looked = first.look(victim.only(at), tried.flatten(0, 1))
            new = (t.unflatten(0, (len(left), self.candidates)) for t in looked)
            pairs = zip((images, trains, margins), (tried, *new), strict=True)
            images, trains, margins = _best([torch.cat(pair, 1) for pair in pairs], self.pool)
        best[left] = images[:, 0]
        return best

    def _candidates(
        self,
        victim: Victim,
        x: Tensor,
        rows: Tensor,
        images: Tensor,
        trains: Tensor,
        first: _First,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Images with other trains, ``[samples, candidates, ...]``, of those of the pool."""
        count, pool = images.shape[:2]

        def rand(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=x.device)

        worth = first.worth(victim.only(rows.repeat_interleave(pool)), images, rand)
        parent = (rand(count, self.candidates) * max(pool // 4, 1)).long()  # of the best
        parent = (parent + pool * torch.arange(count, device=x.device)[:, None]).flatten()
        images, trains, worth = (t.flatten(0, 1)[parent] for t in (images, trains, worth))
        at = rows.repeat_interleave(self.candidates)
        low, high = (self.project(x[at] + side * self.eps, x[at]) for side in (-1, 1))
        current = first.current(images)
        reach = self.eps * first.derivative.abs().sum(1)
        for flip in range(FLIPS):
            # Up and down by one train: what it brings, over how far it is.
            at_most = (trains + 1).clamp(max=len(first.least) - 1)
            now = worth.gather(2, trains[..., None])[..., 0]
            scores = []
            for other, far, possible in (
                (at_most, first.at(at_most) - current, at_most > trains),
                ((trains - 1).clamp(min=0), current - first.at(trains), trains > 0),
            ):
                gain = worth.gather(2, other[..., None])[..., 0] - now
                distance = far.clamp(min=0) / reach.clamp(min=1e-12)
                score = (gain.clamp(min=0) + 1e-3) / (distance + 0.05)
                scores.append(torch.where(possible & (distance < 2), score, 0))
            score = torch.cat(scores, 1)
            # One drawn by weight: the largest over an exponential variable.
            drawn = (score / -rand(*score.shape).clamp(min=1e-30).log()).argmax(1)
            neuron, up = drawn % trains.shape[1], drawn < trains.shape[1]
            goes_on = (rand(len(trains)) < 0.75) | (flip == 0)
            step = torch.where(up, 1, -1) * goes_on * (score.amax(1) > 0)
            trains = trains.scatter_add(1, neuron[:, None], step[:, None])
            trains = trains.clamp(0, len(first.least) - 1)
        lower, upper = first.between(trains, worth)
        start, low, high = (t.flatten(1).to(lower) for t in (images, low, high))
        solved = first.solve(start, lower, upper, low, high, self.iterations)
        tried = self.project(solved.to(x.dtype).view_as(images), x[at])
        return tried.view(count, self.candidates, *x.shape[1:])


class _First(NamedTuple):
    """The first neurons: their current ``derivative @ image + constant``, and their trains.

    Train 0 never fires; the last one fires at every step. ``least``: the least current of each
    train, ``[T + 1, neurons]``. ``steps``: the trains, ``[T + 1, T]``.
    """

    derivative: Tensor
    constant: Tensor
    least: Tensor
    steps: Tensor
    size: float

    @classmethod
    def of(cls, model: nn.Module, x: Tensor) -> _First:
        """Of a network that suits; see ``Patterns.why_not``."""
        pixels, wide = x[0].numel(), torch.promote_types(x.dtype, torch.float32)
        basis = torch.cat([x.new_zeros(1, pixels), torch.eye(pixels, dtype=x.dtype).to(x)])
        looks = []
        for images in basis.split(512):
            with torch.no_grad(), _watching(model) as seen:
                model(images.view(-1, *x.shape[1:]))
            looks += seen
        current = torch.cat([of_images[0].flatten(1) for _, of_images, _ in looks]).to(wide)
        layer, like, spikes = looks[0]
        timesteps = len(spikes)
        acting = layer.dynamics()
        leak, threshold = (
            reference.broadcast(acting[name].to(wide), like).expand(like.shape[2:]).flatten()
            for name in ("leak", "threshold")
        )
        charge, currents = torch.zeros_like(leak), [torch.full_like(leak, -torch.inf)]
        for _ in range(timesteps):
            charge = leak * charge + 1
            currents.insert(1, threshold / charge)
        least = torch.stack(currents)
        period = torch.arange(timesteps + 1, 0, -1, device=x.device)[:, None]
        clock = torch.arange(1, timesteps + 1, device=x.device)
        steps = (clock % period == 0).to(wide)
        derivative = (current[1:] - current[0]).t().contiguous()
        size = torch.linalg.matrix_norm(derivative, 2).item() ** 2
        return cls(derivative, current[0], least, steps, max(size, 1e-12))

    def current(self, images: Tensor) -> Tensor:
        """Of images ``[N, ...]``: ``[N, neurons]``."""
        return images.flatten(1).to(self.derivative) @ self.derivative.t() + self.constant

    def at(self, trains: Tensor) -> Tensor:
        """The least currents of trains ``[..., neurons]``."""
        return self.least.gather(0, trains)

    def look(self, victim: Victim, images: Tensor) -> tuple[Tensor, Tensor]:
        """Trains ``[N, neurons]`` and margins ``[N]``; a margin of 0 or more is a broken sample."""
        current = self.current(images)
        trains = sum((current >= least).long() for least in self.least[1:])
        assert isinstance(trains, Tensor)
        return trains, losses.margin(victim.model(images), victim.y)

    def worth(self, victim: Victim, images: Tensor, rand: Any) -> Tensor:
        """What each train of each neuron adds to a rival's margin, to first order.

        Of images ``[samples, pool, ...]``: ``[samples, pool, neurons, T + 1]``. The rival is the
        strongest one, or now and then the second or third.
        """
        with torch.enable_grad(), _watching(victim.network) as seen:
            logits = victim.model(images.flatten(0, 1).detach().requires_grad_())
            rivals = losses.without_label(logits, victim.y)
            classes = min(3, logits.shape[1] - 1)
            rank = (rand(len(logits)) * classes).long() * (rand(len(logits)) < 0.5)
            order = rivals.topk(classes, 1).indices
            chosen = rivals.gather(1, order.gather(1, rank[:, None]))
            total = (chosen[:, 0] - logits.gather(1, victim.y[:, None])[:, 0]).sum()
            (of_spikes,) = torch.autograd.grad(total, seen[0][2])
        values = torch.einsum("tbn,pt->bnp", of_spikes.flatten(2).to(self.steps), self.steps)
        return values.view(*images.shape[:2], *values.shape[1:])

    def between(self, trains: Tensor, worth: Tensor) -> tuple[Tensor, Tensor]:
        """The currents of trains; without the end behind which all trains are worth as much."""
        highest = len(self.least) - 1
        above = torch.where(trains < highest, self.at((trains + 1).clamp(max=highest)), torch.inf)
        now = worth.gather(2, trains[..., None])[..., 0]
        least_up = worth.flip(2).cummin(2).values.flip(2).gather(2, trains[..., None])[..., 0]
        least_down = worth.cummin(2).values.gather(2, trains[..., None])[..., 0]
        lower = torch.where(least_down >= now, -torch.inf, self.at(trains))
        return lower, torch.where(least_up >= now, torch.inf, above)

    def solve(
        self,
        images: Tensor,
        lower: Tensor,
        upper: Tensor,
        low: Tensor,
        high: Tensor,
        iterations: int,
    ) -> Tensor:
        """Images ``[N, pixels]`` in ``[low, high]`` whose currents are as far as can be between."""
        inside = INSIDE * self.least[-1]
        lower, upper = lower + inside, upper - inside
        ahead, speed = images, 1.0
        for _ in range(iterations):
            current = self.current(ahead)
            off = (lower - current).clamp(min=0) - (current - upper).clamp(min=0)
            moved = torch.clamp(ahead + off @ self.derivative / self.size, low, high)
            faster = (1 + (1 + 4 * speed**2) ** 0.5) / 2
            ahead = moved + (speed - 1) / faster * (moved - images)
            images, speed = moved, faster
        return images


def _best(found: Sequence[Tensor], count: int) -> tuple[Tensor, ...]:
    """Of every sample the largest margins, with their images and trains, each pattern once."""
    images, trains, margins = found
    samples, many = margins.shape
    order = margins.argsort(1, descending=True)
    of = torch.arange(samples, device=images.device)[:, None]
    images, trains, margins = images[of, order], trains[of, order], margins[of, order]
    rows = torch.cat([of.expand(-1, many).reshape(-1, 1), trains.flatten(0, 1)], 1)
    _, number = rows.unique(dim=0, return_inverse=True)
    place = torch.arange(len(rows), device=images.device)
    foremost = place.new_full((len(rows),), len(rows)).scatter_reduce(0, number, place, "amin")
    again = (foremost[number] != place).view(samples, many)
    # Repeated ones come last, if at all.
    order = again.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    return images[of, order], trains[of, order], margins[of, order]


@contextmanager
def _watching(model: nn.Module) -> Iterator[list[tuple[LIF, Tensor, Tensor]]]:
    """Within the block a list with the first neurons that ran, their currents and their spikes."""
    seen: list[tuple[LIF, Tensor, Tensor]] = []

    def look(name: str, layer: LIF, x: Tensor, spikes: Tensor) -> None:
        if not seen and not layer.is_relu:
            current = layer.current(x[:1]).expand(x.shape) if is_constant(x) else layer.current(x)
            seen.append((layer, current, spikes))

    with watch_neurons(model, look):
        yield seen
