"""Bytes saved for backward in one training step of VGG11: ours, and the plain network's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from benchmarks.baselines import spikingjelly_layers, spikingjelly_version
from snnkern._table import Cell, Table
from snnkern.bench import OPTIONS, Layer, lif_loop
from snnkern.models import vgg11
from snnkern.nn import LIF, NormLIF, TimeDistributed

TIMESTEPS, IMAGES = 8, 2
# Of what the plain network saves.
BAR = 1 / 3


class Neurons(nn.Module):
    """A neuron layer that is a function."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Merged(nn.Module):
    """A layer of torch on the batch ``T * N``, with a copy of the image for every step."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.module(x.flatten(0, 1))
        return merged.view(*x.shape[:2], *merged.shape[1:])


def make_plain(network: nn.Module, layer: Layer) -> nn.Module:
    """Batch norm over merged time and neurons apart, in ``network`` of torch's layers."""
    for name, child in network.named_children():
        if isinstance(child, NormLIF):
            norm = Merged(nn.BatchNorm2d(child.num_features))
            network.register_module(name, nn.Sequential(norm, Neurons(layer)))
        elif isinstance(child, LIF):
            network.register_module(name, Neurons(layer))
        elif isinstance(child, TimeDistributed):
            network.register_module(name, Merged(child.module))
        else:
            make_plain(child, layer)
    return network


def ours(pack: bool) -> nn.Module:
    """The same weights every time."""
    torch.manual_seed(0)
    return vgg11(timesteps=TIMESTEPS, pack=pack, **OPTIONS)


class Kept:
    """A tensor that autograd saved; gone when autograd lets go of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


def saved_bytes(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[int, Tensor]:
    """Bytes saved when one step's backward starts, and the logits.

    Every storage counts once and whole, parameters do not.
    """
    kept: WeakSet[Kept] = WeakSet()

    def keep(tensor: Tensor) -> Kept:
        one = Kept(tensor)
        kept.add(one)
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one.tensor):
        logits = network(images)
        loss = nn.functional.cross_entropy(logits, labels)
    storages = [one.tensor.untyped_storage() for one in kept]
    saved = {storage.data_ptr(): storage.nbytes() for storage in storages}
    for parameter in network.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    loss.backward()
    return sum(saved.values()), logits.detach()


def test_memory(benchmark: Any, report_table: Callable[..., None]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(IMAGES, 3, 32, 32, generator=generator)
    labels = torch.arange(IMAGES)
    unpacked = ours(pack=False)
    networks = {
        "snnkern, layers of torch.nn": unpacked,
        "plain PyTorch": make_plain(copy.deepcopy(unpacked), lif_loop),
    }
    if jelly := spikingjelly_layers.get("SpikingJelly"):
        title = f"plain PyTorch, neurons of SpikingJelly {spikingjelly_version}"
        networks[title] = make_plain(copy.deepcopy(unpacked), jelly)
    count, output = benchmark.pedantic(saved_bytes, (ours(pack=True), images, labels), rounds=1)
    saved, logits = {"snnkern": count}, {"snnkern": output}
    for name, network in networks.items():
        saved[name], logits[name] = saved_bytes(network, images, labels)
    whole = saved["plain PyTorch"]
    steps = 286_720 * TIMESTEPS * IMAGES
    rows = tuple(
        (
            Cell(name),
            Cell(f"{count / 2**20:.1f}"),
            Cell(f"{count / steps:.2f}"),
            Cell(f"{100 * count / whole:.1f} %"),
        )
        for name, count in saved.items()
    )
    head = ("network", "MiB saved", "bytes per neuron-step", "of plain PyTorch")
    caption = (
        f"VGG11 with batch norm, T = {TIMESTEPS}, {IMAGES} images of 32x32, float32, one training "
        "step: what autograd holds when backward starts, every storage once, parameters aside."
    )
    if jelly is None:
        caption += f" SpikingJelly is {spikingjelly_version}."
    report_table(
        "memory",
        Table(caption, tuple(map(Cell, head)), rows),
        [{"network": name, "bytes": count} for name, count in saved.items()],
    )
    # Batch norm rounds differently in the fused layer: a spike may flip.
    for name, other in logits.items():
        error = float((other - logits["plain PyTorch"]).norm() / other.norm())
        assert error < 0.05, f"{name}: logits are {error:.1e} of their norm away"
    assert torch.equal(logits["snnkern"], logits["snnkern, layers of torch.nn"])
    assert saved["snnkern"] <= BAR * whole
