"""What the networks of a paper share, and the builder that makes layers of tables."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from snnkern.models.network import Normalize, SpikingNetwork
from snnkern.nn import (
    LIF,
    MeanReadout,
    NormLIF,
    RateCoding,
    SharedDropout,
    SumReadout,
    TimeDistributed,
    packed,
)
from snnkern.surrogate import Triangle


class Paper(NamedTuple):
    """What the networks of a paper share.

    ``linear_std``: of the weights of linear layers at the start, where they are normal.
    """

    neuron: dict[str, Any]
    norm: bool = False
    bias: bool = False
    readout: type[nn.Module] = MeanReadout
    dropout: type[nn.Module] = SharedDropout
    rate_coding: bool = False
    linear_std: float | None = None


_SOFT = {"surrogate": Triangle(scale=0.3, normalized=True), "detach_reset": True, "strict": True}
_HYBRID = Paper(
    {"leak": 0.99, "reset": "delayed_soft", "delayed_spike": True} | _SOFT,
    rate_coding=True,
    linear_std=0.01,
)
PAPERS = {
    "ding": Paper({"leak": 1.0}, norm=True, bias=True),
    "ozdenizci": Paper(
        {"leak": 1.0, "learn_threshold": True, "min_threshold": 0.03}, norm=True, dropout=nn.Dropout
    ),
    "kundu": Paper(
        {"leak": 1.0, "reset": "soft", "learn_leak": True, "learn_threshold": True} | _SOFT,
        readout=SumReadout,
        linear_std=0.01,
    ),
    "rathi": _HYBRID._replace(readout=SumReadout),
    "sharmin": _HYBRID,
}

READOUTS = {"mean": MeanReadout, "sum": SumReadout}


class Builder:
    """Makes layers as a paper has them, and keeps count of what they give.

    Args:
        tables: of the networks to choose from, by paper; see ``read``.
        paper: one of them.
        input_shape, bias, dropout, mean, std, bits, readout, pack, neuron: the options of
            ``models.vgg5``.

    Raises:
        ValueError: no such paper or readout, or ``bits`` where input is not rate coded.
    """

    def __init__(
        self,
        tables: Mapping[str, str],
        paper: str,
        *,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        bias: bool | None = None,
        dropout: float = 0.2,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bits: int | None = None,
        readout: str | None = None,
        pack: bool = True,
        **neuron: Any,
    ) -> None:
        if paper not in tables:
            raise ValueError(f"paper is {paper!r}, expected one of {', '.join(tables)}")
        self.paper = PAPERS[paper]
        if bits is not None and not self.paper.rate_coding:
            raise ValueError(
                f"bits is {bits} and paper is {paper!r}, expected None: its input is not rate coded"
            )
        if readout is not None and readout not in READOUTS:
            raise ValueError(f"readout is {readout!r}, expected one of {', '.join(READOUTS)}")
        self.table = tables[paper]
        self.input_shape = input_shape
        self.channels, self.height, self.width = input_shape
        self.bias = self.paper.bias if bias is None else bias
        self._dropout = dropout
        self._mean, self._std = mean, std
        self._bits = bits
        self._readout = READOUTS[readout] if readout is not None else self.paper.readout
        self._kind: Any = packed if pack else nn
        self._neuron = self.paper.neuron | neuron

    def read(self, table: str, layer: Callable[..., Iterable[nn.Module]]) -> list[nn.Module]:
        """The layers of a table, from left to right.

        Args:
            table: widths, with a stride behind them where it is not 1 (``128/2``); A for 2x2
                average pooling, G for average pooling of whole maps; D for dropout, with its rate
                behind it where the paper fixes one (``D.5``).
            layer: makes of a width, and of a stride where there is one, what they stand for.

        Raises:
            ValueError: maps that cannot be halved.
        """
        modules: list[nn.Module] = []
        for entry in table.split():
            if entry == "A":
                modules.append(self._halve())
            elif entry == "G":
                modules.append(TimeDistributed(self._kind.AvgPool2d((self.height, self.width))))
                self.height = self.width = 1
            elif entry[0] == "D":
                modules.append(self.dropout(float(entry[1:]) if entry[1:] else None))
            else:
                modules += layer(*map(int, entry.split("/")))
        return modules

    def _halve(self) -> nn.Module:
        if self.height % 2 or self.width % 2:
            raise ValueError(
                f"input_shape is {self.input_shape}, whose maps reach {self.height}x{self.width} "
                "before pooling by 2, expected even sizes there"
            )
        self.height, self.width = self.height // 2, self.width // 2
        return TimeDistributed(self._kind.AvgPool2d(2))

    def conv(self, channels: int, stride: int = 1, bias: bool = False) -> nn.Module:
        """A 3x3 convolution."""
        conv = self._conv(channels, 3, stride, bias)
        self.channels = channels
        self.height, self.width = (-(-size // stride) for size in (self.height, self.width))
        return conv

    def _conv(self, channels: int, size: int, stride: int, bias: bool = False) -> nn.Module:
        padding = size // 2
        conv = self._kind.Conv2d(self.channels, channels, size, stride, padding, bias=bias)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if bias:
            nn.init.zeros_(conv.bias)
        return TimeDistributed(conv)

    def shortcut(self, channels: int, stride: int) -> list[nn.Module]:
        """A 1x1 convolution past a branch that is yet to be built, if that changes the shape."""
        if stride == 1 and channels == self.channels:
            return []
        return [self._conv(channels, 1, stride)]

    def norm(self) -> list[nn.Module]:
        """Batch norm over time, batch and space, where the paper has one."""
        return [TimeDistributed(nn.BatchNorm2d(self.channels))] if self.paper.norm else []

    def neurons(self, norm: bool = False) -> nn.Module:
        """Neurons; with ``norm`` behind a batch norm, where the paper has one."""
        normed = norm and self.paper.norm
        return NormLIF(self.channels, **self._neuron) if normed else LIF(**self._neuron)

    def dropout(self, rate: float | None = None) -> nn.Module:
        """Dropout as the paper has it, with a mask for all time steps or one for each."""
        return self.paper.dropout(self._dropout if rate is None else rate)

    def convolutional(
        self, channels: int, stride: int = 1, *, bias: bool = False
    ) -> list[nn.Module]:
        """A convolution and its neurons."""
        return [self.conv(channels, stride, bias), self.neurons(norm=True)]

    def flatten(self) -> nn.Module:
        """From maps to features."""
        self.channels *= self.height * self.width
        self.height = self.width = 1
        return TimeDistributed(nn.Flatten())

    def linear(self, features: int) -> nn.Module:
        """A linear layer."""
        linear = self._kind.Linear(self.channels, features, bias=self.bias)
        if self.paper.linear_std is not None:
            nn.init.normal_(linear.weight, std=self.paper.linear_std)
        if self.bias:
            nn.init.zeros_(linear.bias)
        self.channels = features
        return TimeDistributed(linear)

    def hidden(self, features: int) -> list[nn.Module]:
        """A linear layer and its neurons."""
        return [self.linear(features), self.neurons()]

    def network(self, timesteps: int, layers: nn.Module, rate: float = 1.0) -> SpikingNetwork:
        """The network of these layers; ``rate`` is the largest of rate-coded input."""
        centre, scale = (0.5, 0.5) if self.paper.rate_coding else (0.0, 1.0)
        channels = self.input_shape[0]
        normalize = Normalize(self._mean or [centre] * channels, self._std or [scale] * channels)
        network = SpikingNetwork(timesteps, normalize, layers, self._readout())
        if self.paper.rate_coding:
            network.encoder = RateCoding(max(timesteps, 1), "signed_poisson", rate, bits=self._bits)
            network.timesteps = timesteps
        return network


def parts(
    stem: list[nn.Module], blocks: list[nn.Module], head: list[nn.Module], linear: nn.Module
) -> nn.Sequential:
    """The layers of a residual network, its parts under these names."""
    named = {"stem": stem, "blocks": blocks, "head": head}
    layers = OrderedDict((name, nn.Sequential(*part)) for name, part in named.items())
    return nn.Sequential(layers | {"linear": linear})
