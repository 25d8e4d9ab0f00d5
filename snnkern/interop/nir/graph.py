"""What a graph of NIR has and a chain of our layers has not: branches that meet, and factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """``[T, N, ...]`` times a learnt number, or one for every value of a sample."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        uniform = bool((scale == scale.flatten()[0]).all())
        self.scale = nn.Parameter((scale.flatten()[0] if uniform else scale).clone())

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        return expanded("scale", self.scale, x.shape[2:]) * x


def expanded(name: str, scale: Tensor, shape: torch.Size) -> Tensor:
    """A factor for every value of a sample."""
    try:
        return scale.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {list(scale.shape)}, expected one that broadcasts to that of a "
            f"sample, {list(shape)}"
        ) from None


class Graph(nn.Module):
    """Modules in an order in which each finds what it needs; what several bring is added up.

    ``sources`` has the names of NIR, in the order of ``layers``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.sources: dict[str, tuple[str, ...]] = {}

    def append(self, name: str, layer: nn.Module, sources: Sequence[str]) -> None:
        """Another module, which takes the sum of what ``sources`` give, or the input.

        Raises:
            ValueError: ``name`` is there already, or one of ``sources`` is not.
        """
        if name in self.sources:
            raise ValueError(f"name is {name!r}, which is there already")
        if unknown := [source for source in sources if source not in self.sources]:
            raise ValueError(f"{name} takes {unknown}, expected some of {list(self.sources)}")
        self.layers.append(layer)
        self.sources[name] = tuple(sources)

    def as_chain(self) -> nn.Sequential | None:
        """The modules but identities, if each hands on to the next alone."""
        names = list(self.sources)
        if [self.sources[name] for name in names[1:]] != [(name,) for name in names[:-1]]:
            return None
        return nn.Sequential(*(m for m in self.layers if not isinstance(m, nn.Identity)))

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, ...] -> [T, N, ...]``: what the last module gives."""
        values: dict[str, Tensor] = {}
        last = {source: name for name, sources in self.sources.items() for source in sources}
        for layer, (name, sources) in zip(self.layers, self.sources.items(), strict=True):
            total = x if not sources else values[sources[0]]
            for source in sources[1:]:
                total = total + values[source]
            values[name] = layer(total)
            for source in sources:
                if last[source] == name:
                    values.pop(source, None)
        return values[name]
