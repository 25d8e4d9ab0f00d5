"""The loop: what moves the weights, the folder of a run, and going on where one ended."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from python_tests import trainings
from python_tests.helpers import assert_same_bits, assert_within
from python_tests.networks import tiny_net
from snnkern.training import (
    RAT,
    EpochRecord,
    Losses,
    Memory,
    Method,
    Natural,
    fit,
    load_checkpoint,
    read_metrics,
    save_checkpoint,
)
from snnkern.training.run import RunFolder

fit_module = sys.modules["snnkern.training.fit"]
# One process that has imported everything forks all others.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["python_tests.trainings"])


def batches(count: int = 3, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(0)
    return [
        (torch.rand(size, 1, 2, 2, generator=draws), torch.randint(3, (size,), generator=draws))
        for _ in range(count)
    ]


def assert_same_model(model: nn.Module, state: dict[str, Tensor]) -> None:
    mine = model.state_dict()
    assert mine.keys() == state.keys()
    for name, value in mine.items():
        if value.is_floating_point():
            assert_same_bits(value, state[name], name)
        assert torch.equal(value, state[name]), name


# Optimiser, schedule, clipping, precision


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)


def test_the_callers_optimizer_schedule_and_clipping() -> None:
    model, plain = tiny_net(), tiny_net()
    optimizer, expected = sgd(model), sgd(plain)
    scheduler, rate = (
        torch.optim.lr_scheduler.MultiStepLR(each, [1, 3], 0.1) for each in (optimizer, expected)
    )
    history = fit(
        model,
        batches(),
        epochs=4,
        optimizer=optimizer,
        scheduler=scheduler,
        clip_norm=0.05,
        progress=False,
    )
    norms = []
    for _ in range(4):
        for x, y in batches():
            expected.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            norms.append(nn.utils.clip_grad_norm_(plain.parameters(), 0.05).item())
            expected.step()
        rate.step()
    assert min(norms) > 0.05
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert_same_bits(mine, theirs)
    assert [record.lr for record in history] == pytest.approx([0.3, 0.03, 0.03, 0.003])


def test_an_optimizer_without_a_scheduler_keeps_its_rate() -> None:
    model = tiny_net()
    history = fit(model, batches(), epochs=3, optimizer=sgd(model), progress=False)
    assert [record.lr for record in history] == [0.3] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, tmp_path: Path) -> None:
    seen = set()
    model = tiny_net()
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear))
    linear.register_forward_hook(lambda m, inputs, output: seen.add(output.dtype))
    history = fit(
        model,
        batches(),
        RAT(eps=0.05, beta=0.01),
        epochs=5,
        lr=0.05,
        autocast=dtype,
        clip_norm=1.0,
        folder=tmp_path,
        progress=False,
    )
    assert seen == {dtype}
    assert history[-1].loss < history[0].loss
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    scaler = load_checkpoint(tmp_path / "last.safetensors")["scaler"]
    assert bool(scaler) == (dtype == torch.float16)


@pytest.mark.parametrize("clip_norm", [None, 1e-8])
def test_float16_gradients_are_scaled(clip_norm: float | None) -> None:
    """A loss so small that float16 loses its gradient; it is clipped as it is, not as scaled."""

    @dataclass(frozen=True)
    class Small(Method):
        def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
            logits = model(x)
            yield 1e-7 * logits.float().pow(2).mean(), logits

    linear = nn.Linear(4, 3)
    plain = copy.deepcopy(linear)
    optimizer = torch.optim.SGD(linear.parameters(), lr=1e7)
    fit(
        nn.Sequential(nn.Flatten(), linear),
        batches(1),
        Small(),
        epochs=1,
        optimizer=optimizer,
        autocast=torch.float16,
        clip_norm=clip_norm,
        progress=False,
    )
    x, _ = batches(1)[0]
    plain(x.flatten(1)).pow(2).mean().backward()
    assert plain.weight.grad is not None
    assert plain.bias.grad is not None
    expected = plain.weight.grad
    if clip_norm is not None:
        norm = 1e-7 * torch.cat([plain.weight.grad.flatten(), plain.bias.grad]).norm()
        expected = expected * clip_norm / (norm + 1e-6)  # torch adds this
    moved = plain.weight.detach() - linear.weight.detach()
    assert_within(moved, expected, 0.01 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm is 0.0, expected"),
        ({"autocast": torch.float64}, "autocast is torch.float64, expected torch.float16"),
        ({"resume": True}, "resume is True and folder is None"),
        ({"checkpoint_every": 3}, "checkpoint_every is 3 and folder is None"),
        ({"tensorboard": True}, "tensorboard is True and folder is None"),
        ({"checkpoint_every": -1, "folder": "x"}, "checkpoint_every is -1, expected"),
        ({"val_loader": []}, "val_loader is empty"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tiny_net(), batches(), epochs=1, progress=False, **options)
    assert not Path("x").exists()


def test_optimizers_that_do_not_fit_are_refused() -> None:
    model = tiny_net()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ValueError, match="scheduler is given without its optimizer"):
        fit(model, batches(), epochs=1, scheduler=scheduler)
    with pytest.raises(ValueError, match=r"lr is 0.1 and optimizer is given"):
        fit(model, batches(), epochs=1, optimizer=optimizer, lr=0.1)


def test_models_that_cannot_be_trained_are_refused() -> None:
    with pytest.raises(ValueError, match="model Flatten has no parameters, expected some to train"):
        fit(nn.Flatten(), batches(), epochs=1)
    with pytest.raises(ValueError, match="stateful=True"):
        fit(tiny_net(stateful=True), batches(), epochs=1)


def test_validation_is_in_evaluation_mode_and_counts_samples() -> None:
    model = nn.Sequential(nn.Dropout(0.9), tiny_net())
    uneven = [(x[: 2 + i], y[: 2 + i]) for i, (x, y) in enumerate(batches())]
    record = fit(model, batches(), epochs=1, val_loader=uneven, progress=False)[-1]
    assert model.training
    model.eval()
    right = [(model(x).argmax(1) == y) for x, y in uneven]
    assert record.val_accuracy == pytest.approx(torch.cat(right).float().mean().item())


# The folder of a run


def test_the_folder_holds_settings_versions_and_metrics(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    method = RAT(eps=0.05)
    history = fit(tiny_net(), batches(), method, epochs=3, folder=folder, recipe="a = 1\n",
                  val_loader=batches(1), progress=False)  # fmt: skip
    assert {path.name for path in folder.iterdir()} == {
        "run.json",
        "recipe.toml",
        "metrics.jsonl",
        "last.safetensors",
        "best.safetensors",
    }
    about = json.loads((folder / "run.json").read_text())
    assert about["settings"]["method"] == str(method)
    assert about["settings"]["optimizer_options"]["lr"] == "0.001"
    assert about["versions"]["torch"] == torch.__version__
    assert (folder / "recipe.toml").read_text() == "a = 1\n"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]
    assert read_metrics(folder) == history
    assert all(record.val_accuracy is not None for record in history)
    assert all(record.seconds > 0 for record in history)


def test_best_is_the_epoch_of_the_highest_validation_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.5, 0.7, 0.7, 0.6])
    monkeypatch.setattr(fit_module._Training, "_accuracy", lambda *_: next(accuracies))
    kept = []
    right = fit_module._Training._save

    def spy(self: Any, *, best: bool = False) -> None:
        kept.append({k: v.clone() for k, v in self.model.state_dict().items()})
        right(self, best=best)

    monkeypatch.setattr(fit_module._Training, "_save", spy)
    model = tiny_net()
    fit(model, batches(), epochs=4, val_loader=batches(1), folder=tmp_path, progress=False)
    best, last = (load_checkpoint(tmp_path / f"{n}.safetensors") for n in ("best", "last"))
    assert (best["epoch"], best["best"]) == (2, 0.7)
    assert (last["epoch"], last["best"]) == (4, 0.7)
    assert_same_model(model, last["model"])
    for name, value in kept[1].items():
        assert torch.equal(best["model"][name], value)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    def run(resume: bool = False, **options: Any) -> list[EpochRecord]:
        settings: dict[str, Any] = {"method": Natural(), "epochs": 2, "lr": 0.01} | options
        return fit(
            tiny_net(), batches(), folder=tmp_path, progress=False, resume=resume, **settings
        )

    history = run(recipe="one")
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run: resume=True .*goes on with it"):
        run()
    for options, message in (
        ({"epochs": 3}, "epochs is 3, expected 2, with which the run in .* began"),
        ({"method": RAT()}, r"method is 'RAT\(.*expected 'Natural\(\)'"),
        ({"lr": 0.5}, "optimizer_options is .*'lr': '0.5'.*expected .*'lr': '0.01'"),
        ({"seed": 7}, "seed is 7, expected 0"),
        ({"recipe": "two"}, "recipe is not .*expected the one that the run began with"),
    ):
        with pytest.raises(ValueError, match=message):
            run(resume=True, **options)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert run(resume=True, recipe="one") == history  # has ended: nothing left to do


class Writer:
    """What the trainer uses of torch's SummaryWriter."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, folder: Path, purge_step: int) -> None:
        self.folder, self.purge_step = folder, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False
        Writer.made.append(self)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(resume: bool = False) -> list[EpochRecord]:
        return fit(
            tiny_net(),
            batches(),
            epochs=2,
            folder=tmp_path,
            resume=resume,
            tensorboard=True,
            progress=False,
        )

    module = types.ModuleType("tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'snnkern\[tensorboard\]'"):
        run()
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    history = run()
    run(resume=True)
    first, second = Writer.made
    assert first.folder == tmp_path / "tensorboard"
    assert first.closed
    assert (first.purge_step, second.purge_step) == (0, 2)
    assert first.scalars == [
        (name, getattr(record, name), record.epoch)
        for record in history
        for name in ("loss", "accuracy", "lr")
    ]
    assert second.scalars == []


# Going on where a run ended


class CutError(Exception):
    """A process that ends, as far as a test in one process can say so."""


@pytest.mark.parametrize(
    ("method", "workers"), [("natural", 0), ("rat", 0), ("hire", 0), ("hire", 2), ("finetune", 0)]
)
def test_a_resumed_run_ends_with_the_same_bits(
    method: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = trainings.single(method, workers=workers)
    right, count = fit_module._Training._train_on, 0

    def cut(self: Any, x: Tensor, y: Tensor) -> None:
        nonlocal count
        count += 1
        if count % 9 == 0:
            raise CutError
        right(self, x, y)

    monkeypatch.setattr(fit_module._Training, "_train_on", cut)
    cuts, resumed = 0, None
    while resumed is None:
        try:
            resumed = trainings.single(method, tmp_path, workers, every=2)
        except CutError:
            cuts += 1
    assert cuts >= 3
    assert_same_model(resumed, undisturbed.state_dict())
    assert [record.epoch for record in read_metrics(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("where", ["append", "save"])
def test_metrics_neither_lose_nor_double_a_line(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after the line of an epoch, and in the middle of it."""
    whole = tmp_path / "whole"
    expected = fit(tiny_net(), batches(), epochs=4, folder=whole, progress=False)
    right = getattr(RunFolder, where)
    calls = 0

    def cut(self: RunFolder, *arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            with self.metrics.open("a") as file:
                file.write('{"epoch": 1, "lo')
            raise CutError
        right(self, *arguments, **options)

    monkeypatch.setattr(RunFolder, where, cut)
    history: list[EpochRecord] = []
    model = tiny_net()
    for _ in range(8):
        try:
            model = tiny_net()
            history = fit(model, batches(), epochs=4, folder=tmp_path / "cut", resume=True,
                          progress=False)  # fmt: skip
        except CutError:
            continue
        break
    assert history == expected
    assert read_metrics(tmp_path / "cut") == expected
    assert_same_model(model, load_checkpoint(whole / "last.safetensors")["model"])


@dataclass(frozen=True)
class Pressed(Method):
    """Natural training during which somebody presses Ctrl-C at given losses."""

    at: tuple[int, ...] = ()
    times: int = 1

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        seen = memory.tensors.setdefault("seen", torch.zeros(()))
        seen += 1
        for _ in range(self.times if int(seen) in self.at else 0):
            os.kill(os.getpid(), signal.SIGINT)
        yield from Natural().losses(model, x, y, memory)


def test_control_c_leaves_a_run_to_resume(tmp_path: Path) -> None:
    def run(method: Method, folder: Path, resume: bool = False) -> nn.Module:
        model = tiny_net()
        fit(model, batches(), method, epochs=4, folder=folder, resume=resume, progress=False)
        return model

    before = signal.getsignal(signal.SIGINT)
    undisturbed = run(Pressed(), tmp_path / "whole")
    method = Pressed(at=(2, 6, 10))
    stops = []
    for life in range(3):
        with pytest.raises(KeyboardInterrupt) as stopped:
            run(method, tmp_path / "cut", resume=life > 0)
        stops.append(str(stopped.value))
        assert signal.getsignal(signal.SIGINT) is before
    resumed = run(method, tmp_path / "cut", resume=True)
    assert stops[0].startswith("interrupted after batch 2 of epoch 0; to go on from there: resume=")
    assert [stop.split(";")[0][18:] for stop in stops[1:]] == [
        "batch 3 of epoch 1",
        "batch 1 of epoch 3",
    ]
    assert_same_model(resumed, undisturbed.state_dict())


def test_control_c_twice_stops_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(tiny_net(), batches(), Pressed(at=(5,), times=2), epochs=4, folder=tmp_path,
            progress=False)  # fmt: skip
    assert str(stopped.value) == ""
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(tmp_path / "last.safetensors")["epoch"] == 1


@dataclass(frozen=True)
class Failing(Method):
    """Natural training until a loss, or a weight, is no number."""

    weight: bool = False

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        seen = memory.tensors.setdefault("seen", torch.zeros(()))
        seen += 1
        for loss, logits in Natural().losses(model, x, y, memory):
            yield loss * (math.nan if seen == 8 and not self.weight else 1.0), logits
        if seen == 6 and self.weight:
            next(model.parameters()).detach().view(-1)[0] = math.inf


@pytest.mark.parametrize("weight", [False, True])
def test_what_diverged_keeps_the_last_good_checkpoint(weight: bool, tmp_path: Path) -> None:
    what = "a weight is no longer finite" if weight else "the loss became nan"
    with pytest.raises(
        FloatingPointError, match=rf"{what}.*; the last good checkpoint is .*last.safetensors"
    ):
        fit(tiny_net(), batches(), Failing(weight), epochs=5, folder=tmp_path, progress=False)
    kept = load_checkpoint(tmp_path / "last.safetensors")
    assert kept["epoch"] == (1 if weight else 2)
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_other_data_is_not_resumed_on(tmp_path: Path) -> None:
    fit(tiny_net(), batches(3), epochs=1, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="batches is 2, expected 3, with which the run in"):
        fit(tiny_net(), batches(2), epochs=1, folder=tmp_path, resume=True, progress=False)


def test_a_loader_with_another_generator_is_not_resumed(tmp_path: Path) -> None:
    data = TensorDataset(*batches(1)[0])
    fit(tiny_net(), DataLoader(data, 3, generator=torch.Generator()), epochs=1, folder=tmp_path,
        progress=False)  # fmt: skip
    state = load_checkpoint(tmp_path / "last.safetensors")
    save_checkpoint(tmp_path / "last.safetensors", state | {"epoch": 0})
    with pytest.raises(ValueError, match="train_loader has 0 generators of its own, expected 1"):
        fit(tiny_net(), DataLoader(data, 3), epochs=1, folder=tmp_path, resume=True, progress=False)


def start(target: Callable[..., None], *arguments: Any) -> Any:
    process = processes.Process(target=target, args=arguments)
    process.start()
    return process


def killed_runs(folder: Path, kills: int, seed: int, seconds: float) -> Iterator[Path]:
    """Folders of finished runs that were killed at random moments, so many times in all."""
    draws = random.Random(seed)
    done = 0
    for number in range(10 * kills):
        run = folder / str(number)
        while not (run / "done.safetensors").exists():
            process = start(trainings.life, "hire", run)
            process.join(draws.uniform(0, seconds) if done < kills else 120)
            if process.is_alive():
                process.kill()
                done += 1
            process.join(10)
            assert process.exitcode in (0, -signal.SIGKILL)
        yield run
        if done >= kills:
            return
    pytest.fail(f"{done} of {kills} kills came before a run was done")


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills: int, tmp_path: Path) -> None:
    start(trainings.life, "hire", tmp_path / "warm").join()  # imports, once for all
    begun = time.monotonic()
    start(trainings.life, "hire", tmp_path / "whole").join()
    seconds = time.monotonic() - begun
    whole = load_checkpoint(tmp_path / "whole" / "done.safetensors")["model"]
    undisturbed = trainings.single("hire")  # nor does it matter that checkpoints are written
    assert_same_model(undisturbed, whole)
    for run in killed_runs(tmp_path, kills, kills, seconds):
        assert_same_model(undisturbed, load_checkpoint(run / "done.safetensors")["model"])
        assert read_metrics(run) == read_metrics(tmp_path / "whole")


# Several processes


@pytest.mark.parametrize("method", ["natural", "hire", "trades"])
def test_two_ranks_are_one_process_on_the_whole_batch(method: str, tmp_path: Path) -> None:
    ranks = [start(trainings.rank, method, tmp_path, 32, rank) for rank in range(2)]
    alone, history = trainings.shared(method, tmp_path / "alone", 32, ranks=2)
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    first, second = (load_checkpoint(tmp_path / f"rank{r}.safetensors")["model"] for r in range(2))
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert_within(first[name], value, 2e-5, name)
    together = read_metrics(tmp_path / "run")
    for mine, theirs in zip(together, history, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert mine.accuracy == pytest.approx(theirs.accuracy, abs=2 / 320)
        assert mine.val_accuracy == pytest.approx(theirs.val_accuracy, abs=2 / 360)


def test_two_ranks_of_rat_keep_the_same_weights_and_resume(tmp_path: Path) -> None:
    for folder in (tmp_path / "whole", tmp_path / "cut"):
        folder.mkdir()
    for process in [start(trainings.rank, "rat", tmp_path / "whole", 32, r) for r in range(2)]:
        process.join(120)
        assert process.exitcode == 0
    cut = tmp_path / "cut"
    ranks = [start(trainings.rank, "rat", cut, 32, r, 1) for r in range(2)]
    limit = time.monotonic() + 60
    while not (cut / "run" / "last.safetensors").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    for process in ranks:
        process.kill()
        process.join()
    assert (cut / "run" / "last.safetensors").exists()
    for process in [start(trainings.rank, "rat", cut, 32, r, 2) for r in range(2)]:
        process.join(120)
        assert process.exitcode == 0
    states = [
        load_checkpoint(folder / f"rank{r}.safetensors")["model"]
        for folder in (tmp_path / "whole", cut)
        for r in range(2)
    ]
    for state in states[1:]:
        for name, value in state.items():
            assert torch.equal(value, states[0][name]), name
