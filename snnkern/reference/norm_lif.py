"""Neurons behind a normalisation that is never stored, and what batch norm asks of its input."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from snnkern._layout import empty_steps
from snnkern.reference.lif import INPUT_DTYPE, lif_backward, lif_forward
from snnkern.reference.parameters import broadcast


def channel_moments(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ``x - centre`` and of its square per channel, over time, batch and space."""
    deviation = x.to(centre.dtype) - broadcast(centre, x)
    dims = [d for d in range(x.dim()) if d != 2]
    sums = deviation.double().sum(dims), deviation.double().square().sum(dims)
    return sums[0].to(centre.dtype), sums[1].to(centre.dtype)


def scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """What the neurons see of a normalised input: ``scale * x + shift`` per channel."""
    y = broadcast(scale, x) * x.to(scale.dtype) + broadcast(shift, x)
    return empty_steps(x, scale.dtype, x.shape[0]).copy_(y)


def norm_lif_forward(
    x: Tensor, scale: Tensor, shift: Tensor, *neuron: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """``lif_forward`` of ``scale * x + shift`` (per channel), which is never stored."""
    spikes, state, current = lif_forward(scaled(x, scale, shift), 0, *neuron)
    if neuron[-2] == INPUT_DTYPE:
        spikes = spikes.to(x.dtype)
    return spikes, state, current


def norm_lif_backward(
    grad_spikes: Tensor,
    grad_state: Tensor | None,
    grad_current: Tensor | None,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    *neuron_and_sums: Any,
) -> tuple[Tensor, ...]:
    """Backward of ``norm_lif_forward`` up to the normalisation, whose own is ``norm_backward_``.

    The gradient g of what the neurons see; with ``sums`` the sums of g and of ``g * (x - mean)``
    per channel, else empty; then the gradients of the neurons' tensors as in lif_backward.
    """
    *neuron, sums = neuron_and_sums
    g, *rest = lif_backward(
        grad_spikes.to(scale.dtype),
        grad_state,
        grad_current,
        scaled(x, scale, shift),
        0,
        *neuron,
    )
    dims = [d for d in range(x.dim()) if d != 2]
    total, dot = (
        part.double().sum(dims).to(scale.dtype) if sums else scale.new_empty(0)
        for part in (g, g * (x.to(scale.dtype) - broadcast(mean, x)))
    )
    return empty_steps(x, x.dtype, x.shape[0]).copy_(g), total, dot, *rest


def norm_backward_(
    g: Tensor, x: Tensor, mean: Tensor, from_g: Tensor, from_x: Tensor, constant: Tensor
) -> None:
    """The gradient of normalisation, in place of g: ``from_g g + from_x (x - mean) + constant``."""
    mean, from_g, from_x, constant = (broadcast(t, x) for t in (mean, from_g, from_x, constant))
    g.copy_(from_g * g.to(mean.dtype) + from_x * (x.to(mean.dtype) - mean) + constant)
