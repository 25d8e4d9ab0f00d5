"""Looking at the spikes of a model while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from snnkern.functional import unpack_spikes
from snnkern.nn.neuron import LIF


@contextmanager
def watch_neurons(
    model: nn.Module, see: Callable[[str, LIF, Tensor, Tensor], None]
) -> Iterator[None]:
    """Within the block ``see(name, layer, x, output)`` is called for every layer of neurons.

    ``name`` is the layer's name in ``model``, ``x`` what it was given and ``output`` its spikes, or
    what else it gives where it acts as a ReLU; both as they are in the graph.
    """

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            assert isinstance(module, LIF)
            first = output[0] if isinstance(output, tuple) else output
            assert isinstance(first, Tensor)
            see(name, module, inputs[0], first)

        return hook

    handles = [
        module.register_forward_hook(hook_for(name))
        for name, module in model.named_modules()
        if isinstance(module, LIF)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch_spikes(model: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block ``see(name, spikes)`` is called for every layer of neurons that spikes.

    A layer that acts as a ReLU does not. Packed spikes are seen unpacked.

    ``spikes`` is ``[T, N, ...]``, detached; ``name`` is the layer's name in ``model``.
    """

    def look(name: str, layer: LIF, x: Tensor, spikes: Tensor) -> None:
        if layer.is_relu:
            return
        if layer.spike_format == "bits":
            spikes = unpack_spikes(spikes, x, torch.uint8)
        see(name, spikes.detach())

    with watch_neurons(model, look):
        yield
