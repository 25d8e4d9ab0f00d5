"""Normalised neuron layers: threshold-dependent batch norm and neurons in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnkern import functional
from snnkern._checks import check_int, check_number
from snnkern.nn.neuron import LIF


class NormLIF(LIF):
    """Batch norm over time, batch and space, then LIF, ``[T, N, C, ...] -> [T, N, C, ...]``.

    The same as ``TimeDistributed(nn.BatchNorm2d(C))`` followed by ``LIF``, with the state_dict
    entries of both, and without the normalised tensor: nothing is saved for backward but the input.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: share of a batch's statistics in the running ones.
        affine: learn a weight and a bias per channel.
        track_running_stats: keep running statistics, which evaluation mode normalises by; without
            them it normalises by those of the batch, as calibration wants it.
        process_group: processes that share batch statistics while training (as SyncBatchNorm):
            a group, ``"world"`` for the default one, or None.
        neuron: options of ``LIF``.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        **neuron: Any,
    ) -> None:
        super().__init__(**neuron)
        check_int("num_features", num_features, 1)
        check_number("eps", eps, low=0, open_low=True)
        check_number("momentum", momentum, low=0, high=1)
        if self.stateful:
            raise ValueError(
                "stateful is True, expected False: batch statistics cover whole sequences"
            )
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.process_group = process_group
        ones, zeros = torch.ones(num_features), torch.zeros(num_features)
        self.weight = nn.Parameter(ones) if affine else None
        self.bias = nn.Parameter(zeros) if affine else None
        tracked = track_running_stats
        self.register_buffer("running_mean", zeros.clone() if tracked else None)
        self.register_buffer("running_var", ones.clone() if tracked else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if tracked else None)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Spikes, and the final state with ``return_state``."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.is_relu:
            return self.current(x).relu()
        result: Tensor | tuple[Tensor, ...] = functional.norm_lif(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            group=self._group(),
            **self.neuron_options(),
        )
        return result

    def current(self, x: Tensor) -> Tensor:
        """The normalised input, which the neurons take."""
        return self._normalised(x.flatten(0, 1)).view(x.shape)

    def reset_running_stats(self) -> None:
        """Makes the running statistics those of a new layer."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def _normalised(self, x: Tensor) -> Tensor:
        """Batch norm of ``[N, C, ...]`` by itself."""
        group = self._group()
        if group is None:
            return nn.functional.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training or self.running_mean is None,
                self.momentum,
                self.eps,
            )
        from torch.distributed.nn.functional import all_reduce  # not in every build of torch

        others = [0, *range(2, x.dim())]
        channel = [1, -1, *(1,) * (x.dim() - 2)]

        def mean_over_ranks(values: Tensor) -> Tensor:
            total: Tensor = all_reduce(values.sum(others), group=group)
            return total / count

        count = x.new_tensor(x.numel() // x.shape[1])
        torch.distributed.all_reduce(count, group=group)
        mean = mean_over_ranks(x)
        deviation = x - mean.view(channel)
        var = mean_over_ranks(deviation.square())
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = torch.rsqrt(var + self.eps)
        out = deviation * (scale if self.weight is None else scale * self.weight).view(channel)
        return out if self.bias is None else out + self.bias.view(channel)

    def _group(self) -> Any:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not self.training or self.process_group is None or not distributed:
            return None
        return (
            torch.distributed.group.WORLD if self.process_group == "world" else self.process_group
        )

    def extra_repr(self) -> str:
        """The number of channels, then the neuron's options."""
        return f"{self.num_features}, {super().extra_repr()}"
