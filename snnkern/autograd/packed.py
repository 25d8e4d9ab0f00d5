"""Layers that save spikes as bits for backward, or no input at all."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from snnkern.autograd.engine import run


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
        spikes: Tensor = run(torch.ops.snnkern.unpack_spikes.default, packed, *self)
        return spikes

    def stand_in(self, like: Tensor) -> Tensor:
        """An uninitialised tensor, for ops that look at no value of theirs."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=like.device)


def refuse_second_derivative(what: str, instead: str = "spike_input=False makes") -> None:
    """Raises where a second derivative is asked for."""
    # Grad mode is on in backward where create_graph asks for it, and while a compiler traces.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise NotImplementedError(
            f"asked for a second derivative of {what}; {instead} it the layer of torch"
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
            refuse_second_derivative("snnkern.nn.Conv2d, which keeps its input as bits")
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
        refuse_second_derivative("snnkern.nn.Linear, which keeps its input as bits")
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
        refuse_second_derivative("snnkern.nn.MaxPool2d, which keeps its input as bits")
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
