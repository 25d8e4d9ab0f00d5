"""What pytest compares beside snnkern.bench, the tables of that, and the frame of all commands."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import torch
from pytest_benchmark.utils import get_commit_info

from snnkern._info import machine
from snnkern._table import Table
from snnkern._version import __version__
from snnkern.bench import YARDSTICK, Contenders, Quartiles, Rounds

RESULTS = Path(__file__).with_name("results")
# Time steps times batch, and one sample: large feature maps that come from memory, and a deep layer
# whose tensors stay in a large cache.
LAYERS = {"beyond": (512, 64, 32, 32), "inside": (256, 512, 4, 4)}
# What two threads should make of one, where the memory is not what limits them.
TWO_THREADS = 1.7


def layer_shape(timesteps: int, place: str) -> tuple[int, ...]:
    """``[T, N, C, H, W]`` ``beyond`` or ``inside`` the cache, of the same size for any T."""
    images, *sample = LAYERS[place]
    return (timesteps, images // timesteps, *sample)


class Compare(Protocol):
    """The ``compare`` fixture: times contenders that give equal outputs, the first being ours.

    ``shape`` is that of the input and ``ideal_bytes`` the traffic per element that any
    implementation has; both set the yardstick beside the contenders. ``bars`` are what we set
    ourselves: of our share of the yardstick's bandwidth, of the others' times over ours.
    ``tolerance`` is explained at ``snnkern.bench.first_calls``.
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
class Comparison(Rounds):
    """One case in one setting; with several threads, ours also runs with one.

    ``bars`` are explained at ``Compare``, ``first_call`` are seconds, by contender.
    """

    bars: Mapping[str, float]
    first_call: dict[str, float]
    seconds_alone: dict[str, list[float]] = field(init=False)  # ours, with one thread

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = (YARDSTICK, self.subject) if self.setting.threads > 1 else ()
        self.seconds_alone = {name: [] for name in alone}

    def clock_others(self) -> None:
        if self.seconds_alone:
            torch.set_num_threads(1)
            for name in self.seconds_alone:
                self.warm_up(name)
                self.clock(name, self.seconds_alone)
            torch.set_num_threads(self.setting.threads)
        super().clock_others()

    def count(self) -> int:
        count = super().count()
        for seconds in self.seconds_alone.values():
            seconds.clear()
        return count

    def measure(self, benchmark: Any) -> None:
        """Runs the rounds; pytest-benchmark sees our time, and the rest in ``extra_info``."""
        count = self.count()
        benchmark.group = str(self.setting)
        benchmark.pedantic(
            lambda: self.clock(self.subject, self.seconds), setup=self.clock_others, rounds=count
        )
        benchmark.extra_info.update(self.as_dict(), torch=torch.__version__)
        self.contenders = {}  # with the tensors that they hold

    def speedup(self, name: str) -> Quartiles | None:
        """Time with one thread over the time with all, where both were taken."""
        if name not in self.seconds_alone:
            return None
        return Quartiles.of_ratios(self.seconds_alone[name], self.seconds[name])

    def figures(self, name: str) -> dict[str, Any]:
        return super().figures(name) | {
            "speedup": speedup._asdict() if (speedup := self.speedup(name)) else None,
            "bar": self.bars.get(name),
            "first_call_s": self.first_call.get(name),
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


def listed(lines: Iterable[str]) -> str:
    """Sentences, one beneath the other."""
    return "\n".join(f"- {line}" for line in lines)


def save(
    folder: Path, about: dict[str, str], cases: list[dict[str, Any]], text: str, suffix: str = ""
) -> list[Path]:
    """Writes ``<machine><suffix>.json`` with the cases and ``.md`` with the text."""
    stem = re.sub(r"[^a-z0-9]+", "-", about["machine"].lower()).strip("-") + suffix
    document = {"about": about, "cases": cases}
    notes = listed(f"{name}: {value}" for name, value in about.items())
    paths = [folder / f"{stem}.json", folder / f"{stem}.md"]
    paths[0].write_text(json.dumps(document, indent=1) + "\n")
    paths[1].write_text(f"# {about['machine']}\n\n{notes}\n\n{text}\n")
    return paths


def in_turns(
    benchmark: Any, run: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each in every round, in which all run once; empty where nothing is measured."""
    seconds: dict[str, list[float]] = {name: [] for name in run}

    def one_round() -> None:
        for name, step in run.items():
            start = perf_counter()
            step()
            seconds[name].append(perf_counter() - start)

    if benchmark.disabled:
        benchmark(lambda: None)
        return {}
    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=1)
    return {name: times[-rounds:] for name, times in seconds.items()}


class Findings(NamedTuple):
    """What a command measured: sentences and tables to read, and the same to compute with."""

    parts: Sequence[str | Table]
    cases: list[dict[str, Any]]

    def text(self) -> str:
        """For the terminal."""
        return "\n\n".join(part if isinstance(part, str) else part.text() for part in self.parts)

    def markdown(self) -> str:
        """For a file."""
        return "\n\n".join(
            part if isinstance(part, str) else part.markdown() for part in self.parts
        )


def command(
    name: str,
    description: str | None,
    add_options: Callable[[argparse.ArgumentParser], None],
    measure: Callable[[argparse.Namespace], Findings],
    arguments: Sequence[str] | None,
    *,
    trains: bool = False,
) -> int:
    """What all commands ``python -m benchmarks.NAME`` are: the exit status.

    Torch computes with one thread, since layers as small as theirs lose more to threads than they
    gain; ``measure`` may take others.

    Args:
        name: of the module, and at the end of those of its results.
        description: its docstring.
        add_options: that only this command has; ``--quiet`` and ``--save-results`` all have.
        measure: given the options.
        arguments: of the command line, ``sys.argv`` unless given.
        trains: whether it keeps runs, in ``options.folder``, from which it goes on when it was
            interrupted; ``--folder`` names another.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    add = parser.add_argument
    if trains:
        add("--folder", type=Path, help="of the runs; in runs/, named after the commit, by default")
    add("--quiet", action="store_true", help="no progress bar")
    add("--save-results", action="store_true", help="write the tables to benchmarks/results")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    about = facts("python", "-m", f"benchmarks.{name}", *given)
    if trains and options.folder is None:
        # So that networks of different code never meet in one table.
        options.folder = Path("runs") / f"{name}-{about['commit'][:12]}"
    torch.set_num_threads(1)
    try:
        found = measure(options)
    except KeyboardInterrupt:
        goes_on = f": the same command goes on with {options.folder}" if trains else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        return 130
    print(found.text())
    if options.save_results:
        for path in save(RESULTS, about, found.cases, found.markdown(), f"-{name}"):
            print(f"wrote {path}")
    return 0
