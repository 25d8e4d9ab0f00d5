"""Contenders timed in turns, round by round, and the tables made of that.

A machine drifts: another job starts, the clock changes. In a round every contender runs once, so
what is reported is the median over rounds of the ratio within the round.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shlex
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import torch
from pytest_benchmark.utils import get_commit_info
from torch import Tensor

from snnkern._info import machine
from snnkern._version import __version__

Outputs = tuple[Tensor, ...]
Contenders = Mapping[str, Callable[[], Outputs]]

YARDSTICK = "torch.add(a, b, out=c)"
YARDSTICK_BYTES = 12
SECONDS_PER_CASE = 2.0
MIN_ROUNDS, MAX_ROUNDS = 7, 60
PAGES = ("default", "kept")
# Time steps times batch, and one sample: large feature maps that come from memory, and a deep layer
# whose tensors stay in a large cache.
LAYERS = {"beyond": (512, 64, 32, 32), "inside": (256, 512, 4, 4)}
# No cache holds a tensor of this size until the next call.
STREAMED_BYTES = 2**26
# What two threads should make of one, where the memory is not what limits them.
TWO_THREADS = 1.7


def layer_shape(timesteps: int, place: str) -> tuple[int, ...]:
    """``[T, N, C, H, W]`` ``beyond`` or ``inside`` the cache, of the same size for any T."""
    images, *sample = LAYERS[place]
    return (timesteps, images // timesteps, *sample)


class Setting(NamedTuple):
    """What the user of a process decides, and every CPU figure depends on."""

    pages: str
    threads: int

    def __str__(self) -> str:
        return f"pages {self.pages}, {self.threads} thread{'s' if self.threads > 1 else ''}"


class Quartiles(NamedTuple):
    low: float
    median: float
    high: float

    @classmethod
    def of_ratios(cls, numerators: list[float], denominators: list[float]) -> Quartiles:
        ratios = [one / other for one, other in zip(numerators, denominators, strict=True)]
        return cls(*statistics.quantiles(ratios, n=4, method="inclusive"))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


class Compare(Protocol):
    """The ``compare`` fixture: times contenders that give equal outputs, the first being ours.

    ``shape`` is that of the input and ``ideal_bytes`` the traffic per element that any
    implementation has; both set the yardstick beside the contenders. ``bars`` are what we set
    ourselves: of our share of the yardstick's bandwidth, of the others' times over ours.
    ``tolerance`` is explained at ``first_calls``.
    """

    def __call__(
        self,
        title: str,
        contenders: Contenders,
        *,
        shape: tuple[int, ...],
        ideal_bytes: int,
        bars: Mapping[str, float] = ...,
        tolerance: float | None = ...,
    ) -> None: ...


@dataclass
class Comparison:
    """One case in one setting: the seconds of every contender in every round."""

    title: str
    setting: Setting
    shape: tuple[int, ...]
    ideal_bytes: int
    contenders: Contenders
    bars: Mapping[str, float]
    first_call: dict[str, float]
    seconds: dict[str, list[float]] = field(init=False)
    seconds_alone: dict[str, list[float]] = field(init=False)  # ours, with one thread

    def __post_init__(self) -> None:
        a, b, c = (torch.ones(self.shape) for _ in range(3))
        yardstick = {YARDSTICK: lambda: (torch.add(a, b, out=c),)}
        self.subject = next(iter(self.contenders))
        self.contenders = yardstick | dict(self.contenders)
        self.seconds = {name: [] for name in self.contenders}
        alone = (YARDSTICK, self.subject) if self.setting.threads > 1 else ()
        self.seconds_alone = {name: [] for name in alone}

    def _clock(self, name: str, seconds: dict[str, list[float]]) -> None:
        run = self.contenders[name]
        start = perf_counter()
        run()  # the outputs are freed here, within the time: allocation is a part of the cost
        seconds[name].append(perf_counter() - start)

    def _warm_up(self, name: str) -> None:
        """One run untimed, so that the next finds its own data in the cache, if it can."""
        if 4 * math.prod(self.shape) < STREAMED_BYTES:
            self.contenders[name]()

    def _set_up_round(self) -> None:
        """Times all but ours."""
        if self.seconds_alone:
            torch.set_num_threads(1)
            for name in self.seconds_alone:
                self._warm_up(name)
                self._clock(name, self.seconds_alone)
            torch.set_num_threads(self.setting.threads)
        for name in self.contenders:
            if name != self.subject:
                self._warm_up(name)
                self._clock(name, self.seconds)
        self._warm_up(self.subject)

    def measure(self, benchmark: Any) -> None:
        """Runs the rounds; pytest-benchmark sees our time, and the rest in ``extra_info``."""
        start = perf_counter()
        self._set_up_round()
        self._clock(self.subject, self.seconds)
        rounds = math.ceil(SECONDS_PER_CASE / (perf_counter() - start))
        for seconds in (*self.seconds.values(), *self.seconds_alone.values()):
            seconds.clear()
        benchmark.group = str(self.setting)
        benchmark.pedantic(
            lambda: self._clock(self.subject, self.seconds),
            setup=self._set_up_round,
            rounds=min(max(rounds, MIN_ROUNDS), MAX_ROUNDS),
        )
        benchmark.extra_info.update(self.as_dict(), torch=torch.__version__)
        self.contenders = {}  # with the tensors that they hold

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

    def speedup(self, name: str) -> Quartiles | None:
        """Time with one thread over the time with all, where both were taken."""
        if name not in self.seconds_alone:
            return None
        return Quartiles.of_ratios(self.seconds_alone[name], self.seconds[name])

    def share_of_add(self, name: str) -> float:
        if name == YARDSTICK:
            return 1.0
        return self.ideal_bytes / YARDSTICK_BYTES * self.ratio(YARDSTICK, name).median

    def as_dict(self) -> dict[str, Any]:
        return {
            "case": self.title,
            **self.setting._asdict(),
            "ideal_bytes": self.ideal_bytes,
            "rounds": len(self.seconds[self.subject]),
            "contenders": {
                name: {
                    "ns_per_neuron_step": self.nanoseconds(name),
                    "gb_per_s": self.bandwidth(name),
                    "share_of_add": self.share_of_add(name),
                    "time_over_ours": self.ratio(name, self.subject)._asdict(),
                    "speedup": speedup._asdict() if (speedup := self.speedup(name)) else None,
                    "bar": self.bars.get(name),
                    "first_call_s": self.first_call.get(name),
                }
                for name in self.seconds
            },
        }

    def rows(self) -> list[list[str]]:
        """One row per contender."""
        return [self._row(name) for name in self.seconds]

    def _row(self, name: str) -> list[str]:
        ours, bar = name == self.subject, self.bars.get(name)
        speedup = self.speedup(name)
        return [
            self.title if name == YARDSTICK else "",
            name,
            f"{self.nanoseconds(name):.3f}",
            f"{self.bandwidth(name):.1f}",
            f"{100 * self.share_of_add(name):.0f} %" + _bar(100 * bar if ours and bar else None),
            "" if ours else str(self.ratio(name, self.subject)) + _bar(bar),
            "" if speedup is None else str(speedup) + _bar(self._speedup_bar(name)),
            f"{self.first_call[name]:.2f}" if name != YARDSTICK else "",
        ]

    def _speedup_bar(self, name: str) -> float | None:
        return TWO_THREADS if name == self.subject and self.setting.threads == 2 else None


def _bar(bar: float | None) -> str:
    return "" if bar is None else f" [{bar:g}]"


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


HEADER = [
    "case",
    "contender",
    "ns per neuron-step",
    "GB/s",
    "of add",
    "its time over ours (quartiles)",
    "1 thread over all (quartiles)",
    "first call, s",
]


def tables(comparisons: list[Comparison]) -> str:
    """One Markdown table per setting, aligned so that it reads well in a terminal too.

    Numbers in brackets are bars. A column that a setting leaves empty is left out.
    """
    parts = []
    for setting in dict.fromkeys(comparison.setting for comparison in comparisons):
        body = [row for c in comparisons if c.setting == setting for row in c.rows()]
        columns = [column for column in zip(HEADER, *body, strict=True) if any(column[1:])]
        widths = [max(map(len, column)) for column in columns]
        header, *rows = zip(*columns, strict=True)
        lines = [
            "| " + " | ".join(map(str.ljust, row, widths)) + " |"
            for row in (header, ["-" * width for width in widths], *rows)
        ]
        parts.append("\n".join([f"**{str(setting).capitalize()}**", "", *lines]))
    return "\n\n".join(parts)


def facts(*command: str) -> dict[str, str]:
    """Where, with what and by which command the figures were made."""
    commit = get_commit_info()
    result = {
        "machine": machine(),
        "system": f"{platform.system()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        "snnkern": __version__,
        "commit": commit["id"] + (" with changes" if commit["dirty"] else ""),
        "command": shlex.join(command),
    }
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if huge_pages.exists():
        result["transparent huge pages"] = re.sub(r".*\[(\w+)].*\n", r"\1", huge_pages.read_text())
    stray = [f"{k}={v}" for k, v in os.environ.items() if re.match("MALLOC_|GLIBC_T|LD_PRELOAD", k)]
    if stray:
        result["environment"] = " ".join(stray)
    return result


def save(
    folder: Path, about: dict[str, str], cases: list[dict[str, Any]], text: str, suffix: str = ""
) -> list[Path]:
    """Writes ``<machine><suffix>.json`` with the cases and ``.md`` with the text."""
    stem = re.sub(r"[^a-z0-9]+", "-", about["machine"].lower()).strip("-") + suffix
    document = {"about": about, "cases": cases}
    notes = "\n".join(f"- {name}: {value}" for name, value in about.items())
    paths = [folder / f"{stem}.json", folder / f"{stem}.md"]
    paths[0].write_text(json.dumps(document, indent=1) + "\n")
    paths[1].write_text(f"# {about['machine']}\n\n{notes}\n\n{text}\n")
    return paths
