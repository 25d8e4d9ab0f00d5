"""Certified training: bounds on margins as a loss (Liang et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkern._checks import check_int, check_number
from snnkern.certify import ibp, inputs
from snnkern.certify.backward import Options
from snnkern.certify.bounds import layers_of, network_of
from snnkern.certify.crown import Least, totals
from snnkern.certify.published import published_gradient
from snnkern.models import SpikingNetwork
from snnkern.nn import Events, RateCoding, evaluation_mode
from snnkern.nn.reading import divided_by, runs_as
from snnkern.reference import Interval
from snnkern.training.method import Losses, Memory, Method

Relaxation = Literal["paper", "joint"]
OPTIONS: dict[Relaxation, Options] = {
    "paper": Options("paper", exact_first=False, once_over_time=False, outward=False),
    "joint": Options("edge", outward=False),
}


class Perturbed(NamedTuple):
    """What the input of a network's layers may become.

    Attributes:
        box: bounds of it, ``[T', N, ...]``.
        budget: see ``layers_of``.
        least: see ``snnkern.certify.crown``.
    """

    box: Interval
    budget: tuple[Tensor, Tensor, int] | None = None
    least: Least | None = None


def worst_logits(margins: Tensor, y: Tensor) -> Tensor:
    """0 for the class itself and the negative margins for the others, ``[N, K]``.

    Args:
        margins: lower bounds ``[N, K - 1]`` of ``logit[y] - logit[j]``, j ascending without y, as
            ``snnkern.certify.bounds`` gives them.
        y: labels, ``[N]``.
    """
    worst = margins.new_zeros(len(y), margins.shape[1] + 1)
    return worst.scatter(1, ibp.other_classes(y, worst.shape[1]), -margins)


def certified_loss(margins: Tensor, y: Tensor) -> Tensor:
    """``CE(-[0, margins], y)``, the mean over the batch; arguments as for ``worst_logits``.

    An upper bound of the cross entropy anywhere that the margins are bounds for.
    """
    return F.cross_entropy(worst_logits(margins, y), y)


@dataclass(frozen=True)
class Certified(Method):
    """``(1 - weight) CE(clean) + weight CE(-[0, margins])``, with margins that are lower bounds.

    The clean logits are those of all time steps, the bounds those of fewer; whatever they certify
    while training, they certify for so many steps alone. What the perturbation may do, and what
    stands in a pair, goes linearly from its start to its end over the first ``ramp`` of the
    training. Of networks with rate coding, bounds hold for a draw of their own; of networks with
    ``snnkern.nn.Events``, they are taken over the first frames. Norm layers have their running
    statistics in the bounds. In the paper the training begins with a network that was trained
    naturally, and gradients are clipped to a norm of 0.25 (``fit(clip_norm=0.25)``). What ``fit``
    keeps as the best checkpoint is that of the highest accuracy without any perturbation; the
    last is the one to certify.

    Args:
        eps: half the width of the boxes around images; the paper names the whole width, so its
            0.12 is 0.06 here. Of events it is the share that is drawn to be unsure, anew for every
            batch, as in the paper: those bounds do not cover the others.
        flips: of events, how many may differ in a sample over the steps of the bounds, any of them
            (an l_0 ball): then there is no ``eps``, and the bounds cover them all.
        timesteps: T' of the bounds.
        ramp: share of the training.
        weight: of the certified loss, at the start and the end of the ramp. The authors' code: 0.6
            for images; the certified loss alone, 1, for events.
        crown: share of S-CROWN's margins, at the start and the end of the ramp; S-IBP has the rest:
            ``(1, 1)`` is S-CROWN alone, ``(0, 0)`` S-IBP, ``(0, 1)`` goes from S-IBP to S-CROWN.
        rivals: against how many classes S-CROWN bounds the margins, of every sample those against
            which S-IBP's are lowest; against the others S-IBP's stand. Fewer take less time. All
            unless given, as in the paper.
        relaxation: ``"paper"``, S-CROWN as printed; ``"joint"``, with one line for what a neuron
            fires and carries on together, and an image minimised once over time.
        published: differentiate the bounds as their published code does, by which unsure spikes get
            another gradient (``snnkern.certify.published``).
        clip: keep boxes in [0, 1]; the paper does not, and with its Bernoulli coding that makes no
            difference.
        limit: of the certified loss; above it the training counts as diverged.
    """

    eps: float | None = None
    flips: int | None = None
    timesteps: int = 3
    ramp: float = 250 / 300
    weight: tuple[float, float] = (0.6, 0.6)
    crown: tuple[float, float] = (1.0, 1.0)
    rivals: int | None = None
    relaxation: Relaxation = "paper"
    published: bool = False
    clip: bool = True
    limit: float = 1e4

    def __post_init__(self) -> None:
        """Refuses what means nothing."""
        if (self.eps is None) == (self.flips is None):
            raise ValueError(
                f"Certified: eps is {self.eps} and flips is {self.flips}, expected one of the two"
            )
        if self.eps is not None:
            check_number("Certified: eps", self.eps, low=0)
        if self.flips is not None:
            check_int("Certified: flips", self.flips, 0)
        check_int("Certified: timesteps", self.timesteps, 1)
        check_number("Certified: ramp", self.ramp, low=0, high=1)
        for name in ("weight", "crown"):
            pair = getattr(self, name)
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise TypeError(
                    f"Certified: {name} is {pair!r}, expected two numbers, at the start and the "
                    "end of the ramp"
                )
            for value in pair:
                check_number(f"Certified: {name}", value, low=0, high=1)
        if self.rivals is not None:
            check_int("Certified: rivals", self.rivals, 1)
            if self.crown == (0.0, 0.0):
                raise ValueError(
                    f"Certified: rivals is {self.rivals} and crown is {self.crown}, expected a "
                    "share of S-CROWN: S-IBP bounds all margins at once"
                )
        if self.relaxation not in OPTIONS:
            raise ValueError(
                f"Certified: relaxation is {self.relaxation!r}, expected 'paper' or 'joint'"
            )
        if self.published and self.relaxation != "paper":
            raise ValueError(
                f"Certified: published is True and relaxation is {self.relaxation!r}, expected "
                "'paper': there is published code for that alone"
            )
        check_number("Certified: limit", self.limit, low=0, open_low=True)

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        """The objective; its logits are the worst ones, up to rounding."""
        ramped = 1.0 if memory.progress >= self.ramp else memory.progress / self.ramp
        weight, share = (start + ramped * (end - start) for start, end in (self.weight, self.crown))
        clean = F.cross_entropy(model(x), y) if weight < 1 else 0
        with bounding(model) as network:
            perturbed = self.perturbed(network, x, ramped, memory.noise)
            margins = self.margins(network, perturbed, y, share)
        loss = certified_loss(margins, y)
        if loss.item() > self.limit:
            raise FloatingPointError(
                f"Certified: the certified loss is {loss.item():g} after {memory.progress:.0%} of "
                f"the training, above limit={self.limit:g}; try a lower learning rate, a smaller "
                "clip_norm, or a longer ramp"
            )
        logits = worst_logits(margins.detach(), y)
        tied = torch.full_like(logits[:, :1], -torch.finfo(logits.dtype).tiny)
        # Of a tie nothing is certified.
        yield (1 - weight) * clean + weight * loss, logits.scatter(1, y[:, None], tied)

    def margins(
        self, network: SpikingNetwork, perturbed: Perturbed, y: Tensor, share: float
    ) -> Tensor:
        """Lower bounds ``[N, K - 1]``, that share of them S-CROWN's, of all or of some rivals."""
        box, budget, least = perturbed
        layers = layers_of(network, budget)
        with published_gradient() if self.published else nullcontext():
            parts = []
            if share < 1:
                parts.append((1 - share) * ibp.margins(layers, network.readout, box, y))
            if share > 0:
                options = OPTIONS[self.relaxation]._replace(rivals=self.rivals)
                total = totals(layers, box, y, options, least).to(box.lower.dtype)
                parts.append(share * total / divided_by(network.readout, self.timesteps))
        return torch.stack(parts).sum(0)

    def perturbed(
        self, network: SpikingNetwork, x: Tensor, ramped: float, noise: torch.Generator
    ) -> Perturbed:
        """What so much of the perturbation makes of images or events."""
        encoder = network.encoder
        if network.timesteps == 0:
            raise ValueError("model has timesteps=0, expected a spiking network")
        if isinstance(encoder, Events):
            return self._events(encoder, network.normalize(x), ramped, noise)
        if self.eps is None:
            raise ValueError(
                f"Certified: flips is {self.flips} and the model's encoder is {encoder}, expected "
                "Events, or eps"
            )
        eps = ramped * self.eps
        box = Interval(x - eps, x + eps)
        box = box.map(lambda t: t.clamp(0, 1)) if self.clip else box
        pixels = ibp.propagate(network.normalize, box)
        if runs_as(encoder, RateCoding):
            return Perturbed(inputs.coded(encoder, pixels, self._draws(pixels.lower, noise)))
        held = ibp.propagate(encoder, pixels)
        return Perturbed(held.map(lambda t: t[:1].expand(self.timesteps, *t.shape[1:])))

    def _events(
        self, encoder: Events, x: Tensor, ramped: float, noise: torch.Generator
    ) -> Perturbed:
        if self.timesteps > encoder.timesteps:
            raise ValueError(
                f"Certified: timesteps is {self.timesteps}, expected at most the "
                f"{encoder.timesteps} of the model: there are no more frames"
            )
        spikes = encoder(x)[: self.timesteps]
        if not bool(((spikes == 0) | (spikes == 1)).all()):
            raise ValueError("x has values other than 0 and 1, expected events")
        if self.eps is None:
            assert self.flips is not None
            free = torch.ones_like(spikes, dtype=torch.bool)
            budget = spikes, free, round(ramped * self.flips)
            box = Interval(torch.zeros_like(spikes), torch.ones_like(spikes))
            return Perturbed(box, budget, inputs.least_of_flips(*budget))
        unsure = self._draws(spikes[0], noise) < ramped * self.eps
        return Perturbed(Interval(spikes.masked_fill(unsure, 0), spikes.masked_fill(unsure, 1)))

    def _draws(self, x: Tensor, noise: torch.Generator) -> Tensor:
        shape = (self.timesteps, *x.shape)
        return torch.rand(shape, dtype=x.dtype, device=noise.device, generator=noise).to(x.device)


@contextmanager
def bounding(model: nn.Module) -> Iterator[SpikingNetwork]:
    """The network in full precision and as it is in evaluation, but for its gradients."""
    device = next(p.device.type for p in model.parameters())
    with torch.autocast(device, enabled=False), evaluation_mode(model, gradients=True):
        yield network_of(model)
