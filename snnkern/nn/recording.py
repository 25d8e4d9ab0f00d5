"""Looking at the spikes of a model while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from snnkern.functional import unpack_spikes
from snnkern.nn.neuron import LIF


@contextmanager
def watch_spikes(model: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block ``see(name, spikes)`` is called for every layer of neurons that spikes.

    A layer that acts as a ReLU does not. Packed spikes are seen unpacked.

    ``spikes`` is ``[T, N, ...]``, detached; ``name`` is the layer's name in ``model``.
    """

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            assert isinstance(module, LIF)
            if module.is_relu:
                return
            spikes = output[0] if isinstance(output, tuple) else output
            assert isinstance(spikes, Tensor)
            if module.spike_format == "bits":
                spikes = unpack_spikes(spikes, inputs[0], torch.uint8)
            see(name, spikes.detach())

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
