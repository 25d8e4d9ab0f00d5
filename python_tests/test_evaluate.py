from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import snnkern
from python_tests.helpers import assert_same_bits, leave
from python_tests.networks import assert_unchanged, linear_net, snapshot, tiny_net
from snnkern._intervals import wilson
from snnkern.attacks import (
    DEFAULT_ENSEMBLE,
    FGSM,
    PGD,
    SAPGD,
    Attack,
    Check,
    ContradictionError,
    Ensemble,
    Evaluation,
    Stateless,
    evaluate,
)
from snnkern.attacks.attack import Victim
from snnkern.attacks.sandwich import check_sandwich
from snnkern.certify import Certificate, verify
from snnkern.measures import cost
from snnkern.nn import LIF, RateCoding
from snnkern.surrogate import Triangle

METHODS: tuple[Literal["ibp", "exact"], ...] = ("ibp", "exact")
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
    neuron = next(module for module in net.modules() if isinstance(module, LIF))
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    leak, threshold = neuron.get_buffer("leak"), neuron.threshold
    rows: dict[str, list[tuple[bool, int]]] = {"clean": [], "fgsm": [], "pgd": []}
    for number, (x, y) in enumerate(batches()):
        for name, row in rows.items():
            draws = torch.Generator().manual_seed(crc32(f"{seed} {name} {number}".encode()))
            images = x if name == "clean" else ATTACKS[name](net, x, y, draws)
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
    x, y = samples()
    certificate = verify(tiny_net(), x, y, 0.01, "ibp")
    checks = (Check("fine", 0.0), Check("odd", 0.25, 0.1), Check("up", 0.5, 0.1, "above"))
    result = evaluate(
        tiny_net(), batches(), ATTACKS, certificates=certificate, checks=checks, progress=False
    )
    told = json.loads(result.to_json(name="tiny", dataset="noise"))
    assert (told["name"], told["dataset"], told["architecture"]) == (
        "tiny",
        "noise",
        "SpikingNetwork",
    )
    assert (told["T"], told["neuron"], told["reset"], told["coding"]) == (
        "3",
        "LIF",
        "hard",
        "direct",
    )
    assert told["surrogate_train"] == str(Triangle())
    assert told["eps"] is None  # the attacks have different ones
    assert told["clean_acc"] == f"{100 * result.accuracy():.2f}"
    assert told["external"] == f"{100 * told['worst_case_accuracy']:.2f}"
    assert (told["unreliable"], told["masking_flags"]) == (True, ["odd"])
    assert [check["passed"] for check in told["checks"]] == [True, False, True]
    certified = (certificate.certified & result.correct()).double().mean().item()
    assert 0 < certified < result.accuracy()
    assert told["certified_acc"] == {"ibp certified within 0.01": certified}
    assert told["certificates"][0]["certified"] == certificate.certified.tolist()
    assert told["samples"] == 23
    assert told["seed"] == 0
    assert told["labels"] == y.tolist()
    worst = result.worst_case().double().mean().item()
    assert told["worst_case_accuracy"] == pytest.approx(worst)
    assert told["worst_case_interval"] == pytest.approx(wilson(worst, 23))
    assert list(told["attacks"]) == ["clean", "fgsm", "pgd"]
    lines = [line for line in result.to_markdown().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    for cells, (name, row) in zip(rows[2:5], told["attacks"].items(), strict=True):
        assert row["predictions"] == result.predictions[name].tolist()
        assert row["accuracy"] == result.accuracy(name)
        assert row["interval"] == list(wilson(row["accuracy"], 23)) == list(result.interval(name))
        assert row["spikes_per_image"] == result.spikes_per_image[name]
        low, high = (f"{100 * bound:.1f}" for bound in row["interval"])
        share = f"{100 * row['accuracy']:.1f}"
        assert cells[:2] == [name, f"{share} <small>{low}\N{EN DASH}{high}</small>"]
        assert cells[2] == f"{row['spikes_per_image']:.0f}"
        assert cells[3] == f"{row['energy_pj'] / 1000:.3g}"
    assert told["attacks"]["clean"]["configuration"] == "none"
    assert told["attacks"]["pgd"]["configuration"] == str(ATTACKS["pgd"])
    assert "steps=3" in told["attacks"]["pgd"]["configuration"]
    assert told["attacks"]["pgd"]["eps"] == 0.3
    assert rows[5][1].startswith(f"{100 * worst:.1f} ")
    assert rows[6][1].startswith(f"{100 * certified:.1f} ")
    assert [row[0] for row in rows[5:7]] == ["worst case", "ibp certified within 0.01"]
    assert [row[3] for row in rows[-3:]] == ["pass", "FAIL", "pass"]
    assert "not all pass" in result.to_text()


def test_one_eps_is_written_as_robustbench_does() -> None:
    attacks: dict[str, Attack] = {"fgsm": FGSM(8 / 255), "pgd": PGD(8 / 255, steps=2)}
    told = json.loads(evaluate(tiny_net(), batches(), attacks, progress=False).to_json())
    assert told["eps"] == "8/255"
    assert told["unreliable"] is None


def test_success_and_distance() -> None:
    result = evaluate(tiny_net(), batches(), ATTACKS, progress=False)
    for name, size in (("fgsm", 0.1), ("pgd", 0.3)):
        assert result.success(name).any()
        assert torch.equal(result.success(name), result.correct() & ~result.correct(name))
        assert 0 < result.distances[name].max() <= size
    assert not result.distances["clean"].any()


def test_energy_is_that_of_the_images_that_are_judged() -> None:
    net = tiny_net()
    result = evaluate(net, batches(), {"fgsm": ATTACKS["fgsm"]}, progress=False)
    x, y = samples()
    adversarial = ATTACKS["fgsm"](net, x, y)
    for name, images in (("clean", x), ("fgsm", adversarial)):
        assert result.energy[name] == pytest.approx(cost(net, images).energy())
    assert result.energy["clean"] != result.energy["fgsm"]


def test_what_is_not_seen_is_not_told() -> None:
    """The neurons of another library."""
    result = evaluate(Stateless(tiny_net(), lambda net: None), batches(), ATTACKS, progress=False)
    assert result.spikes_per_image == result.energy == {}
    assert result.model["architecture"] == "SpikingNetwork"
    told = json.loads(result.to_json())
    assert told["energy_pj"] is told["attacks"]["pgd"]["spikes_per_image"] is None
    rows = [line.split("|") for line in result.to_markdown().splitlines()[2:5]]
    assert {cell.strip() for row in rows for cell in row[3:5]} == {"\N{EN DASH}"}


class Flipped(Attack):
    """Gives other images for some samples, whatever eps says."""

    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return 1 - x


def test_what_is_certified_and_broken_stops() -> None:
    x, y = samples()
    net = tiny_net()
    attacks: dict[str, Attack] = {"far": Flipped(0.1)}
    broken = evaluate(net, batches(), attacks, progress=False).success("far")
    assert broken.any()
    some = broken & (broken.cumsum(0) <= 2)
    numbers = ", ".join(map(str, some.nonzero()[:, 0].tolist()))
    lie = Certificate(some, torch.ones(23), 1.0, "wishful", 3)
    with pytest.raises(
        ContradictionError,
        match=f"wishful certifies within 1 what far breaks: 2 sample.*, {numbers};",
    ):
        evaluate(net, batches(), attacks, certificates=lie, progress=False)
    # No contradiction beyond the radius, however large the attack says it is.
    near = replace(lie, eps=0.1)
    evaluate(net, batches(), {"far": Flipped(0.05)}, certificates=near, progress=False)
    # What is wrong when clean is certified by no one.
    wrong = replace(lie, certified=net(x).argmax(1) != y, eps=0.0)
    with pytest.raises(ContradictionError, match="what clean breaks"):
        evaluate(net, batches(), certificates=[near, wrong], progress=False)


def test_a_bound_above_the_exact_value_stops() -> None:
    proved = Certificate(torch.tensor([True, False]), torch.ones(2), 0.2, "ibp", 3)
    refuted = replace(proved, eps=0.1, method="exact", certified=torch.zeros(2).bool())
    exact = replace(refuted, broken=torch.tensor([True, False]))
    correct, distances = {"clean": torch.ones(2).bool()}, {"clean": torch.zeros(2)}
    check_sandwich([proved], correct, distances)
    message = "ibp certifies within 0.2 what exact breaks within 0.1: 1 sample.*, 0;"
    with pytest.raises(ContradictionError, match=message):
        check_sandwich([proved, exact], correct, distances)
    check_sandwich([proved, replace(exact, eps=0.3)], correct, distances)


def test_the_sandwich_of_a_small_network() -> None:
    x, y = samples()
    attacks: dict[str, Attack] = {"strong": Ensemble(SAPGD(0.1, steps=20), DEFAULT_ENSEMBLE)}
    certificates = [verify(tiny_net(), x, y, 0.1, method) for method in METHODS]
    result = evaluate(tiny_net(), batches(), attacks, certificates=certificates, progress=False)
    lower, exact = (mask.sum() for mask in result.certified().values())
    assert lower < exact <= result.worst_case().sum() < result.correct().sum()


def test_certificates_of_something_else_are_refused() -> None:
    x, y = samples()
    certificate = verify(tiny_net(), x, y, 0.01, "ibp")
    with pytest.raises(ValueError, match=r"for 3 time steps, expected 4, those of model"):
        evaluate(tiny_net(4), batches(), certificates=certificate, progress=False)
    with pytest.raises(ValueError, match=r"one of \[23\] samples, expected \[5\]"):
        evaluate(tiny_net(), batches()[:1], certificates=certificate, progress=False)
    drawn = tiny_net()
    drawn.encoder = RateCoding(3)
    with pytest.raises(ValueError, match="model draws its input's spikes"):
        evaluate(drawn, batches(), certificates=certificate, progress=False)


def of_a_rank(rank: int, folder: Path) -> None:
    """Evaluates in one of two processes, in the three ways of sharing the work."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2)
    try:
        dataset = TensorDataset(*samples())
        sampler: DistributedSampler[Any] = DistributedSampler(dataset, shuffle=False)
        parallel = nn.parallel.DistributedDataParallel(tiny_net())
        plain: dict[str, Attack] = {"fgsm": ATTACKS["fgsm"]}
        results = [
            evaluate(tiny_net(), batches(), ATTACKS, seed=4, progress=False),
            evaluate(parallel, batches(23), ATTACKS, seed=4, progress=False),
            evaluate(
                tiny_net(), DataLoader(dataset, 5, sampler=sampler), plain, seed=4, progress=False
            ),
        ]
        torch.save([vars(result) for result in results], folder / f"{rank}.pt")
        leave()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    spawn(of_a_rank, (tmp_path,), nprocs=2)
    alone = [
        evaluate(tiny_net(), batches(), ATTACKS, seed=4, progress=False),
        evaluate(tiny_net(), batches(23), ATTACKS, seed=4, progress=False),
        evaluate(tiny_net(), batches(), {"fgsm": ATTACKS["fgsm"]}, seed=4, progress=False),
    ]
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for one, two in zip(alone, shared, strict=True):
            assert torch.equal(one.labels, two["labels"])
            for name, predictions in one.predictions.items():
                assert torch.equal(predictions, two["predictions"][name])
                assert torch.equal(one.distances[name], two["distances"][name])
        for one, two in zip(alone[:2], shared[:2], strict=True):  # the sampler repeats one image
            assert one.spikes_per_image == pytest.approx(two["spikes_per_image"])
            assert one.energy == pytest.approx(two["energy"])


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
