"""Bounds on margins, and certificates made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from snnkern._checks import check_images, check_number
from snnkern.certify import crown, ibp
from snnkern.models import SpikingNetwork
from snnkern.nn import evaluation_mode
from snnkern.reference import Interval

Method = Literal["ibp", "crown", "best"]
METHODS = ("ibp", "crown", "best")


def bounds(
    model: nn.Module, lower: Tensor, upper: Tensor, y: Tensor, method: Method = "best"
) -> Tensor:
    """Lower bounds of all margins ``logit[y] - logit[j]`` over the box ``[lower, upper]``.

    Args:
        model: a ``snnkern.models.SpikingNetwork``; bounded as it is in evaluation mode, for its own
            number of time steps.
        lower: images ``[N, C, H, W]``, the lower ends of the box.
        upper: the upper ends.
        y: the class whose margins are wanted, ``[N]`` int64.
        method: ``"ibp"``: S-IBP, Liang et al. 2022; ``"crown"``: S-CROWN, with one line for what a
            neuron fires and carries on together instead of their eq. 8 and 10; ``"best"``: the
            best of these, and of S-CROWN with the slopes of eq. 8 and 10, for every margin. In all
            of them the first neurons of a constant input are exact, where they are reset to 0.

    Returns:
        ``[N, K - 1]``, for the classes j other than y, ascending.

    Raises:
        TypeError: a network or a layer that cannot be bounded.
        ValueError: an empty or crossed box, or an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    parts = ["normalize", "encoder", "layers", "readout"]
    plain = isinstance(model, SpikingNetwork) and ibp.runs_as(model, SpikingNetwork)
    if not plain or [name for name, _ in model.named_children()] != parts:
        raise TypeError(
            f"model is a {type(model).__name__}, expected a snnkern.models.SpikingNetwork that "
            "runs its parts in their order"
        )
    assert isinstance(model, SpikingNetwork)
    _refuse_reduced_precision(lower.device)
    if lower.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"lower has dtype {lower.dtype}, expected float32 or float64")
    if lower.shape != upper.shape or lower.dtype != upper.dtype or lower.numel() == 0:
        raise ValueError(
            f"lower is {lower.dtype} {list(lower.shape)} and upper {upper.dtype} "
            f"{list(upper.shape)}, expected two like tensors of at least one image"
        )
    if not bool((lower <= upper).all() and lower.isfinite().all() and upper.isfinite().all()):
        raise ValueError(
            "lower exceeds upper somewhere (or is NaN), or is infinite, expected finite "
            "lower <= upper"
        )
    if y.dtype != torch.int64 or y.shape != lower.shape[:1]:
        raise ValueError(
            f"y is {y.dtype} {list(y.shape)}, expected int64 labels [{lower.shape[0]}]"
        )
    with torch.autocast(lower.device.type, enabled=False), torch.no_grad(), evaluation_mode(model):
        box = ibp.propagate(model.encoder, ibp.propagate(model.normalize, Interval(lower, upper)))
        plain = ibp.runs_as(model.layers, nn.Sequential)
        layers = list(model.layers.children()) if plain else [model.layers]
        found = []
        if method in ("ibp", "best"):
            found.append(ibp.margins(layers, model.readout, box, y))
        if method in ("crown", "best"):
            found.append(_by_crown(layers, model.readout, box, y, crown.TIGHT))
        if method == "best":
            found.append(_by_crown(layers, model.readout, box, y, crown.WITH_SLOPES_OF_THE_PAPER))
        return torch.stack(found).amax(0)


def _by_crown(
    layers: list[nn.Module],
    readout: nn.Module,
    box: Interval,
    y: Tensor,
    options: crown.Options,
) -> Tensor:
    dtype = box.lower.dtype
    divisor = ibp.divisor(readout, len(box.lower))
    total = crown.totals(layers, box, y, options)
    if ibp.counts_spikes(layers):  # whole numbers, which the network divides as well
        return total.ceil().to(dtype) / divisor
    exact = total / divisor
    exact = exact - 2.0**-50 * exact.abs()
    rounded = exact.to(dtype)
    down = torch.nextafter(rounded, torch.full_like(rounded, -math.inf))
    return torch.where(rounded.double() > exact, down, rounded)


def _refuse_reduced_precision(device: torch.device) -> None:
    """Raises where float32 sums are not computed as such: rounding errors are then unknown."""
    reduced = torch.get_float32_matmul_precision() != "highest"
    if device.type == "cuda":
        reduced = reduced or torch.backends.cudnn.allow_tf32
    if reduced:
        raise RuntimeError(
            "float32 sums may be computed in TF32 or bfloat16, expected full precision: "
            "torch.set_float32_matmul_precision('highest'), torch.backends.cudnn.allow_tf32 = False"
        )


@dataclass(frozen=True)
class Certificate:
    """Which images no perturbation within ``eps`` can get misclassified.

    It holds for the network run in evaluation mode, in the dtype of its weights and without
    autocast, for exactly ``timesteps`` steps, and for perturbed images in ``[0, 1]``; rounding
    errors of the network and of the bound are accounted for, where sums are computed in that
    dtype, in any order (not in TF32, nor by transforms such as Winograd's).

    Attributes:
        certified: ``[N]`` bool: every margin is above 0, strictly.
        margin: ``[N]``: lower bound of the smallest margin.
        eps: l_inf radius, in units of the pixel range.
        method: that found the bound.
        timesteps: T of the network.
    """

    certified: Tensor
    margin: Tensor
    eps: float
    method: str
    timesteps: int


def verify(
    model: SpikingNetwork, x: Tensor, y: Tensor, eps: float, method: Method = "best"
) -> Certificate:
    """Certifies images ``x`` ``[N, C, H, W]`` of classes ``y`` within l_inf radius ``eps``.

    Raises:
        TypeError: a network or a layer that cannot be bounded.
        ValueError: images outside ``[0, 1]``, a radius below 0, an unknown method.
    """
    check_images(x, y)
    check_number("eps", eps, low=0)
    # The sums are rounded once, to the images' dtype: one number outwards covers that.
    lower, upper = ((x.double() + side * eps).to(x.dtype) for side in (-1, 1))
    lower = torch.nextafter(lower, torch.full_like(x, -math.inf)).clamp(0, 1)
    upper = torch.nextafter(upper, torch.full_like(x, math.inf)).clamp(0, 1)
    if eps == 0:
        lower = upper = x
    margin = bounds(model, lower, upper, y, method).amin(1)
    return Certificate(margin > 0, margin, float(eps), method, model.timesteps)
