"""The Function of ``norm_lif``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnkern import reference
from snnkern._layout import empty_steps
from snnkern.autograd.engine import is_wanted, run
from snnkern.autograd.lif_config import LIFConfig
from snnkern.autograd.rate import rate_factor, through_rate
from snnkern.autograd.rule import looked_at, rule_derivatives, through_own_steps
from snnkern.autograd.time import is_constant, mean_over_time, sum_over_time
from snnkern.reference import RATE


class NormConfig(NamedTuple):
    """How a layer normalises; ``samples``: numbers per channel behind batch statistics."""

    samples: int
    eps: float
    group: Any  # of processes that share batch statistics, or None


class NormLIFFunction(torch.autograd.Function):
    """Batch norm over time, batch and space, then LIF; the normalised tensor is never stored.

    Backward recomputes it, leaves the gradient of what the neurons see where that of the input
    goes, adds up what batch norm's own gradient needs on the way, and applies that in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor,
        bias: Tensor,
        decay: Tensor,
        threshold: Tensor,
        synapse_decay: Tensor | None,
        v_init: Tensor | None,
        current_init: Tensor | None,
        surrogate_table: Tensor | None,
        norm: NormConfig,
        config: LIFConfig,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Spikes, state and current. ``norm.samples`` is 0 where mean and var are given numbers."""
        inverse = torch.rsqrt(var + norm.eps)
        scale = weight * inverse
        shift = bias - mean * scale
        ctx.set_materialize_grads(False)
        ctx.norm, ctx.config = norm, config
        op = getattr(torch.ops.snnkern.norm_lif_forward, config.overload)
        spikes, state, current = run(
            op,
            x,
            scale,
            shift,
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
            # Given statistics do not depend on x: then only the gradient of the weight asks for it.
            asked = norm.samples > 0 or ctx.needs_input_grad[3]
            mean_y = None
            if config.rule is not None:
                mean_y = reference.scaled(mean_over_time(x.to(scale.dtype))[None], scale, shift)[0]
            factor = rate_factor(config, spikes, mean_y, decay, threshold)
            ctx.save_for_backward(factor, x if asked else None, mean, inverse, scale)
        else:
            ctx.save_for_backward(
                x,
                mean,
                inverse,
                scale,
                shift,
                decay,
                threshold,
                synapse_decay,
                v_init,
                current_init,
                surrogate_table,
            )
        return spikes, state, current

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors that went in; ``x`` carries the share of mean and var."""
        grad_spikes, grad_state, grad_current = grads
        if ctx.config.surrogate == RATE:
            if grad_spikes is None:
                return (None,) * 13
            factor, x, mean, inverse, scale = ctx.saved_tensors
            grad = through_rate(grad_spikes, factor, ctx.config.rule is None)
            return NormLIFFunction._held_through_norm(ctx, grad, x, mean, inverse, scale)
        x, mean, inverse, scale, shift, decay, threshold, synapse_decay, *rest = ctx.saved_tensors
        v_init, current_init, table = rest
        norm: NormConfig = ctx.norm
        config: LIFConfig = ctx.config.settled()
        if not config.return_state:  # compiled graphs hand in gradients of what nobody sees
            grad_state = grad_current = None
        elif synapse_decay is None:
            grad_current = None
        if grad_spikes is None:
            if grad_state is None and grad_current is None:
                return (None,) * 13
            grad_spikes = x.new_zeros(()).expand(x.shape)
        needs = NormLIFFunction._asked(ctx)
        derivatives = None
        if config.rule is not None:
            given = (x, scale, shift, decay, threshold, synapse_decay, v_init, current_init)
            z = looked_at(config, torch.ops.snnkern.norm_lif_forward, given, threshold)
            if not config.rule.carried:
                grad = through_own_steps(config, grad_spikes, z, decay, threshold)
                grad = (grad / len(x)).to(x.dtype).expand(x.shape)
                return NormLIFFunction._held_through_norm(ctx, grad, x, mean, inverse, scale)
            derivatives = rule_derivatives(config, z, threshold, v_init)
        op = getattr(torch.ops.snnkern.norm_lif_backward, config.overload)
        grad_x, total, dot, *of_neurons = run(
            op,
            grad_spikes,
            grad_state,
            grad_current,
            x,
            scale,
            shift,
            mean,
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
            any(needs[5:8]),
            norm.samples > 0 or needs[3] or needs[4],
        )
        if needs[0]:
            NormLIFFunction._through_norm(ctx, grad_x, x, mean, inverse, scale, total, dot)
        return (
            grad_x if needs[0] else None,
            None,
            None,
            dot * inverse if needs[3] else None,
            total if needs[4] else None,
            *(g if need else None for g, need in zip(of_neurons, needs[5:10], strict=True)),
            None,
            None,
            None,
        )

    @staticmethod
    def _asked(ctx: Any) -> list[bool]:
        """Of which tensors that went in the backward that runs now wants gradients."""
        asked = list(ctx.needs_input_grad)
        for number in range(3, 8):  # weight, bias and what neurons learn
            asked[number] = asked[number] and is_wanted(ctx, number)
        return asked

    @staticmethod
    def _through_norm(
        ctx: Any,
        grad: Tensor,
        x: Tensor,
        mean: Tensor,
        inverse: Tensor,
        scale: Tensor,
        total: Tensor,
        dot: Tensor,
    ) -> None:
        """From the gradient of what the neurons see to that of ``x``, in place."""
        norm: NormConfig = ctx.norm
        from_x = constant = torch.zeros_like(scale)
        if norm.samples > 0:
            shared = torch.stack([total, dot])
            if norm.group is not None:
                torch.distributed.all_reduce(shared, group=norm.group)
            from_x = -scale * inverse * inverse * shared[1] / norm.samples
            constant = -scale * shared[0] / norm.samples
        normalise = getattr(torch.ops.snnkern.norm_backward_, ctx.config.overload)
        normalise(grad, x, mean, scale, from_x, constant)

    @staticmethod
    def _held_through_norm(
        ctx: Any, grad: Tensor, x: Any, mean: Tensor, inverse: Tensor, scale: Tensor
    ) -> tuple[Tensor | None, ...]:
        """From a gradient of what the neurons see that is held over time, if it may be."""
        needs = NormLIFFunction._asked(ctx)
        channel = [1, -1, *(1,) * (grad.dim() - 3)]
        others = [0, *range(2, grad.dim() - 1)]
        total = dot = scale.new_zeros(scale.shape)
        if ctx.norm.samples > 0 or needs[3] or needs[4]:
            total = sum_over_time(grad).to(scale.dtype).sum(others)
        if ctx.norm.samples > 0 or needs[3]:
            deviation = x - mean.view(channel)
            product = grad[0] * deviation.sum(0) if is_constant(grad) else (grad * deviation).sum(0)
            dot = product.to(scale.dtype).sum(others)
        if ctx.norm.samples > 0:
            grad_x = empty_steps(x, x.dtype, x.shape[0]).copy_(grad)
            NormLIFFunction._through_norm(ctx, grad_x, x, mean, inverse, scale, total, dot)
        else:
            once = grad[:1] if is_constant(grad) else grad
            grad_x = (once * scale.view(channel)).to(grad.dtype).expand(grad.shape)
        return (
            grad_x if needs[0] else None,
            None,
            None,
            dot * inverse if needs[3] else None,
            total if needs[4] else None,
            *(None,) * 8,
        )
