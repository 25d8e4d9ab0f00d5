"""Several gradients for one attack: what one surrogate leaves standing, another may break."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from snnkern._checks import check_int
from snnkern.attacks.attack import Attack, Look, Loss, Norm, Victim
from snnkern.attacks.chance import Draws
from snnkern.nn import Gradient, check_gradient, gradient
from snnkern.surrogate import (
    ASSG,
    HART,
    ATan,
    Deferred,
    Exponential,
    FastSigmoid,
    NotPointwise,
    Rectangle,
    StraightThrough,
    Surrogate,
    Triangle,
)

# The 19 of Ozdenizci & Legenstein 2023, in the order of their code.
SURROGATE_ENSEMBLE: tuple[Gradient, ...] = (
    *(Triangle(width) for width in (1.0, 2.0, 3.0, 0.5, 0.25)),
    *(Exponential(scale, slope) for scale in (0.3, 1.0) for slope in (0.5, 1.0, 2.0)),
    *(Rectangle(width) for width in (0.25, 0.5, 1.0, 2.0, 4.0)),
    StraightThrough(),
    "rate",
    "relu",
)

# Chosen by measurement (benchmarks/gradients.py): narrow at the threshold, and not 0 far from it.
# Fewer and stronger than the 19; with a strong optimiser such as APGD the first is nearly as strong
# as they are. ASSG finds a width of its own where thresholds are far from 1.
DEFAULT_ENSEMBLE: tuple[Gradient, ...] = (
    *(FastSigmoid(slope) for slope in (25.0, 50.0, 10.0)),
    ATan(10.0),
    Triangle(0.25),
    ASSG(),
    HART(0.25),
)


@dataclass(frozen=True)
class Riders(Victim):
    """A victim that differentiates every sample by a surrogate of its own.

    Args:
        gradients: those to choose from.
        member: which one each sample has, ``[N]``; samples of a member lie together.
    """

    gradients: tuple[Surrogate, ...] = ()
    member: Tensor = field(default_factory=lambda: torch.empty(0))

    def _look(self, x: Tensor) -> Look:
        if shared := self._shared(x):
            return shared
        one_each = [self.gradients[number] for number in self.member.tolist()]
        with gradient(self.network, one_each):
            return super()._look(x)

    def only(self, samples: Tensor) -> Riders:
        """The same for some of the samples: indices, or a mask."""
        fewer = super().only(samples)
        assert isinstance(fewer, Riders)
        return replace(fewer, member=self.member[samples])

    def _shared(self, x: Tensor) -> Look | None:
        """One forward pass for all members, where their images are the same."""
        members = len(self.gradients)
        each = len(x) // members
        if len(x) != members * each or not torch.equal(
            self.member, torch.arange(members, device=x.device).repeat_interleave(each)
        ):
            return None
        once = x[:each]
        same = (
            torch.equal(
                part.reshape(members, each, *part.shape[1:]), first.expand(members, *first.shape)
            )
            for part, first in ((x, once), (self.y, self.y[:each]))
        )
        if not all(same):
            return None
        now: list[Surrogate] = []
        with torch.enable_grad(), gradient(self.network, Deferred(now)):
            once = once.detach().requires_grad_()
            logits = self.model(once)
            found = self.only(torch.arange(each, device=x.device)).losses(logits)
            total = found.sum()
            parts = []
            for chosen in self.gradients:
                now[:] = [chosen]
                parts.append(torch.autograd.grad(total, once, retain_graph=True)[0])
        return Look(
            logits.detach().repeat(members, 1), found.detach().repeat(members), torch.cat(parts)
        )


@dataclass(frozen=True)
class Ensemble(Attack):
    """One attack through one gradient after the other; a sample is broken if any breaks it.

    The protocol of Ozdenizci & Legenstein 2023 (appendix B.2): a member sees only the samples that
    none before it broke, and a member's images are judged by the model as it is. Gives the images
    of the first member that broke a sample, and the clean image where none did.

    As samples leave, later members share the batch that is left, each sample differentiated in its
    own way, and where their images are still the same (at the first step of an attack without a
    random start) one forward pass. What is no pointwise surrogate runs by itself: ``"rate"``,
    ``"relu"``, ``RGA``, ``HART``, ``PDSG``, ``ASSG``, and None, the model's own. Per sample all is
    as if one member had run after the other: of what the attack draws, every member has a stream of
    its own, seeded from ``generator``, from which it draws for the whole batch. Not so where a
    model has chance in it, and ``PDSG`` looks at the batch that is left.

    Args:
        attack: what is run; size, norm, loss and draws are its own, and it must say no gradient.
        gradients: the members, in their order; see ``snnkern.gradient``.
        batch_size: images that run at once at most; as many as the caller hands in unless given.
    """

    eps: float = field(init=False, repr=False)
    norm: Norm = field(init=False, repr=False, kw_only=True)
    gradient: Gradient | None = field(init=False, repr=False, kw_only=True)
    loss: Loss = field(init=False, repr=False, kw_only=True)
    eot: int = field(init=False, repr=False, kw_only=True)
    attack: Attack
    gradients: Sequence[Gradient | None] = SURROGATE_ENSEMBLE
    batch_size: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Takes over what the attack says of itself; refuses members that it cannot have."""
        several = hasattr(self.attack, "attack") or hasattr(self.attack, "attacks")
        if not isinstance(self.attack, Attack) or several:
            raise TypeError(
                f"Ensemble: attack is {self.attack!r}, expected one on the model itself such as "
                "PGD(); Transfer(source_model, Ensemble(attack)) looks at another"
            )
        if self.attack.gradient is not None:
            raise ValueError(
                f"Ensemble: attack is {self.attack}, expected one without a gradient: the members "
                "are its gradients"
            )
        if not self.gradients:
            raise ValueError("Ensemble: gradients is empty, expected at least one")
        for number, g in enumerate(self.gradients):
            check_gradient(f"Ensemble: gradients[{number}]", g)
        if self.batch_size is not None:
            check_int("Ensemble: batch_size", self.batch_size, 1)
        object.__setattr__(self, "gradients", tuple(self.gradients))
        for part in fields(Attack):
            object.__setattr__(self, part.name, getattr(self.attack, part.name))

    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The first images that break a sample, else the clean ones."""
        images = x.clone()
        left = torch.arange(len(x), device=x.device)
        limit = self.batch_size or len(x)
        device = None if generator is None else generator.device
        numbers = torch.randint(
            2**63 - 1, (len(self.gradients),), generator=generator, device=device
        )
        seeds: list[int] = numbers.tolist()
        first = 0
        while first < len(self.gradients) and len(left):
            last = self._together(first, limit // len(left))
            broken = []
            for rows in left.split(limit):
                found, breaks = self._run(victim, x, rows, range(first, last), seeds)
                done, by = breaks.any(0), breaks.int().argmax(0)  # the first of them
                images[rows[done]] = found[by[done], done.nonzero()[:, 0]]
                broken.append(done)
            left = left[~torch.cat(broken)]
            first = last
        return images

    def _together(self, first: int, most: int) -> int:
        """The end of the members from ``first`` on that run at once: ``most`` of them, or one."""
        last = first
        while last < min(first + most, len(self.gradients)) and _rides(self.gradients[last]):
            last += 1
        return max(last, first + 1)

    def _run(
        self, victim: Victim, x: Tensor, rows: Tensor, members: range, seeds: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Images of every member ``[members, rows, ...]``, and whether they break the sample."""
        count = len(members)
        rows = rows.repeat(count)
        member = torch.arange(count, device=x.device).repeat_interleave(len(rows) // count)
        streams = [torch.Generator(x.device).manual_seed(seeds[number]) for number in members]
        draws = Draws(streams, len(x), member, rows)
        part = victim.only(rows)
        if count == 1:
            with gradient(victim.network, self.gradients[members[0]]):
                found = self.attack.perturb(part, x[rows], draws)
        else:
            chosen = [self.gradients[number] for number in members]
            riders = Riders(
                **{of.name: getattr(part, of.name) for of in fields(Victim)},
                gradients=tuple(g for g in chosen if isinstance(g, Surrogate)),
                member=member,
            )
            found = self.attack.perturb(riders, x[rows], draws)
        broken = part.broken(part.logits(found))
        return found.detach().reshape(count, -1, *x.shape[1:]), broken.view(count, -1)


def _rides(g: Gradient | None) -> bool:
    return isinstance(g, Surrogate) and not isinstance(g, NotPointwise)
