"""VGG5 and VGG11 as four papers have them: tables of layers, and the builder that reads them."""

from __future__ import annotations

from collections.abc import Sequence
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

# Numbers: 3x3 convolutions, and after the bar linear layers, of that width, each with its neurons.
# A: 2x2 average pooling; D: dropout. The linear layer to the classes follows.
VGG5 = {
    "ding": "64 A 128 128 A | 4096 4096",
    "kundu": "64 A 128 D 128 A | 4096 D 4096 D",
    "sharmin": "64 A 128 D 128 A | 1024 1024",
}
VGG11 = {
    "ding": "64 A 128 256 A 512 512 512 A 512 512 | 4096 4096",
    "ozdenizci": "64 A 128 256 A 512 512 512 A 512 512 | 4096 D 4096 D",
    "kundu": "64 A 128 D 256 A 512 D 512 D 512 A 512 D 512 D | 4096 D 4096 D",
}


class _Paper(NamedTuple):
    """What the networks of a paper share."""

    neuron: dict[str, Any]
    norm: bool = False
    bias: bool = False
    readout: type[nn.Module] = MeanReadout
    dropout: type[nn.Module] = SharedDropout
    rate_coding: bool = False


_SOFT = {"surrogate": Triangle(scale=0.3, normalized=True), "detach_reset": True, "strict": True}
PAPERS = {
    "ding": _Paper({"leak": 1.0}, norm=True, bias=True),
    "ozdenizci": _Paper(
        {"leak": 1.0, "learn_threshold": True, "min_threshold": 0.03}, norm=True, dropout=nn.Dropout
    ),
    "kundu": _Paper(
        {"leak": 1.0, "reset": "soft", "learn_leak": True, "learn_threshold": True} | _SOFT,
        readout=SumReadout,
    ),
    "sharmin": _Paper(
        {"leak": 0.99, "reset": "delayed_soft", "delayed_spike": True} | _SOFT, rate_coding=True
    ),
}


def vgg5(
    num_classes: int = 10, timesteps: int = 8, *, paper: str = "ding", **options: Any
) -> SpikingNetwork:
    """VGG5: three convolutions, three linear layers.

    Args:
        num_classes: K.
        timesteps: T; 0 for the ReLU network of the same weights.
        paper: ``"ding"``: batch norm over time, batch and space, biases, no dropout (SNN-RAT, Ding
            et al. 2022). ``"kundu"``: neither, dropout whose mask is the same in all steps, soft
            reset with learnt leaks and thresholds, logits summed over time (HIRE-SNN, Kundu et al.
            2021). ``"sharmin"``: hidden layers of 1024, spikes delayed by a step, signed Poisson
            input of pixels normalised to [-1, 1] (Sharmin et al. 2020).
        options: ``input_shape``: channels, height and width of the images, (3, 32, 32) by default.
            ``bias``: of all convolutions and linear layers, instead of what the paper has.
            ``dropout``: its rate where the paper has any, 0.2 by default.
            ``mean``, ``std``: of the pixels per channel, for normalisation; 0 and 1 by default, for
            ``"sharmin"`` 0.5. ``bits``: of ``"sharmin"``'s quantised input, see
            ``snnkern.nn.RateCoding``; none by default. ``pack``: False for the layers of
            ``torch.nn`` instead of those of ``snnkern.nn``, which keep spikes as bits for backward.
            All others are options of every ``snnkern.LIF`` and go before those of the paper.

    Raises:
        ValueError: no such paper, or images that cannot be pooled.
    """
    return _vgg(VGG5, num_classes, timesteps, paper, **options)


def vgg11(
    num_classes: int = 10, timesteps: int = 8, *, paper: str = "ding", **options: Any
) -> SpikingNetwork:
    """VGG11: eight convolutions, three linear layers.

    Args:
        num_classes: K.
        timesteps: T; 0 for the ReLU network of the same weights.
        paper: ``"ding"`` and ``"kundu"`` as for ``vgg5``. ``"ozdenizci"``: as ``"ding"`` with
            learnt thresholds, dropout that is drawn anew in every step, and no biases, or with
            ``bias=True`` all of them (Ozdenizci & Legenstein 2023).
        options: as for ``vgg5``.

    Raises:
        ValueError: no such paper, or images that cannot be pooled.
    """
    return _vgg(VGG11, num_classes, timesteps, paper, **options)


def _vgg(
    tables: dict[str, str],
    num_classes: int,
    timesteps: int,
    paper: str,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    bias: bool | None = None,
    dropout: float = 0.2,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bits: int | None = None,
    pack: bool = True,
    **neuron: Any,
) -> SpikingNetwork:
    if paper not in tables:
        raise ValueError(f"paper is {paper!r}, expected one of {', '.join(tables)}")
    its = PAPERS[paper]
    if bits is not None and not its.rate_coding:
        raise ValueError(f"bits is {bits} and paper is {paper!r}, expected None: no rate coding")
    neuron = its.neuron | neuron
    bias = its.bias if bias is None else bias
    kind: Any = packed if pack else nn
    layers: list[nn.Module] = []
    channels, height, width = input_shape
    convolutional, linear = tables[paper].split(" | ")
    for entry in convolutional.split():
        if entry == "A":
            if height % 2 or width % 2:
                raise ValueError(
                    f"input_shape is {input_shape}, whose maps reach {height}x{width} before "
                    "pooling by 2, expected even sizes there"
                )
            layers.append(TimeDistributed(kind.AvgPool2d(2)))
            height, width = height // 2, width // 2
        elif entry == "D":
            layers.append(its.dropout(dropout))
        else:
            conv = kind.Conv2d(channels, int(entry), 3, padding=1, bias=bias)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            channels = int(entry)
            layers.append(TimeDistributed(conv))
            layers.append(NormLIF(channels, **neuron) if its.norm else LIF(**neuron))
    layers.append(TimeDistributed(nn.Flatten()))
    features = channels * height * width
    for entry in linear.split():
        if entry == "D":
            layers.append(its.dropout(dropout))
        else:
            layers.append(TimeDistributed(kind.Linear(features, int(entry), bias=bias)))
            layers.append(LIF(**neuron))
            features = int(entry)
    layers.append(TimeDistributed(kind.Linear(features, num_classes, bias=bias)))
    centre, scale = (0.5, 0.5) if its.rate_coding else (0.0, 1.0)
    normalize = Normalize(mean or [centre] * input_shape[0], std or [scale] * input_shape[0])
    network = SpikingNetwork(timesteps, normalize, nn.Sequential(*layers), its.readout())
    if its.rate_coding:
        network.encoder = RateCoding(max(timesteps, 1), "signed_poisson", bits=bits)
        network.timesteps = timesteps
    return network
