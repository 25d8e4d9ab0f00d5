"""The command that makes the tables of SNN-RAT and HIRE-SNN, on a few images."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import comparison, robustness
from benchmarks.robustness import PAPERS, Network, main, measure, run_of, verdict, verdicts
from snnkern.data import digits
from snnkern.training.recipe import DATA, Recipe

ATTACKS = tuple(PAPERS[1].attacks(0.1))


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches to train on, and one of the papers."""
    monkeypatch.setitem(DATA, "digits", partial(digits, test_share=0.9))
    monkeypatch.setattr(robustness, "PAPERS", PAPERS[1:2])


def test_the_command_goes_on_where_it_was_interrupted(
    few_images: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(comparison, "RESULTS", tmp_path / "results")
    runs = tmp_path / "runs"
    command = ["--seeds", "3", "5", "--epochs", "1", "--images", "24", "--quiet", "--save-results"]
    command += ["--folder", str(runs)]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(robustness, "attacked", interrupt)
        assert main(command) == 130
    assert f"the same command goes on with {runs}" in capsys.readouterr().err
    begun = {path: path.read_bytes() for path in runs.glob("*/metrics.jsonl")}
    assert sorted(path.parent.name for path in begun) == [
        "digits_traditional-3",
        "digits_traditional-5",
    ]
    assert main(command) == 0
    for path, seconds_included in begun.items():
        assert path.read_bytes() == seconds_included
    written = sorted((tmp_path / "results").glob("*-robustness.*"))
    assert [path.suffix for path in written] == [".json", ".md"]
    document = json.loads(written[0].read_text())
    assert set(document["about"]) >= {"machine", "commit", "command"}
    names = ["clean", *ATTACKS, *(f"transferred {attack}" for attack in ATTACKS)]
    assert [(case["training"], case["seed"]) for case in document["cases"]] == [
        (training, seed) for training in PAPERS[1].recipes for seed in (3, 5)
    ]
    for case in document["cases"]:
        assert list(case["accuracy"]) == names
        assert all(0 <= share <= case["accuracy"]["clean"] for share in case["accuracy"].values())
    text = written[1].read_text()
    assert text.count("| HIRE |") == 2
    assert "HIRE above traditional, white box: " in text
    assert "python -m benchmarks.robustness --seeds 3 5" in text


def test_transfer_needs_two_seeds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seeds is \[4\], expected at least two"):
        measure(PAPERS, [4], 1, 1, 0.1, tmp_path, progress=False)


def test_papers_compare_what_they_train() -> None:
    for paper in PAPERS:
        assert {name for pair in paper.above for name in pair} == set(paper.recipes)
        assert paper.source in (None, *paper.recipes)
        assert {name for pair in paper.iterated for name in pair} <= set(paper.attacks(0.1))


def test_networks_begin_with_those_that_their_recipes_name(
    few_images: None, tmp_path: Path
) -> None:
    runs = {run_of(Recipe.load(name), 4, 1, tmp_path) for name in PAPERS[3].recipes.values()}
    assert {run.name for run in runs} == {
        f"digits_sharmin_{kind}-4" for kind in ("ann", "conv", "bp")
    }
    written = {run: (run / "last.safetensors").stat().st_mtime_ns for run in runs}
    start = json.loads((tmp_path / "digits_sharmin_bp-4" / "start.json").read_text())
    assert start["start"] == str(tmp_path / "digits_sharmin_ann-4")
    for name in PAPERS[3].recipes.values():
        run_of(Recipe.load(name), 4, 1, tmp_path)
    assert written == {run: (run / "last.safetensors").stat().st_mtime_ns for run in runs}


def test_verdicts_count_seeds() -> None:
    above, below, equal = ([0.5, 0.75], [0.25, 0.5]), ([0.25, 0.5], [0.5, 0.75]), ([0.5], [0.5])
    mixed = ([0.5, 0.5], [0.25, 0.75])
    assert verdict("A", {"x": above, "y": above}) == "A: yes; in 2 of 2 seeds x (+25.0), y (+25.0)."
    assert verdict("A", {"x": below}) == "A: no; in 0 of 2 seeds x (-25.0)."
    assert verdict("A", {"x": equal}) == "A: no; in 0 of 1 seeds x (+0.0)."
    assert verdict("A", {"x": mixed, "y": above}) == (
        "A: not throughout; in 2 of 2 seeds y (+25.0); in 1 of 2 seeds x (+0.0)."
    )


def test_verdicts_tell_the_papers_findings_from_their_opposites() -> None:
    """Networks that show all that the paper finds, and the same with the names exchanged."""
    paper = PAPERS[1]

    def networks(levels: dict[str, float]) -> list[Network]:
        return [
            Network(
                training,
                "",
                0,
                {"clean": 1 - level / 10}
                | {attack: level / (2 if attack[:3] in ("PGD", "BIM") else 1) for attack in ATTACKS}
                | {f"transferred {attack}": level + 0.1 for attack in ATTACKS},
            )
            for training, level in levels.items()
        ]

    levels = {"traditional": 0.1, "Gaussian noise": 0.2, "HIRE": 0.4}
    shown = list(verdicts(paper, networks(levels)))
    assert all(": yes; " in line for line in shown)
    exchanged = dict(zip(levels, reversed(levels.values()), strict=True))
    for line, before in zip(verdicts(paper, networks(exchanged)), shown, strict=True):
        assert (": no; " in line) == (" above " in before)
