"""Looking at the spikes and membranes of a model while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from snnkern import functional
from snnkern.functional import unpack_spikes
from snnkern.nn.neuron import LIF
from snnkern.nn.norm import NormLIF
from snnkern.nn.reading import scale_and_shift


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


@contextmanager
def watch_membranes(model: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block ``see(name, membranes)`` is called for every layer of neurons that spikes.

    ``membranes`` is ``[T, N, ...]``, before reset: what the layer compares with its threshold. They
    are computed beside the layer, just before it runs, and have no gradient.
    """

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, LIF)
            if not module.is_relu:
                see(name, membranes_of(module, inputs[0]))

        return hook

    handles = [
        module.register_forward_pre_hook(hook_for(name))
        for name, module in model.named_modules()
        if isinstance(module, LIF)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def membranes_of(layer: LIF, x: Tensor) -> Tensor:
    """The membranes before reset, ``[T, N, ...]``, of a layer that is about to see ``x``.

    Raises:
        TypeError: ``layer`` normalises by statistics of the batch, which a look would move.
    """
    if isinstance(layer, NormLIF):
        scale, shift = (t.view(-1, *(1,) * (x.dim() - 3)) for t in scale_and_shift(layer))
        x = scale * x + shift
    v_init, current_init = layer.carried_state(x)
    options = layer.neuron_options() | {"v_init": v_init, "current_init": current_init}
    for name in ("surrogate", "detach_reset", "spike_format", "return_state"):
        del options[name]
    return functional.membranes(x, **options)
