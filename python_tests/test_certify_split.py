"""Bounds over parts of what the first neurons' currents may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from python_tests.test_certify import Case, cases, excess, margins_of, sample
from python_tests.test_crown import SEARCHED, random_net
from snnkern import functional
from snnkern.certify import backward, bounds, first, slopes, split, verify
from snnkern.reference import Interval


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROUNDS", 3), ("WIDTH", 4), ("STEPS", 4)):
        monkeypatch.setattr(split, name, value)
    monkeypatch.setattr(slopes, "STEPS", 8)


@given(cases(1 / 256, 0.02, 0.125))
@settings(max_examples=40)
def test_no_bound_exceeds_a_margin(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slopes, "RATE", 0.5)
        assert excess(replace(case, reset="hard"), method="split") <= 0


def test_enough_parts_leave_no_gap() -> None:
    gaps = {"tight": 0.0, "split": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "ROUNDS", 10)
        patch.setattr(split, "WIDTH", 64)
        for seed in range(4):
            net, x, y = random_net(seed, 6, 8, 8, 3, spiking_output=True)
            lower, upper = x - 0.1, x + 0.1
            found = margins_of(net, sample(lower, upper, 4000, seed), y).amin(1)
            for method in gaps:
                bound = bounds(net, lower, upper, y, method)  # type: ignore[arg-type]
                gaps[method] += (found - bound).mean().item()
    assert gaps["tight"] > 1
    assert gaps["split"] < 1e-5


def test_neither_batch_nor_chunks_change_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, _ = random_net(3, 6, 8, 8, 3)
    x = torch.rand(3, *x.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    net = net.double()
    y = net(x).argmax(1)
    whole = bounds(net, x - 0.03, x + 0.03, y, "split")
    for n in range(len(x)):
        alone = bounds(net, x[n : n + 1] - 0.03, x[n : n + 1] + 0.03, y[n : n + 1], "split")
        torch.testing.assert_close(alone, whole[n : n + 1], rtol=0, atol=1e-6)
    monkeypatch.setattr(backward, "CHUNK", 5000)
    monkeypatch.setattr(split, "KEPT", 10000)
    chunks = bounds(net, x - 0.03, x + 0.03, y, "split")
    torch.testing.assert_close(chunks, whole, rtol=0, atol=1e-6)


def test_certificates_stop_where_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "ROUNDS", 6)
    more = 0
    for seed in range(5):
        net, x, _ = random_net(seed, 8, 24, 3)
        x = torch.rand(6, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
        y = net(x).argmax(1)
        parts, whole = (verify(net, x, y, 0.06, method) for method in ("split", "tight"))
        found = margins_of(net, sample(x - 0.06, x + 0.06, 1000, seed), y).flatten(1).amin(1)
        assert (parts.certified | ~whole.certified).all()
        assert (found > 0)[parts.certified].all()
        assert parts.method == "split"
        more += int((parts.certified & ~whole.certified).sum())
    assert more > 0


def test_an_image_is_left_after_its_first_margin_that_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before it the others have their turns, from the lowest on."""
    net, _, _ = random_net(1, 8, 12, 6)
    x = torch.rand(12, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    asked: list[tuple[Tensor, Tensor]] = []
    hopeless = y[0]

    def totals(margins: split.Margins, enough: float) -> Tensor:
        asked.append((margins.box.lower[0], margins.other))
        return torch.where(margins.y == hopeless, -1.0, 1.0).double()

    monkeypatch.setattr(split, "totals", totals)
    whole = bounds(net, (x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1), y, "best")
    found = verify(net, x, y, 0.1, "split")
    open_ = (whole <= 0).sum(1)
    assert open_[y != hopeless].max() > 1
    assert open_[y == hopeless].max() > 1
    assert torch.equal(found.certified, (y != hopeless) | (open_ == 0))
    turns = torch.where(y == hopeless, open_.clamp(max=1), open_)
    assert [len(other) for _, other in asked] == [
        int((turns > done).sum()) for done in range(int(turns.max()))
    ]
    first_asked = asked[0][1]
    assert torch.equal(first_asked, whole.argmin(1)[open_ > 0])


def test_parts_change_the_train_where_they_meet() -> None:
    for seed in range(20):
        draws = torch.Generator().manual_seed(seed)
        dtype = (torch.float32, torch.float64)[seed % 2]
        neuron: dict[str, Any] = {"leak": torch.tensor([0.5, 0.9, 1.0], dtype=dtype)}
        neuron |= {"threshold": 0.7, "reset": "hard", "v_reset": 0.0, "v_init": 0.0}
        neuron["strict"] = seed % 3 == 0
        low = 0.4 * torch.rand(4, 3, generator=draws, dtype=dtype)
        box = Interval(low, low + 0.6).map(lambda t: t.expand(5, 4, 3))
        trains = first.Trains(neuron, box)
        rows = torch.randn(1, 5, 4, 3, generator=draws, dtype=dtype)
        gain, which, least = trains.branch(rows, trains.shares(rows), low + 0.3)
        assert gain.isfinite().all()
        below = torch.nextafter(least, -torch.ones_like(least))
        options = neuron | {"leak": neuron["leak"][which]}

        def train(current: Tensor, options: dict[str, Any] = options) -> Tensor:
            spikes: Tensor = functional.lif(current.expand(5, 1, 4).contiguous(), **options)
            return spikes[:, 0]

        one, other = train(below), train(least)
        assert (one != other).any(0).all()


# The checks notice broken parts


def leave_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    right = split._split

    def broken(halves: split.Parts) -> None:
        count = len(halves.least) // 2
        step = 0.05 * (torch.arange(len(halves.least)) < count)
        right(halves._replace(least=halves.least + step))

    monkeypatch.setattr(split, "_split", broken)


def forget_one_half(monkeypatch: pytest.MonkeyPatch) -> None:
    right = split._bounded

    def broken(margins: Any, owner: Tensor, known: Any, width: int) -> split.Parts:
        parts = right(margins, owner, known, width)
        if known is not None:
            parts.bound[: len(owner) // 2] = torch.inf
        return parts

    monkeypatch.setattr(split, "_bounded", broken)


@pytest.mark.parametrize("broken", [leave_a_gap, forget_one_half])
def test_the_search_finds_broken_parts(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    monkeypatch.setattr(split, "ROUNDS", 6)
    found = (replace(case, reset="hard", radius=0.1) for case in SEARCHED)

    def noticed(case: Case) -> bool:
        try:
            return excess(case, method="split") > 0
        except ValueError as error:  # a box whose ends are crossed is refused at once
            return "off by a negative number" in str(error)

    assert any(noticed(case) for case in found)
