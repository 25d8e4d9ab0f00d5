"""What a training method decides: the loss of a batch, and what follows a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Method(ABC):
    """Base of the training methods, frozen configurations."""

    @abstractmethod
    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and the logits it was made of, for the training accuracy."""

    def after_step(self, model: nn.Module, generator: torch.Generator) -> None:  # noqa: B027
        """Changes the weights after a step of the optimiser; nothing by default."""


@dataclass(frozen=True)
class Natural(Method):
    """Cross entropy on the images as they are."""

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy."""
        logits = model(x)
        return F.cross_entropy(logits, y), logits
