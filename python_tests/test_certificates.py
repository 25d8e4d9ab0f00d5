"""The command that says how much bounds certify, on a few images."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks import certificates, comparison
from benchmarks.certificates import (
    OURS,
    PUBLISHED,
    TRAININGS,
    Family,
    Size,
    ball,
    gaps_of,
    main,
    measure,
    published,
)
from snnkern.attacks import ContradictionError
from snnkern.certify import bounds, split, verify
from snnkern.data import digits
from snnkern.models import SpikingNetwork, fc_net
from snnkern.reference import Interval
from snnkern.training import Natural, fit
from snnkern.training.recipe import DATA


@pytest.fixture(scope="module")
def trained() -> tuple[SpikingNetwork, TensorDataset]:
    torch.manual_seed(0)
    net = fc_net(timesteps=2, input_shape=(1, 8, 8), hidden=[12], leak=0.25, threshold=0.25)
    split = digits()
    batches = torch.utils.data.DataLoader(split.train, 200)
    fit(net, batches, Natural(), epochs=8, lr=0.02, progress=False)
    return net.eval(), TensorDataset(*split.test[:12])


def test_every_share_is_within_the_next(trained: tuple[SpikingNetwork, TensorDataset]) -> None:
    shares, seconds = measure(*trained, 0.06, 5.0, 0)
    assert shares["S-IBP"] <= shares["best of both"] <= shares["ours"] <= shares["ours, tight"]
    assert shares["ours, tight"] <= shares["ours, split"]
    assert shares["S-CROWN"] <= shares["best of both"]
    assert shares["ours, split"] <= shares["exact"] <= shares["possible"] <= shares["attacked"]
    assert 0 < shares["ours, tight"] < shares["attacked"] <= shares["clean"]
    assert set(seconds) == {*PUBLISHED, *OURS, "exact"}
    assert all(value > 0 for value in seconds.values())


def test_the_printed_bounds_are_no_better_than_ours(
    trained: tuple[SpikingNetwork, TensorDataset],
) -> None:
    net, test = trained
    x, y = test.tensors
    for eps, by_crown in ((0.02, False), (0.02, True), (0.1, False)):
        method = "crown" if by_crown else "ibp"
        own = bounds(net, *ball(x, eps), y, "best")
        assert (published(net, ball(x, eps), y, by_crown) <= own + 1e-6).all(), method
    assert (published(net, ball(x, 0.0), y, by_crown=False).amin(1) > 0).any()


def test_a_bound_that_certifies_too_much_is_noticed(
    trained: tuple[SpikingNetwork, TensorDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of_them(net: SpikingNetwork, box: Interval, *_: object) -> Tensor:
        return torch.ones(len(box.lower), 9)

    monkeypatch.setattr(certificates, "published", all_of_them)
    with pytest.raises(AssertionError, match="S-IBP certifies what is broken"):
        measure(*trained, 0.06, 5.0, 0)
    monkeypatch.undo()
    net, (x, y) = trained[0], trained[1].tensors
    found = verify(net, x, y, 0.06)
    wrong = replace(found, certified=torch.ones(12, dtype=torch.bool))
    monkeypatch.setattr(certificates, "verify", lambda *_, **__: wrong)
    with pytest.raises(ContradictionError):
        measure(*trained, 0.06, 5.0, 0)


def test_gaps_shrink_from_the_papers_bounds_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "ROUNDS", 3)
    family = Family((6, 8, 3), 3, False, 0.1, 1 / 3)
    found = gaps_of(family, 3, 5.0)
    assert found.margins == 6
    assert list(found.gaps) == ["best of both", *OURS]
    gaps, certified = list(found.gaps.values()), list(found.certified.values())
    assert 0 < gaps[3] < gaps[2] < gaps[1] < gaps[0]
    assert certified == sorted(certified)
    right = bounds
    monkeypatch.setattr(certificates, "bounds", lambda *given: right(*given) + 0.5)
    with pytest.raises(AssertionError, match="is above a margin of 6-8-3, T = 3, integrating"):
        gaps_of(family, 1, 5.0)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(comparison, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(certificates, "SIZES", (Size((6,), 0.02),))
    monkeypatch.setitem(DATA, "digits", partial(digits, test_share=0.9))
    runs = tmp_path / "runs"
    monkeypatch.setattr(certificates, "FAMILIES", (Family((4, 5, 3), 2, False, 0.05, 0.5),))
    command = ["--epochs", "1", "--images", "4", "--networks", "2", "--quiet", "--save-results"]
    assert main([*command, "--folder", str(runs)]) == 0
    assert {run.name for run in runs.iterdir()} == {f"{name}_6-0" for name in TRAININGS.values()}
    written = sorted((tmp_path / "results").glob("*-certificates.*"))
    cases = json.loads(written[0].read_text())["cases"]
    assert [case["training"] for case in cases[:-1]] == list(TRAININGS)
    assert cases[-1]["margins"] == 4
    text = written[1].read_text()
    assert "64-6-10, eps 0.02, S-IBP: " in text
    assert "certified implies certain" in capsys.readouterr().out
