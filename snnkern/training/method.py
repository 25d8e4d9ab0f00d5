"""What a training method decides: the losses of a batch, and all that happens between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Losses = Generator[tuple[Tensor, Tensor], None, None]


@dataclass
class Memory:
    """What a method keeps from batch to batch; checkpoints hold it.

    Args:
        generator: of random choices about the weights. The same on all ranks of a distributed run:
            weights that are changed by it stay equal.
        noise: of random choices about the samples. Ranks differ in it.
        tensors: by name, whatever the method puts there.
        progress: share of the training that lies behind, from 0 to 1; of its whole epochs, where
            the loader does not say how many batches there are.
    """

    generator: torch.Generator
    noise: torch.Generator
    tensors: dict[str, Tensor] = field(default_factory=dict)
    progress: float = 0.0

    @classmethod
    def seeded(
        cls, seed: int, device: torch.device | str = "cpu", rank: int = 0, ranks: int = 1
    ) -> Memory:
        """The memory of a method that has seen nothing; alone it has one generator for both."""
        generator = torch.Generator(device).manual_seed(seed)
        if ranks == 1:
            return cls(generator, generator)
        return cls(generator, torch.Generator(device).manual_seed(seed + 1 + rank))


@dataclass(frozen=True)
class Method(ABC):
    """Base of the training methods, frozen configurations."""

    @abstractmethod
    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        """Yields what a batch is trained on: a loss, and the logits it was made of.

        At every yield the loop runs the backward pass of the loss and a step of the optimiser; so
        what stands behind it sees the gradients of the one and the weights after the other.
        """


@dataclass(frozen=True)
class Natural(Method):
    """Cross entropy on the images as they are."""

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        """Cross entropy."""
        logits = model(x)
        yield F.cross_entropy(logits, y), logits
