"""A training step of VGG11, and what attacks and retractions add to it."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.bench_memory import make_plain
from benchmarks.comparison import in_turns
from snnkern._table import Table
from snnkern.attacks import FGSM
from snnkern.bench import OPTIONS, Quartiles, Setting, lif_loop
from snnkern.models import vgg11
from snnkern.training import HIRE, RAT, Memory, Method, Natural, orthogonal_retraction

TIMESTEPS, IMAGES, ROUNDS = 8, 16, 7
HIRE_IMAGES = 32  # the batch of Kundu et al.
RAT_IMAGES = 64  # the batch of Ding et al.

Step = Callable[[], None]


class Steps:
    """Networks that start equal, and what is done to them in one step."""

    def __init__(self, count: int = IMAGES) -> None:
        torch.manual_seed(0)
        self.network = vgg11(timesteps=TIMESTEPS, **OPTIONS)
        unpacked = vgg11(timesteps=TIMESTEPS, pack=False, **OPTIONS)
        unpacked.load_state_dict(self.network.state_dict())
        self.plain = make_plain(copy.deepcopy(unpacked), lif_loop)
        self.unpacked = unpacked
        self.hire = vgg11(timesteps=TIMESTEPS, paper="kundu")
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(count, 3, 32, 32, generator=generator)
        self.labels = torch.arange(count) % 10
        self.generator = generator

    def method(self, method: Method, network: nn.Module) -> Step:
        """All that a method does on a batch, with steps of SGD with momentum."""
        optimiser = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
        memory = Memory.seeded(0)

        def step() -> None:
            for loss, _ in method.losses(network, self.images, self.labels, memory):
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

        return step

    def attack(self, gradient: Any) -> Step:
        """One gradient of the images."""
        attack = FGSM(2 / 255, gradient=gradient)
        return lambda: _discard(attack(self.network, self.images, self.labels))

    def retraction(self) -> None:
        """What SNN-RAT does to the weights after a step."""
        orthogonal_retraction(self.network, 0.001, 200, 0.3, self.generator)


def peak_bytes(step: Step, network: nn.Module) -> int:
    """The most memory that a step allocates at once, gradients of the parameters included."""
    step()
    network.zero_grad()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _discard(result: Tensor) -> None:
    del result


# Whose time over whose, and where it should be.
RATIOS = (
    ("natural step, plain PyTorch", "natural step", "at least 1.25"),
    ("natural step, layers of torch.nn", "natural step", ""),
    ("gradient of the images, BPTR", "gradient of the images, BPTT", "at most 0.6"),
    ("retraction of SNN-RAT", f"SNN-RAT with its attack, {RAT_IMAGES} images", "at most 0.05"),
    (
        f"HIRE, no batch norm, {HIRE_IMAGES} images",
        f"natural step, no batch norm, {HIRE_IMAGES} images",
        "at most 1",
    ),
)


def test_training(
    benchmark: Any,
    setting: Setting,
    pytestconfig: pytest.Config,
    report_table: Callable[..., None],
) -> None:
    if setting.threads != pytestconfig.getoption("threads")[-1]:
        pytest.skip("a step takes seconds: measured with the last number of threads alone")
    steps, of_hire, of_rat = Steps(), Steps(HIRE_IMAGES), Steps(RAT_IMAGES)
    run: dict[str, Step] = {
        "natural step": steps.method(Natural(), steps.network),
        "natural step, layers of torch.nn": steps.method(Natural(), steps.unpacked),
        "natural step, plain PyTorch": steps.method(Natural(), steps.plain),
        "gradient of the images, BPTT": steps.attack(None),
        "gradient of the images, BPTR": steps.attack("rate"),
        "retraction of SNN-RAT": steps.retraction,
        f"SNN-RAT with its attack, {RAT_IMAGES} images": of_rat.method(RAT(), of_rat.network),
        f"natural step, no batch norm, {HIRE_IMAGES} images": of_hire.method(
            Natural(), of_hire.hire
        ),
        f"HIRE, no batch norm, {HIRE_IMAGES} images": of_hire.method(HIRE(0.025), of_hire.hire),
    }
    seconds = in_turns(benchmark, run, ROUNDS)
    if not seconds:
        return
    times = [(name, f"{statistics.median(times):.3f}", "", "") for name, times in seconds.items()]
    ratios = [
        (f"{one} over {other}", "", str(Quartiles.of_ratios(seconds[one], seconds[other])), bar)
        for one, other, bar in RATIOS
    ]
    caption = (
        f"VGG11 with batch norm, T = {TIMESTEPS}, {IMAGES} images of 32x32 where no other number "
        f"is given (the methods' own batches), float32, {setting}; medians of {ROUNDS} "
        "interleaved rounds."
    )
    head = ("what", "seconds", "ratio (quartiles)", "bar")
    cases = [{"what": name, "seconds": times} for name, times in seconds.items()]
    report_table(f"training-{setting.pages}", Table.of(caption, head, times + ratios), cases)


def test_memory_of_methods(benchmark: Any, report_table: Callable[..., None]) -> None:
    steps = Steps(HIRE_IMAGES)
    run = {
        "natural": (steps.method(Natural(), steps.network), steps.network),
        "natural, plain PyTorch": (steps.method(Natural(), steps.plain), steps.plain),
        "natural, no batch norm": (steps.method(Natural(), steps.hire), steps.hire),
        "HIRE, no batch norm": (steps.method(HIRE(0.025), steps.hire), steps.hire),
    }
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    peaks = benchmark.pedantic(
        lambda: {name: peak_bytes(*of) for name, of in run.items()}, rounds=1
    )
    caption = (
        f"VGG11, T = {TIMESTEPS}, {HIRE_IMAGES} images of 32x32, float32: the most that a step "
        "allocates at once, gradients included, parameters and momentum aside. Bar: HIRE at most "
        "0.75 of natural training."
    )
    pairs = (
        ("natural", "natural, plain PyTorch"),
        ("HIRE, no batch norm", "natural, no batch norm"),
    )
    rows = [(name, f"{peak / 2**20:.0f}", "") for name, peak in peaks.items()]
    rows += [
        (f"{one} over {other}", "", f"{peaks[one] / peaks[other]:.2f}") for one, other in pairs
    ]
    head = ("step", "MiB", "of")
    cases = [{"step": name, "bytes": peak} for name, peak in peaks.items()]
    report_table("training-memory", Table.of(caption, head, rows), cases)
