"""The LIF layer, forward and backward, beside the loops that it replaces."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.baselines import ALPHA, compiled_lif_loop, lif_loop
from benchmarks.comparison import Compare, Outputs
from snnkern.functional import lif
from snnkern.surrogate import ATan

LEAK, THRESHOLD = 0.9, 1.0
# Large feature maps that come from memory, and a deep layer whose tensors stay in a large cache.
SHAPES = ((8, 64, 64, 32, 32), (8, 32, 512, 4, 4))
# Per neuron-step: forward reads x and writes s; backward reads gs and x, and writes gx.
IDEAL_BYTES = {"forward": 8, "forward+backward": 20}


def snnkern_lif(x: Tensor, leak: float, threshold: float) -> Tensor:
    return lif(x, leak, threshold, reset="hard", surrogate=ATan(ALPHA), detach_reset=True)


@pytest.mark.parametrize("direction", list(IDEAL_BYTES))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_lif(shape: tuple[int, ...], direction: str, compare: Compare) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).mul_(0.8).add_(0.4)
    # Not the gradient of a sum, which is one number expanded.
    grad_spikes = torch.randn(shape, generator=generator)
    x.requires_grad_(direction == "forward+backward")

    def contender(layer: Callable[[Tensor, float, float], Tensor]) -> Callable[[], Outputs]:
        def run() -> Outputs:
            spikes = layer(x, LEAK, THRESHOLD)
            if not x.requires_grad:
                return (spikes,)
            return (spikes.detach(), *torch.autograd.grad(spikes, x, grad_spikes))

        return run

    compare(
        f"lif {list(shape)} {direction}",
        {
            "snnkern": contender(snnkern_lif),
            "plain loop": contender(lif_loop),
            "torch.compile": contender(compiled_lif_loop),
        },
        shape=shape,
        ideal_bytes=IDEAL_BYTES[direction],
    )
