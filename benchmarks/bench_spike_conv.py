"""Convolutions by the events of spikes, beside oneDNN's; a training step and inference of VGG11."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines import OPTIONS
from benchmarks.comparison import Quartiles, Setting
from snnkern import NormLIF
from snnkern.models import vgg11
from snnkern.nn import Conv2d, Linear
from snnkern.nn.packed import EventDriven
from snnkern.report.table import Cell, Table

TIMESTEPS, IMAGES, ROUNDS = 8, 16, 7
DENSITIES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
# Channels in and out, and the side of the maps: the layers of VGG11 that see spikes; 0 is linear.
LAYERS = ((128, 256, 16), (512, 512, 8), (512, 512, 4), (8192, 4096, 0), (4096, 4096, 0))
# What each of these does to the membrane decides how many neurons fire.
GAINS = (0.6, 0.8, 1.0)
# No layer may lose more than this to the choice.
SLOWER = 1.03

Run = Callable[[], object]


def interleaved(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
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
    """A layer and spikes of some density; one of torch in each layout of memory."""

    def __init__(self, channels: int, out: int, side: int, density: float) -> None:
        torch.manual_seed(0)
        count = TIMESTEPS * IMAGES
        shape = (count, channels, side, side) if side else (count, channels)
        self.spikes = (torch.rand(shape) < density).float()
        self.layer: EventDriven
        if side:
            self.layer = Conv2d(channels, out, 3, padding=1, bias=False)
            self.dense: nn.Module = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        else:
            self.layer = Linear(channels, out, bias=False)
            self.dense = nn.Linear(channels, out, bias=False)
        self.dense.load_state_dict(self.layer.state_dict())
        self.layouts = [torch.contiguous_format]
        if side:
            self.layouts.append(torch.channels_last)
            self.spikes = self.spikes.contiguous(memory_format=torch.channels_last)

    def forward(self) -> dict[str, Run]:
        return self._runs(self._infer)

    def backward(self) -> dict[str, Run]:
        """Forward and the gradient of the weight, which is what events save in training."""
        return self._runs(self._learn)

    def _runs(self, run: Callable[[nn.Module, Tensor], object]) -> dict[str, Run]:
        runs: dict[str, Run] = {"ours": lambda: run(self.layer, self.spikes)}
        for layout in self.layouts:
            dense = copy.deepcopy(self.dense).to(memory_format=layout)
            x = self.spikes.contiguous(memory_format=layout)
            runs[str(layout)] = lambda dense=dense, x=x: run(dense, x)  # type: ignore[misc]
        return runs

    @staticmethod
    def _infer(layer: nn.Module, x: Tensor) -> None:
        with torch.no_grad():
            layer(x)

    @staticmethod
    def _learn(layer: nn.Module, x: Tensor) -> None:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(1.0)  # a new version, as every step of training makes one
        y = layer(x)
        torch.autograd.grad(y, list(layer.parameters()), y.detach())


def best_over_ours(runs: dict[str, Run], rounds: int) -> Quartiles:
    """The time of oneDNN's better layout over ours, by its medians; quartiles over rounds."""
    seconds = interleaved(runs, rounds)
    ours = seconds.pop("ours")
    best = min(seconds.values(), key=statistics.median)
    return Quartiles.of_ratios(best, ours)


def test_layers(benchmark: Any, setting: Setting, report_table: Callable[..., None]) -> None:
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    rows, cases = [], []

    def measure() -> None:
        for channels, out, side in LAYERS:
            name = f"{channels} to {out}" + (f", 3x3, {side}x{side}" if side else ", linear")
            for what in ("forward", "backward"):
                line = [f"{name}, {'inference' if what == 'forward' else 'forward and weight'}"]
                for density in DENSITIES:
                    case = Case(channels, out, side, density)
                    ratio = best_over_ours(getattr(case, what)(), ROUNDS)
                    way = "" if case.layer.choice.by_events else " dense"
                    line.append(f"{ratio.median:.2f}{way}")
                    cases.append(
                        {"layer": name, "what": what, "density": density}
                        | {"events": case.layer.choice.by_events, **ratio._asdict()}
                    )
                rows.append(tuple(map(Cell, line)))

    benchmark.pedantic(measure, rounds=1)
    caption = (
        f"Time of the layer of torch in its better layout over that of snnkern.nn, spikes of "
        f"{TIMESTEPS * IMAGES} images, float32, {setting}; medians of {ROUNDS} interleaved rounds. "
        f"'dense' where the layer chose dense products. Bar: at least {1 / SLOWER:.2f} everywhere."
    )
    head = tuple(map(Cell, ("layer", *(f"{100 * d:g} %" for d in DENSITIES))))
    table = Table(caption, head, tuple(rows))
    report_table(f"spike-conv-{setting.pages}-{setting.threads}", table, cases)


class Network:
    """VGG11 whose neurons see currents of a standard deviation, and what is done to it."""

    def __init__(self, gain: float) -> None:
        torch.manual_seed(0)
        self.net = vgg11(timesteps=TIMESTEPS, **OPTIONS)
        for module in self.net.modules():
            if isinstance(module, NormLIF):
                nn.init.constant_(module.weight, gain)
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
                seen = [c.density for c in choices if c.density is not None]
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
        "Density: mean over the layers that see spikes; average pooling makes other values of "
        f"them, and what sees those is dense. Medians of {ROUNDS} interleaved rounds."
    )
    titles = ("what", "density", "seconds", "dense, seconds", "dense over ours (quartiles)", "bar")
    table = Table(caption, tuple(map(Cell, titles)), tuple(tuple(map(Cell, r)) for r in rows))
    report_table(f"spike-network-{setting.pages}-{setting.threads}", table, cases)
