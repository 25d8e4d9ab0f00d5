"""The VGGs of four papers: tables of layers."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from snnkern.models.network import SpikingNetwork
from snnkern.models.papers import Builder

# As ``Builder.read`` takes them: before the bar 3x3 convolutions, behind it linear layers, all with
# neurons. The linear layer to the classes follows.
VGG5 = {
    "ding": "64 A 128 128 A | 4096 4096",
    "kundu": "64 A 128 D 128 A | 4096 D 4096 D",
    "rathi": "64 A 128 D 128 A | 4096 D.5 4096 D.5",
    "sharmin": "64 A 128 D 128 A | 1024 1024",
}
VGG11 = {
    "ding": "64 A 128 256 A 512 512 512 A 512 512 | 4096 4096",
    "ozdenizci": "64 A 128 256 A 512 512 512 A 512 512 | 4096 D 4096 D",
    "kundu": "64 A 128 D 256 A 512 D 512 D 512 A 512 D 512 D | 4096 D 4096 D",
    "rathi": "64 A 128 D 256 D 256 A 512 D 512 D 512 A 512 D 512 D | 1024 D.5 1024 D.5",
}
VGG11_TINY_IMAGENET = {"ozdenizci": "64 A 128 A 256 256 A 512 512 A 512 512 G | 4096"}


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
            input of pixels normalised to [-1, 1] (Sharmin et al. 2020). ``"rathi"``: as
            ``"sharmin"`` with hidden layers of 4096, dropout of 0.5 behind them, and logits summed
            over time (hybrid training, Rathi et al. 2020).
        options: ``input_shape``: channels, height and width of the images, (3, 32, 32) by default.
            ``bias``: of all convolutions and linear layers, instead of what the paper has.
            ``dropout``: its rate where the paper has any, 0.2 by default.
            ``mean``, ``std``: of the pixels per channel, for normalisation; 0 and 1 by default, for
            ``"rathi"`` and ``"sharmin"`` 0.5. ``bits``: of their input, where it is quantised; see
            ``snnkern.nn.RateCoding``. ``readout``: ``"mean"`` or ``"sum"`` over time, instead of
            what the paper has. ``pack``: False for the layers of ``torch.nn`` instead of those of
            ``snnkern.nn``, which keep spikes as bits for backward. All others are options of every
            ``snnkern.LIF`` and go before those of the paper.

    Raises:
        ValueError: no such paper, or images that cannot be pooled.
    """
    return _vgg(VGG5, num_classes, timesteps, paper, **options)


def vgg11(
    num_classes: int = 10, timesteps: int = 8, *, paper: str = "ding", **options: Any
) -> SpikingNetwork:
    """VGG11: eight convolutions (``"rathi"``: nine), three linear layers.

    Args:
        num_classes: K.
        timesteps: T; 0 for the ReLU network of the same weights.
        paper: ``"ding"`` and ``"kundu"`` as for ``vgg5``. ``"ozdenizci"``: as ``"ding"`` with
            learnt thresholds, dropout that is drawn anew in every step, and no biases, or with
            ``bias=True`` all of them (Ozdenizci & Legenstein 2023). ``"rathi"``: a second
            convolution of 256 and hidden layers of 1024, otherwise as for ``vgg5``.
        options: as for ``vgg5``.

    Raises:
        ValueError: no such paper, or images that cannot be pooled.
    """
    return _vgg(VGG11, num_classes, timesteps, paper, **options)


def vgg11_tiny_imagenet(
    num_classes: int = 200, timesteps: int = 8, *, paper: str = "ozdenizci", **options: Any
) -> SpikingNetwork:
    """The VGG11 for TinyImageNet: eight convolutions, two linear layers.

    Args:
        num_classes: K.
        timesteps: T; 0 for the ReLU network of the same weights.
        paper: ``"ozdenizci"``: as for ``vgg11``, without dropout (Ozdenizci & Legenstein 2023).
        options: as for ``vgg5``; ``input_shape`` is (3, 64, 64) by default.

    Raises:
        ValueError: no such paper, or images that cannot be pooled.
    """
    options = {"input_shape": (3, 64, 64)} | options
    return _vgg(VGG11_TINY_IMAGENET, num_classes, timesteps, paper, **options)


def _vgg(
    tables: dict[str, str], num_classes: int, timesteps: int, paper: str, **options: Any
) -> SpikingNetwork:
    build = Builder(tables, paper, **options)
    convolutions, hidden = build.table.split("|")
    layers = build.read(convolutions, partial(build.convolutional, bias=build.bias))
    layers.append(build.flatten())
    layers += build.read(hidden, build.hidden)
    layers.append(build.linear(num_classes))
    return build.network(timesteps, nn.Sequential(*layers))
