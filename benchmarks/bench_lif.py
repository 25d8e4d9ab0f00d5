"""The LIF layer, forward and backward, beside the loops that it replaces."""

from __future__ import annotations

import pytest

from benchmarks.baselines import compiled_lif_loop, spikingjelly_layers
from benchmarks.comparison import Compare, layer_shape
from snnkern.bench import LIF_BYTES, Layer, lif_case, lif_loop, snnkern_lif

SHARE_OF_ADD = {"beyond": 0.85, "inside": 0.7}
# Of forward and backward together, over ours.
TIMES = {
    "beyond": {"SpikingJelly": 8, "SpikingJelly, torch.compile": 1.15},
    "inside": {"SpikingJelly": 12, "SpikingJelly, torch.compile": 1.5},
}


@pytest.mark.parametrize("direction", list(LIF_BYTES))
@pytest.mark.parametrize("place", list(SHARE_OF_ADD))
@pytest.mark.parametrize("timesteps", [4, 8, 32], ids="T{}".format)
def test_lif(
    timesteps: int, place: str, direction: str, compare: Compare, request: pytest.FixtureRequest
) -> None:
    shape = layer_shape(timesteps, place)
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
        lif_case(direction, layers, shape),
        shape=shape,
        ideal_bytes=LIF_BYTES[direction],
        bars={"snnkern": SHARE_OF_ADD[place]}
        | (TIMES[place] if direction == "forward+backward" else {}),
    )
