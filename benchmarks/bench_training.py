"""A training step of VGG11, and what attacks and retractions add to it."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.baselines import OPTIONS, lif_loop
from benchmarks.bench_memory import make_plain
from benchmarks.comparison import Quartiles, Setting
from snnkern.attacks import FGSM
from snnkern.models import vgg11
from snnkern.report.table import Cell, Table
from snnkern.training import orthogonal_retraction

TIMESTEPS, IMAGES, ROUNDS = 8, 8, 7

Step = Callable[[], None]


class Steps:
    """Networks that start equal, and what is done to them in one step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = vgg11(timesteps=TIMESTEPS, **OPTIONS)
        unpacked = vgg11(timesteps=TIMESTEPS, pack=False, **OPTIONS)
        unpacked.load_state_dict(self.network.state_dict())
        self.plain = make_plain(copy.deepcopy(unpacked), lif_loop)
        self.unpacked = unpacked
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(IMAGES, 3, 32, 32, generator=generator)
        self.labels = torch.arange(IMAGES) % 10
        self.generator = generator

    def training(self, network: nn.Module) -> Step:
        """Forward, backward and a step of SGD with momentum."""
        optimiser = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

        def step() -> None:
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(self.images), self.labels).backward()
            optimiser.step()

        return step

    def attack(self, gradient: Any) -> Step:
        """One gradient of the images."""
        attack = FGSM(2 / 255, gradient=gradient)
        return lambda: _discard(attack(self.network, self.images, self.labels))

    def retraction(self) -> None:
        """What SNN-RAT does to the weights after a step."""
        orthogonal_retraction(self.network, 0.001, 200, 0.3, self.generator)


def _discard(result: Tensor) -> None:
    del result


# Whose time over whose, and where it should be.
RATIOS = (
    ("natural step, plain PyTorch", "natural step", "at least 1.25"),
    ("natural step, layers of torch.nn", "natural step", ""),
    ("gradient of the images, BPTR", "gradient of the images, BPTT", "at most 0.6"),
    ("retraction of SNN-RAT", "natural step", "at most 0.05"),
)


def test_training(
    benchmark: Any,
    setting: Setting,
    pytestconfig: pytest.Config,
    report_table: Callable[..., None],
) -> None:
    last = pytestconfig.getoption("pages")[-1], pytestconfig.getoption("threads")[-1]
    if setting != last:
        pytest.skip("a step takes seconds: measured in the last setting alone")
    steps = Steps()
    run: dict[str, Step] = {
        "natural step": steps.training(steps.network),
        "natural step, layers of torch.nn": steps.training(steps.unpacked),
        "natural step, plain PyTorch": steps.training(steps.plain),
        "gradient of the images, BPTT": steps.attack(None),
        "gradient of the images, BPTR": steps.attack("rate"),
        "retraction of SNN-RAT": steps.retraction,
    }
    seconds: dict[str, list[float]] = {name: [] for name in run}

    def one_round() -> None:
        for name, step in run.items():
            start = perf_counter()
            step()
            seconds[name].append(perf_counter() - start)

    if benchmark.disabled:
        benchmark(lambda: None)
        return
    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=1)
    seconds = {name: times[-ROUNDS:] for name, times in seconds.items()}
    times = [(name, f"{statistics.median(times):.3f}", "", "") for name, times in seconds.items()]
    ratios = [
        (f"{one} over {other}", "", str(Quartiles.of_ratios(seconds[one], seconds[other])), bar)
        for one, other, bar in RATIOS
    ]
    caption = (
        f"VGG11 with batch norm, T = {TIMESTEPS}, {IMAGES} images of 32x32, float32, {setting}; "
        f"medians of {ROUNDS} interleaved rounds."
    )
    head, *rows = [
        tuple(map(Cell, row))
        for row in (("what", "seconds", "ratio (quartiles)", "bar"), *times, *ratios)
    ]
    cases = [{"what": name, "seconds": times} for name, times in seconds.items()]
    report_table("training", Table(caption, head, tuple(rows)), cases)
