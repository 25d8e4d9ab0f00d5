"""A convolution backwards, for lines below a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
