"""Bounds on margins, and certificates made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snnkern._ball import project_linf
from snnkern._checks import check_images, check_int, check_number
from snnkern.certify import crown, exact, ibp, inputs, split
from snnkern.certify.backward import Options, round_down
from snnkern.certify.slopes import Slopes
from snnkern.models import SpikingNetwork
from snnkern.nn import GradientMode, RateCoding, evaluation_mode
from snnkern.nn.reading import divided_by, runs_as
from snnkern.reference import Interval

Method = Literal["ibp", "crown", "best", "tight", "split"]
METHODS = ("ibp", "crown", "best", "tight", "split")


def bounds(
    model: nn.Module,
    lower: Tensor,
    upper: Tensor,
    y: Tensor,
    method: Method = "best",
    *,
    draws: Tensor | None = None,
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
            best of these, and of S-CROWN with the slopes of eq. 8 and 10, for every margin;
            ``"tight"``: the same, and S-CROWN with slopes that are optimised and, in small layers,
            membranes that it bounds as well, 100 times as long; ``"split"``: the same, and bounded
            anew in up to 512 parts of what the currents of first neurons may be, longer still. In
            all of them the first neurons of a constant input are exact, where they are reset to 0;
            where there are none ``"split"`` is ``"tight"``.
        draws: of the encoder of a network with rate coding, ``[T, *shape]`` in the shape and dtype
            of ``model.normalize(lower)``, as ``snnkern.functional.encode`` takes them. The bounds
            are those for these draws alone.

    Returns:
        ``[N, K - 1]``, for the classes j other than y, ascending.

    Raises:
        TypeError: a network or a layer that cannot be bounded.
        ValueError: an empty or crossed box, draws that do not fit, or an unknown method.
    """
    return _bounds(model, lower, upper, y, method, draws)


def _bounds(
    model: nn.Module,
    lower: Tensor,
    upper: Tensor,
    y: Tensor,
    method: Method,
    draws: Tensor | None,
    enough: float = math.inf,
) -> Tensor:
    """``bounds``; what takes long is done only as far as to say of which samples all are above.

    Those above ``enough`` stay as they are, and so do all of a sample once one cannot be raised.
    """
    network = _network(model, method, lower)
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
    _check_labels(y, lower.shape[0])
    encoder = network.encoder
    coding = runs_as(encoder, RateCoding) and not encoder.is_relu
    if coding != (draws is not None):
        raise ValueError(
            f"draws are {'not ' if draws is None else ''}given and the model's encoder is "
            f"{encoder}, expected draws for rate coding alone"
        )
    with _evaluation(network):
        pixels = ibp.propagate(network.normalize, Interval(lower, upper))
        if not bool(pixels.lower.isfinite().all() and pixels.upper.isfinite().all()):
            raise ValueError(
                f"model.normalize is {network.normalize} and gives values of the box that are not "
                "finite, expected finite ones"
            )
        if draws is None:
            return _margins(network, ibp.propagate(encoder, pixels), y, method, enough=enough)
        assert isinstance(encoder, RateCoding)
        like = pixels.lower
        if draws.shape != (encoder.timesteps, *like.shape) or draws.dtype != like.dtype:
            raise ValueError(
                f"draws is {draws.dtype} {list(draws.shape)}, expected {like.dtype} "
                f"{[encoder.timesteps, *like.shape]}, as model.normalize gives them to the encoder"
            )
        box = inputs.coded(encoder, pixels, draws)
        return _margins(network, box, y, method, inputs.least_of_draws(box, draws))


def spike_bounds(
    model: nn.Module,
    spikes: Tensor,
    y: Tensor,
    method: Method = "best",
    *,
    free: Tensor | None = None,
    flips: int | None = None,
) -> Tensor:
    """Lower bounds of all margins of a network's layers, fed with spikes of which some may differ.

    What comes before the layers, normalisation and encoder, is left out: these are events.

    Args:
        model: see ``bounds``.
        spikes: 0 or 1, ``[T, N, ...]``, float32 or float64, with any number of steps.
        y: see ``bounds``.
        method: see ``bounds``.
        free: which spikes may differ, bool like ``spikes``; all where it is not given. ``spikes ==
            0`` lets events be added alone, ``spikes == 1`` removed.
        flips: how many may differ in a sample, over all steps (an l_0 ball); any number where it is
            not given.

    Returns:
        ``[N, K - 1]``, for the classes j other than y, ascending.

    Raises:
        TypeError: a network or a layer that cannot be bounded.
        ValueError: values other than 0 and 1, shapes that do not fit, an unknown method.
    """
    network = _network(model, method, spikes)
    if spikes.dim() < 3 or spikes.numel() == 0 or not bool(((spikes == 0) | (spikes == 1)).all()):
        raise ValueError(f"spikes has shape {list(spikes.shape)}, expected 0 and 1, [T, N, ...]")
    _check_labels(y, spikes.shape[1])
    if free is None:
        free = torch.ones_like(spikes, dtype=torch.bool)
    if free.dtype != torch.bool or free.shape != spikes.shape:
        raise ValueError(
            f"free is {free.dtype} {list(free.shape)}, expected bool {list(spikes.shape)}"
        )
    box = Interval(torch.where(free, 0, spikes), torch.where(free, 1, spikes))
    with _evaluation(network):
        if flips is None:
            return _margins(network, box, y, method)
        check_int("flips", flips, 0)
        least = inputs.least_of_flips(spikes, free, flips)
        return _margins(network, box, y, method, least, (spikes, free, flips))


def network_of(model: nn.Module) -> SpikingNetwork:
    """The model, if it is a network that can be bounded.

    Raises:
        TypeError: it is none.
    """
    parts = ["normalize", "encoder", "layers", "readout"]
    plain = isinstance(model, SpikingNetwork) and runs_as(model, SpikingNetwork)
    if not plain or [name for name, _ in model.named_children()] != parts:
        raise TypeError(
            f"model is a {type(model).__name__}, expected a snnkern.models.SpikingNetwork that "
            "runs its parts in their order"
        )
    assert isinstance(model, SpikingNetwork)
    modes = (m.gradient_mode for m in model.modules() if isinstance(m, GradientMode))
    if any(isinstance(mode, str) for mode in modes):
        raise TypeError(
            "model is within snnkern.gradient(model, 'relu'), expected it as it is outside: within "
            "it is the ReLU network, which timesteps=0 makes of it"
        )
    return model


def layers_of(
    network: SpikingNetwork, budget: tuple[Tensor, Tensor, int] | None = None
) -> list[nn.Module]:
    """The layers of a network; with a budget, of ``spikes`` and what may differ from them.

    The budget has the spikes ``[T, N, ...]``, which of them may differ, and how many.
    """
    # Not children(), which names a module once that stands twice.
    inner = network.layers
    layers = list(inner) if runs_as(inner, nn.Sequential) else [inner]
    return layers if budget is None else inputs.with_flips(layers, *budget)


def _network(model: nn.Module, method: str, x: Tensor) -> SpikingNetwork:
    """The model, if it is one that can be bounded by ``method`` for inputs like ``x``."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    network = network_of(model)
    _refuse_reduced_precision(x.device)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"the input has dtype {x.dtype}, expected float32 or float64")
    return network


def _check_labels(y: Tensor, count: int) -> None:
    if y.dtype != torch.int64 or y.shape != (count,):
        raise ValueError(f"y is {y.dtype} {list(y.shape)}, expected int64 labels [{count}]")


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    device = next((p.device.type for p in model.parameters()), "cpu")
    with torch.autocast(device, enabled=False), torch.no_grad(), evaluation_mode(model):
        yield


def _margins(
    model: SpikingNetwork,
    box: Interval,
    y: Tensor,
    method: str,
    least: crown.Least | None = None,
    budget: tuple[Tensor, Tensor, int] | None = None,
    enough: float = math.inf,
) -> Tensor:
    """The best of what the method finds, for inputs of the layers in ``box``."""
    layers = layers_of(model, budget)

    def by_crown(options: Options) -> Tensor:
        total = crown.totals(layers, box, y, options, least)
        return _of_totals(total, layers, model.readout, box)

    best = method in ("best", "tight", "split")
    found = []
    if method == "ibp" or best:
        found.append(ibp.margins(layers, model.readout, box, y))
    if method == "crown" or best:
        found.append(by_crown(crown.TIGHT))
    if best:
        found.append(by_crown(crown.WITH_SLOPES_OF_THE_PAPER))
    if method == "tight" or (method == "split" and least is not None):
        found.append(by_crown(Options(slopes=Slopes(), membranes=True)))
    margins = torch.stack(found).amax(0)
    if method == "split" and least is None:
        whole = split.Margins(layers, box, y, torch.zeros_like(y))
        open_ = margins <= enough
        while bool(open_.any()):
            if enough == math.inf:
                sample, other = open_.nonzero(as_tuple=True)
            else:  # the lowest of every sample: where it stays open, the others settle nothing
                lowest, which = torch.where(open_, margins, math.inf).min(1)
                sample = (lowest <= enough).nonzero()[:, 0]
                other = which[sample]
            total = split.totals(whole.pick(sample)._replace(other=other), enough)
            new = _of_totals(total, layers, model.readout, box)
            margins[sample, other] = torch.maximum(margins[sample, other], new)
            open_[sample, other] = False
            open_[sample[margins[sample, other] <= enough]] = False
    if ibp.counts_spikes(layers):
        margins -= _rounding_of_rates(divided_by(model.readout, len(box.lower)), margins.dtype)
    return margins


def _rounding_of_rates(divisor: int, dtype: torch.dtype) -> float:
    """By how much the difference of two rates may fall short of that of their numbers of spikes.

    Two quotients of at most 1 and their difference are rounded; by a power of two none is.
    """
    return 0.0 if divisor & (divisor - 1) == 0 else 2 * torch.finfo(dtype).eps


def _of_totals(total: Tensor, layers: list[nn.Module], readout: nn.Module, box: Interval) -> Tensor:
    """Margins as the readout makes them of bounds of their sums over time."""
    dtype = box.lower.dtype
    divisor = divided_by(readout, len(box.lower))
    if ibp.counts_spikes(layers):  # whole numbers, which the network divides as well
        return total.ceil().to(dtype) / divisor
    exact = total / divisor
    return round_down(exact - 2.0**-50 * exact.abs(), dtype)


def _refuse_reduced_precision(device: torch.device) -> None:
    """Raises where float32 sums are not computed as such: rounding errors are then unknown."""
    backends: Any = torch.backends
    settings = {
        "mkldnn.conv": backends.mkldnn.conv.fp32_precision,
        "mkldnn.matmul": backends.mkldnn.matmul.fp32_precision,
    }
    if device.type == "cuda":
        settings = {
            "cudnn.conv": backends.cudnn.conv.fp32_precision,
            "cuda.matmul": backends.cuda.matmul.fp32_precision,
        }
    # They also tell what their parents say, and set_float32_matmul_precision and allow_tf32.
    for name, value in settings.items():
        if value not in ("none", "ieee"):
            raise RuntimeError(
                f"torch.backends.{name}.fp32_precision is {value!r}, expected 'ieee' (or "
                "torch.set_float32_matmul_precision('highest') and "
                "torch.backends.cudnn.allow_tf32 = False): rounding errors are unknown otherwise"
            )
    least = torch.tensor(torch.finfo(torch.float32).tiny, device=device)
    if not bool(least / 2 > 0):
        raise RuntimeError(
            "subnormal numbers are flushed to zero, expected torch.set_flush_denormal(False): what "
            "that loses is not bounded"
        )


@dataclass(frozen=True)
class Certificate:
    """Which images no perturbation within ``eps`` can get misclassified.

    It holds for the network run in evaluation mode, in the dtype of its weights and without
    autocast, for exactly ``timesteps`` steps, and for perturbed images in ``[0, 1]``; rounding
    errors of the network and of the bound are accounted for, where sums are computed in that
    dtype, in any order (not in TF32, nor by transforms such as Winograd's). With an
    ``encoding_seed`` it holds for one draw of the encoder alone, that of
    ``model.encoder(model.normalize(x), torch.Generator().manual_seed(encoding_seed))`` for this
    batch of images.

    Attributes:
        certified: ``[N]`` bool: every margin is above 0, strictly.
        margin: ``[N]``: lower bound of the smallest margin.
        eps: l_inf radius, in units of the pixel range.
        method: that found the bound.
        timesteps: T of the network.
        encoding_seed: of the encoder's draw, None where nothing is drawn.
        broken: ``[N]`` bool, for ``method="exact"``: an image was found, within ``eps`` and
            ``[0, 1]`` to the last bit, that the network itself takes for another class, or as
            well for another. What is neither certified nor broken is not known.
        counterexamples: these images, ``[N, C, H, W]``; where there is none, the image within that
            came closest.
    """

    certified: Tensor
    margin: Tensor
    eps: float
    method: str
    timesteps: int
    encoding_seed: int | None = None
    broken: Tensor | None = None
    counterexamples: Tensor | None = None


def verify(
    model: SpikingNetwork,
    x: Tensor,
    y: Tensor,
    eps: float,
    method: Method | Literal["exact"] = "best",
    *,
    encoding_seed: int = 0,
    time_limit: float = 60.0,
    progress: bool = False,
) -> Certificate:
    """Certifies images within an l_inf radius.

    Args:
        model: a network, see ``bounds``.
        x: images ``[N, C, H, W]``.
        y: their classes, ``[N]`` int64.
        eps: the radius, in units of the pixel range.
        method: see ``bounds``; or ``"exact"``, mixed-integer programming for networks of a few
            dozen neurons with direct coding, for the margins that ``"best"`` leaves open. What it
            certifies rests on HiGHS, whose optimum is right to 1e-5, not on outward rounding.
        encoding_seed: the draw of its encoder for which a network with rate coding is certified.
        time_limit: seconds for a margin, for ``"exact"``.
        progress: show a progress bar, for ``"exact"``.

    Raises:
        TypeError: a network or a layer that cannot be bounded.
        ValueError: images outside ``[0, 1]``, a radius below 0, an unknown method.
        ImportError: ``"exact"`` without SciPy.
    """
    network_of(model)
    check_images(x, y)
    check_number("eps", eps, low=0)
    # The sums are rounded once, to the images' dtype: one number outwards covers that.
    lower, upper = ((x.double() + side * eps).to(x.dtype) for side in (-1, 1))
    lower = torch.nextafter(lower, torch.full_like(x, -math.inf)).clamp(0, 1)
    upper = torch.nextafter(upper, torch.full_like(x, math.inf)).clamp(0, 1)
    if eps == 0:
        lower = upper = x
    draws, seed = None, None
    encoder = model.encoder
    if runs_as(encoder, RateCoding) and not encoder.is_relu:
        seed = encoding_seed
        generator = torch.Generator(x.device).manual_seed(seed)
        with _evaluation(model):
            like = model.normalize(x)
        shape = (encoder.timesteps, *like.shape)  # as functional.encode draws
        draws = torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator)
    if method == "exact":
        found = bounds(model, lower, upper, y, "best", draws=draws)
        solved = exact.margins(
            model,
            lower,
            upper,
            y,
            within=Interval(project_linf(lower, x, eps), project_linf(upper, x, eps)),
            wanted=~(found > 0),
            time_limit=time_limit,
            progress=progress,
        )
        known = torch.maximum(found.double(), solved.lower - exact.TOLERANCE)
        margin = torch.where(found > 0, found.double(), known).amin(1)
        reached, which = solved.found.min(1)
        images = solved.inputs[torch.arange(len(x)), which].to(x)
        return Certificate(
            margin > 0, margin, float(eps), method, model.timesteps, seed, reached <= 0, images
        )
    margin = _bounds(model, lower, upper, y, method, draws, enough=0.0).amin(1)
    return Certificate(margin > 0, margin, float(eps), method, model.timesteps, seed)
