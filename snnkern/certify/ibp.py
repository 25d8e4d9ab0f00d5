"""S-IBP: interval bounds through a spiking network (Liang et al. 2022), in floating point.

The bounds hold for the network as it is computed, not only for the one on paper. Neurons are exact:
charge, fire and reset are monotone in floating point too, so the same arithmetic on the ends of an
interval bounds every result inside. Sums (linear layers, convolutions, pooling) are widened by the
worst rounding error of any order of summation, of the network's sum and of the bound's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from snnkern import functional
from snnkern.autograd import TransposedConv2d, is_constant
from snnkern.certify import first, published
from snnkern.models import Normalize
from snnkern.nn import (
    LIF,
    Direct,
    Events,
    NormLIF,
    Residual,
    SharedDropout,
    TimeDistributed,
    packed,
)
from snnkern.nn.reading import divided_by, running_statistics, runs_as, scale_and_shift
from snnkern.reference import Interval


def rounding(terms: int, dtype: torch.dtype) -> float:
    """Bound on the relative rounding errors around a sum of products, in any order of summation.

    gamma_n = n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section
    3.1), three times: for the network's own sum, for the middle of the bound and for its width.
    """
    u = torch.finfo(dtype).eps / 2
    n = terms + 4
    return 3 * n * u / (1 - n * u)


@dataclass(frozen=True)
class Affine:
    """An affine module, and what bounds its rounding errors.

    Attributes:
        apply: the map as the network computes it.
        magnitude: the map with the absolute values of its weights and without bias.
        bias: the absolute value of that, broadcastable to the output.
        terms: numbers that an output sums.
        spread: outputs that an input goes to, which the transposed map sums.
        transposed: the transposed map, from weights of outputs ``[B, ...]`` to those of inputs of
            a shape ``[B, ...]``; found by autograd where it is not given.
        weighed: the same, and what the weights make of the bias, ``[B]``, not rounded with any
            care; where it is not given, the bias is weighed as it comes.
    """

    apply: Callable[[Tensor], Tensor]
    magnitude: Callable[[Tensor], Tensor]
    bias: Tensor | float
    terms: int
    spread: int
    transposed: Callable[[Tensor, torch.Size], Tensor] | None = None
    weighed: Callable[[Tensor, torch.Size], tuple[Tensor, Tensor]] | None = None

    def back(self, weights: Tensor, shape: torch.Size) -> Tensor:
        """The transposed map."""
        if self.transposed is not None:
            return self.transposed(weights, shape)
        with torch.enable_grad():
            x = weights.new_zeros(shape).requires_grad_()
            y = self.apply(x)
        (result,) = torch.autograd.grad(y, x, weights, create_graph=torch.is_grad_enabled())
        return result


def affine(box: Interval, its: Affine) -> Interval:
    """Bounds of an affine map, for any order of summation."""
    if published.wanted():
        box = published.unsure(box)
    gamma = rounding(its.terms, box.lower.dtype)
    centre = (box.lower + box.upper) / 2
    # Rounding may leave the centre off the middle: the radius reaches the farther end.
    radius = torch.maximum(box.upper - centre, centre - box.lower)
    spread = its.magnitude(radius + gamma * (centre.abs() + 2 * radius)) + gamma * its.bias
    middle = its.apply(centre)
    if not bool(middle.isfinite().all() and spread.isfinite().all()):
        raise ValueError(
            "the model's sums overflow within the box, expected weights and inputs whose sums are "
            "finite"
        )
    if not bool((spread >= 0).all()):
        raise ValueError(
            "the model's sums may be off by a negative number, expected modules whose weights' "
            "magnitudes are known"
        )
    return Interval(middle - spread, middle + spread)


def _check_finite(module: nn.Linear | nn.Conv2d) -> None:
    for name, values in (("weight", module.weight), ("bias", module.bias)):
        if values is not None and not bool(values.isfinite().all()):
            raise ValueError(
                f"model holds a {type(module).__name__} whose {name} has a value that is not "
                "finite, expected finite ones"
            )


# Bounds are no spikes: they are multiplied densely, whatever a layer of this package would choose.


def linear(module: nn.Linear) -> Affine:
    """A linear layer."""
    _check_finite(module)
    return Affine(
        lambda t: F.linear(t, module.weight, module.bias),
        lambda t: F.linear(t, module.weight.abs()),
        0.0 if module.bias is None else module.bias.abs(),
        module.in_features + 1,
        module.out_features,
        lambda weights, shape: weights @ module.weight,
    )


def conv(module: nn.Conv2d) -> Affine:
    """A convolution."""
    _check_finite(module)
    geometry = (module.stride, module.padding, module.dilation, module.groups)
    plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)

    def transposed(weights: Tensor, shape: torch.Size) -> Tensor:
        found: Tensor = conv2d_input(shape, module.weight, weights, *geometry)
        return found

    def weighed(weights: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        run: Any = TransposedConv2d.apply
        found: tuple[Tensor, Tensor] = run(weights, module.weight, module.bias, shape, geometry)
        return found

    def densely(t: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = nn.Conv2d._conv_forward(module, t, weight, bias)
        return y

    return Affine(
        lambda t: densely(t, module.weight, module.bias),
        lambda t: densely(t, module.weight.abs(), None),
        0.0 if module.bias is None else module.bias.abs()[:, None, None],
        module.weight[0].numel() + 1,
        # With "reflect" and the like an input may stand in for several of the padding.
        module.weight[:, 0].numel() * (1 if module.padding_mode == "zeros" else 4),
        transposed if plain else None,
        weighed if plain else None,
    )


def avg_pool(module: nn.AvgPool2d) -> Affine:
    """Average pooling."""
    size = module.kernel_size
    terms = size * size if isinstance(size, int) else size[0] * size[1]
    # A negative divisor_override turns every weight.
    return Affine(module, lambda t: module(t).abs(), 0.0, terms + 1, terms)


def batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d) -> Affine:
    """Batch norm by running statistics."""
    mean, var = running_statistics(module)
    scale = torch.rsqrt(var + module.eps)
    if module.weight is not None:
        scale = scale * module.weight.abs()
    bias = (mean * scale).abs() + (0.0 if module.bias is None else module.bias.abs())
    channel = (1, -1) if isinstance(module, nn.BatchNorm1d) else (1, -1, 1, 1)

    def magnitude(t: Tensor) -> Tensor:
        if t.dim() != len(channel):
            raise TypeError(
                f"model holds a {type(module).__name__} that sees a tensor of {t.dim()} "
                f"dimensions, expected {len(channel)}, within a TimeDistributed"
            )
        return t * scale.view(channel)

    return Affine(module, magnitude, bias.view(channel), 4, 1)


AFFINE: dict[type[nn.Module], Callable[[Any], Affine]] = {
    nn.Linear: linear,
    nn.Conv2d: conv,
    nn.AvgPool2d: avg_pool,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    packed.Linear: linear,
    packed.Conv2d: conv,
    packed.AvgPool2d: avg_pool,
}


def scaled(layer: NormLIF, box: Interval) -> Interval:
    """Bounds of what its neurons see: scaling and shifting are monotone in floating point."""
    scale, shift = (t.view(-1, *(1,) * (box.lower.dim() - 3)) for t in scale_and_shift(layer))
    timesteps = len(box.lower)
    if is_constant(box.lower) and is_constant(box.upper):
        box = box.map(lambda t: t[:1])
    ends = box.map(lambda t: scale * t + shift)
    box = Interval(torch.minimum(*ends), torch.maximum(*ends))
    return box.map(lambda t: t.expand(timesteps, *t.shape[1:]))


def neuron_options(layer: LIF) -> dict[str, Any]:
    """What the ops of certification are called with, for a layer that they can bound."""
    if layer.stateful or layer.return_state:
        raise TypeError(
            "model holds a LIF with stateful or return_state, expected one that starts from rest "
            "and gives spikes alone: what it carries between calls cannot be bounded"
        )
    if layer.spike_format != "input":
        raise TypeError(
            f"model holds LIF({layer.extra_repr()}), expected spike_format='input': bits and bytes "
            "are no numbers of the network's dtype"
        )
    if layer.charge != "leak" or layer.gain != 1 or layer.synapse != "none" or layer.delayed_spike:
        raise TypeError(
            f"model holds LIF({layer.extra_repr()}), expected charge='leak' without gain, synapse "
            "or delayed spikes: the others are not monotone in floating point"
        )
    return {
        **layer.dynamics(),
        "reset": layer.reset,
        "v_reset": layer.v_reset,
        "v_init": layer.v_init or 0.0,
        "strict": layer.strict,
    }


def surrogate_of(layer: LIF) -> dict[str, Any]:
    """By what the spikes at either end are differentiated, where they are."""
    return {"surrogate": layer.active_surrogate(layer.surrogate)} if torch.is_grad_enabled() else {}


def interval_lif(layer: LIF, box: Interval) -> Interval:
    """Bounds of the spikes of a neuron layer, ``[T, N, ...]`` (eq. 7 to 9), for any reset.

    Those of neurons whose current is constant are exact where there is a rule, but where they are
    differentiated: the exact ones have no gradient.
    """
    if isinstance(layer, NormLIF):
        box = scaled(layer, box)
    if layer.is_relu:
        return box.map(torch.relu)
    neuron = neuron_options(layer)
    if first.fits(neuron, box):
        return first.Trains(neuron, box).spikes
    options = neuron | surrogate_of(layer)
    return Interval(*functional.interval_lif(box.lower, box.upper, **options))


def _normalize(module: Normalize, box: Interval) -> Interval:
    """Monotone in floating point too: down, where ``std`` was made negative."""
    ends = box.map(module)
    return Interval(torch.minimum(*ends), torch.maximum(*ends))


def _residual(module: Residual, box: Interval) -> Interval:
    """Products and sums of two numbers are monotone in floating point."""
    parts = [propagate(module.shortcut, box), propagate(module.branch, box)]
    if module.branch_weights is not None:
        for number, weight in enumerate(module.branch_weights):
            ends = [weight * end for end in parts[number]]
            parts[number] = Interval(torch.minimum(*ends), torch.maximum(*ends))
    past, through = parts
    return Interval(past.lower + through.lower, past.upper + through.upper)


def _check_stepwise(module: nn.Module) -> None:
    """Raises a TypeError where a module that has a rule has it for steps in their order."""
    if runs_as(module, nn.Sequential):
        for part in module:
            _check_stepwise(part)
    known = (*AFFINE, *SHAPE_ONLY)
    if any(runs_as(module, kind) for kind in RULES if kind not in known):
        names = ", ".join(sorted({kind.__name__ for kind in known}))
        raise TypeError(
            f"model holds a {type(module).__name__} in a TimeDistributed, which takes steps for "
            f"samples; expected {names} or nn.Sequential of these"
        )


def _time_distributed(module: TimeDistributed, box: Interval) -> Interval:
    _check_stepwise(module.module)
    timesteps = box.lower.shape[0]
    if timesteps > 1 and box.lower.stride(0) == 0 and box.upper.stride(0) == 0:
        once = propagate(module.module, box.map(lambda t: t[0]))
        return once.map(lambda t: t.expand(timesteps, *t.shape))
    merged = propagate(module.module, box.map(lambda t: t.flatten(0, 1)))
    return merged.map(lambda t: t.unflatten(0, (timesteps, -1)))


class Budgeted(TimeDistributed):
    """A linear layer or convolution of spikes, of which few may differ from given ones.

    Args:
        module: the layer.
        spikes: 0 or 1, ``[T, N, ...]``.
        free: which of them may differ, bool.
        flips: how many may, over all steps; so in a single one as well.
    """

    def __init__(self, module: nn.Module, spikes: Tensor, free: Tensor, flips: int) -> None:
        super().__init__(module)
        self.spikes, self.free, self.flips = spikes, free, flips


def counts_flips(module: nn.Module) -> bool:
    """Whether ``Budgeted`` has a rule for the module."""
    if runs_as(module, nn.Conv2d) or runs_as(module, packed.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return runs_as(module, nn.Linear) or runs_as(module, packed.Linear)


def _budgeted(module: Budgeted, box: Interval) -> Interval:
    """The sums of the most that so many flips can add to and take from every output."""
    anywhere = _time_distributed(module, box)
    inner, merged = module.module, module.spikes.flatten(0, 1)
    its = AFFINE[next(kind for kind in AFFINE if runs_as(inner, kind))](inner)
    weight = inner.get_parameter("weight").flatten(1)
    sign = (1 - 2 * merged) * module.free.flatten(0, 1)
    if isinstance(inner, nn.Conv2d):
        padding = inner._reversed_padding_repeated_twice
        sign = F.unfold(F.pad(sign, padding), inner.kernel_size, inner.dilation, 0, inner.stride)
        changes = [torch.einsum("of,fl->olf", weight, one) for one in sign]
    else:
        changes = [weight * one for one in sign]
    parts = []
    for change in changes:
        count = min(module.flips, change.shape[-1])
        parts.append(
            (
                change.clamp(max=0).topk(count, -1, largest=False).values.sum(-1),
                change.clamp(min=0).topk(count, -1).values.sum(-1),
            )
        )
    around = affine(Interval(merged, merged), its)
    size = its.magnitude(torch.ones_like(merged)) + its.bias
    spread = rounding(its.terms, merged.dtype) * size
    less, more = (torch.stack(part).view(around.lower.shape) for part in zip(*parts, strict=True))
    near = Interval(around.lower + less - spread, around.upper + more + spread)
    near = near.map(lambda t: t.view(anywhere.lower.shape))
    return Interval(
        torch.maximum(anywhere.lower, near.lower), torch.minimum(anywhere.upper, near.upper)
    )


# Modules that move numbers and, in evaluation mode, change none.
SHAPE_ONLY = (nn.Flatten, nn.Identity, nn.Dropout, SharedDropout)
Rule = Callable[..., Interval]
RULES: dict[type[nn.Module], Rule] = {
    **{
        kind: lambda module, box, describe=describe: affine(box, describe(module))
        for kind, describe in AFFINE.items()
    },
    Budgeted: _budgeted,  # before what it is a kind of
    nn.Flatten: lambda module, box: box.map(module),
    nn.Identity: lambda module, box: box,
    nn.Dropout: lambda module, box: box,
    SharedDropout: lambda module, box: box,
    Normalize: _normalize,
    Direct: lambda module, box: box.map(module),
    # In memory of their own: what has a time stride of 0 is taken for constant, and frames are not.
    Events: lambda module, box: box.map(lambda t: module(t).contiguous()),
    TimeDistributed: _time_distributed,
    Residual: _residual,
    LIF: interval_lif,
    NormLIF: interval_lif,
}


def propagate(module: nn.Module, box: Interval) -> Interval:
    """Bounds of what ``module`` makes of any input in ``box``, in evaluation mode.

    Raises:
        TypeError: there is no rule for the module.
    """
    for kind, rule in RULES.items():
        if runs_as(module, kind):
            return rule(module, box)
    if runs_as(module, nn.Sequential):
        for part in module:
            box = propagate(part, box)
        return box
    if module._forward_hooks or module._forward_pre_hooks:
        raise TypeError(
            f"model holds a {type(module).__name__} with forward hooks, expected none: what they "
            "change is not known"
        )
    known = ", ".join(sorted(kind.__name__ for kind in RULES))
    raise TypeError(
        f"model holds a {type(module).__name__}, which has no interval rule; expected {known} or "
        "nn.Sequential of these"
    )


def other_classes(y: Tensor, num_classes: int) -> Tensor:
    """The classes other than y, ascending, ``[N, K - 1]``."""
    if not bool(((y >= 0) & (y < num_classes)).all()):
        raise ValueError(
            f"y has values outside the model's classes, 0 to {num_classes - 1}: from "
            f"{y.min().item()} to {y.max().item()}"
        )
    every = torch.arange(num_classes, device=y.device).expand(len(y), -1)
    return every[every != y[:, None]].view(len(y), -1)


class Target(NamedTuple):
    """Margins as sums over time: weights of what enters ``[N, K - 1, features]``, and the rest."""

    weights: Tensor
    constant: Tensor


Head = Callable[[Interval, Tensor], Target]


def split_head(layers: list[nn.Module]) -> tuple[Head, list[nn.Module]]:
    """What makes margins ``logit[y] - logit[j]`` of the layers before, and these.

    Spikes are counted over time, which is exact. Where the last layer is linear, its margin is
    bounded through the difference of its rows, not as a difference of bounds.
    """
    last = layers[-1]
    if runs_as(last, LIF) and not last.is_relu:

        def of_spikes(box: Interval, y: Tensor) -> Target:
            classes = box.lower.shape[2]
            others = other_classes(y, classes)
            one = torch.eye(classes, dtype=box.lower.dtype, device=y.device)
            weights = one[y][:, None] - one[others]
            return Target(weights, torch.zeros_like(weights[..., 0]))

        return of_spikes, layers
    if runs_as(last, TimeDistributed) and (
        runs_as(last.module, nn.Linear) or runs_as(last.module, packed.Linear)
    ):
        module = last.module

        def of_currents(box: Interval, y: Tensor) -> Target:
            timesteps = box.lower.shape[0]
            weight, bias = module.weight, module.bias
            others = other_classes(y, len(weight))
            difference = weight[y][:, None] - weight[others]
            constant = size = torch.zeros_like(difference[..., 0])
            if bias is not None:
                constant = timesteps * (bias[y][:, None] - bias[others])
                size = timesteps * (bias[y][:, None].abs() + bias[others].abs())
            reach = torch.maximum(box.lower.abs(), box.upper.abs()).sum(0)
            absolute = weight[y][:, None].abs() + weight[others].abs()
            size = size + torch.einsum("nkf,nf->nk", absolute, reach)
            slack = rounding(module.in_features + timesteps + 2, box.lower.dtype) * size
            return Target(difference, constant - slack)

        return of_currents, layers[:-1]
    raise TypeError(
        f"model has {type(last).__name__} as its last layer, expected a LIF or "
        "TimeDistributed(nn.Linear)"
    )


def counts_spikes(layers: list[nn.Module]) -> bool:
    """Whether margins are differences of numbers of spikes."""
    return runs_as(layers[-1], LIF)


def margins(layers: list[nn.Module], readout: nn.Module, box: Interval, y: Tensor) -> Tensor:
    """Lower bounds of the margins ``logit[y] - logit[j]``, ``[N, K - 1]``, j ascending without y.

    ``box`` bounds the input of ``layers``, the last of a network before its readout.
    """
    timesteps = box.lower.shape[0]
    head, before = split_head(layers)
    for layer in before:
        box = propagate(layer, box)
    return least_sums(head(box, y), box) / divided_by(readout, timesteps)


def least_sums(target: Target, box: Interval) -> Tensor:
    """Lower bounds of the margins' sums over time, ``[N, K - 1]``, of what enters in ``box``."""
    counts = box.map(lambda t: t.sum(0))
    lower = torch.einsum("nkf,nf->nk", target.weights.clamp(min=0), counts.lower)
    lower = lower + torch.einsum("nkf,nf->nk", target.weights.clamp(max=0), counts.upper)
    return lower + target.constant
