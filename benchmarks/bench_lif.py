"""The LIF layer, forward and backward, beside the loops that it replaces."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.baselines import (
    Layer,
    compiled_lif_loop,
    lif_loop,
    snnkern_lif,
    spikingjelly_layers,
)
from benchmarks.comparison import Compare, Outputs, layer_shape

# Per neuron-step: forward reads x and writes s; backward reads gs and x, and writes gx.
IDEAL_BYTES = {"forward": 8, "forward+backward": 20}
SHARE_OF_ADD = {"beyond": 0.85, "inside": 0.7}
# Of forward and backward together, over ours.
TIMES = {
    "beyond": {"SpikingJelly": 8, "SpikingJelly, torch.compile": 1.15},
    "inside": {"SpikingJelly": 12, "SpikingJelly, torch.compile": 1.5},
}


@pytest.mark.parametrize("direction", list(IDEAL_BYTES))
@pytest.mark.parametrize("place", list(SHARE_OF_ADD))
@pytest.mark.parametrize("timesteps", [4, 8, 32], ids="T{}".format)
def test_lif(
    timesteps: int, place: str, direction: str, compare: Compare, request: pytest.FixtureRequest
) -> None:
    shape = layer_shape(timesteps, place)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).mul_(0.8).add_(0.4)
    # Not the gradient of a sum, which is one number expanded.
    grad_spikes = torch.randn(shape, generator=generator)
    x.requires_grad_(direction == "forward+backward")

    def run(layer: Layer) -> Outputs:
        spikes = layer(x)
        if not x.requires_grad:
            return (spikes,)
        return (spikes.detach(), *torch.autograd.grad(spikes, x, grad_spikes))

    layers: dict[str, Layer] = {
        "snnkern": snnkern_lif,
        "plain loop": lif_loop,
        "plain loop, torch.compile": compiled_lif_loop,
        **spikingjelly_layers,
    }
    if (timesteps, direction) == (32, "forward") and not request.config.getoption("slow"):
        layers.pop("SpikingJelly, torch.compile", None)
    compare(
        f"lif {list(shape)} {direction}",
        {name: partial(run, layer) for name, layer in layers.items()},
        shape=shape,
        ideal_bytes=IDEAL_BYTES[direction],
        bars={"snnkern": SHARE_OF_ADD[place]} | (TIMES[place] if x.requires_grad else {}),
    )
