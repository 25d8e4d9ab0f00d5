"""What the benchmarks make of seconds and outputs; the benchmarks themselves are no tests."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import deployment
from benchmarks.bench_interop import caption
from benchmarks.comparison import Comparison, Findings, command, in_turns, layer_shape, tables
from benchmarks.verdicts import STRONGEST, sentences, table
from snnkern._table import Cell, Table
from snnkern.bench import YARDSTICK, Contenders, Quartiles, Setting, first_calls
from snnkern.nn import LIF


def outputs_of(*tensors: Tensor) -> Contenders:
    return {str(index): partial(tuple, [tensor]) for index, tensor in enumerate(tensors)}


def test_layers_have_one_size_per_place_whatever_the_steps() -> None:
    for place in ("beyond", "inside"):
        shapes = [layer_shape(timesteps, place) for timesteps in (4, 8, 32)]
        assert [shape[0] for shape in shapes] == [4, 8, 32]
        assert len({math.prod(shape) for shape in shapes}) == 1
    assert layer_shape(8, "beyond") == (8, 64, 64, 32, 32)


@pytest.mark.parametrize("tolerance", [None, 1e-2])
def test_first_calls_refuse_outputs_that_differ(tolerance: float | None) -> None:
    spikes = torch.ones(1000)
    assert list(first_calls(outputs_of(spikes, spikes.clone()), tolerance)) == ["0", "1"]
    for other in (spikes[None], spikes * math.nan, spikes * 1.1):
        with pytest.raises(AssertionError, match=r"^1: "):
            first_calls(outputs_of(spikes, other), tolerance)


def test_a_flipped_spike_needs_a_tolerance() -> None:
    spikes = torch.ones(1000)
    flipped = spikes.clone()
    flipped[7] = 0
    with pytest.raises(AssertionError):
        first_calls(outputs_of(spikes, flipped))
    first_calls(outputs_of(spikes, flipped), 0.04)  # sqrt(1 / 1000) is 0.032
    with pytest.raises(AssertionError):
        first_calls(outputs_of(spikes, flipped), 0.03)


def comparison(threads: int) -> Comparison:
    """Per element: 1 ns for the yardstick, 2 for ours, 6 for the other, 4 for ours alone."""
    result = Comparison(
        "case",
        Setting("kept", threads),
        shape=(10, 100),
        ideal_bytes=12,
        contenders={"ours": tuple, "other": tuple},
        bars={"ours": 0.7, "other": 2.5},
        first_call={"ours": 0.5, "other": 9.0},
    )
    result.seconds = {YARDSTICK: [1e-6] * 3, "ours": [2e-6] * 3, "other": [6e-6] * 3}
    if threads > 1:
        result.seconds_alone = {YARDSTICK: [1e-6] * 3, "ours": [4e-6] * 3}
    return result


def test_what_follows_from_the_seconds() -> None:
    two = comparison(2)
    assert two.nanoseconds("ours") == pytest.approx(2)
    assert two.share_of_add("ours") == pytest.approx(0.5)
    assert two.ratio("other", "ours") == pytest.approx(Quartiles(3, 3, 3))
    assert two.speedup("ours") == pytest.approx(Quartiles(2, 2, 2))
    assert two.speedup("other") is None
    assert comparison(1).speedup("ours") is None


def test_tables_state_the_bars_and_leave_out_empty_columns() -> None:
    one, two = tables([comparison(2), comparison(1)]).split("\n\n**")
    cells = [[cell.strip() for cell in line.split("|")[2:-2]] for line in one.splitlines()]
    assert cells[-2:] == [
        ["ours", "2.000", "6.0", "50 % [70]", "", "2.00 (2.00 to 2.00) [1.7]"],
        ["other", "6.000", "2.0", "17 %", "3.00 (3.00 to 3.00) [2.5]", ""],
    ]
    assert "1 thread over all" in one
    assert "1 thread over all" not in two


def test_in_turns_everything_runs_once_a_round() -> None:
    order: list[str] = []

    class Benchmark:
        disabled = False

        def __call__(self, nothing: Callable[[], None]) -> None:
            nothing()

        def pedantic(self, run: Callable[[], None], rounds: int, warmup_rounds: int) -> None:
            for _ in range(rounds + warmup_rounds):
                run()

    run = {name: partial(order.append, name) for name in ("a", "b")}
    seconds = in_turns(Benchmark(), run, 3)
    assert order == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    Benchmark.disabled = True
    assert in_turns(Benchmark(), run, 3) == {}
    assert order == ["a", "b"] * 4


def test_a_command_prints_and_saves_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.comparison.RESULTS", tmp_path)
    asked: list[argparse.Namespace] = []

    def measure(options: argparse.Namespace) -> Findings:
        asked.append(options)
        if options.seed == 13:
            raise KeyboardInterrupt
        one = Table("a caption", (Cell("name"), Cell("figure")), ((Cell("x"), Cell("1.5")),))
        return Findings(("A sentence.", one), [{"x": options.seed}])

    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seed", type=int, default=0)

    def run(*arguments: str, trains: bool = False) -> int:
        threads = torch.get_num_threads()
        try:
            return command("some", "What it is.", add_options, measure, arguments, trains=trains)
        finally:
            torch.set_num_threads(threads)

    assert run("--seed", "7", "--quiet") == 0
    assert (asked[0].seed, asked[0].quiet, "folder" in asked[0]) == (7, True, False)
    told = capsys.readouterr().out
    assert told.startswith("A sentence.\n\nname  figure\n")
    assert list(tmp_path.iterdir()) == []
    assert run("--save-results", trains=True) == 0
    assert re.fullmatch(r"runs/some-[0-9a-f]{12}", str(asked[1].folder))
    written = sorted(tmp_path.iterdir())
    assert [path.name.rpartition("-some")[2] for path in written] == [".json", ".md"]
    document = json.loads(written[0].read_text())
    assert document["cases"] == [{"x": 0}]
    assert document["about"]["command"] == "python -m benchmarks.some --save-results"
    assert "A sentence.\n\n| name | figure |\n" in written[1].read_text()
    assert run("--seed", "13", "--folder", "there", trains=True) == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on with there\n"
    assert run("--seed", "13") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_verdicts_say_where_ours_is_not_the_lowest() -> None:
    low, high = {"clean": 1.0, "AutoAttack": 0.4, STRONGEST: 0.4}, {"PGD": 0.3, STRONGEST: 0.4}
    little = {"natural": {STRONGEST: 0.52, "exact": 0.5}, "adversarial": {STRONGEST: 0.53}}
    little["adversarial"]["exact (1 of 60 undecided, as robust)"] = 0.5
    said = sentences({"natural": low, "certified": high}, little)
    assert [line.partition(": ")[2] for line in said] == [
        "yes.",
        "no: PGD is lower.",
        "yes (+2.0).",
        "no (+3.0).",
    ]
    rows = table("caption", {"one": low, "other": high}, {"one": {STRONGEST: 0.01234}}).rows
    assert [[cell.text for cell in row] for row in rows[1:]] == [
        ["AutoAttack", "40.0", ""],
        [STRONGEST, "40.0", "40.0"],
        ["PGD", "", "30.0"],
    ]
    assert [cell.note for row in rows for cell in row if cell.note] == ["0.0123 s"]


def test_the_caption_of_interop_speaks_of_what_was_measured() -> None:
    setting = Setting("kept", 2)
    assert "Training step: " in caption(["neurons", "training step"], setting, "")
    alone = caption(["neurons"], setting, "sinabs 3.1")
    assert alone.startswith("Neurons: forward and backward at [8, 64, 64, 32, 32]. float32, pages ")
    assert alone.endswith("rounds. sinabs 3.1.")


def test_deployment_counts_who_listens() -> None:
    # Membranes 0.9 and 3, then 0.7 and, after the spike, 0.9.
    currents = torch.tensor([[0.9, 3.0], [0.25, 0.9]]).view(2, 1, 1, 1, 2)
    said = deployment.listening(LIF(leak=0.5, threshold=1.0), currents)
    assert [re.findall(r"\d\.\d\d", line)[-4:] for line in said] == [
        ["0.75", "0.75", "0.00", "0.25"],
        ["0.75", "0.75", "0.00", "0.25"],
        ["0.50", "0.50", "0.00", "0.50"],
    ]


@pytest.mark.parametrize("quiet", [True, False])
def test_deployment_can_be_quiet(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    contenders: dict[str, Callable[[Tensor], Tensor]] = {deployment.COMPILED: torch.clone}
    deployment.measure("some", contenders, torch.zeros(2, 3), 2, quiet)
    assert ("some, batch of 2" in capsys.readouterr().err) is not quiet
