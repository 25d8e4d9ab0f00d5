"""A certified training step of the paper's CONV network, and S-CROWN of VGG11."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bench_training import Step, peak_bytes
from benchmarks.comparison import in_turns
from snnkern._table import Table
from snnkern.bench import Quartiles, Setting
from snnkern.certify import bounds, crown, ibp, inputs
from snnkern.certify.backward import Options
from snnkern.models import conv_net, vgg11
from snnkern.nn import RateCoding, evaluation_mode
from snnkern.reference import Interval
from snnkern.surrogate import Rectangle

# Of Liang et al. 2022: T, T' and the batch; half the width of a box.
TIMESTEPS, CERTIFIED_TIMESTEPS, IMAGES = 10, 3, 128
EPS = 0.06
ROUNDS = 5
TRAINING = Options("paper", exact_first=False, outward=False)


class Steps:
    """One network, and what is done to it in one step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = conv_net(
            timesteps=TIMESTEPS,
            spiking_output=True,
            coding="bernoulli",
            leak=0.25,
            threshold=0.25,
            strict=True,
            surrogate=Rectangle(),
        )
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(IMAGES, 1, 28, 28, generator=generator)
        self.images = images * (images > 0.5)
        self.labels = torch.arange(IMAGES) % 10
        self.optimiser = torch.optim.SGD(self.network.parameters(), lr=0.0, momentum=0.9)

    def natural(self) -> Tensor:
        """The natural loss, over T steps."""
        return F.cross_entropy(self.network(self.images), self.labels)

    def certified(self, crown_options: Options | None) -> Tensor:
        """The worst logits' loss over T' steps: by S-CROWN with these options, or by S-IBP."""
        encoder, layers = self.network.encoder, list(self.network.layers.children())
        assert isinstance(encoder, RateCoding)
        draws = torch.rand(CERTIFIED_TIMESTEPS, *self.images.shape)
        ends = [(self.images + side * EPS).clamp(0, 1) for side in (-1, 1)]
        box = inputs.coded(encoder, Interval(*ends), draws)
        if crown_options is None:
            bound = ibp.margins(layers, self.network.readout, box, self.labels)
        else:
            total = crown.totals(layers, box, self.labels, crown_options)
            bound = (total / CERTIFIED_TIMESTEPS).float()
        worst = bound.new_zeros(IMAGES, 10)
        worst = worst.scatter(1, ibp.other_classes(self.labels, 10), -bound)
        return F.cross_entropy(worst, self.labels)

    def step(self, loss: Callable[[], Tensor]) -> Step:
        """A step of the optimiser."""

        def run() -> None:
            self.optimiser.zero_grad()
            loss().backward()
            self.optimiser.step()

        return run


SLOPES = {"S-CROWN": TRAINING, "S-CROWN, longer edge": TRAINING._replace(slope="edge")}
RIVALS = {None: "", 3: ", 3 rivals"}


def test_certified_training(
    benchmark: Any,
    setting: Setting,
    pytestconfig: pytest.Config,
    report_table: Callable[..., None],
) -> None:
    if setting.threads != pytestconfig.getoption("threads")[-1]:
        pytest.skip("a step takes seconds: measured with the last number of threads alone")
    steps = Steps()
    losses: dict[str, Callable[[], Tensor]] = {
        "natural": steps.natural,
        "S-IBP": lambda: steps.certified(None),
    }
    bars = {"S-IBP": "at most 1.5"}
    for name, options in SLOPES.items():
        for count, which in RIVALS.items():
            losses[name + which] = partial(steps.certified, options._replace(rivals=count))
            bars[name + which] = "at most 3"
    run = {name: steps.step(loss) for name, loss in losses.items()}
    seconds = in_turns(benchmark, run, ROUNDS)
    if not seconds:
        return
    rows = []
    for name, times in seconds.items():
        ratio = Quartiles.of_ratios(times, seconds["natural"])
        rows.append((name, f"{statistics.median(times):.3f}", str(ratio), bars.get(name, "")))
    head = ("step", "seconds", "over natural (quartiles)", "bar")
    caption = (
        f"CONV network of Liang et al. 2022, {IMAGES} images of 28x28, float32, {setting}: a "
        f"natural training step at T = {TIMESTEPS}, certified ones at T' = {CERTIFIED_TIMESTEPS}, "
        "by S-CROWN against all nine other classes or against the few of which S-IBP's margins are "
        f"lowest; medians of {ROUNDS} interleaved rounds."
    )
    cases = [{"step": name, "seconds": times} for name, times in seconds.items()]
    report_table(f"certified-{setting.pages}", Table.of(caption, head, rows), cases)


def test_crown_of_vgg11(benchmark: Any, report_table: Callable[..., None]) -> None:
    torch.manual_seed(0)
    network = vgg11(timesteps=4).eval()
    image, label = torch.rand(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64)
    lower, upper = ((image + side / 255).clamp(0, 1) for side in (-1, 1))

    def run() -> None:
        with evaluation_mode(network):
            bounds(network, lower, upper, label, "crown")

    if benchmark.disabled:
        benchmark(lambda: None)
        return
    peak = benchmark.pedantic(lambda: peak_bytes(run, network), rounds=1)
    start = perf_counter()
    run()
    seconds = perf_counter() - start
    caption = (
        "S-CROWN of VGG11 with batch norm, T = 4, one image of 32x32, all nine margins, float32: "
        "seconds, and the most that is allocated at once, parameters aside."
    )
    row = (f"{seconds:.2f}", f"{peak / 2**20:.0f}")
    cases = [{"seconds": seconds, "bytes": peak}]
    report_table("certified-vgg11", Table.of(caption, ("seconds", "MiB"), [row]), cases)
