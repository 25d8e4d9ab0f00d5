"""The torch.autograd.Functions, one per op.

They are written in the style where ``forward`` takes ``ctx``: half the overhead of an autograd
formula registered with the op, and traced whole by torch.compile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnkern import reference


def _run(op: Any, *arguments: Any) -> Any:
    """Calls an op past its Autograd registration, which is there for raw calls and costs time.

    Not where gradients are recorded (a second derivative must be refused), nor in a trace.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


class LIFConfig(NamedTuple):
    """Everything about a LIF layer that is not a tensor; options by number, see reference."""

    timesteps: int
    charge: int
    v_rest: float
    gain: float
    synapse: int
    reset: int
    v_reset: float
    strict: bool
    delayed_spike: bool
    detach_reset: bool
    surrogate: int
    surrogate_args: tuple[float, float]
    normalized: bool
    spike_format: int
    return_state: bool
    overload: str

    @property
    def dynamics(self) -> tuple[int, float, float, int, int, float, bool, bool]:
        """The options that forward and backward share."""
        return self[1:9]


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
        ctx.save_for_backward(
            x, decay, threshold, synapse_decay, v_init, current_init, surrogate_table
        )
        ctx.set_materialize_grads(False)
        ctx.config = config
        op = getattr(torch.ops.snnkern.lif_forward, config.overload)
        spikes, state, current = _run(
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
        return spikes, state, current

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors that went in."""
        grad_spikes, grad_state, grad_current = grads
        x, decay, threshold, synapse_decay, v_init, current_init, table = ctx.saved_tensors
        config: LIFConfig = ctx.config
        if grad_spikes is None:
            if grad_state is None and grad_current is None:
                return (None,) * 8
            timesteps = config.timesteps or x.shape[0]
            grad_spikes = x.new_zeros(()).expand(timesteps, *x.shape[1:])
        if not config.return_state:  # compiled graphs hand in gradients of what nobody sees
            grad_state = grad_current = None
        elif synapse_decay is None:
            grad_current = None
        needs = ctx.needs_input_grad
        op = getattr(torch.ops.snnkern.lif_backward, config.overload)
        gradients = _run(
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
            any(needs[1:4]),
        )
        wanted = [g if need else None for g, need in zip(gradients, needs, strict=False)]
        return (*wanted, None, None)


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
        ctx.set_materialize_grads(False)
        ctx.norm, ctx.config = norm, config
        op = getattr(torch.ops.snnkern.norm_lif_forward, config.overload)
        spikes, state, current = _run(
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
        return spikes, state, current

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors that went in; ``x`` carries the share of mean and var."""
        grad_spikes, grad_state, grad_current = grads
        x, mean, inverse, scale, shift, decay, threshold, synapse_decay, *rest = ctx.saved_tensors
        v_init, current_init, table = rest
        norm: NormConfig = ctx.norm
        config: LIFConfig = ctx.config
        if not config.return_state:  # compiled graphs hand in gradients of what nobody sees
            grad_state = grad_current = None
        elif synapse_decay is None:
            grad_current = None
        if grad_spikes is None:
            if grad_state is None and grad_current is None:
                return (None,) * 13
            grad_spikes = x.new_zeros(()).expand(x.shape)
        needs = ctx.needs_input_grad
        op = getattr(torch.ops.snnkern.norm_lif_backward, config.overload)
        grad_x, total, dot, *of_neurons = _run(
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
            any(needs[5:8]),
            norm.samples > 0 or needs[3] or needs[4],
        )
        if needs[0]:
            from_x = constant = torch.zeros_like(scale)
            if norm.samples > 0:
                shared = torch.stack([total, dot])
                if norm.group is not None:
                    torch.distributed.all_reduce(shared, group=norm.group)
                from_x = -scale * inverse * inverse * shared[1] / norm.samples
                constant = -scale * shared[0] / norm.samples
            normalise = getattr(torch.ops.snnkern.norm_backward_, config.overload)
            normalise(grad_x, x, mean, scale, from_x, constant)
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


class RateCode(torch.autograd.Function):
    """Spikes drawn at the rate of a value; backward passes straight through the draw.

    The gradient of the value is the sum over time of its spikes' gradients, which is what makes
    attacks crafted on the spiking network itself possible (Algorithm 1 of Sharmin et al. 2020).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, draws: Tensor, coding: int) -> Tensor:
        """``[N, ...]`` and draws ``[T, N, ...]`` to spikes ``[T, N, ...]``."""
        return reference.code(x, draws, coding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The sum over time."""
        return grads[0].sum(0), None, None


class KernelRateCode(torch.autograd.Function):
    """``RateCode`` with the draws made inside the kernel, from one number of the generator."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        generator: torch.Generator | None,
        timesteps: int,
        coding: int,
        overload: str,
    ) -> Tensor:
        """``[N, ...]`` to spikes ``[T, N, ...]``."""
        seed = torch.randint(2**63 - 1, (), generator=generator, device=x.device)
        spikes: Tensor = _run(
            getattr(torch.ops.snnkern.rate_code, overload), x, seed, timesteps, coding
        )
        return spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The sum over time."""
        return grads[0].sum(0), None, None, None, None


class Bounded(torch.autograd.Function):
    """Clamps a parameter; stops its gradient only where a descent step would lead further out."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        """The value within its bounds."""
        ctx.save_for_backward(value)
        ctx.bounds = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, or zero where it points outwards."""
        (value,) = ctx.saved_tensors
        low, high = ctx.bounds
        (grad,) = grads
        outwards = ((value >= high) & (grad < 0)) | ((value <= low) & (grad > 0))
        return torch.where(outwards, 0, grad), None, None
