"""Convolutions by the events of spikes, beside oneDNN's; a training step and inference of VGG11."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkern import NormLIF
from snnkern._table import Table
from snnkern.bench import OPTIONS, Quartiles, Setting
from snnkern.models import vgg11
from snnkern.nn import Conv2d, Linear
from snnkern.nn.packed import EventDriven

TIMESTEPS, IMAGES, ROUNDS = 8, 16, 5
DENSITIES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6)
# Channels in and out, and the side of the maps: the layers of VGG11 that see spikes; 0 is linear.
LAYERS = ((128, 256, 16), (512, 512, 8), (512, 512, 4), (8192, 4096, 0), (4096, 4096, 0))
# What each of these does to the membrane decides how many neurons fire.
GAINS = (0.6, 0.8, 1.0)
# No layer may lose more than this to the choice.
SLOWER = 1.03

Run = Callable[[], object]


def interleaved(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in every round, after one round untimed."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = perf_counter()
            run()
            if number:
                seconds[name].append(perf_counter() - start)
    return seconds


class Case:
    """A layer in snnkern's and in torch's kind, and spikes of every density."""

    def __init__(self, channels: int, out: int, side: int) -> None:
        torch.manual_seed(0)
        count = TIMESTEPS * IMAGES
        shape = (count, channels, side, side) if side else (count, channels)
        self.title = f"{channels} to {out}" + (f", 3x3, {side}x{side}" if side else ", linear")
        dense: Any = nn.Linear(channels, out, bias=False)
        if side:
            dense = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        layouts = (torch.contiguous_format, torch.channels_last)[: 2 if side else 1]
        self.torchs: list[nn.Module] = [
            copy.deepcopy(dense).to(memory_format=layout) for layout in layouts
        ]
        x = (torch.rand(shape) < DENSITIES[-1]).float()
        self.inputs = [x.contiguous(memory_format=layout) for layout in layouts]

        def layer(**options: Any) -> EventDriven:
            made: EventDriven = Linear(channels, out, bias=False, **options)
            if side:
                made = Conv2d(channels, out, 3, padding=1, bias=False, **options)
            made.load_state_dict(dense.state_dict())
            return made

        self.without_events = layer(event_driven=False), self.inputs[-1]
        self.ours: dict[float, tuple[EventDriven, Tensor]] = {}
        for density in DENSITIES:
            spikes = (torch.rand(shape) < density).float()
            self.ours[density] = layer(), spikes.contiguous(memory_format=layouts[-1])

    def ratios(self, run: Callable[[nn.Module, Tensor], None]) -> dict[float, Quartiles]:
        """The time of torch's layer in its better layout over ours, by density.

        Where ours chose dense products: of the same layer that never looks.
        """
        torchs = zip(self.torchs, self.inputs, strict=True)
        layers = [self.without_events, *self.ours.values(), *torchs]
        runs = {str(i): partial(run, *one) for i, one in enumerate(layers)}
        dense, *seconds = interleaved(runs, ROUNDS).values()
        best = min(seconds[len(DENSITIES) :], key=statistics.median)
        return {
            density: Quartiles.of_ratios(best if layer.choice.by_events else dense, own)
            for (density, (layer, _)), own in zip(self.ours.items(), seconds, strict=False)
        }


def inference(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        layer.eval()(x)


def forward_and_weight(layer: nn.Module, x: Tensor) -> None:
    """What events save in training; the gradient of the input is dense."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.0)  # a new version, as every step of training makes one
    y = layer.train()(x)
    torch.autograd.grad(y, list(layer.parameters()), y.detach())


def test_layers(benchmark: Any, setting: Setting, report_table: Callable[..., None]) -> None:
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    rows, cases = [], []

    def measure() -> None:
        for shape in LAYERS:
            case = Case(*shape)
            for run in (inference, forward_and_weight):
                name = f"{case.title}: {run.__name__.replace('_', ' ')}"
                line = [name]
                for density, ratio in case.ratios(run).items():
                    by_events = case.ours[density][0].choice.by_events
                    line.append(f"{ratio.median:.2f}" + ("" if by_events else " dense"))
                    cases.append(
                        {"layer": name, "density": density, "events": by_events, **ratio._asdict()}
                    )
                rows.append(line)

    benchmark.pedantic(measure, rounds=1)
    caption = (
        f"Time of the layer of torch in its better layout over that of snnkern.nn, spikes of "
        f"{TIMESTEPS * IMAGES} images, float32, {setting}; medians of {ROUNDS} interleaved rounds. "
        "'dense': where the layer chose dense products, over the same layer that never looks. Bar: "
        f"at least {1 / SLOWER:.2f} everywhere."
    )
    head = ("layer", *(f"{100 * d:g} %" for d in DENSITIES))
    table = Table.of(caption, head, rows)
    report_table(f"spike-conv-{setting.pages}-{setting.threads}", table, cases)


class Network:
    """VGG11 whose neurons see currents of a standard deviation, and what is done to it."""

    def __init__(self, gain: float) -> None:
        torch.manual_seed(0)
        self.net = vgg11(timesteps=TIMESTEPS, **OPTIONS)
        for module in self.net.modules():
            if isinstance(module, NormLIF):
                assert module.weight is not None
                nn.init.constant_(module.weight, gain)
                module.momentum = 1.0  # inference sees the statistics of the last step
        self.layers = [m for m in self.net.modules() if isinstance(m, EventDriven)]
        self.optimiser = torch.optim.SGD(self.net.parameters(), lr=0.0, momentum=0.9)
        self.images = torch.rand(IMAGES, 3, 32, 32)
        self.labels = torch.arange(IMAGES) % 10

    def step(self) -> None:
        self.net.train()
        self.optimiser.zero_grad()
        F.cross_entropy(self.net(self.images), self.labels).backward()
        self.optimiser.step()

    def inference(self) -> None:
        self.net.eval()
        with torch.no_grad():
            self.net(self.images)

    def densely(self, run: Run) -> Run:
        def without_events() -> None:
            for layer in self.layers:
                layer.event_driven = False
            run()
            for layer in self.layers:
                layer.event_driven = None

        return without_events


def test_network(benchmark: Any, setting: Setting, report_table: Callable[..., None]) -> None:
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    rows, cases = [], []

    def measure() -> None:
        for gain in GAINS:
            network = Network(gain)
            for run, bar in ((network.step, 1.6), (network.inference, 2.0)):
                seconds = interleaved({"events": run, "dense": network.densely(run)}, ROUNDS)
                ratio = Quartiles.of_ratios(seconds["dense"], seconds["events"])
                choices = [layer.choice for layer in network.layers]
                seen = [c.density for c in choices if c.density is not None and not c.graded]
                times = [f"{statistics.median(seconds[way]):.3f}" for way in seconds]
                shown = f"{100 * statistics.mean(seen):.1f} %"
                rows.append((run.__name__, shown, *times, str(ratio), f"{bar:g}"))
                cases.append(
                    {"what": run.__name__, "gain": gain, "densities": seen, "seconds": seconds}
                )

    benchmark.pedantic(measure, rounds=1)
    caption = (
        f"VGG11 with batch norm, T = {TIMESTEPS}, {IMAGES} images of 32x32, float32, {setting}: a "
        "training step and inference with the layers' own choice, and with dense products alone. "
        "Density: mean over the layers that see spikes; what sees the graded ones that average "
        f"pooling makes of them is not in it. Medians of {ROUNDS} interleaved rounds."
    )
    titles = ("what", "density", "seconds", "dense, seconds", "dense over ours (quartiles)", "bar")
    table = Table.of(caption, titles, rows)
    report_table(f"spike-network-{setting.pages}-{setting.threads}", table, cases)
