"""The neuron of snnkern.bench in SpikingJelly, and what torch.compile makes of either loop."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from snnkern.bench import ALPHA, LEAK, THRESHOLD, Layer, lif_loop


def _compiled(layer: Any) -> Any:
    """One graph per shape, direction and number of threads.

    That is more than the usual limit, beyond which fullgraph raises; the overloads of torch.compile
    do not list that argument.
    """
    compiler: Any = torch.compile
    return compiler(layer, fullgraph=True, dynamic=False, recompile_limit=64)


compiled_lif_loop: Layer = _compiled(lif_loop)


def _spikingjelly() -> tuple[dict[str, Layer], str]:
    """SpikingJelly's layers of the same neuron, and its version or why there are none."""
    try:
        from spikingjelly.activation_based import functional, neuron, surrogate
    except ImportError as error:
        return {}, (
            f"not compared, since it cannot be imported ({error}); "
            "`pip install --no-deps spikingjelly==2.0.0 loguru` is all that its neurons need"
        )
    node = neuron.LIFNode(
        tau=1 / (1 - LEAK),
        decay_input=False,
        v_threshold=THRESHOLD,
        v_reset=0.0,
        surrogate_function=surrogate.ATan(ALPHA),
        detach_reset=True,
        step_mode="m",
    )

    def layer(multi_step: Any) -> Layer:
        def run(x: Tensor) -> Tensor:
            spikes: Tensor = multi_step(x)
            # As its users do after every batch; microseconds, and the state lets go of its graph.
            functional.reset_net(node)
            return spikes

        return run

    layers = {
        "SpikingJelly": layer(node),
        "SpikingJelly, torch.compile": layer(_compiled(node)),
    }
    return layers, version("spikingjelly")


spikingjelly_layers, spikingjelly_version = _spikingjelly()
