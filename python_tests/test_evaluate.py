from __future__ import annotations

import json
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import snnkern
from python_tests.helpers import assert_same_bits
from python_tests.networks import assert_unchanged, linear_net, snapshot, tiny_net
from snnkern.attacks import FGSM, PGD, Attack, Evaluation, evaluate
from snnkern.nn import LIF

ATTACKS: dict[str, Attack] = {"fgsm": FGSM(0.1), "pgd": PGD(0.3, steps=3)}


def samples(count: int = 23) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, 2, 2, generator=draws)
    labels = tiny_net()(x).argmax(1)
    labels[::4] = (labels[::4] + 1) % 3  # some that are wrong when clean
    return x, labels


def batches(size: int = 5) -> list[tuple[Tensor, Tensor]]:
    x, y = samples()
    return list(zip(x.split(size), y.split(size), strict=True))


def by_hand(net: nn.Module, seed: int) -> dict[str, list[tuple[bool, int]]]:
    """For every attack: is each sample right, and its spikes, counted in a plain loop."""
    draws = {name: torch.Generator().manual_seed(seed + crc32(name.encode())) for name in ATTACKS}
    neuron = next(module for module in net.modules() if isinstance(module, LIF))
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    leak, threshold = neuron.get_buffer("leak"), neuron.threshold
    rows: dict[str, list[tuple[bool, int]]] = {"clean": [], "fgsm": [], "pgd": []}
    for x, y in batches():
        for name, row in rows.items():
            images = x if name == "clean" else ATTACKS[name](net, x, y, draws[name])
            current = linears[0](((images - 0.5) / 0.5).flatten(1))
            u, counts = torch.zeros_like(current), torch.zeros(len(x))
            for _ in range(3):
                v = leak * u + current
                fired = v >= threshold
                u = torch.where(fired, 0.0, v)
                counts += fired.sum(1)
            right = net(images).argmax(1) == y
            row += [(bool(r), int(c)) for r, c in zip(right, counts, strict=True)]
    return rows


def test_attacks_do_not_depend_on_each_other() -> None:
    both = evaluate(tiny_net(), batches(), ATTACKS, progress=False)
    alone = evaluate(tiny_net(), batches(), {"pgd": ATTACKS["pgd"]}, progress=False)
    assert torch.equal(both.predictions["pgd"], alone.predictions["pgd"])


def test_it_counts_what_a_loop_counts() -> None:
    net = tiny_net()
    result = evaluate(net, batches(), ATTACKS, seed=4, progress=False)
    rows = by_hand(net, 4)
    clean = torch.tensor([right for right, _ in rows["clean"]])
    assert 0 < clean.sum() < len(clean)
    worst = clean
    for name, row in rows.items():
        right = clean & torch.tensor([right for right, _ in row])
        worst = worst & right
        assert torch.equal(result.correct(name), right)
        assert result.accuracy(name) == pytest.approx(right.sum().item() / 23, abs=1e-7)
        spikes = sum(count for _, count in row)
        assert result.spikes_per_image[name] == spikes / 23
        assert result.seconds[name] > 0
    assert torch.equal(result.worst_case(), worst)
    assert worst.sum() < clean.sum()
    assert torch.equal(result.labels, samples()[1])
    assert list(result.predictions) == ["clean", "fgsm", "pgd"]
    assert result.seed == 4
    assert snnkern.evaluate is evaluate


def test_a_wrong_image_that_an_attack_puts_right_stays_wrong() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    result = Evaluation(
        labels,
        {
            "clean": torch.tensor([0, 1, 0, 0]),
            "a": torch.tensor([0, 0, 2, 0]),
            "b": torch.tensor([1, 1, 2, 0]),
        },
        dict.fromkeys(("clean", "a", "b"), 1.0),
        dict.fromkeys(("clean", "a", "b"), 1.0),
    )
    assert result.correct("a").tolist() == [True, False, False, True]
    assert result.accuracy("b") == 0.5
    assert result.worst_case().tolist() == [False, False, False, True]


def test_json_and_markdown_tell_the_same() -> None:
    result = evaluate(tiny_net(), batches(), ATTACKS, progress=False)
    told = json.loads(result.to_json())
    assert told["samples"] == 23
    assert told["seed"] == 0
    assert told["labels"] == samples()[1].tolist()
    assert told["worst_case_accuracy"] == pytest.approx(result.worst_case().float().mean().item())
    assert list(told["attacks"]) == ["clean", "fgsm", "pgd"]
    lines = result.to_markdown().splitlines()
    assert len(lines) == 6
    assert all(line.count("|") == 5 for line in lines)
    for line, (name, row) in zip(lines[2:5], told["attacks"].items(), strict=True):
        assert row["predictions"] == result.predictions[name].tolist()
        assert row["accuracy"] == result.accuracy(name)
        assert row["spikes_per_image"] == result.spikes_per_image[name]
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells[:2] == [name, f"{100 * row['accuracy']:.1f}%"]
        assert cells[2] == f"{row['spikes_per_image']:.0f}"
    assert told["attacks"]["clean"]["configuration"] == "none"
    assert told["attacks"]["pgd"]["configuration"] == str(ATTACKS["pgd"])
    assert "steps=3" in told["attacks"]["pgd"]["configuration"]
    worst = f"{100 * told['worst_case_accuracy']:.1f}%"
    assert lines[5].startswith(f"| worst case | {worst} |")


def test_it_repeats_with_its_seed() -> None:
    net = tiny_net()
    seen: list[Tensor] = []
    net.normalize.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].clone()))
    runs: list[list[Tensor]] = []
    for seed in (1, 1, 2):
        seen.clear()
        torch.manual_seed(len(runs))
        evaluate(net, batches(), ATTACKS, seed=seed, progress=False)
        runs.append(list(seen))
    for first, again in zip(runs[0], runs[1], strict=True):
        assert_same_bits(first, again)
    assert any(not torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), tiny_net(learn_leak=True)).train()
    model[1].eval()
    before = snapshot(model)
    first = evaluate(model, batches(), ATTACKS, progress=False)
    assert_unchanged(model, before)
    model.eval()
    second = evaluate(model, batches(), ATTACKS, progress=False)
    for name in first.predictions:  # dropout and batch statistics play no part
        assert torch.equal(first.predictions[name], second.predictions[name])


def test_the_model_is_left_as_it_was_when_it_raises() -> None:
    model = tiny_net()
    before = snapshot(model)
    x, y = samples()
    with pytest.raises(RuntimeError):
        evaluate(model, [(x, y), (torch.rand(2, 1, 3, 3), y[:2])], ATTACKS, progress=False)
    assert_unchanged(model, before)


def test_without_attacks_and_without_neurons() -> None:
    x, y = samples()
    net = linear_net(torch.eye(3, 4), torch.zeros(3))
    result = evaluate(net, DataLoader(TensorDataset(x, y), 10), progress=False)
    assert list(result.predictions) == ["clean"]
    assert torch.equal(result.predictions["clean"], x.flatten(1)[:, :3].argmax(1))
    assert result.spikes_per_image == {"clean": 0.0}
    assert torch.equal(result.worst_case(), result.correct())


def test_a_loader_without_a_length() -> None:
    whole = evaluate(tiny_net(), batches(), progress=False)
    stream = evaluate(tiny_net(), iter(batches()), progress=False)
    assert torch.equal(whole.predictions["clean"], stream.predictions["clean"])


def test_progress_can_be_silenced(capfd: pytest.CaptureFixture[str]) -> None:
    evaluate(tiny_net(), batches(), ATTACKS, progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("loader", "attacks", "message"),
    [
        ([], {}, "loader is empty, expected at least one batch"),
        (batches(), {"clean": FGSM()}, "attacks has one called 'clean', expected another name"),
        ([(torch.full((1, 1, 2, 2), 1.5), torch.tensor([0]))], {}, r"expected pixels in \[0, 1\]"),
        ([(torch.rand(2, 1, 2, 2), torch.tensor([0]))], {}, r"y is torch.int64 \[1\]"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(loader: Any, attacks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_net(), loader, attacks, progress=False)
