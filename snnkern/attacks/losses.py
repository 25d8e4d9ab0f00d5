"""What attacks make large: a number per sample, from logits ``[N, K]``."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """``-log p[y]``, ``[N]``."""
    return F.cross_entropy(logits, y, reduction="none")


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """``KL(softmax p || softmax q)`` of two sets of logits, ``[N]``."""
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
