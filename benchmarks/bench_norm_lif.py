"""Batch norm and the LIF layer as one op, beside the two in a row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.comparison import Compare, layer_shape
from snnkern.bench import OPTIONS, Layer, Outputs, lif_loop, snnkern_lif
from snnkern.functional import norm_lif

# Per neuron-step: inference reads x and writes s; training reads x once more before that, for the
# statistics; backward reads gs and x for the sums over the batch, and again to write gx.
IDEAL_BYTES = {"inference": 8, "training forward": 12, "training forward+backward": 32}
TIMES = 1.4


@pytest.mark.parametrize("mode", list(IDEAL_BYTES))
@pytest.mark.parametrize("place", ["beyond", "inside"])
@pytest.mark.parametrize("channels_are", ["first", "last"])
def test_norm_lif(channels_are: str, place: str, mode: str, compare: Compare) -> None:
    shape = layer_shape(8, place)
    channels = shape[2]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).mul_(2).add_(1)
    grad_spikes = torch.randn(shape, generator=generator)
    if channels_are == "last":
        x, grad_spikes = (t.movedim(2, -1).contiguous().movedim(-1, 2) for t in (x, grad_spikes))
    weight = torch.rand(channels, generator=generator).add_(0.5)
    bias = torch.rand(channels, generator=generator)
    mean, var = torch.full((channels,), 1.0), torch.full((channels,), 4.0)
    training, backward = mode != "inference", mode.endswith("backward")
    inputs = tuple(tensor.requires_grad_(backward) for tensor in (x, weight, bias))

    def fused() -> Tensor:
        spikes: Tensor = norm_lif(x, mean, var, weight, bias, training=training, **OPTIONS)
        return spikes

    def norm_then(layer: Layer) -> Tensor:
        merged = F.batch_norm(x.flatten(0, 1), mean, var, weight, bias, training)
        return layer(merged.view(shape))

    def run(spikes: Tensor) -> Outputs:
        if not backward:
            return (spikes,)
        return (spikes.detach(), *torch.autograd.grad(spikes, inputs, grad_spikes))

    compare(
        f"norm_lif {list(shape)}{', channels last' if channels_are == 'last' else ''} {mode}",
        {
            "snnkern": lambda: run(fused()),
            "batch norm, snnkern's lif": lambda: run(norm_then(snnkern_lif)),
            "batch norm, plain loop": lambda: run(norm_then(lif_loop)),
        },
        shape=shape,
        ideal_bytes=IDEAL_BYTES[mode],
        bars={"batch norm, snnkern's lif": TIMES},
        tolerance=3e-3,
    )
