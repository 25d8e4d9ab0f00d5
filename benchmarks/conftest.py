"""Options of the benchmarks, the fixture that they share, and the tables at the end."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch

import snnkern
from benchmarks import comparison
from benchmarks.baselines import spikingjelly_version
from benchmarks.comparison import RESULTS, Compare, Comparison
from snnkern._table import Table
from snnkern.bench import PAGES, Contenders, Setting, first_calls
from snnkern.memory import can_keep_pages

COMPARISONS = pytest.StashKey[list[Comparison]]()
REPORTS = pytest.StashKey[list[tuple[str, Table, list[dict[str, Any]]]]]()


def _comma_separated(one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [one(part) for part in text.split(",")]


def _pages(text: str) -> str:
    if text not in PAGES:
        raise argparse.ArgumentTypeError(f"{text!r}, expected {' or '.join(PAGES)}")
    if text == "kept" and not can_keep_pages():
        raise argparse.ArgumentTypeError("'kept' needs glibc, whose malloc can be told to")
    return text


def _threads(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number above 0")
    return int(text)


def _ensemble(text: str) -> list[int]:
    numbers = [_threads(part) for part in text.split(",")]
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"{text!r}, expected three numbers")
    return numbers


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("snnkern")
    group.addoption(
        "--pages",
        type=_comma_separated(_pages),
        default=list(PAGES) if can_keep_pages() else ["default"],
        metavar="default,kept",
        help="the allocator as it is, or told to keep freed pages (default: both)",
    )
    group.addoption(
        "--threads",
        type=_comma_separated(_threads),
        default=[1, 2],
        metavar="N,...",
        help="numbers of threads (default: 1,2)",
    )
    group.addoption(
        "--ensemble",
        type=_ensemble,
        default=[20, 32, 2],
        metavar="STEPS,IMAGES,FEWER",
        help="of the ensemble's PGD; FEWER steps of the members in plain PyTorch, whose time is "
        "scaled to STEPS (default: 20,32,2)",
    )
    group.addoption(
        "--slow",
        action="store_true",
        help="also SpikingJelly's forward compiled for 32 steps, a minute each of four times",
    )
    group.addoption(
        "--save-results",
        action="store_true",
        help="write the tables to benchmarks/results, named after the machine",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COMPARISONS] = []
    config.stash[REPORTS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "setting" in metafunc.fixturenames:
        config = metafunc.config
        # Default pages come first whatever the order asked for: keeping them cannot be undone.
        settings = [
            Setting(pages, threads)
            for pages in sorted(config.getoption("pages"), key=PAGES.index)
            for threads in config.getoption("threads")
        ]
        ids = [f"{setting.pages}-{setting.threads}" for setting in settings]
        metafunc.parametrize("setting", settings, ids=ids, indirect=True, scope="session")


@pytest.fixture(scope="session")
def setting(request: pytest.FixtureRequest) -> Iterator[Setting]:
    """The setting that the process is in."""
    setting: Setting = request.param
    if setting.pages == "kept":
        snnkern.keep_pages()
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    yield setting
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def _compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """torch.compile with an empty cache, and past what it does once per process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        torch.compile(torch.neg)(torch.ones(1))
        yield


@pytest.fixture(scope="session")
def _first_calls() -> dict[tuple[str, int], dict[str, float]]:
    """By case and threads: what is compiled for one allocator setting serves the other."""
    return {}


@pytest.fixture
def compare(
    benchmark: Any,
    setting: Setting,
    _compiler: None,
    _first_calls: dict[tuple[str, int], dict[str, float]],
    pytestconfig: pytest.Config,
) -> Compare:
    def run(
        title: str,
        contenders: Contenders,
        *,
        shape: tuple[int, ...],
        ideal_bytes: int,
        bars: Mapping[str, float] = MappingProxyType({}),
        tolerance: float | None = None,
    ) -> None:
        seconds = first_calls(contenders, tolerance)
        if benchmark.disabled:
            benchmark(lambda: None)
            return
        result = Comparison(
            title,
            setting,
            shape,
            ideal_bytes,
            contenders,
            bars,
            _first_calls.setdefault((title, setting.threads), seconds),
        )
        result.measure(benchmark)
        pytestconfig.stash[COMPARISONS].append(result)

    return run


@pytest.fixture
def report_table(pytestconfig: pytest.Config) -> Callable[[str, Table, list[dict[str, Any]]], None]:
    """Takes a table of something other than time: its name, itself, and the same for computing."""
    return lambda *report: pytestconfig.stash[REPORTS].append(report)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    # Of the checkout as it was, before results are written to it.
    facts = comparison.facts("pytest", *map(str, config.invocation_params.args))
    for name, table, cases in config.stash[REPORTS]:
        terminalreporter.section(name)
        terminalreporter.write_line(table.text())
        if config.getoption("save_results"):
            for path in comparison.save(RESULTS, facts, cases, table.markdown(), f"-{name}"):
                terminalreporter.write_line(f"wrote {path}")
    comparisons = config.stash[COMPARISONS]
    if not comparisons:
        return
    about = facts | {"SpikingJelly": spikingjelly_version}
    terminalreporter.section("medians of interleaved rounds")
    for name, value in about.items():
        terminalreporter.write_line(f"{name}: {value}")
    terminalreporter.write_line("")
    terminalreporter.write_line(comparison.tables(comparisons))
    if config.getoption("save_results"):
        cases = [case.as_dict() for case in comparisons]
        for path in comparison.save(RESULTS, about, cases, comparison.tables(comparisons)):
            terminalreporter.write_line(f"wrote {path}")
