"""Gradients through the rate, in which nothing depends on time: of neurons, and between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from snnkern import reference
from snnkern.autograd.lif_config import LIFConfig
from snnkern.autograd.time import is_constant


def rate_factor(
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


def through_rate(grad_spikes: Tensor, factor: Tensor, gate: bool) -> Tensor:
    """From the gradient of spikes to that of currents, through the rate; ``gate``: 0 or 1.

    Nothing in it depends on time: a gradient that is the same at every step stays one step long
    (stride 0), and so does the whole way back through the network.
    """
    once = grad_spikes[0] if is_constant(grad_spikes) else grad_spikes
    of_currents = torch.where(factor, once, 0) if gate else (factor * once).to(once)
    return of_currents.expand(grad_spikes.shape)


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
