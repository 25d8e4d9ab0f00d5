"""Randomised smoothing for rate coding: the draw of the spikes is the noise.

The class that a network with rate coding gives to most draws changes only where the distribution of
the draws does. A spike fires with the (scaled, normalised) pixel as probability, so a perturbation
of the image moves at most ``T * sum(|change of the probability|)`` of it; a class with more than
half of the draws by more than that keeps them. Nothing is asked of the layers but that an image's
draws depend on nothing else (compare Mukhoty et al. 2024, whose radius lacks the number of time
steps).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnkern._checks import check_images, check_int, check_number
from snnkern.certify.bounds import network_of
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import NormLIF, RateCoding, check_stateless, evaluation_mode
from snnkern.nn.reading import running_statistics, runs_as

ABSTAINED = -1


@dataclass(frozen=True)
class Smoothed:
    """The class of most draws, and how far the image is from another one.

    Each holds with probability ``1 - alpha`` over the draws that were made, for the network that
    answers by majority over all draws; not for a single draw.

    Attributes:
        prediction: ``[N]`` int64; ``ABSTAINED`` (-1) where no class has surely more than half.
        radius: ``[N]`` float64: l_1, in units of the pixel range: the sum of all changes of all
            pixels. 0 where there is no prediction.
        alpha: probability of a wrong answer, for every image.
        timesteps: T of the network.
    """

    prediction: Tensor
    radius: Tensor
    alpha: float
    timesteps: int


def smooth(
    model: SpikingNetwork,
    x: Tensor,
    *,
    draws: int = 1000,
    selection: int = 100,
    alpha: float = 0.001,
    generator: torch.Generator | None = None,
) -> Smoothed:
    """Predicts by majority over draws of the encoder, with an l_1 radius.

    Args:
        model: a ``snnkern.models.SpikingNetwork`` with ``RateCoding``.
        x: images ``[N, C, H, W]`` in ``[0, 1]``.
        draws: of the encoder, to estimate how many give the class; each is a pass of the network.
        selection: draws before these, to choose the class.
        alpha: see ``Smoothed``.
        generator: makes the draws repeatable.

    Raises:
        TypeError: a network without rate coding, or whose output depends on the batch.
        ValueError: one that rounds its rates to levels, or carries state from call to call.
        ImportError: SciPy is not installed.
    """
    try:
        from scipy.stats import beta
    except ImportError as error:
        raise ImportError(
            "smooth() needs the quantiles of SciPy, which is not installed: `pip install scipy`"
        ) from error
    check_images(x, torch.zeros(len(x), dtype=torch.int64))
    check_int("draws", draws, 1)
    check_int("selection", selection, 1)
    check_number("alpha", alpha, low=0, high=1, open_low=True)
    network_of(model)
    check_stateless(model)
    encoder, normalize = model.encoder, model.normalize
    if not runs_as(encoder, RateCoding) or encoder.is_relu:
        raise TypeError(f"model has the encoder {encoder}, expected RateCoding")
    if encoder.bits is not None:
        raise ValueError(
            f"model has the encoder {encoder}, expected one without bits: rates that jump have no "
            "radius"
        )
    if not runs_as(normalize, Normalize):
        raise TypeError(f"model normalises by {type(normalize).__name__}, expected Normalize")
    with torch.no_grad(), evaluation_mode(model):
        for module in model.modules():
            if isinstance(module, NormLIF | nn.BatchNorm1d | nn.BatchNorm2d):
                running_statistics(module)  # else draws would depend on the images beside them
        pixels = normalize(x)

        def votes(count: int) -> Tensor:
            found = []
            for _ in range(count):
                logits = model.readout(model.layers(encoder(pixels, generator)))
                found.append(torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]))
            return torch.stack(found).sum(0)

        chosen = votes(selection).argmax(1)
        times = votes(draws).gather(1, chosen[:, None])[:, 0].cpu().double()
    # One-sided, exact (Clopper & Pearson 1934); of no vote at all it is 0.
    share = torch.from_numpy(beta.ppf(alpha, times.clamp(min=1).numpy(), draws - times.numpy() + 1))
    share = torch.where(times > 0, share, 0.0)
    # Draws are numbers of so many bits: every spike may be off by one of them.
    grain = torch.finfo(pixels.dtype).eps * encoder.timesteps * pixels[0].numel()
    # A grey pixel that normalisation makes several channels of moves them all.
    channels = pixels[0].numel() / x[0].numel()
    per_pixel = channels * encoder.rate / normalize.std.double().abs().min().item()
    radius = ((share - 0.5 - grain) / (encoder.timesteps * per_pixel)).clamp(min=0)
    prediction = torch.where(radius > 0, chosen.cpu(), ABSTAINED)
    return Smoothed(prediction.to(x.device), radius.to(x.device), float(alpha), encoder.timesteps)
