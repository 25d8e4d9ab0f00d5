"""What attacks make large: a number per sample, from logits ``[N, K]``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """``-log p[y]``, ``[N]``."""
    return F.cross_entropy(logits, y, reduction="none")


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """``KL(softmax p || softmax q)`` of two sets of logits, ``[N]``."""
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def without_label(logits: Tensor, y: Tensor) -> Tensor:
    """The logits, that of ``y`` put below all others."""
    return logits.scatter(1, y[:, None], -torch.inf)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """How far the largest other logit is above that of ``y``, ``[N]``: negative where it is right.

    Carlini & Wagner 2017.
    """
    return without_label(logits, y).amax(1) - logits.gather(1, y[:, None])[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The margin over the distance of the first to the third logit, Croce & Hein 2020, eq. 6.

    Where these tie, as rates do, it is the margin itself. Takes three classes or more.
    """
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return _over(margin(logits, y), first - third)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """How far the ``target`` is above ``y``, in the scale of the first four logits, ``[N]``.

    Croce & Hein 2020, eq. 7. Takes four classes or more.
    """
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    above = logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])
    return _over(above[:, 0], first - (third + fourth) / 2)


def _over(numerator: Tensor, scale: Tensor) -> Tensor:
    return numerator / torch.where(scale > 0, scale, 1)


def decide(logits: Tensor, y: Tensor) -> Tensor:
    """The class that the model gives, ``[N]``; a tie is decided against the label ``y``.

    Rates tie often, and a right answer that rests on the order of the classes is not robust.
    """
    rival = without_label(logits, y).argmax(1)
    return torch.where(margin(logits, y) < 0, y, rival)
