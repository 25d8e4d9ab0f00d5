"""The dtype of the state, and parameters: beside a step of neurons, and gradients back to them."""

from __future__ import annotations

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the membrane for inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def broadcast(values: Tensor, x: Tensor) -> Tensor:
    """A parameter (one value, one per channel, or one per neuron), broadcastable to a step of x."""
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape(-1, *(1,) * (x.dim() - 3)) if values.dim() == 1 else values


def sum_to(parameter: Tensor, neuron_grad: Tensor) -> Tensor:
    """Sums gradients per neuron to those of a parameter, in float64."""
    dims = [d for d in range(neuron_grad.dim()) if parameter.numel() == 1 or d != 1]
    if parameter.dim() == neuron_grad.dim() and parameter.numel() > 1:
        dims = []
    total = neuron_grad.double().sum(dims) if dims else neuron_grad
    return torch.empty_like(parameter).copy_(total.reshape(parameter.shape))
