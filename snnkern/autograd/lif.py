"""The Function of ``lif``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnkern.autograd.engine import is_wanted, run
from snnkern.autograd.lif_config import LIFConfig
from snnkern.autograd.rate import rate_factor, through_rate
from snnkern.autograd.rule import looked_at, rule_derivatives, through_own_steps
from snnkern.autograd.time import mean_over_time, sum_over_time
from snnkern.reference import RATE


class LIFFunction(torch.autograd.Function):
    """``lif_forward`` with ``lif_backward`` as its derivative. Saves the input, no membrane."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        decay: Tensor,
        threshold: Tensor,
        synapse_decay: Tensor | None,
        v_init: Tensor | None,
        current_init: Tensor | None,
        surrogate_table: Tensor | None,
        config: LIFConfig,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Spikes, final state and final synaptic current."""
        ctx.set_materialize_grads(False)
        ctx.config = config
        op = getattr(torch.ops.snnkern.lif_forward, config.overload)
        spikes, state, current = run(
            op,
            x,
            config.timesteps,
            decay,
            threshold,
            synapse_decay,
            v_init,
            current_init,
            *config.dynamics,
            config.spike_format,
            config.return_state,
        )
        if config.surrogate == RATE:
            mean_x = None if config.rule is None else mean_over_time(x.to(decay.dtype))
            ctx.save_for_backward(rate_factor(config, spikes, mean_x, decay, threshold))
        else:
            ctx.save_for_backward(
                x, decay, threshold, synapse_decay, v_init, current_init, surrogate_table
            )
        return spikes, state, current

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors that went in."""
        grad_spikes, grad_state, grad_current = grads
        if ctx.config.surrogate == RATE:
            if grad_spikes is None:
                return (None,) * 8
            (factor,) = ctx.saved_tensors
            grad_x = through_rate(grad_spikes, factor, ctx.config.rule is None)
            if ctx.config.timesteps:
                grad_x = sum_over_time(grad_x).unsqueeze(0)
            return grad_x, *(None,) * 7
        x, decay, threshold, synapse_decay, v_init, current_init, table = ctx.saved_tensors
        config: LIFConfig = ctx.config.settled()
        if grad_spikes is None:
            if grad_state is None and grad_current is None:
                return (None,) * 8
            timesteps = config.timesteps or x.shape[0]
            grad_spikes = x.new_zeros(()).expand(timesteps, *x.shape[1:])
        if not config.return_state:  # compiled graphs hand in gradients of what nobody sees
            grad_state = grad_current = None
        elif synapse_decay is None:
            grad_current = None
        needs = list(ctx.needs_input_grad)
        if not any(needs[n] and is_wanted(ctx, n) for n in (1, 2, 3)):
            needs[1:4] = [False] * 3
        derivatives = None
        if config.rule is not None:
            given = (x, config.timesteps, decay, threshold, synapse_decay, v_init, current_init)
            z = looked_at(config, torch.ops.snnkern.lif_forward, given, threshold)
            if not config.rule.carried:
                grad = through_own_steps(config, grad_spikes, z, decay, threshold)
                return (grad / len(x)).to(x.dtype).expand(x.shape), *(None,) * 7
            derivatives = rule_derivatives(config, z, threshold, v_init)
        op = getattr(torch.ops.snnkern.lif_backward, config.overload)
        gradients = run(
            op,
            grad_spikes,
            grad_state,
            grad_current,
            x,
            config.timesteps,
            decay,
            threshold,
            synapse_decay,
            v_init,
            current_init,
            *config.dynamics,
            config.detach_reset,
            config.surrogate,
            config.surrogate_args,
            config.normalized,
            table,
            derivatives,
            any(needs[1:4]),
        )
        wanted = [g if need else None for g, need in zip(gradients, needs, strict=False)]
        return (*wanted, None, None)
