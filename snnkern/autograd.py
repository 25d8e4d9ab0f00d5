"""The torch.autograd.Functions, one per op.

They are written in the style where ``forward`` takes ``ctx``: half the overhead of an autograd
formula registered with the op, and traced whole by torch.compile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from snnkern import reference
from snnkern._layout import empty_steps, pieces
from snnkern.reference import RATE


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
    rule: Any = None  # what differentiates instead of a surrogate of the ops

    @property
    def dynamics(self) -> tuple[int, float, float, int, int, float, bool, bool]:
        """The options that forward and backward share."""
        return self[1:9]

    def settled(self) -> LIFConfig:
        """With the surrogate that was chosen by the time of backward, where that was put off."""
        settle = getattr(self.rule, "settle", None)
        return self if settle is None else settle(self)


def is_wanted(ctx: Any, number: int) -> bool:
    """Whether the backward that runs now wants the gradient of what was made of parameters.

    ``torch.autograd.grad`` of the input alone asks for none, though they require one. Of leaves,
    and in a trace, that is not known, and counts as wanted. ``number`` counts the tensors that went
    into the Function; what was None is not among them.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    node = ctx.next_functions[number][0]
    if node is None or hasattr(node, "variable"):
        return node is not None
    return bool(torch._C._will_engine_execute_node(node))


def is_constant(steps: Tensor) -> bool:
    """Whether ``[T, N, ...]`` is one step, seen T times."""
    return steps.shape[0] > 1 and steps.stride(0) == 0


def _sum_over_time(steps: Tensor) -> Tensor:
    return steps.shape[0] * steps[0] if is_constant(steps) else steps.sum(0)


def _mean_over_time(steps: Tensor) -> Tensor:
    return steps[0] if is_constant(steps) else steps.mean(0)


def _rate_factor(
    config: LIFConfig, spikes: Tensor, mean_x: Tensor | None, decay: Tensor, threshold: Tensor
) -> Tensor:
    """What a spike's gradient is multiplied by on its way to the current, ``[N, ...]``.

    Backpropagation through the rate (BPTR): whether the neuron fired at all (Ding et al. 2022, eq.
    11). Else what the rule says of the mean over time of the input.
    """
    if config.rule is None or mean_x is None:
        return spikes.amax(0) > 0
    decay, threshold = (reference.broadcast(t, spikes) for t in (decay, threshold))
    factor: Tensor = config.gain * config.rule.factor(config.gain * mean_x, decay, threshold)
    return factor


def _through_rate(grad_spikes: Tensor, factor: Tensor, gate: bool) -> Tensor:
    """From the gradient of spikes to that of currents, through the rate; ``gate``: 0 or 1.

    Nothing in it depends on time: a gradient that is the same at every step stays one step long
    (stride 0), and so does the whole way back through the network.
    """
    once = grad_spikes[0] if is_constant(grad_spikes) else grad_spikes
    of_currents = torch.where(factor, once, 0) if gate else (factor * once).to(once)
    return of_currents.expand(grad_spikes.shape)


def _looked_at(
    config: LIFConfig, forward: Any, tensors: tuple[Any, ...], threshold: Tensor
) -> Tensor:
    """What a rule looks at: z of all steps, ``[T, N, ...]``, of the forward op on ``tensors``."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise NotImplementedError(
            f"asked for a second derivative through {config.rule}, which stands in for the first "
            "alone"
        )
    op = getattr(forward, config.overload)
    membranes = _run(op, *tensors, *config.dynamics, reference.MEMBRANES, False)[0]
    return _distance(config, membranes, threshold)


def _distance(config: LIFConfig, v: Tensor, threshold: Tensor) -> Tensor:
    """Membranes ``[T, N, ...]`` as a surrogate sees them, in place."""
    threshold = reference.broadcast(threshold, v)
    return v.mul_(1 / threshold).sub_(1) if config.normalized else v.sub_(threshold)


def _derivatives(config: LIFConfig, z: Tensor, threshold: Tensor, v_init: Tensor | None) -> Tensor:
    """ds/dz by a rule, as the backward ops take it."""
    if reference.looks_at_start(config.reset, config.delayed_spike):
        start = torch.zeros_like(z[:1]) if v_init is None else v_init[None].clone()
        z = torch.cat([_distance(config, start, threshold), z])
    derivatives: Tensor = config.rule.derivatives(z)
    return derivatives


def _through_own_steps(
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
        if config.surrogate == RATE:
            mean_x = None if config.rule is None else _mean_over_time(x.to(decay.dtype))
            ctx.save_for_backward(_rate_factor(config, spikes, mean_x, decay, threshold))
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
            grad_x = _through_rate(grad_spikes, factor, ctx.config.rule is None)
            if ctx.config.timesteps:
                grad_x = _sum_over_time(grad_x).unsqueeze(0)
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
            z = _looked_at(config, torch.ops.snnkern.lif_forward, given, threshold)
            if not config.rule.carried:
                grad = _through_own_steps(config, grad_spikes, z, decay, threshold)
                return (grad / len(x)).to(x.dtype).expand(x.shape), *(None,) * 7
            derivatives = _derivatives(config, z, threshold, v_init)
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
            derivatives,
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
        if config.surrogate == RATE:
            # Given statistics do not depend on x: then only the gradient of the weight asks for it.
            asked = norm.samples > 0 or ctx.needs_input_grad[3]
            mean_y = None
            if config.rule is not None:
                mean_y = reference.scaled(_mean_over_time(x.to(scale.dtype))[None], scale, shift)[0]
            factor = _rate_factor(config, spikes, mean_y, decay, threshold)
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
            grad = _through_rate(grad_spikes, factor, ctx.config.rule is None)
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
        needs = ctx.needs_input_grad
        derivatives = None
        if config.rule is not None:
            given = (x, scale, shift, decay, threshold, synapse_decay, v_init, current_init)
            z = _looked_at(config, torch.ops.snnkern.norm_lif_forward, given, threshold)
            if not config.rule.carried:
                grad = _through_own_steps(config, grad_spikes, z, decay, threshold)
                grad = (grad / len(x)).to(x.dtype).expand(x.shape)
                return NormLIFFunction._held_through_norm(ctx, grad, x, mean, inverse, scale)
            derivatives = _derivatives(config, z, threshold, v_init)
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
        needs = ctx.needs_input_grad
        channel = [1, -1, *(1,) * (grad.dim() - 3)]
        others = [0, *range(2, grad.dim() - 1)]
        total = dot = scale.new_zeros(scale.shape)
        if ctx.norm.samples > 0 or needs[3] or needs[4]:
            total = _sum_over_time(grad).to(scale.dtype).sum(others)
        if x is not None:
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


class Held(torch.autograd.Function):
    """One step ``[N, ...]`` as all T, none of them a copy; for gradients that are constant too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, timesteps: int) -> Tensor:
        """``[T, N, ...]`` with stride 0."""
        return x.expand(timesteps, *x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The sum over time."""
        return _sum_over_time(grads[0]), None


class Forked(torch.autograd.Function):
    """``[T, N, ...]`` for two readers, whose gradients are added up once if no step differs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` twice."""
        ctx.set_materialize_grads(False)
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:
        """The sum, constant in time where both are."""
        one, other = grads
        if one is None or other is None:
            return other if one is None else one
        if is_constant(one) and is_constant(other):
            return (one[0] + other[0]).expand(one.shape)
        return one + other


class Joined(torch.autograd.Function):
    """``weights[0] * one + weights[1] * other``; a gradient constant in time goes back once."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        """Two ``[T, N, ...]`` and ``[2]``."""
        ctx.dtypes = one.dtype, other.dtype
        ctx.save_for_backward(weights, *((one, other) if ctx.needs_input_grad[2] else ()))
        return weights[0] * one + weights[1] * other

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the two and of their weights."""
        (grad,) = grads
        weights, *values = ctx.saved_tensors
        constant = is_constant(grad)
        once = grad[:1] if constant else grad
        of_values = [
            (weight * once).to(dtype).expand(grad.shape) if needed else None
            for weight, dtype, needed in zip(
                weights, ctx.dtypes, ctx.needs_input_grad, strict=False
            )
        ]
        of_weights = None
        if values:
            seen = (value.sum(0) if constant else value for value in values)
            of_weights = torch.stack([(once * value).sum(dtype=weights.dtype) for value in seen])
        return *of_values, of_weights


class _WithoutProducts(TorchDispatchMode):
    """Records convolutions and matrix products for autograd without computing them.

    What comes out has the right shape and any values.
    """

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """The op, or an empty tensor in its place."""
        if function not in _PRODUCTS:
            return function(*args, **(kwargs or {}))
        on_meta = [a.to("meta") if isinstance(a, Tensor) else a for a in args]
        like = function(*on_meta, **(kwargs or {}))
        return torch.empty_like(like, device=args[0].device)


_PRODUCTS = (
    torch.ops.aten.convolution.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.mm.default,
)


@contextmanager
def _as_in(module: nn.Module, training: list[bool], autocast: torch.autocast) -> Iterator[None]:
    """Within the block the parts of ``module`` are in these modes, and autocast is as it was."""
    parts = list(module.modules())
    now = [part.training for part in parts]
    try:
        for part, mode in zip(parts, training, strict=True):
            part.training = mode
        with autocast:
            yield
    finally:
        for part, mode in zip(parts, now, strict=True):
            part.training = mode


class RateDistributed(torch.autograd.Function):
    """An affine module on all time steps; a gradient that is constant in time goes back once.

    What the module does to one step's gradient does not depend on the step, and its parameters see
    the sum of the steps: one pass over a batch of N instead of T * N, and exact.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, *parameters: Tensor) -> Tensor:
        """``[T, N, ...] -> [T, N, ...]``; ``parameters`` are those of ``module``."""
        ctx.module = module
        ctx.shape, ctx.dtype = x.shape, x.dtype
        device = x.device.type
        ctx.training = [part.training for part in module.modules()]
        ctx.autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        # What is affine has the same derivative everywhere: only weights ask for the input.
        ctx.save_for_backward(x if any(ctx.needs_input_grad[2:]) else None, *parameters)
        merged: Tensor = module(x.flatten(0, 1))
        if merged.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
            merged = merged.clone()
        view = merged.view(x.shape[0], -1, *merged.shape[1:])
        # The same memory, but no view: whoever gets it may change it in place.
        out = merged.new_empty(0)
        return out.set_(merged.untyped_storage(), view.storage_offset(), view.size(), view.stride())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input, constant in time where what comes in is, and of parameters."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise NotImplementedError(
                "asked for a second derivative through the rate: only the first goes back through "
                "a layer at once for all time steps"
            )
        (grad,) = grads
        x, *parameters = ctx.saved_tensors
        timesteps, *shape = ctx.shape
        constant = is_constant(grad)
        if constant:
            at = grad.new_zeros(shape, dtype=ctx.dtype) if x is None else x.mean(0)
        else:
            at = grad.new_zeros(ctx.shape, dtype=ctx.dtype) if x is None else x
            at, grad = at.flatten(0, 1), grad.flatten(0, 1).unsqueeze(0)
        needs = ctx.needs_input_grad
        at = at.detach().requires_grad_(needs[0])
        # Leaves of their own: hooks of the parameters are for the gradient that is returned.
        leaves = {
            name: parameter.detach().requires_grad_(need)
            for (name, _), parameter, need in zip(
                ctx.module.named_parameters(), parameters, needs[2:], strict=True
            )
        }
        enabled, dtype = ctx.autocast
        autocast = torch.autocast(grad.device.type, dtype, enabled=enabled)
        # Only a parameter's gradient depends on values.
        forward = _WithoutProducts() if x is None else nullcontext()
        with torch.enable_grad(), _as_in(ctx.module, ctx.training, autocast), forward:
            out = torch.func.functional_call(ctx.module, leaves, (at,))
        wanted = [leaf for leaf in (at, *leaves.values()) if leaf.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, grad[0].to(out.dtype)))
        grad_x = next(found) if needs[0] else None
        if grad_x is not None:
            grad_x = grad_x.expand(ctx.shape) if constant else grad_x.view(ctx.shape)
        of_parameters = [next(found) if need else None for need in needs[2:]]
        if constant:
            of_parameters = [g if g is None else timesteps * g for g in of_parameters]
        return grad_x, None, *of_parameters


class Steps(NamedTuple):
    """What a tensor ``[T, ...]`` was like, for backward to make one like it."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> Steps:
        """What ``x`` is like."""
        return cls(tuple(x.shape), x.stride(), x.dtype)

    def unpack(self, packed: Tensor) -> Tensor:
        """The spikes themselves."""
        spikes: Tensor = _run(torch.ops.snnkern.unpack_spikes.default, packed, *self)
        return spikes

    def stand_in(self, like: Tensor) -> Tensor:
        """An uninitialised tensor, for ops that look at no value of theirs."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=like.device)


def _refuse_second_derivative(layer: str) -> None:
    # Grad mode is on in backward where create_graph asks for it, and while a compiler traces.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise NotImplementedError(
            f"asked for a second derivative of snnkern.nn.{layer}, which keeps its input as bits; "
            "spike_input=False makes it the layer of torch"
        )


class PackedConv2d(torch.autograd.Function):
    """``F.conv2d``. For the gradient of the weight the spikes are saved as bits.

    Without ``packed`` the weight gets no gradient, and nothing of the input is saved.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        packed: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        """``[N, C, H, W] -> [N, K, H', W']``; ``packed`` is ``x`` as bits."""
        ctx.save_for_backward(packed, weight)
        ctx.steps = Steps.of(x)
        ctx.options = stride, padding, dilation, groups
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x``, weight and bias."""
        packed, weight = ctx.saved_tensors
        if packed is not None:
            _refuse_second_derivative("Conv2d")
        (grad,) = grads
        of_x, _, of_weight, of_bias, *_ = ctx.needs_input_grad
        stride, padding, dilation, groups = ctx.options
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            ctx.steps.unpack(packed) if of_weight else ctx.steps.stand_in(grad),
            weight,
            [weight.shape[0]],
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            [of_x, of_weight, of_bias],
        )
        return grad_x, None, grad_weight, grad_bias, None, None, None, None


class PackedLinear(torch.autograd.Function):
    """``F.linear``. For the gradient of the weight the spikes are saved as bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``[N, ..., features] -> [N, ..., K]``; ``packed`` is ``x`` as bits."""
        ctx.save_for_backward(packed, weight)
        ctx.steps = Steps.of(x)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x``, weight and bias."""
        _refuse_second_derivative("Linear")
        packed, weight = ctx.saved_tensors
        of_x, _, of_weight, of_bias = ctx.needs_input_grad
        grad = grads[0].reshape(-1, weight.shape[0])
        grad_weight = None
        if of_weight:
            grad_weight = grad.t().mm(ctx.steps.unpack(packed).reshape(-1, weight.shape[1]))
        return (
            grad.mm(weight).view(ctx.steps.size) if of_x else None,
            None,
            grad_weight,
            grad.sum(0) if of_bias else None,
        )


# Stride, padding and dilation of a convolution.
Geometry = tuple[Sequence[int], Sequence[int], Sequence[int]]
# Of a linear layer as a convolution.
POINT: Geometry = ((1, 1), (0, 0), (1, 1))


def sums_gradients_of_weights(geometry: Geometry) -> bool:
    """Whether the gradient of a convolution's weight goes by events as well as its output."""
    stride, _, dilation = geometry
    return set(stride) == set(dilation) == {1}


class SpikeConv2d(torch.autograd.Function):
    """``F.conv2d`` of spikes by their events, in float32 or bfloat16, of one group.

    Graded spikes may be worth any number; events are those that are not zero. Rows of the weight
    are summed where an input was active, and rows of the output's gradient for the gradient of the
    weight (dense where stride or dilation is not 1, by the saved bits). That of the input is dense.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        packed: Tensor,
        graded: bool,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        overload: str,
    ) -> Tensor:
        """``[N, C, H, W] -> [N, K, H', W']``, channels last.

        ``packed`` are the bits of ``x`` or, where that is ``graded``, of what is not zero in it;
        ``rows`` is the weight as ``spike_rows`` gives it, ``geometry`` stride, padding and
        dilation. Of ``x`` that is not graded only the shape and the layout are looked at.
        """
        learns = ctx.needs_input_grad[4]
        ctx.save_for_backward(packed if learns else None, x if learns and graded else None, weight)
        ctx.steps = Steps.of(x)
        ctx.geometry, ctx.block, ctx.overload = geometry, rows.shape[4], overload
        out: Tensor = _run(
            getattr(torch.ops.snnkern.spike_conv2d, overload),
            packed,
            x.float() if graded else None,
            x.shape,
            x.stride(),
            rows,
            None if bias is None else bias.float().contiguous(),
            weight.shape[0],
            *geometry,
        )
        return out.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x``, weight and bias."""
        packed, x, weight = ctx.saved_tensors
        if packed is not None:
            _refuse_second_derivative("Conv2d")
        (grad,) = grads
        of_x, _, _, _, of_weight, of_bias, *_ = ctx.needs_input_grad
        stride, padding, dilation = ctx.geometry
        steps: Steps = ctx.steps
        grad_weight = None
        densely = of_weight
        if of_weight and sums_gradients_of_weights(ctx.geometry):
            densely = False
            grad_weight = _run(
                getattr(torch.ops.snnkern.spike_conv2d_weight, ctx.overload),
                grad.float(),
                packed,
                None if x is None else x.float(),
                steps.size,
                steps.stride,
                weight.shape[2:],
                padding,
                ctx.block,
            ).to(weight.dtype)
        grad_x = None
        if of_x and weight.shape[2:] == (1, 1) and ctx.geometry == POINT:
            rows = grad.permute(0, 2, 3, 1)
            grad_x = (rows.flatten(0, 2) @ weight[:, :, 0, 0]).view(*rows.shape[:3], -1)
            grad_x = grad_x.permute(0, 3, 1, 2)
        elif of_x or densely:
            dense = steps._replace(dtype=weight.dtype)
            if not densely:
                x = dense.stand_in(grad)
            elif x is None:
                x = dense.unpack(packed)
            # Not the bias, for which oneDNN would find the gradient of the weight too.
            grad_x, of_dense, _ = torch.ops.aten.convolution_backward(
                grad,
                x.to(weight.dtype),
                weight,
                None,
                stride,
                padding,
                dilation,
                False,
                [0, 0],
                1,
                [of_x, densely, False],
            )
            grad_weight = of_dense if densely else grad_weight
        return (
            None if grad_x is None else grad_x.to(steps.dtype),
            None,
            None,
            None,
            grad_weight,
            grad.sum((0, 2, 3)) if of_bias else None,
            None,
            None,
        )


class PackedMaxPool2d(torch.autograd.Function):
    """``F.max_pool2d``. The spikes are saved as bits; backward finds the largest of them anew."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, *options: Any) -> Tensor:
        """``options``: kernel size, stride, padding, dilation, ceil_mode."""
        ctx.save_for_backward(packed)
        ctx.steps = Steps.of(x)
        ctx.options = options
        pooled: Tensor = F.max_pool2d(x, *options)
        return pooled

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of ``x``."""
        _refuse_second_derivative("MaxPool2d")
        (packed,) = ctx.saved_tensors
        x = ctx.steps.unpack(packed)
        _, indices = torch.ops.aten.max_pool2d_with_indices(x, *ctx.options)
        grad_x = torch.ops.aten.max_pool2d_with_indices_backward(grads[0], x, *ctx.options, indices)
        return (grad_x, None, *(None for _ in ctx.options))


class AvgPool2d(torch.autograd.Function):
    """``F.avg_pool2d`` without saving its input, of which backward needs only the shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *options: Any) -> Tensor:
        """``options``: kernel size, stride, padding, ceil_mode, count_include_pad, divisor."""
        ctx.steps = Steps.of(x)
        ctx.options = options
        return F.avg_pool2d(x, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of ``x``."""
        (grad,) = grads
        grad_x = torch.ops.aten.avg_pool2d_backward(grad, ctx.steps.stand_in(grad), *ctx.options)
        return (grad_x, *(None for _ in ctx.options))


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


class IntervalConfig(NamedTuple):
    """Everything about bounds of a LIF layer that is not a tensor; options as in LIFConfig."""

    v_init: float
    reset: int
    v_reset: float
    strict: bool
    surrogate: int
    surrogate_args: tuple[float, float]
    normalized: bool
    return_membranes: bool
    overload: str


class IntervalLIF(torch.autograd.Function):
    """``interval_lif_forward`` with ``interval_lif_backward`` as its derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        lower: Tensor,
        upper: Tensor,
        decay: Tensor,
        threshold: Tensor,
        config: IntervalConfig,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bounds of spikes and of membranes."""
        ctx.set_materialize_grads(False)
        ctx.config = config
        ctx.save_for_backward(lower, upper, decay, threshold)
        op = getattr(torch.ops.snnkern.interval_lif_forward, config.overload)
        outputs: tuple[Tensor, Tensor, Tensor, Tensor] = _run(
            op, lower, upper, decay, threshold, *config[:4], config.return_membranes
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors that went in."""
        lower, upper, decay, threshold = ctx.saved_tensors
        config: IntervalConfig = ctx.config
        needs = ctx.needs_input_grad
        none = lower.new_zeros(()).expand(lower.shape)
        op = getattr(torch.ops.snnkern.interval_lif_backward, config.overload)
        gradients = _run(
            op,
            *(none if g is None else g for g in grads[:2]),
            *(grads[2:] if config.return_membranes else (None, None)),
            lower,
            upper,
            decay,
            threshold,
            *config[:-2],
            any(needs[2:4]),
        )
        return (*(g if need else None for g, need in zip(gradients, needs, strict=False)), None)


class RelaxConfig(NamedTuple):
    """Everything about lines below a LIF layer that is not a tensor; options as in LIFConfig."""

    v_init: float
    reset: int
    v_reset: float
    strict: bool
    slope: int
    overload: str


class RelaxLIF(torch.autograd.Function):
    """``relax_lif`` with ``relax_lif_backward`` as its derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        v_lower: Tensor,
        v_upper: Tensor,
        decay: Tensor,
        threshold: Tensor,
        slopes: Tensor | None,
        after: Tensor | None,
        config: RelaxConfig,
    ) -> tuple[Tensor, Tensor]:
        """Lines and their bias."""
        op = getattr(torch.ops.snnkern.relax_lif, config.overload)
        tensors = (rows, v_lower, v_upper, decay, threshold)
        lines, bias = _run(op, *tensors, *config[:-1], slopes, after)
        ctx.config = config
        ctx.save_for_backward(*tensors, slopes, after, lines)
        return lines, bias

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors that went in."""
        rows, *neurons, slopes, after, lines = ctx.saved_tensors
        needs, config = ctx.needs_input_grad, ctx.config
        op = getattr(torch.ops.snnkern.relax_lif_backward, config.overload)
        wanted = any(needs[3:5])
        given = (*config[:-1], slopes, after, wanted)
        gradients = _run(op, *grads, rows, lines, *neurons, *given)
        return (*(g if need else None for g, need in zip(gradients, needs, strict=False)), None)


CHANNELS_LAST = torch.channels_last


class TransposedConv2d(torch.autograd.Function):
    """What weights of a convolution's output make weights of its input, and of its bias.

    As ``torch.nn.grad.conv2d_input``, and the weighted sum of the bias with it: by themselves two
    gradients of the size of the output would be added up. All tensors have their channels last, in
    which oneDNN goes back through a strided convolution in less than half the time. One of few
    channels is a product of matrices, which is several times faster again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shape: torch.Size,
        geometry: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor]:
        """Weights ``[B, C, H, W]`` of the input, of that shape, and constants ``[B]``."""
        rows = rows.contiguous(memory_format=CHANNELS_LAST)
        ctx.geometry = geometry
        constants, sums = rows.new_zeros(len(rows)), None
        if bias is not None:
            sums = rows.sum((2, 3))
            constants = sums @ bias
        ctx.save_for_backward(rows, weight, bias, sums)
        stride, padding, dilation, groups = geometry
        few = weight[0].numel() < len(weight) and groups == 1
        ctx.patches = (weight.shape[2:], dilation, padding, stride) if few else None
        if ctx.patches is not None:
            products = rows.movedim(1, -1).flatten(1, 2) @ weight.flatten(1)
            return F.fold(products.mT, shape[2:], *ctx.patches), constants
        like = torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=CHANNELS_LAST)
        weights = _through_conv2d(rows, like, weight, geometry, (True, False))[0]
        return weights, constants

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what is weighed, of the weight and of the bias."""
        rows, weight, bias, sums = ctx.saved_tensors
        of_weights = grads[0].contiguous(memory_format=CHANNELS_LAST)
        of_constants = grads[1]
        needs = ctx.needs_input_grad
        of_rows = of_weight = of_bias = None
        if ctx.patches is not None:
            patches = F.unfold(of_weights, *ctx.patches)
            if needs[0]:
                flat = patches.mT.flatten(0, 1) @ weight.flatten(1).T
                batch, channels, height, width = rows.shape
                of_rows = flat.view(batch, height, width, channels).movedim(-1, 1)
            if needs[1]:  # sample by sample: over all of them one sum would be too long to be fast
                flat = patches.bmm(rows.movedim(1, -1).flatten(1, 2))
                of_weight = flat.sum(0).T.reshape(weight.shape)
        else:
            if needs[0]:
                of_rows = F.conv2d(of_weights, weight, None, *ctx.geometry)
            if needs[1]:
                of_weight = _through_conv2d(rows, of_weights, weight, ctx.geometry, (False, True))[
                    1
                ]
        if of_rows is not None and bias is not None:
            of_rows.addcmul_(of_constants[:, None, None, None], bias[:, None, None])
        if needs[2]:
            of_bias = of_constants @ sums
        return of_rows, of_weight, of_bias, None, None


def _through_conv2d(
    rows: Tensor, x: Tensor, weight: Tensor, geometry: tuple[Any, ...], wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of the input and of the weight of a convolution, from one of its output."""
    *spacing, groups = geometry
    options = (None, *spacing, False, [0, 0], groups, (*wanted, False))
    found = torch.ops.aten.convolution_backward(rows, x, weight, *options)
    return found[0], found[1]
