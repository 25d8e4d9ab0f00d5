"""ResNet12 and ResNet20 as four papers have them: tables of blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from snnkern.models.network import SpikingNetwork
from snnkern.models.papers import Builder, parts
from snnkern.nn import Residual

# As ``Builder.read`` takes them: convolutions with neurons | residual blocks | what comes before
# the linear layer to the classes.
_HYBRID12 = "64 D 64 D 64 A | 64 128/2 256/2 512/2 |"
_HYBRID20 = "64 D 64 D 64 A | 64 64 128/2 128 256/2 256 512/2 512 |"
RESNET12 = {"kundu": _HYBRID12, "rathi": _HYBRID12, "sharmin": _HYBRID12}
RESNET20 = {
    "ozdenizci": "16 | 16 16 16 32/2 32 32 64/2 64 64 | G",
    "rathi": _HYBRID20,
    "sharmin": _HYBRID20,
}


def resnet12(
    num_classes: int = 10, timesteps: int = 10, *, paper: str = "kundu", **options: Any
) -> SpikingNetwork:
    """ResNet12: a stem of three convolutions, four blocks of two, a linear layer.

    Spikes that go past a block, through a 1x1 convolution where the shape changes, are current of
    its second neurons. No biases, no batch norm; dropout between convolutions, whose mask is the
    same in all steps.

    Args:
        num_classes: K.
        timesteps: T; 0 for the ReLU network of the same weights.
        paper: ``"kundu"``: soft reset with learnt leaks and thresholds, logits summed over time
            (HIRE-SNN, Kundu et al. 2021). ``"sharmin"``: spikes delayed by a step in every layer,
            signed Poisson input at 0.9 of the rate (Sharmin et al. 2020). ``"rathi"``: as
            ``"sharmin"``, logits summed over time (hybrid training, Rathi et al. 2020).
        options: as for ``vgg5``; ``bias`` is that of the last layer.

    Raises:
        ValueError: no such paper, or images that cannot be pooled.
    """
    return _resnet(RESNET12, num_classes, timesteps, paper, **options)


def resnet20(
    num_classes: int = 10, timesteps: int = 8, *, paper: str = "ozdenizci", **options: Any
) -> SpikingNetwork:
    """ResNet20, for small images or with the blocks of ImageNet.

    Args:
        num_classes: K.
        timesteps: T; 0 for the ReLU network of the same weights.
        paper: ``"ozdenizci"``: one convolution and nine blocks of widths 16 to 64. Batch norm
            behind every convolution, learnt thresholds, branches that a block adds up by learnt
            weights, averaging of whole maps (Ozdenizci & Legenstein 2023). ``"sharmin"`` and
            ``"rathi"``: eight blocks of widths 64 to 512, otherwise as ``resnet12``.
        options: as for ``vgg5``; ``bias`` is that of the last layer.

    Raises:
        ValueError: no such paper, or images that cannot be pooled.
    """
    return _resnet(RESNET20, num_classes, timesteps, paper, **options)


def _resnet(
    tables: dict[str, str], num_classes: int, timesteps: int, paper: str, **options: Any
) -> SpikingNetwork:
    build = Builder(tables, paper, **options)
    stem, blocks, head = build.table.split("|")
    layers = parts(
        stem=build.read(stem, build.convolutional),
        blocks=build.read(blocks, partial(_block, build)),
        head=[*build.read(head, build.hidden), build.flatten()],
        linear=build.linear(num_classes),
    )
    return build.network(timesteps, layers, rate=0.9)


def _block(build: Builder, channels: int, stride: int = 1) -> list[nn.Module]:
    """Neurons behind the sum of a branch and a shortcut, which see the same spikes."""
    shortcut = build.shortcut(channels, stride)
    branch = build.convolutional(channels, stride)
    if not build.paper.norm:
        branch.append(build.dropout())
    branch += [build.conv(channels), *build.norm()]
    if shortcut:
        shortcut += build.norm()
    # A norm of one branch alone cannot be fused with neurons that see the sum of both.
    both = Residual(nn.Sequential(*branch), nn.Sequential(*shortcut), weighted=build.paper.norm)
    return [nn.Sequential(both, build.neurons())]
