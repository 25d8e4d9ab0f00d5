"""What a network makes of images and of their adversarial twins, as a report shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from snnkern import reference
from snnkern.attacks import Attack
from snnkern.measures import cost, spike_distance, spiking_activity
from snnkern.nn import LIF, evaluation_mode, watch_spikes
from snnkern.nn.recording import membranes_of
from snnkern.report.results import Energy, Layer, Membrane, Sample


class Shown(NamedTuple):
    """What ``show`` finds."""

    samples: tuple[Sample, ...]
    layers: tuple[Layer, ...]
    energy: Energy
    timesteps: int  # 0 where nothing spikes


class _Pass(NamedTuple):
    """Of the samples shown: classes, and by layer the spikes and what went in ``[T, S, ...]``."""

    predictions: list[int]
    spikes: dict[str, Tensor]
    inputs: dict[str, Tensor]


def show(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    name: str,
    samples: Sequence[int],
    seed: int = 0,
) -> Shown:
    """Attacks images, and looks at what the network does with both.

    An encoder that draws its spikes draws the same ones for an image and its twin.

    Args:
        model: images to logits; runs in evaluation mode and is left as it was.
        x: images ``[N, C, H, W]``, all of which activity, distances and energy are the mean over.
        y: their labels, ``[N]``.
        attack: that makes the twins.
        name: of the attack.
        samples: which of the images are shown; none where they are neither grey nor coloured.
        seed: of all random choices.
    """
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        twins = attack(model, x, y, torch.Generator(x.device).manual_seed(seed))
        clean, attacked = (_run(model, images, samples, seed) for images in (x, twins))
        active, active_attacked = (spiking_activity(model, images) for images in (x, twins))
        distances = spike_distance(model, x, twins)
        costs = [cost(model, images) for images in (x, twins)]
    names = {layer: f"layer {number}" for number, layer in enumerate(active, start=1)}
    membranes = _membranes(model, clean, attacked) if samples else {}
    return Shown(
        tuple(
            Sample(
                label=int(y[sample]),
                clean=x[sample].cpu().numpy(),
                adversarial=twins[sample].cpu().numpy(),
                predicted_clean=clean.predictions[i],
                predicted_adversarial=attacked.predictions[i],
                eps=attack.eps,
                attack=name,
                rasters={
                    names[layer]: (clean.spikes[layer][:, i].numpy(), spikes[:, i].numpy())
                    for layer, spikes in attacked.spikes.items()
                },
                membranes={names[layer]: traces[i] for layer, traces in membranes.items()},
            )
            for i, sample in enumerate(samples)
        ),
        tuple(
            Layer(
                f"{number} ({layer})",
                activity.neurons,
                activity.time_averaged,
                active_attacked[layer].time_averaged,
                distances[layer].rate.mean().item(),
                distances[layer].train.mean().item(),
            )
            for number, (layer, activity) in enumerate(active.items(), start=1)
        ),
        Energy(costs[0].energy(), costs[1].energy(), costs[0].dense_energy()),
        max((activity.timesteps for activity in active.values()), default=0),
    )


def _run(model: nn.Module, images: Tensor, samples: Sequence[int], seed: int) -> _Pass:
    chosen = torch.tensor(list(samples), dtype=torch.long, device=images.device)
    spikes: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}

    def see(name: str, found: Tensor) -> None:
        spikes[name] = found[:, chosen].flatten(2).bool().cpu()

    def keep(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs[name] = given[0][:, chosen]

        return hook

    handles = [
        module.register_forward_pre_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, LIF) and not module.is_relu
    ]
    try:
        torch.manual_seed(seed)
        with torch.no_grad(), evaluation_mode(model), watch_spikes(model, see):
            predictions = model(images).argmax(1)
    finally:
        for handle in handles:
            handle.remove()
    return _Pass([int(label) for label in predictions[chosen]], spikes, inputs)


def _membranes(model: nn.Module, clean: _Pass, attacked: _Pass) -> dict[str, list[Membrane]]:
    """By layer, for every sample the neuron whose spikes the attack changes most.

    Among those that it changes alike, one that is neither silent nor fires always.
    """
    found: dict[str, list[Membrane]] = {}
    with torch.no_grad(), evaluation_mode(model):
        for name, spikes in clean.spikes.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, LIF)
            like = clean.inputs[name][:1, :1]
            threshold = torch.as_tensor(layer.dynamics()["threshold"]).to(like)
            thresholds = reference.broadcast(threshold, like).expand(like.shape).flatten()
            traces = [membranes_of(layer, run.inputs[name]).flatten(2) for run in (clean, attacked)]
            count, timesteps = spikes.sum(0), len(spikes)
            moved = (spikes ^ attacked.spikes[name]).sum(0)
            varied = torch.minimum(count, timesteps - count)
            neurons = (moved * (timesteps + 1) + varied).argmax(1).tolist()
            found[name] = [
                Membrane(
                    neuron,
                    thresholds[neuron].item(),
                    *(trace[:, i, neuron].cpu().numpy().astype(np.float32) for trace in traces),
                )
                for i, neuron in enumerate(neurons)
            ]
    return found
