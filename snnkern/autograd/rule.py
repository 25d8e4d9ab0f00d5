"""Gradients of neurons by a rule that stands in for the surrogates of the ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnkern import reference
from snnkern._layout import pieces
from snnkern.autograd.engine import run
from snnkern.autograd.lif_config import LIFConfig


def looked_at(
    config: LIFConfig, forward: Any, tensors: tuple[Any, ...], threshold: Tensor
) -> Tensor:
    """What a rule looks at: z of all steps, ``[T, N, ...]``, of the forward op on ``tensors``."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise NotImplementedError(
            f"asked for a second derivative through {config.rule}, which stands in for the first "
            "alone"
        )
    op = getattr(forward, config.overload)
    membranes = run(op, *tensors, *config.dynamics, reference.MEMBRANES, False)[0]
    return _distance(config, membranes, threshold)


def _distance(config: LIFConfig, v: Tensor, threshold: Tensor) -> Tensor:
    """Membranes ``[T, N, ...]`` as a surrogate sees them, in place."""
    threshold = reference.broadcast(threshold, v)
    return v.mul_(1 / threshold).sub_(1) if config.normalized else v.sub_(threshold)


def rule_derivatives(
    config: LIFConfig, z: Tensor, threshold: Tensor, v_init: Tensor | None
) -> Tensor:
    """ds/dz by a rule, as the backward ops take it."""
    if reference.looks_at_start(config.reset, config.delayed_spike):
        start = torch.zeros_like(z[:1]) if v_init is None else v_init[None].clone()
        z = torch.cat([_distance(config, start, threshold), z])
    derivatives: Tensor = config.rule.derivatives(z)
    return derivatives


def through_own_steps(
    config: LIFConfig, grad_spikes: Tensor, z: Tensor, decay: Tensor, threshold: Tensor
) -> Tensor:
    """From the gradient of spikes to the sum over time of that of currents, ``[N, ...]``.

    By a rule that knows no way back through the state that one step hands to the next. ``z`` is
    lost.
    """
    delay = int(config.delayed_spike)  # what the last step fires then is seen by nobody
    z = z[: len(z) - delay]
    for far, g in pieces(z, grad_spikes[delay:]):
        far.copy_(config.rule.derivative(far).mul_(g))
    total = z.sum(0)
    decay, threshold = (reference.broadcast(t, z) for t in (decay, threshold))
    neuron = reference.Neuron(decay, threshold, charging=config.charge)
    _, of_current, _ = neuron.charge_derivatives(decay, decay)
    factor = config.gain * of_current
    return total * (factor / threshold if config.normalized else factor)
