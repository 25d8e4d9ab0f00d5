"""What a spiking network does and costs: activity, distances, singular values, energy.

Definitions 1 and 2 and tables 6 and 7 of Kundu et al. 2021, eq. 12 of Ding et al. 2022. The bound
on the spike train distance of the latter's theorem 1 is not here: it never falls below the trivial
``T`` times the number of neurons, so it certifies nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from snnkern.nn import RateCoding, evaluation_mode, watch_spikes
from snnkern.nn.neuron import LIF

Number = Literal["float", "int"]
# Picojoules of a 32-bit operation in 45 nm CMOS at 0.9 V; no memory access, no data movement.
MAC_ENERGY: dict[Number, float] = {"float": 4.6, "int": 3.2}
AC_ENERGY: dict[Number, float] = {"float": 0.9, "int": 0.1}


@dataclass(frozen=True)
class Activity:
    """How much a layer spikes.

    Attributes:
        spikes: of one image over all neurons and time steps, on average.
        neurons: of the layer, counted for every use of it.
        timesteps: T.
    """

    spikes: float
    neurons: int
    timesteps: int

    @property
    def per_neuron(self) -> float:
        """Spiking activity: spikes per neuron, over all time steps."""
        return self.spikes / self.neurons

    @property
    def time_averaged(self) -> float:
        """Time-averaged spiking activity: spikes per neuron and time step."""
        return self.per_neuron / self.timesteps


def spiking_activity(model: nn.Module, x: Tensor) -> dict[str, Activity]:
    """The activity of every layer of neurons on images ``x`` ``[N, ...]``, by the layer's name.

    The sum of ``spikes`` over the layers is the number of spikes of an inference. The model runs in
    evaluation mode and is left as it was.
    """
    found: dict[str, Activity] = {}

    def see(name: str, spikes: Tensor) -> None:
        count, neurons = spikes.count_nonzero().item() / len(x), spikes[0].numel() // len(x)
        before = found.get(name, Activity(0.0, 0, spikes.shape[0]))  # of a layer that is used twice
        found[name] = Activity(before.spikes + count, before.neurons + neurons, before.timesteps)

    with torch.no_grad(), evaluation_mode(model), watch_spikes(model, see):
        model(x)
    return found


def _check_pair(x: Tensor, adversarial: Tensor) -> None:
    if x.shape != adversarial.shape:
        raise ValueError(
            f"adversarial has shape {list(adversarial.shape)}, expected that of x, {list(x.shape)}"
        )


def perturbation_distance(x: Tensor, adversarial: Tensor) -> Tensor:
    """The l_2 norm of the difference of images, ``[N]`` from two tensors ``[N, ...]``."""
    _check_pair(x, adversarial)
    return (adversarial - x).flatten(1).square().sum(1).sqrt()


@dataclass(frozen=True)
class SpikeDistance:
    """How far apart a layer's answers to an image and its perturbed variant are.

    Attributes:
        rate: ``[N]``, the l_2 norm of the difference of firing rates (spikes per step), definition
            2 of Kundu et al.
        train: ``[N]``, the spike train distance D_2, eq. 12 of Ding et al.: the root of the number
            of spikes that differ. Unlike the rate it sees when a neuron fires.
    """

    rate: Tensor
    train: Tensor


def spike_distance(model: nn.Module, x: Tensor, adversarial: Tensor) -> dict[str, SpikeDistance]:
    """The distance of every layer's spikes between images and their perturbed variants.

    Args:
        model: runs in evaluation mode and is left as it was. An encoder that draws its spikes draws
            the same ones for both: the global random state is set back in between, and after.
        x: images ``[N, ...]``.
        adversarial: the same shape.
    """
    _check_pair(x, adversarial)
    runs: list[dict[str, list[Tensor]]] = []
    devices = [x.device] if x.is_cuda else []
    for images in (x, adversarial):
        spikes = defaultdict[str, list[Tensor]](list)

        def see(name: str, of_layer: Tensor, to: dict[str, list[Tensor]] = spikes) -> None:
            to[name].append(of_layer.to(torch.float32).flatten(2))

        with (
            torch.random.fork_rng(devices),
            torch.no_grad(),
            evaluation_mode(model),
            watch_spikes(model, see),
        ):
            model(images)
        runs.append(spikes)
    result = {}
    for name, clean in runs[0].items():
        difference = torch.cat(runs[1][name], 2) - torch.cat(clean, 2)
        result[name] = SpikeDistance(
            rate=difference.mean(0).square().sum(1).sqrt(),
            train=difference.square().sum((0, 2)).sqrt(),
        )
    return result


def singular_values(model: nn.Module) -> dict[str, Tensor]:
    """Singular values, largest first, of every convolution's and linear layer's weights.

    Weights are matrices of output channels by the rest, as the orthogonal retraction of Ding et al.
    2022 takes them.
    """
    return {
        name: torch.linalg.svdvals(module.weight.detach().flatten(1).double())
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    }


@dataclass(frozen=True)
class LayerCost:
    """Operations of a convolution or linear layer for one image, on average.

    Attributes:
        dense: multiplications that one evaluation of the layer would take, padding included (table
            6).
        macs: multiply-accumulates: ``dense`` for every evaluation on an input that is not spikes.
        acs: accumulates: ``dense`` times the spikes per input neuron, over all time steps.
    """

    dense: float
    macs: float
    acs: float

    def energy(self, number: Number = "float") -> float:
        """Picojoules (table 7)."""
        return self.macs * MAC_ENERGY[number] + self.acs * AC_ENERGY[number]


@dataclass(frozen=True)
class Cost:
    """Operations of a network for one image, by the name of the layer."""

    layers: dict[str, LayerCost]

    def energy(self, number: Number = "float") -> float:
        """Picojoules of 32-bit arithmetic in 45 nm CMOS (eq. 7, 8), memory and wires left out."""
        return sum(layer.energy(number) for layer in self.layers.values())

    def dense_energy(self, number: Number = "float") -> float:
        """Picojoules of the same network as an ANN: every layer once, by multiply-accumulates."""
        return sum(layer.dense for layer in self.layers.values()) * MAC_ENERGY[number]


@contextmanager
def counting(model: nn.Module, images: int) -> Iterator[dict[str, LayerCost]]:
    """Within the block one pass of ``model`` over so many images is counted, layer by layer.

    Gives what the pass fills; see ``cost``.
    """
    spiking = False
    found: dict[str, LayerCost] = {}

    def spikes_from_here(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        nonlocal spiking
        assert isinstance(module, LIF | RateCoding)
        spiking = spiking or not module.is_relu

    def count_for(name: str) -> object:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            rows = inputs[0].shape[0]
            if isinstance(module, nn.Linear):
                rows = inputs[0].numel() // module.in_features
            # Every number of the output is a sum over one row of weights.
            evaluations = rows / images
            dense = output.numel() / rows * weight[0].numel()
            activity = inputs[0].abs().mean(dtype=torch.float64).item() * evaluations
            before = found.get(name, LayerCost(dense, 0.0, 0.0))
            found[name] = LayerCost(
                dense,
                before.macs + (0.0 if spiking else dense * evaluations),
                before.acs + (dense * activity if spiking else 0.0),
            )

        return count

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, LIF | RateCoding):
            handles.append(module.register_forward_hook(spikes_from_here))
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            handles.append(module.register_forward_hook(count_for(name)))  # type: ignore[arg-type]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def cost(model: nn.Module, x: Tensor) -> Cost:
    """Counts the operations of an inference on images ``x`` ``[N, ...]`` (Kundu et al. 2021, 5.4).

    What comes before the first spikes (the first layer behind direct coding) works with multiply-
    accumulates, once per time step in which it is evaluated: a layer that sees a constant input
    runs once. Every layer behind spikes accumulates, once for every spike that reaches it; average
    pooling in between hands on as much activity as it takes. Norms and sums of branches are not
    counted. As a ReLU network (``timesteps=0``) all layers multiply. What counts is the order of
    the layers: one that sees the image itself after the first spikes is taken to accumulate.

    The model runs in evaluation mode and is left as it was.
    """
    with counting(model, len(x)) as found, torch.no_grad(), evaluation_mode(model):
        model(x)
    return Cost(found)
