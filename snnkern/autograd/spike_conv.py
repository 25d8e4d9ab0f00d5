"""The Function of ``spike_conv2d`` and ``spike_linear``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snnkern.autograd.engine import run
from snnkern.autograd.packed import Steps, refuse_second_derivative

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
        out: Tensor = run(
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
            refuse_second_derivative(
                "a layer that goes by events", "event_driven=False and spike_input=False make"
            )
        (grad,) = grads
        of_x, _, _, _, of_weight, of_bias, *_ = ctx.needs_input_grad
        stride, padding, dilation = ctx.geometry
        steps: Steps = ctx.steps
        grad_weight = None
        densely = of_weight
        if of_weight and sums_gradients_of_weights(ctx.geometry):
            densely = False
            grad_weight = run(
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
