"""S-IBP: interval bounds through a spiking network (Liang et al. 2022), in floating point.

The bounds hold for the network as it is computed, not only for the one on paper. Neurons are exact:
charge, fire and reset are monotone in floating point too, so the same arithmetic on the ends of an
interval bounds every result inside. Sums (linear layers, convolutions, pooling) are widened by the
worst rounding error of any order of summation, of the network's sum and of the bound's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkern import reference
from snnkern.models import Normalize
from snnkern.nn import LIF, Direct, MeanReadout, SharedDropout, SumReadout, TimeDistributed, packed


class Interval(NamedTuple):
    """Elementwise bounds."""

    lower: Tensor
    upper: Tensor

    def map(self, f: Callable[[Tensor], Tensor]) -> Interval:
        """The image under a function that is monotone in floating point."""
        return Interval(f(self.lower), f(self.upper))


def rounding(terms: int, dtype: torch.dtype) -> float:
    """Bound on the relative rounding errors around a sum of products, in any order of summation.

    gamma_n = n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section
    3.1), three times: for the network's own sum, for the middle of the bound and for its width.
    """
    u = torch.finfo(dtype).eps / 2
    n = terms + 4
    return 3 * n * u / (1 - n * u)


def affine(
    box: Interval,
    terms: int,
    apply: Callable[[Tensor], Tensor],
    magnitude: Callable[[Tensor], Tensor],
    bias: Tensor | float = 0.0,
) -> Interval:
    """Bounds of an affine map whose outputs sum ``terms`` numbers.

    ``apply`` is the map, ``magnitude`` the one with the absolute values of its weights and without
    bias, ``bias`` the absolute value of that, broadcastable to the output.
    """
    gamma = rounding(terms, box.lower.dtype)
    centre = (box.lower + box.upper) / 2
    # Rounding may leave the centre off the middle: the radius reaches the farther end.
    radius = torch.maximum(box.upper - centre, centre - box.lower)
    spread = magnitude(radius + gamma * (centre.abs() + 2 * radius)) + gamma * bias
    middle = apply(centre)
    if not bool(middle.isfinite().all() and spread.isfinite().all()):
        raise ValueError(
            "the model's sums overflow within the box, expected weights and inputs whose sums are "
            "finite"
        )
    return Interval(middle - spread, middle + spread)


def _linear(module: nn.Linear, box: Interval) -> Interval:
    return affine(
        box,
        module.in_features + 1,
        module,
        lambda t: F.linear(t, module.weight.abs()),
        0.0 if module.bias is None else module.bias.abs(),
    )


def _conv(module: nn.Conv2d, box: Interval) -> Interval:
    return affine(
        box,
        module.weight[0].numel() + 1,
        module,
        lambda t: module._conv_forward(t, module.weight.abs(), None),
        0.0 if module.bias is None else module.bias.abs()[:, None, None],
    )


def _avg_pool(module: nn.AvgPool2d, box: Interval) -> Interval:
    size = module.kernel_size
    terms = size * size if isinstance(size, int) else size[0] * size[1]
    return affine(box, terms + 1, module, module)


def interval_lif(layer: LIF, box: Interval) -> Interval:
    """Bounds of the spikes of a neuron layer, ``[T, N, ...]`` (eq. 7 to 9), for any reset.

    A membrane in ``[l, u]`` fires for sure where ``l`` fires and may fire where ``u`` does. What is
    carried on is the smallest interval around the states of both cases.
    """
    if layer.is_relu:
        return box.map(torch.relu)
    if layer.stateful or layer.return_state:
        raise TypeError(
            "model holds a LIF with stateful or return_state, expected one that starts from rest "
            "and gives spikes alone: what it carries between calls cannot be bounded"
        )
    if layer.charge != "leak" or layer.gain != 1 or layer.synapse != "none" or layer.delayed_spike:
        raise TypeError(
            f"model holds LIF({layer.extra_repr()}), expected charge='leak' without gain, synapse "
            "or delayed spikes: the others are not monotone in floating point"
        )
    dtype = reference.state_dtype(box.lower.dtype)
    neuron = reference.Neuron(
        reference.broadcast(layer.dynamics()["leak"].to(dtype), box.lower),
        reference.broadcast(layer.dynamics()["threshold"].to(dtype), box.lower),
        reset=reference.RESETS.index(layer.reset),
        v_reset=layer.v_reset,
        strict=layer.strict,
    )
    start = torch.full_like(box.lower[0], layer.v_init or 0.0, dtype=dtype)
    rest = neuron._replace(reset=reference.NONE)
    state = Interval(start, start)
    lowers, uppers = [], []
    for x_lower, x_upper in zip(box.lower.to(dtype), box.upper.to(dtype), strict=True):
        if neuron.reset == reference.DELAYED_SOFT:
            membrane = _delayed_charge(neuron, state, Interval(x_lower, x_upper))
        else:
            membrane = Interval(
                rest.charge(state.lower, x_lower), rest.charge(state.upper, x_upper)
            )
        surely, maybe = membrane.map(neuron.fires)
        state = _carried(neuron, membrane, surely, maybe)
        lowers.append(surely)
        uppers.append(maybe)
    return Interval(torch.stack(lowers), torch.stack(uppers)).map(
        lambda spikes: spikes.to(box.lower.dtype)
    )


def _carried(neuron: reference.Neuron, v: Interval, surely: Tensor, maybe: Tensor) -> Interval:
    """The states after reset of all membranes in ``v``."""
    if neuron.reset not in (reference.HARD, reference.SOFT):
        return v
    threshold = neuron.threshold
    silent = Interval(
        v.lower, torch.minimum(v.upper, threshold)
    )  # closed where v stops short of it
    if neuron.reset == reference.HARD:
        fired = Interval(*(torch.full_like(v.lower, neuron.v_reset),) * 2)
    else:
        fired = Interval(torch.maximum(v.lower, threshold) - threshold, v.upper - threshold)
    both = Interval(
        torch.minimum(silent.lower, fired.lower), torch.maximum(silent.upper, fired.upper)
    )
    return Interval(
        *(
            torch.where(surely, after, torch.where(maybe, either, never))
            for after, either, never in zip(fired, both, v, strict=True)
        )
    )


def _delayed_charge(neuron: reference.Neuron, u: Interval, x: Interval) -> Interval:
    """Charge where the step before may have fired, and the threshold is subtracted only now."""
    surely, maybe = u.map(neuron.fires)
    threshold = neuron.threshold
    rest = neuron._replace(reset=reference.NONE)
    silent = Interval(
        rest.charge(u.lower, x.lower), rest.charge(torch.minimum(u.upper, threshold), x.upper)
    )
    fired = Interval(
        rest.charge(torch.maximum(u.lower, threshold), x.lower) - threshold,
        rest.charge(u.upper, x.upper) - threshold,
    )
    lower = torch.minimum(silent.lower, fired.lower)
    upper = torch.maximum(silent.upper, fired.upper)
    never = Interval(silent.lower, rest.charge(u.upper, x.upper))
    return Interval(
        torch.where(surely, fired.lower, torch.where(maybe, lower, never.lower)),
        torch.where(surely, fired.upper, torch.where(maybe, upper, never.upper)),
    )


def _time_distributed(module: TimeDistributed, box: Interval) -> Interval:
    timesteps = box.lower.shape[0]
    if timesteps > 1 and box.lower.stride(0) == 0 and box.upper.stride(0) == 0:
        once = propagate(module.module, box.map(lambda t: t[0]))
        return once.map(lambda t: t.expand(timesteps, *t.shape))
    merged = propagate(module.module, box.map(lambda t: t.flatten(0, 1)))
    return merged.map(lambda t: t.unflatten(0, (timesteps, -1)))


Rule = Callable[..., Interval]
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.AvgPool2d: _avg_pool,
    packed.Linear: _linear,
    packed.Conv2d: _conv,
    packed.AvgPool2d: _avg_pool,
    nn.Flatten: lambda module, box: box.map(module),
    nn.Identity: lambda module, box: box,
    nn.Dropout: lambda module, box: box,
    SharedDropout: lambda module, box: box,
    Normalize: lambda module, box: box.map(module),
    Direct: lambda module, box: box.map(module),
    TimeDistributed: _time_distributed,
    LIF: interval_lif,
}


M = TypeVar("M", bound=nn.Module)


def runs_as(module: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Whether ``module`` computes what its class ``kind`` says: no other forward, and no hooks."""
    own = isinstance(module, kind) and type(module).forward is kind.forward
    changed = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    return own and not changed


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


def _others(y: Tensor, num_classes: int) -> Tensor:
    """The classes other than y, ascending, ``[N, K - 1]``."""
    if not bool(((y >= 0) & (y < num_classes)).all()):
        raise ValueError(
            f"y has values outside the model's classes, 0 to {num_classes - 1}: from "
            f"{y.min().item()} to {y.max().item()}"
        )
    every = torch.arange(num_classes, device=y.device).expand(len(y), -1)
    return every[every != y[:, None]].view(len(y), -1)


def margins(layers: list[nn.Module], readout: nn.Module, box: Interval, y: Tensor) -> Tensor:
    """Lower bounds of the margins ``logit[y] - logit[j]``, ``[N, K - 1]``, j ascending without y.

    ``box`` bounds the input of ``layers``, the last of a network before its readout. Spikes are
    counted over time, which is exact. Where the last layer is linear, the margin is bounded through
    the difference of its rows, not as a difference of bounds.
    """
    timesteps = box.lower.shape[0]
    last = layers[-1]
    if runs_as(last, TimeDistributed) and (
        runs_as(last.module, nn.Linear) or runs_as(last.module, packed.Linear)
    ):
        for layer in layers[:-1]:
            box = propagate(layer, box)
        counts = Interval(box.lower.sum(0), box.upper.sum(0))
        weight, bias = last.module.weight, last.module.bias
        others = _others(y, len(weight))
        difference = weight[y][:, None] - weight[others]  # [N, K - 1, features]
        constant = torch.zeros_like(difference[..., 0])
        size = constant
        if bias is not None:
            constant = timesteps * (bias[y][:, None] - bias[others])
            size = timesteps * (bias[y][:, None].abs() + bias[others].abs())
        lower = torch.einsum("nkf,nf->nk", difference.clamp(min=0), counts.lower)
        lower = lower + torch.einsum("nkf,nf->nk", difference.clamp(max=0), counts.upper)
        reach = torch.maximum(box.lower.abs(), box.upper.abs()).sum(0)
        absolute = weight[y][:, None].abs() + weight[others].abs()
        size = size + torch.einsum("nkf,nf->nk", absolute, reach)
        slack = rounding(last.module.in_features + timesteps + 2, lower.dtype) * size
        total = lower + constant - slack
    elif runs_as(last, LIF) and not last.is_relu:
        for layer in layers:
            box = propagate(layer, box)
        counts = Interval(box.lower.sum(0), box.upper.sum(0))
        others = _others(y, counts.lower.shape[1])
        total = counts.lower.gather(1, y[:, None]) - counts.upper.gather(1, others)
    else:
        raise TypeError(
            f"model has {type(last).__name__} as its last layer, expected a LIF or "
            "TimeDistributed(nn.Linear)"
        )
    if runs_as(readout, SumReadout):
        return total
    if runs_as(readout, MeanReadout):
        return total / timesteps
    raise TypeError(f"model ends in a {type(readout).__name__}, expected MeanReadout or SumReadout")
