"""WideResNets, whose blocks begin with norm and neurons."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from snnkern.models.network import SpikingNetwork
from snnkern.models.papers import Builder, parts
from snnkern.nn import Residual

# As ``Builder.read`` takes them: a convolution | residual blocks | what follows
# the last neurons.
_TABLE = "16 | 64 64 128/2 128 256/2 256 | G"
WRN16_4 = {"ding": _TABLE, "ozdenizci": _TABLE}


def wrn16_4(
    num_classes: int = 10, timesteps: int = 8, *, paper: str = "ding", **options: Any
) -> SpikingNetwork:
    """WideResNet of depth 16 and width 4: a convolution, six blocks of two, a linear layer.

    A block adds up its branch and its shortcut by learnt weights; between blocks flow currents. The
    shortcut is the current itself, or where the width changes a 1x1 convolution of the spikes that
    the block's first neurons make of it.

    Args:
        num_classes: K.
        timesteps: T; 0 for the ReLU network of the same weights.
        paper: ``"ding"``: thresholds of 1 (SNN-RAT, Ding et al. 2022). ``"ozdenizci"``: learnt
            thresholds, no bias (Ozdenizci & Legenstein 2023). No dropout in either.
        options: as for ``vgg5``; ``bias`` is that of the last layer.

    Raises:
        ValueError: no such paper.
    """
    build = Builder(WRN16_4, paper, **options)
    stem, blocks, head = build.table.split("|")
    layers = parts(
        stem=build.read(stem, lambda channels: [build.conv(channels)]),
        blocks=build.read(blocks, partial(_block, build)),
        head=[build.neurons(norm=True), *build.read(head, build.hidden), build.flatten()],
        linear=build.linear(num_classes),
    )
    return build.network(timesteps, layers)


def _block(build: Builder, channels: int, stride: int = 1) -> list[nn.Module]:
    """Two pairs of neurons and convolution, and a shortcut past them, or past all but the first."""
    first = build.neurons(norm=True)
    shortcut = build.shortcut(channels, stride)
    branch = [*build.convolutional(channels, stride), build.conv(channels)]
    if not shortcut:
        return [Residual(nn.Sequential(first, *branch), weighted=True)]
    both = Residual(nn.Sequential(*branch), nn.Sequential(*shortcut), weighted=True)
    return [nn.Sequential(first, both)]
