"""The fully connected and the convolutional network of S-IBP and S-CROWN (Liang et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from snnkern.functional import Coding
from snnkern.models.network import Normalize, SpikingNetwork
from snnkern.nn import LIF, Events, MeanReadout, RateCoding, TimeDistributed


def _finish(
    layers: list[nn.Module],
    features: int,
    hidden: Sequence[int],
    num_classes: int,
    timesteps: int,
    spiking_output: bool,
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    coding: Coding | Literal["events"] | None,
    bias: bool,
    neuron: dict[str, Any],
) -> SpikingNetwork:
    """Adds fully connected layers and the readout; scores are mean spikes or mean currents."""
    for width in hidden:
        layers += [TimeDistributed(nn.Linear(features, width, bias)), LIF(**neuron)]
        features = width
    layers.append(TimeDistributed(nn.Linear(features, num_classes, bias)))
    if spiking_output:
        layers.append(LIF(**neuron))
    normalize = Normalize(mean or [0.0] * channels, std or [1.0] * channels)
    network = SpikingNetwork(timesteps, normalize, nn.Sequential(*layers), MeanReadout())
    if coding is not None:
        steps = max(timesteps, 1)
        network.encoder = Events(steps) if coding == "events" else RateCoding(steps, coding)
        network.timesteps = timesteps
    return network


def fc_net(
    num_classes: int = 10,
    timesteps: int = 10,
    *,
    input_shape: tuple[int, int, int] = (1, 28, 28),
    hidden: Sequence[int] = (512, 256),
    spiking_output: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    coding: Coding | Literal["events"] | None = None,
    bias: bool = True,
    **neuron: Any,
) -> SpikingNetwork:
    """Fully connected network ``X-512-256-K``.

    Args:
        num_classes: K.
        timesteps: T; 0 for the ReLU network of the same weights.
        input_shape: channels, height and width of the images.
        hidden: widths of the hidden layers.
        spiking_output: the last layer fires too, and the logits are its rates, as in the paper.
        mean: of the pixels per channel, for normalisation; 0 by default.
        std: of the pixels per channel; 1 by default.
        coding: how steps draw spikes at the rates of the pixels (``snnkern.nn.RateCoding``), or
            ``"events"`` for frames of events ``[N, F, C, H, W]`` (``snnkern.nn.Events``); without
            one the image is the current of the first layer at every step.
        bias: of all convolutions and linear layers.
        neuron: options of every ``snnkern.LIF``; the paper's are ``leak=0.25, threshold=0.25,
            strict=True``.
    """
    return _finish(
        [TimeDistributed(nn.Flatten())],
        math.prod(input_shape),
        hidden,
        num_classes,
        timesteps,
        spiking_output,
        input_shape[0],
        mean,
        std,
        coding,
        bias,
        neuron,
    )


def conv_net(
    num_classes: int = 10,
    timesteps: int = 10,
    *,
    input_shape: tuple[int, int, int] = (1, 28, 28),
    channels: Sequence[int] = (64, 128),
    hidden: Sequence[int] = (256,),
    spiking_output: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    coding: Coding | Literal["events"] | None = None,
    bias: bool = True,
    **neuron: Any,
) -> SpikingNetwork:
    """Convolutional network ``X-C64k3s2p1-C128k3s2p1-FC256-FCK``; options as for ``fc_net``.

    Args:
        num_classes: K.
        timesteps: T; 0 for the ReLU network of the same weights.
        input_shape: channels, height and width of the images.
        channels: of the convolutions, each 3x3 with stride 2 and padding 1.
        hidden: widths of the hidden fully connected layers.
        spiking_output: the last layer fires too, and the logits are its rates, as in the paper.
        mean: of the pixels per channel, for normalisation; 0 by default.
        std: of the pixels per channel; 1 by default.
        coding: how steps draw spikes at the rates of the pixels (``snnkern.nn.RateCoding``), or
            ``"events"`` for frames of events ``[N, F, C, H, W]`` (``snnkern.nn.Events``); without
            one the image is the current of the first layer at every step.
        bias: of all convolutions and linear layers.
        neuron: options of every ``snnkern.LIF``.
    """
    layers: list[nn.Module] = []
    before, height, width = input_shape
    for after in channels:
        conv = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=bias)
        layers += [TimeDistributed(conv), LIF(**neuron)]
        before, height, width = after, (height + 1) // 2, (width + 1) // 2
    layers.append(TimeDistributed(nn.Flatten()))
    return _finish(
        layers,
        before * height * width,
        hidden,
        num_classes,
        timesteps,
        spiking_output,
        input_shape[0],
        mean,
        std,
        coding,
        bias,
        neuron,
    )
