"""The measurement of the neurons: what it compares is equal, and what it reports was timed."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnkern.bench import (
    LIF_BYTES,
    YARDSTICK,
    Outputs,
    Rounds,
    Setting,
    bench,
    bench_table,
    first_calls,
    lif_case,
    lif_loop,
    snnkern_lif,
)
from snnkern.cli import main


@settings(deadline=None, max_examples=20)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    direction=st.sampled_from(list(LIF_BYTES)),
)
def test_the_plain_loop_is_the_same_neuron(shape: list[int], direction: str) -> None:
    layers = {"ours": snnkern_lif, "loop": lif_loop}
    assert list(first_calls(lif_case(direction, layers, shape))) == ["ours", "loop"]


def test_every_round_runs_everything_once_and_ours_last() -> None:
    order: list[str] = []

    def run(name: str) -> Outputs:
        order.append(name)
        return ()

    contenders = {name: partial(run, name) for name in ("ours", "other")}
    rounds = Rounds("case", Setting("default", 1), (2, 2), 8, contenders)
    assert 7 <= rounds.count() <= 60
    assert list(rounds.seconds.values()) == [[], [], []]
    order.clear()
    rounds.clock_others()
    rounds.clock("ours", rounds.seconds)
    assert order == ["other", "other", "ours", "ours"]  # in the cache, so each once untimed
    assert [len(seconds) for seconds in rounds.seconds.values()] == [1, 1, 1]


def test_bench_tells_what_was_timed() -> None:
    before = torch.get_num_threads()
    found = bench((3, 2, 5), threads=(1, 2), pages="default", progress=False)
    assert torch.get_num_threads() == before
    assert [(r.title, *r.setting) for r in found] == [
        (direction, "default", threads) for threads in (1, 2) for direction in LIF_BYTES
    ]
    rows = bench_table(found).rows
    assert len(rows) == 12
    for number, rounds in enumerate(found):
        assert list(rounds.seconds) == [YARDSTICK, "snnkern", "plain loop"]
        assert rounds.ideal_bytes == LIF_BYTES[rounds.title]
        told = [cell.text for cell in rows[3 * number + 2]]
        assert told[:3] == [rounds.title, str(rounds.setting.threads), "plain loop"]
        assert float(told[3]) == pytest.approx(rounds.nanoseconds("plain loop"), abs=0.006)
        assert told[6] == str(rounds.ratio("plain loop", "snnkern"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (4,)}, r"shape is \[4\], expected \[T, N, ...\]"),
        ({"shape": (4, 0)}, r"shape is \[4, 0\]"),
        ({"threads": (1, 0)}, "threads is 0, expected an int of at least 1"),
        ({"pages": "huge"}, "pages is 'huge', expected default or kept"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench(**options)  # type: ignore[arg-type]


def test_layers_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snnkern.bench.lif_loop", torch.zeros_like)
    with pytest.raises(RuntimeError, match="the layers differ: plain loop: "):
        bench((4, 3), pages="default", progress=False)


def test_on_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    line = ["bench", "--shape", "2", "3", "--threads", "1", "--pages", "default", "--quiet"]
    assert main(line) == 0
    told = capfd.readouterr()
    assert told.err == ""
    for words in (
        "plain loop",
        YARDSTICK,
        "[2, 3], float32, freed pages default",
        torch.__version__,
    ):
        assert words in told.out
    assert main([*line, "--json"]) == 0
    numbers = json.loads(capfd.readouterr().out)
    assert numbers["shape"] == [2, 3]
    assert [case["case"] for case in numbers["cases"]] == list(LIF_BYTES)
    for case in numbers["cases"]:
        assert (case["threads"], case["pages"]) == (1, "default")
        assert case["contenders"]["plain loop"]["time_over_ours"]["median"] > 0
