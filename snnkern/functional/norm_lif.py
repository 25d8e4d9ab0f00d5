"""Batch norm and a layer of spiking neurons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnkern import reference
from snnkern._checks import check_number
from snnkern.autograd import NormConfig, NormLIFFunction
from snnkern.functional.lif import LIF_DEFAULTS, wanted
from snnkern.functional.neurons import neurons


def norm_lif(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    group: Any = None,
    **neuron: Any,
) -> Any:
    """Batch norm over time, batch and space, then ``lif``; no normalised tensor is stored.

    The same as ``F.batch_norm`` over the merged axis ``T * N`` followed by ``lif``
    (threshold-dependent batch norm, Zheng et al. 2021, without its scaling by the threshold).

    Args:
        x: ``[T, N, C, ...]``, see ``lif``.
        running_mean: ``[C]``; changed in place when ``training``. Without it, and ``running_var``,
            the statistics are those of ``x`` whether training or not (calibration).
        running_var: ``[C]``, likewise; with the unbiased variance over ``T * N *`` space.
        weight: ``[C]``, or None for 1.
        bias: ``[C]``, or None for 0.
        training: normalise by the statistics of ``x`` and update the running ones.
        momentum: share of the new statistics in the running ones.
        eps: added to the variance.
        group: process group over which batch statistics are taken (as SyncBatchNorm), or None.
        neuron: every option of ``lif`` except ``timesteps``.

    Returns:
        What ``lif`` returns.

    Raises:
        TypeError, ValueError: as ``lif``, and for statistics or affine parameters that do not fit.
    """
    if "timesteps" in neuron:
        raise TypeError("timesteps is given, expected none: norm_lif normalises all steps of x")
    tensors, config = neurons(x, **(LIF_DEFAULTS | neuron))
    if x.dim() < 3:
        raise ValueError(f"x has shape {list(x.shape)}, expected [T, N, C, ...]")
    channels, dtype = x.shape[2], reference.state_dtype(x.dtype)
    check_number("momentum", momentum, low=0, high=1)
    check_number("eps", eps, low=0, open_low=True)
    if (running_mean is None) != (running_var is None):
        raise ValueError(
            "running_mean and running_var are one given and one None, expected both or none"
        )

    def channel_values(name: str, value: Tensor | None, default: float) -> Tensor:
        if value is None:
            return torch.full((channels,), default, dtype=dtype, device=x.device)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = f"dtype {value.dtype}" if isinstance(value, Tensor) else repr(value)
            raise TypeError(f"{name} is {kind}, expected a floating-point tensor [{channels}]")
        if value.dtype == torch.float64 and dtype != torch.float64:
            raise TypeError(f"{name} has dtype float64 and x has {x.dtype}, expected {dtype}")
        if value.shape != (channels,) or value.device != x.device:
            raise ValueError(
                f"{name} has shape {list(value.shape)} on {value.device}, expected [{channels}] on "
                f"{x.device}"
            )
        return value.to(dtype)

    mean = channel_values("running_mean", running_mean, 0.0)
    var = channel_values("running_var", running_var, 1.0)
    count = 0
    if not training and running_mean is not None:
        mean = mean.clone()  # kept for backward, while training may move the running one
    else:
        mean, var, count = _batch_statistics(x, config.overload, group)
        if count == 1:
            raise ValueError(
                f"x has shape {list(x.shape)}, expected more than one number per channel: batch "
                "statistics of one say nothing"
            )
        if training and running_mean is not None and running_var is not None:
            with torch.no_grad():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    outputs = NormLIFFunction.apply(
        x,
        mean,
        var,
        channel_values("weight", weight, 1.0),
        channel_values("bias", bias, 0.0),
        *tensors,
        NormConfig(count, float(eps), group),
        config,
    )
    return wanted(outputs, config)


@torch.no_grad()
def _batch_statistics(x: Tensor, overload: str, group: Any) -> tuple[Tensor, Tensor, int]:
    """Mean, biased variance and count per channel, over time, batch, space and processes."""
    count = x.numel() // x.shape[2]
    # Deviations from a number of the channel's own keep the variance exact where the mean is large.
    centre = x[0, 0].flatten(1)[:, 0] if x.dim() > 3 else x[0, 0]
    centre = centre.to(reference.state_dtype(x.dtype), copy=True).contiguous()
    if group is not None:
        torch.distributed.all_reduce(centre, group=group)
        centre /= torch.distributed.get_world_size(group)
    sums = torch.stack(getattr(torch.ops.snnkern.channel_moments, overload)(x, centre))
    if group is not None:
        torch.distributed.all_reduce(sums, group=group)
        counts = torch.tensor(count, device=x.device)
        torch.distributed.all_reduce(counts, group=group)
        count = int(counts.item())
    deviation, square = sums / count
    return centre + deviation, (square - deviation * deviation).clamp_min(0), count
