"""How long the neurons take on this machine, beside the plain PyTorch loop and its memory.

Contenders are timed in turns. A machine drifts: another job starts, the clock changes. In a round
every contender runs once, so what is reported is the median over rounds of the ratio within the
round.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from snnkern._checks import check_int
from snnkern._table import Table
from snnkern.functional import lif
from snnkern.memory import can_keep_pages, keep_pages
from snnkern.surrogate import ATan

Layer = Callable[[Tensor], Tensor]
Outputs = tuple[Tensor, ...]
Contenders = Mapping[str, Callable[[], Outputs]]

PAGES = ("default", "kept")
YARDSTICK = "torch.add(a, b, out=c)"
YARDSTICK_BYTES = 12
SECONDS_PER_CASE = 2.0
MIN_ROUNDS, MAX_ROUNDS = 7, 60
# No cache holds a tensor of this size until the next call.
STREAMED_BYTES = 2**26
# A float32 tensor of just that size.
DEFAULT_SHAPE = (8, 32, 64, 32, 32)
# Per neuron-step: forward reads x and writes s; backward reads gs and x, and writes gx.
LIF_BYTES = {"forward": 8, "forward+backward": 20}

# The neuron that is measured. With a leak of 1/2, SpikingJelly's v - v / tau + x at tau = 2 rounds
# like leak * v + x.
LEAK, THRESHOLD, ALPHA = 0.5, 1.0, 2.0
OPTIONS: dict[str, Any] = {
    "leak": LEAK,
    "threshold": THRESHOLD,
    "reset": "hard",
    "surrogate": ATan(ALPHA),
    "detach_reset": True,
}


def snnkern_lif(x: Tensor) -> Tensor:
    """The layer of the neuron that is measured, as snnkern has it."""
    spikes: Tensor = lif(x, **OPTIONS)
    return spikes


class ATanSpike(torch.autograd.Function):
    """1 where ``v >= THRESHOLD``; derivative ``ALPHA / 2 / (1 + (pi / 2 ALPHA z)^2)``."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        """The spikes of membranes ``v``."""
        ctx.save_for_backward(v)
        # (v >= threshold).to(v.dtype) goes twice over memory.
        return torch.ge(v, THRESHOLD, out=torch.empty_like(v))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        """The gradient of ``v``."""
        (v,) = ctx.saved_tensors
        (grad_spikes,) = grads
        q = math.pi / 2 * ALPHA * (v - THRESHOLD)
        grad_v: Tensor = grad_spikes * (0.5 * ALPHA / (1 + q * q))
        return grad_v


def lif_loop(x: Tensor) -> Tensor:
    """The same layer in plain PyTorch, one loop over time, written to be fast.

    Hard reset to 0, detached, and the ATan surrogate. ``x`` is ``[T, N, ...]`` and finite; the
    spikes have its shape.
    """
    u = torch.zeros_like(x[0])
    spikes = []
    # unbind, since the backward of x[t] fills a whole [T, N, ...] with zeros, at every step.
    for current in x.unbind(0):
        v = LEAK * u + current
        s = ATanSpike.apply(v)
        spikes.append(s)
        # Not torch.where, which takes several times as long on the CPU.
        u = v * (1 - s.detach())
    return torch.stack(spikes)


class Setting(NamedTuple):
    """What the user of a process decides, and every CPU figure depends on."""

    pages: str
    threads: int

    def __str__(self) -> str:
        return f"pages {self.pages}, {self.threads} thread{'s' if self.threads > 1 else ''}"


class Quartiles(NamedTuple):
    """Of ratios within rounds."""

    low: float
    median: float
    high: float

    @classmethod
    def of_ratios(cls, numerators: list[float], denominators: list[float]) -> Quartiles:
        """Of the ratio in each round."""
        ratios = [one / other for one, other in zip(numerators, denominators, strict=True)]
        return cls(*statistics.quantiles(ratios, n=4, method="inclusive"))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass
class Rounds:
    """One case in one setting: the seconds of every contender in every round.

    ``torch.add`` on tensors of the same shape joins the contenders, of which the first is ours.

    Attributes:
        title: of the case.
        setting: the one that the process is in.
        shape: of the input.
        ideal_bytes: per element of it, the traffic that any implementation has.
        contenders: by name, what runs them once.
        seconds: by contender, one for every round.
    """

    title: str
    setting: Setting
    shape: tuple[int, ...]
    ideal_bytes: int
    contenders: Contenders
    seconds: dict[str, list[float]] = field(init=False)

    def __post_init__(self) -> None:
        a, b, c = (torch.ones(self.shape) for _ in range(3))
        self.subject = next(iter(self.contenders))
        self.contenders = {YARDSTICK: lambda: (torch.add(a, b, out=c),)} | dict(self.contenders)
        self.seconds = {name: [] for name in self.contenders}

    def clock(self, name: str, seconds: dict[str, list[float]]) -> None:
        """Times one run of a contender."""
        run = self.contenders[name]
        start = perf_counter()
        run()  # the outputs are freed here, within the time: allocation is a part of the cost
        seconds[name].append(perf_counter() - start)

    def warm_up(self, name: str) -> None:
        """One run untimed, so that the next finds its own data in the cache, if it can."""
        if 4 * math.prod(self.shape) < STREAMED_BYTES:
            self.contenders[name]()

    def clock_others(self) -> None:
        """The round up to our run, which comes next."""
        for name in self.contenders:
            if name != self.subject:
                self.warm_up(name)
                self.clock(name, self.seconds)
        self.warm_up(self.subject)

    def count(self) -> int:
        """How many rounds to make, by the time of one, whose figures are not kept."""
        start = perf_counter()
        self.clock_others()
        self.clock(self.subject, self.seconds)
        rounds = math.ceil(SECONDS_PER_CASE / (perf_counter() - start))
        for seconds in self.seconds.values():
            seconds.clear()
        return min(max(rounds, MIN_ROUNDS), MAX_ROUNDS)

    def nanoseconds(self, name: str) -> float:
        """Per element of the input."""
        return statistics.median(self.seconds[name]) / math.prod(self.shape) * 1e9

    def bandwidth(self, name: str) -> float:
        """GB/s of the ideal traffic."""
        ideal_bytes = YARDSTICK_BYTES if name == YARDSTICK else self.ideal_bytes
        return ideal_bytes / self.nanoseconds(name)

    def ratio(self, name: str, other: str) -> Quartiles:
        """Time of one over the time of the other."""
        return Quartiles.of_ratios(self.seconds[name], self.seconds[other])

    def share_of_add(self, name: str) -> float:
        """Of the bandwidth of ``torch.add``."""
        if name == YARDSTICK:
            return 1.0
        return self.ideal_bytes / YARDSTICK_BYTES * self.ratio(YARDSTICK, name).median

    def figures(self, name: str) -> dict[str, Any]:
        """Of one contender, for computing."""
        return {
            "ns_per_neuron_step": self.nanoseconds(name),
            "gb_per_s": self.bandwidth(name),
            "share_of_add": self.share_of_add(name),
            "time_over_ours": self.ratio(name, self.subject)._asdict(),
        }

    def as_dict(self) -> dict[str, Any]:
        """All of it, for computing."""
        return {
            "case": self.title,
            **self.setting._asdict(),
            "ideal_bytes": self.ideal_bytes,
            "rounds": len(self.seconds[self.subject]),
            "contenders": {name: self.figures(name) for name in self.seconds},
        }


def first_calls(contenders: Contenders, tolerance: float | None = None) -> dict[str, float]:
    """Seconds of the first call of every contender, compilation included.

    Raises AssertionError where outputs differ from those of the first contender. Without a
    tolerance spikes, which are 0 or 1, have to be equal and gradients close. Where contenders round
    differently before the threshold a spike may flip, and with it all that follows in its neuron:
    ``tolerance`` bounds the Euclidean norm of the difference of every output, relative to its own.
    """
    seconds: dict[str, float] = {}
    expected: Outputs | None = None
    for name, run in contenders.items():
        start = perf_counter()
        outputs = run()
        seconds[name] = perf_counter() - start
        expected = expected or outputs
        if tolerance is None:
            torch.testing.assert_close(outputs, expected, msg=(name + ": {}").format)
            continue
        for index, (output, other) in enumerate(zip(outputs, expected, strict=True)):
            assert output.shape == other.shape, f"{name}: output {index} has {list(output.shape)}"
            error = float((output - other).norm() / other.norm())
            assert error <= tolerance, f"{name}: output {index} is {error:.1e} of its norm away"
    return seconds


def lif_case(
    direction: str, layers: Mapping[str, Layer], shape: Sequence[int]
) -> dict[str, Callable[[], Outputs]]:
    """Layers as contenders, on one drawn input.

    Args:
        direction: one of ``LIF_BYTES``; backward is the gradient of the input, for a drawn one of
            the spikes.
        layers: by name.
        shape: of the input, ``[T, N, ...]``.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator).mul_(0.8).add_(0.4)
    # Not the gradient of a sum, which is one number expanded.
    grad_spikes = torch.randn(*shape, generator=generator)
    x.requires_grad_(direction == "forward+backward")

    def run(layer: Layer) -> Outputs:
        spikes = layer(x)
        if not x.requires_grad:
            return (spikes,)
        return (spikes.detach(), *torch.autograd.grad(spikes, x, grad_spikes))

    return {name: partial(run, layer) for name, layer in layers.items()}


def bench(
    shape: Sequence[int] = DEFAULT_SHAPE,
    threads: Iterable[int] = (),
    pages: str | None = None,
    progress: bool = True,
) -> list[Rounds]:
    """Times a layer of neurons on the CPU, forward and forward+backward, beside the plain loop.

    The outputs of both have to be equal before anything is timed.

    Args:
        shape: of the input, ``[T, N, ...]``, float32. The default is beyond any cache.
        threads: how many torch is to compute with, one after the other; as many as it does unless
            given.
        pages: ``"kept"`` calls ``snnkern.keep_pages()``, for the rest of the process;
            ``"default"`` leaves the allocator alone. The former where it can be, unless given.
        progress: show a progress bar.

    Returns:
        One for each direction and number of threads.

    Raises:
        ValueError: an argument is not as above.
        RuntimeError: the outputs differ.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"shape is {list(shape)}, expected [T, N, ...] of at least one each")
    before = torch.get_num_threads()
    counts = list(dict.fromkeys(threads)) or [before]
    for count in counts:
        check_int("threads", count, 1)
    if pages is None:
        pages = "kept" if can_keep_pages() else "default"
    if pages not in PAGES:
        raise ValueError(f"pages is {pages!r}, expected {' or '.join(PAGES)}")
    if pages == "kept" and not can_keep_pages():
        raise ValueError("pages is 'kept', expected 'default': only glibc can be told to keep them")
    if pages == "kept":
        keep_pages()
    layers: dict[str, Layer] = {"snnkern": snnkern_lif, "plain loop": lif_loop}
    found = []
    try:
        for count in counts:
            torch.set_num_threads(count)
            for direction, ideal_bytes in LIF_BYTES.items():
                contenders = lif_case(direction, layers, shape)
                try:
                    first_calls(contenders)
                except AssertionError as error:
                    raise RuntimeError(f"the layers differ: {error}") from error
                setting = Setting(pages, count)
                rounds = Rounds(direction, setting, tuple(shape), ideal_bytes, contenders)
                words = f"{direction}, {count} thread{'s' if count > 1 else ''}"
                for _ in tqdm(range(rounds.count()), words, unit="round", disable=not progress):
                    rounds.clock_others()
                    rounds.clock(rounds.subject, rounds.seconds)
                rounds.contenders = {}  # with the tensors that they hold
                found.append(rounds)
    finally:
        torch.set_num_threads(before)
    return found


def bench_table(found: Sequence[Rounds]) -> Table:
    """What ``bench`` measured."""
    head = ("", "threads", "", "ns per neuron-step", "GB/s", "of add", "its time over ours")
    rows = [
        (
            rounds.title,
            str(rounds.setting.threads),
            name,
            f"{rounds.nanoseconds(name):.2f}",
            f"{rounds.bandwidth(name):.1f}",
            f"{rounds.share_of_add(name):.0%}",
            "" if name in (YARDSTICK, rounds.subject) else str(rounds.ratio(name, rounds.subject)),
        )
        for rounds in found
        for name in rounds.seconds
    ]
    first = found[0]
    caption = (
        f"{list(first.shape)}, float32, freed pages {first.setting.pages}; medians (and quartiles) "
        "over rounds in which everything ran once. of add: the bytes that cannot be avoided per "
        f"second, over those of {YARDSTICK}."
    )
    return Table.of(caption, head, rows)
