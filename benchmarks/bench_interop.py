"""Models of other libraries before and after `interop.accelerate`, for each that is installed."""

from __future__ import annotations

import copy
import importlib
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkern._table import Table
from snnkern.bench import Quartiles, Setting
from snnkern.interop import accelerate, layerwise

TIMESTEPS, ROUNDS = 8, 5
NEURONS = (64, 64, 32, 32)
IMAGES = (16, 3, 32, 32)
CHANNELS = (32, 64)

Step = Callable[[], None]


@dataclass
class Library:
    """How its users call a neuron on all steps, and how they let go of its state.

    Time is the first dimension, or the second where ``batch_first``.
    """

    package: str
    neuron: Callable[[], nn.Module]
    run: Callable[[Any, Tensor], Tensor]
    reset: Callable[[nn.Module], None] = lambda model: None
    bar: float | None = None
    batch_first: bool = False

    @property
    def time(self) -> int:
        """The dimension of time."""
        return int(self.batch_first)


def _spikingjelly() -> Library:
    library = importlib.import_module("spikingjelly.activation_based")
    functional = importlib.import_module("spikingjelly.activation_based.functional")
    return Library(
        "spikingjelly",
        lambda: library.neuron.LIFNode(detach_reset=True, step_mode="m"),
        lambda neuron, x: neuron(x),
        functional.reset_net,
        8,
    )


def _snntorch() -> Library:
    library = importlib.import_module("snntorch")

    def run(neuron: Any, x: Tensor) -> Tensor:
        mem, spikes = neuron.reset_mem(), []
        for x_t in x.unbind(0):
            spike, mem = neuron(x_t, mem)
            spikes.append(spike)
        return torch.stack(spikes)

    return Library("snntorch", lambda: library.Leaky(0.9), run, bar=4)


def _norse() -> Library:
    library = importlib.import_module("norse.torch")
    return Library("norse", library.LIF, lambda neuron, x: neuron(x)[0], bar=8)


def _sinabs() -> Library:
    layers = importlib.import_module("sinabs.layers")
    activation = importlib.import_module("sinabs.activation")

    def reset(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, layers.StatefulLayer):
                module.reset_states()

    return Library(
        "sinabs",
        lambda: layers.LIF(tau_mem=5.0, spike_fn=activation.SingleSpike),
        lambda neuron, x: neuron(x),
        reset,
        8,
        batch_first=True,
    )


MAKERS = {
    "SpikingJelly": _spikingjelly,
    "snnTorch": _snntorch,
    "Norse": _norse,
    "sinabs": _sinabs,
}


def _installed() -> tuple[dict[str, Library], str]:
    """The libraries that can be imported, and for each its version or why it is not compared."""
    found, notes = {}, []
    for name, make in MAKERS.items():
        try:
            found[name] = make()
            notes.append(f"{name} {version(found[name].package)}")
        except (ImportError, PackageNotFoundError) as error:
            notes.append(f"{name} is not compared ({error})")
    return found, ", ".join(notes)


class Net(nn.Module):
    """Two convolutions and a readout; layers without state see all steps as one batch."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.run, self.time = library.run, library.time
        widths = (IMAGES[1], *CHANNELS)
        pairs = list(pairwise(widths))
        self.convs = nn.ModuleList([nn.Conv2d(*pair, 3, padding=1) for pair in pairs])
        self.neurons = nn.ModuleList([library.neuron() for _ in pairs])
        self.fc = nn.Linear(CHANNELS[-1] * (IMAGES[2] // 4) ** 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, K]`` of ``[T, N, C, H, W]``, or batch first."""
        for conv, neuron in zip(self.convs, self.neurons, strict=True):
            x = self.run(neuron, conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
            x = F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
        logits: Tensor = self.fc(x.flatten(2)).mean(self.time)
        return logits


class Loop(Net):
    """The same, with the usual loop over time of snnTorch."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, K]`` of ``[T, N, C, H, W]``."""
        states = [neuron.reset_mem() for neuron in self.neurons]  # type: ignore[operator]
        logits = []
        for t in range(TIMESTEPS):
            y = x[t]
            for i, (conv, neuron) in enumerate(zip(self.convs, self.neurons, strict=True)):
                y, states[i] = neuron(conv(y), states[i])
                y = F.max_pool2d(y, 2)
            logits.append(self.fc(y.flatten(1)))
        return torch.stack(logits).mean(0)


def _neurons(name: str, library: Library) -> dict[str, Step]:
    """Forward and backward of a layer of neurons."""
    generator = torch.Generator().manual_seed(0)
    batch, *sample = NEURONS
    shape = (batch, TIMESTEPS, *sample) if library.batch_first else (TIMESTEPS, *NEURONS)
    x = torch.randn(shape, generator=generator).mul_(0.8).add_(0.4).requires_grad_()
    grad = torch.randn(shape, generator=generator)

    def step(run: Callable[[Any, Tensor], Tensor], neuron: nn.Module) -> Step:
        def once() -> None:
            torch.autograd.grad(run(neuron, x), x, grad)
            library.reset(neuron)

        return once

    own, fused = library.neuron(), library.neuron()
    accelerate(fused)
    steps = {"before": step(library.run, own), "after": step(library.run, fused)}
    if name == "snnTorch":
        at_once = layerwise(_Neuron(library), TIMESTEPS)
        steps["layerwise"] = step(lambda neuron, x: neuron(x), at_once)
    return steps


class _Neuron(nn.Module):
    """A neuron in its loop over time."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.run = library.run
        self.neuron = library.neuron()

    def forward(self, x: Tensor) -> Tensor:
        mem, spikes = self.neuron.reset_mem(), []  # type: ignore[operator]
        for t in range(TIMESTEPS):
            spike, mem = self.neuron(x[t], mem)
            spikes.append(spike)
        return torch.stack(spikes)


def _training(name: str, library: Library) -> dict[str, Step]:
    """Steps of training of networks that start equal."""
    torch.manual_seed(0)
    images = torch.rand(TIMESTEPS, *IMAGES)
    if library.batch_first:
        images = images.transpose(0, 1).contiguous()
    labels = torch.arange(IMAGES[0]) % 10
    build = Loop if name == "snnTorch" else Net
    own = build(library)
    fused = build(library)
    fused.load_state_dict(own.state_dict(), strict=False)
    accelerate(fused)
    models: dict[str, nn.Module] = {"before": own, "after": fused}
    if name == "snnTorch":
        models["layerwise"] = layerwise(copy.deepcopy(fused), TIMESTEPS)

    def step(model: nn.Module) -> Step:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def once() -> None:
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
            library.reset(model)

        return once

    return {name: step(model) for name, model in models.items()}


KINDS: dict[str, Callable[[str, Library], dict[str, Step]]] = {
    "neurons": _neurons,
    "training step": _training,
}
ABOUT = {
    "neurons": f"Neurons: forward and backward at {[TIMESTEPS, *NEURONS]}.",
    "training step": f"Training step: convolutions of {CHANNELS} channels, {list(IMAGES)} at "
    f"T = {TIMESTEPS}, SGD.",
}


def caption(kinds: Iterable[str], setting: Setting, notes: str) -> str:
    """Of what was measured, and no more."""
    about = " ".join(ABOUT[kind] for kind in kinds)
    return f"{about} float32, {setting}; medians of {ROUNDS} interleaved rounds. {notes}."


def test_interop(
    benchmark: Any,
    setting: Setting,
    pytestconfig: pytest.Config,
    report_table: Callable[..., None],
) -> None:
    kinds = dict(KINDS)
    if setting.threads != pytestconfig.getoption("threads")[-1]:
        del kinds["training step"]  # measured with the last number of threads alone
    libraries, notes = _installed()
    if benchmark.disabled or not libraries:
        benchmark(lambda: None)
        return
    rows = [("what", "library", "before, s", "after, s", "before over after (quartiles)", "bar")]
    cases = []

    def measure() -> None:
        for kind, make in kinds.items():
            for name, library in libraries.items():
                steps = make(name, library)
                seconds: dict[str, list[float]] = {which: [] for which in steps}
                for number in range(ROUNDS + 1):
                    for which, step in steps.items():
                        start = perf_counter()
                        step()
                        if number:  # the first is a warm-up
                            seconds[which].append(perf_counter() - start)
                cases.append({"what": kind, "library": name, "seconds": seconds})
                before = seconds["before"]
                for which, after in list(seconds.items())[1:]:
                    bar = library.bar if kind == "neurons" else None
                    rows.append(
                        (
                            kind,
                            name + (", layerwise" if which == "layerwise" else ""),
                            f"{statistics.median(before):.3f}",
                            f"{statistics.median(after):.3f}",
                            str(Quartiles.of_ratios(before, after)),
                            "" if bar is None else f"at least {bar:g}",
                        )
                    )

    benchmark.pedantic(measure, rounds=1)
    head, *body = rows
    report_table(
        f"interop-{setting.pages}-{setting.threads}",
        Table.of(caption(kinds, setting, notes), head, body),
        cases,
    )
