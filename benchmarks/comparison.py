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

import pytest
import torch
from torch import Tensor

from snnkern._version import __version__

Outputs = tuple[Tensor, ...]
Contenders = Mapping[str, Callable[[], Outputs]]

YARDSTICK = "torch.add(a, b, out=c)"
YARDSTICK_BYTES = 12
SECONDS_PER_CASE = 3.0
MIN_ROUNDS, MAX_ROUNDS = 7, 60
PAGES = ("default", "kept")


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
    def of(cls, values: list[float]) -> Quartiles:
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


class Compare(Protocol):
    """The ``compare`` fixture: times contenders that give equal outputs, the first being ours.

    ``shape`` is that of the input and ``ideal_bytes`` the traffic per element that any
    implementation has; both set the yardstick beside the contenders.
    """

    def __call__(
        self, title: str, contenders: Contenders, *, shape: tuple[int, ...], ideal_bytes: int
    ) -> None: ...


@dataclass
class Comparison:
    """One case in one setting: the seconds of every contender in every round."""

    title: str
    setting: Setting
    shape: tuple[int, ...]
    ideal_bytes: int
    contenders: Contenders
    first_call: dict[str, float]
    seconds: dict[str, list[float]] = field(init=False)

    def __post_init__(self) -> None:
        a, b, c = (torch.ones(self.shape) for _ in range(3))
        yardstick = {YARDSTICK: lambda: (torch.add(a, b, out=c),)}
        self.subject = next(iter(self.contenders))
        self.contenders = yardstick | dict(self.contenders)
        self.seconds = {name: [] for name in self.contenders}

    def _clock(self, name: str) -> None:
        run = self.contenders[name]
        start = perf_counter()
        run()  # the outputs are freed here, within the time: allocation is a part of the cost
        self.seconds[name].append(perf_counter() - start)

    def _set_up_round(self) -> None:
        """Times all but ours. Each first runs once untimed, to find its own data in the cache."""
        for name, run in self.contenders.items():
            if name != self.subject:
                run()
                self._clock(name)
        self.contenders[self.subject]()

    def measure(self, benchmark: Any) -> None:
        """Runs the rounds; pytest-benchmark sees our time, and the rest in ``extra_info``."""
        start = perf_counter()
        self._set_up_round()
        self._clock(self.subject)
        rounds = math.ceil(SECONDS_PER_CASE / (perf_counter() - start))
        for seconds in self.seconds.values():
            seconds.clear()
        benchmark.group = str(self.setting)
        benchmark.pedantic(
            lambda: self._clock(self.subject),
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
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return Quartiles.of([one / another for one, another in pairs])

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
                    "first_call_s": self.first_call.get(name),
                }
                for name in self.seconds
            },
        }

    def rows(self) -> list[list[str]]:
        """One row per contender."""
        return [
            [
                self.title if name == YARDSTICK else "",
                name,
                f"{self.nanoseconds(name):.3f}",
                f"{self.bandwidth(name):.1f}",
                f"{100 * self.share_of_add(name):.0f} %",
                str(self.ratio(name, self.subject)) if name != self.subject else "",
                f"{self.first_call[name]:.2f}" if name != YARDSTICK else "",
            ]
            for name in self.seconds
        ]


def first_calls(contenders: Contenders) -> dict[str, float]:
    """Seconds of the first call of every contender, compilation included.

    Raises AssertionError where outputs differ. The tolerance is that of gradients: spikes are 0 or
    1, so theirs have to be equal.
    """
    seconds: dict[str, float] = {}
    expected: Outputs | None = None
    for name, run in contenders.items():
        start = perf_counter()
        outputs = run()
        seconds[name] = perf_counter() - start
        expected = expected or outputs
        torch.testing.assert_close(outputs, expected, msg=(name + ": {}").format)
    return seconds


HEADER = [
    "case",
    "contender",
    "ns per neuron-step",
    "GB/s",
    "of add",
    "its time over ours (quartiles)",
    "first call, s",
]


def tables(comparisons: list[Comparison]) -> str:
    """One Markdown table per setting, aligned so that it reads well in a terminal too."""
    parts = []
    for setting in dict.fromkeys(comparison.setting for comparison in comparisons):
        body = [row for c in comparisons if c.setting == setting for row in c.rows()]
        widths = [max(map(len, column)) for column in zip(HEADER, *body, strict=True)]
        lines = [
            "| " + " | ".join(map(str.ljust, row, widths)) + " |"
            for row in (HEADER, ["-" * width for width in widths], *body)
        ]
        parts.append("\n".join([f"**{str(setting).capitalize()}**", "", *lines]))
    return "\n\n".join(parts)


def facts(config: pytest.Config) -> dict[str, str]:
    """Where, with what and how the figures were made."""
    cpu = config.hook.pytest_benchmark_generate_machine_info(config=config)["cpu"]
    commit = config.hook.pytest_benchmark_generate_commit_info(config=config)
    result = {
        "machine": f"{cpu.get('brand_raw', platform.processor())}, {os.cpu_count()} cores",
        "system": f"{platform.system()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        "snnkern": __version__,
        "commit": commit["id"] + (" with changes" if commit["dirty"] else ""),
        "command": shlex.join(["pytest", *config.invocation_params.args]),
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
