from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import snnkern
from python_tests.helpers import need
from snnkern.certify import verify
from snnkern.cli import BROKEN_PIPE, INTERRUPTED, main, parser
from snnkern.data import digits
from snnkern.models import SpikingNetwork
from snnkern.report import Study
from snnkern.training import EpochRecord, load_checkpoint
from snnkern.training.recipe import Recipe
from snnkern.training.run import read_metrics
from snnkern.training.start import load_run

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "demo",
    "train",
    "convert",
    "attack",
    "certify",
    "report",
    "bench",
    "info",
    "completion",
)


def leave(*arguments: str) -> int:
    """The exit code of argparse."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_says_what_it_does_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave(*filter(None, [command]), "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "examples: snnkern " in text
    if command:
        assert f"examples: snnkern {command}" in text
    assert len(re.findall(r"[.]( |$)", text)) >= 1
    if not command:
        for name in COMMANDS:
            assert f" {name} " in text


def test_the_examples_of_the_help_are_accepted() -> None:
    (commands,) = [
        action.choices
        for action in parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    assert tuple(commands) == COMMANDS
    for name, command in commands.items():
        assert command.epilog is not None
        examples = re.findall(r"^  snnkern (.*)", command.epilog, flags=re.MULTILINE)
        assert examples
        for example in examples:
            if example.endswith("--list"):  # prints and ends
                continue
            options = parser().parse_args(example.partition(" > ")[0].split())
            assert options.command == name


def test_exit_statuses_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    leave("--help")
    told = capsys.readouterr().out
    for status, words in ((0, "done"), (1, "it could not"), (2, "the command was not")):
        assert f"{status} {words}" in told
    assert f"{INTERRUPTED} interrupted" in told
    assert f"{BROKEN_PIPE} whoever read" in told


def test_options_reach_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = []
    monkeypatch.setattr("snnkern.demo.demo", lambda *options: called.append(options))
    arguments = ["demo", "--folder", str(tmp_path), "--seed", "3", "--epochs", "2", "--quiet"]
    assert main(arguments) == 0
    assert called == [(tmp_path, 3, 2, False, False)]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--version") == 0
    assert capsys.readouterr().out == f"snnkern {snnkern.__version__}\n"


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr() == (snnkern.info() + "\n", "")
    assert main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["version"] == snnkern.__version__
    assert told["backends"] == snnkern.backends()


@pytest.mark.parametrize(
    "arguments",
    [[], ["dmeo"], ["demo", "--epochs", "many"], ["info", "--unknown"], ["demo", "positional"]],
)
def test_what_it_does_not_understand_ends_with_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("usage: snnkern")
    assert "Traceback" not in told.err


def assert_one_line(told: str, message: str) -> None:
    assert re.fullmatch(rf"snnkern: .*{message}.*\n", told), told


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--epochs", "0", "epochs is 0, expected an int of at least 1"), ("--seed", "-1", "-1")],
)
def test_impossible_options_end_with_one(
    option: str, value: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert main(["demo", "--quiet", "--folder", str(folder), option, value]) == 1
    told = capfd.readouterr()
    assert told.out == ""
    assert_one_line(told.err, message)
    assert not folder.exists()


def test_a_folder_that_cannot_be_is_an_error_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")

    def fit(*_: object, **__: object) -> None:
        pytest.fail("nobody waits for a training whose result cannot be written")

    monkeypatch.setattr("snnkern.demo.fit", fit)
    assert main(["demo", "--quiet", "--epochs", "1", "--folder", str(taken)]) == 1
    assert_one_line(capfd.readouterr().err, "taken")
    assert taken.read_text() == "a file"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("a value"), 1),
        (OSError("a disk"), 1),
        (ImportError("a package"), 1),
        (FloatingPointError("the loss became nan"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_are_told_without_a_traceback(
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("snnkern.demo.demo", fail)
    assert main(["demo"]) == status
    told = capsys.readouterr()
    assert told.out == ""
    assert_one_line(told.err, str(error) or "interrupted")


def test_options_reach_the_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []

    def train(recipe: Recipe, folder: Path, **options: object) -> list[EpochRecord]:
        called.append((recipe.name, folder, options))
        return [EpochRecord(0, 1.0, 0.5, 0.75), EpochRecord(1, 1.0, 0.5, 0.625)]

    monkeypatch.setattr("snnkern.training.train.train", train)
    assert main(["train", "digits_hire"]) == 0
    plain: dict[str, object] = dict.fromkeys(
        ("data", "epochs", "seed", "checkpoint_every", "device", "start")
    )
    plain |= {"resume": False, "tensorboard": False, "progress": True}
    line = "train digits_hire --folder a --data b --epochs 3 --seed 4 --checkpoint-every 5"
    line += " --device cpu --start d"
    assert main([*line.split(), "--resume", "--tensorboard", "--quiet"]) == 0
    options: dict[str, object] = {
        "data": Path("b"),
        "epochs": 3,
        "seed": 4,
        "checkpoint_every": 5,
        "device": "cpu",
        "start": Path("d"),
    }
    options |= {"resume": True, "tensorboard": True, "progress": False}
    assert called == [
        ("digits_hire", Path("runs/digits_hire"), plain),
        ("digits_hire", Path("a"), options),
    ]
    assert capsys.readouterr().out.splitlines() == [
        f"Digits, HIRE: test accuracy 62.5% after 2 epochs, best 75.0% after 1; run in {folder}"
        for folder in ("runs/digits_hire", "a")
    ]


def test_recipes_are_listed_and_a_near_name_is_suggested(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert leave("train", "--list") == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["digits_rat"].strip() == "Digits, RAT"
    assert len(lines) == len(list((ROOT / "snnkern/recipes").glob("*.toml")))
    assert main(["train", "digits_ra"]) == 1
    assert_one_line(capsys.readouterr().err, "such as digits_rat, .*snnkern train --list names all")
    assert main(["train", "qqqq"]) == 1
    assert_one_line(capsys.readouterr().err, "that ship with snnkern; snnkern train --list")


def test_options_reach_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[Path, dict[str, object]]] = []

    def attack_run(run: Path, **options: object) -> SimpleNamespace:
        called.append((run, options))
        return SimpleNamespace(to_text=lambda: "")

    monkeypatch.setattr("snnkern.training.attack.attack_run", attack_run)
    assert main(["attack", "run"]) == 0
    line = (
        "attack run --eps 8/255 0.1 --attacks fgsm square --data digits --images 5 --batch-size 3"
    )
    assert main([*line.split(), "--no-checks", "--seed", "2", "--device", "cpu", "--quiet"]) == 0
    plain: dict[str, object] = dict.fromkeys(("eps", "certificates", "data", "images", "device"))
    given: dict[str, object] = {
        "eps": [8 / 255, 0.1],
        "certificates": None,
        "attacks": ["fgsm", "square"],
        "data": Path("digits"),
        "images": 5,
        "batch_size": 3,
        "checks": False,
        "seed": 2,
        "device": "cpu",
        "progress": False,
    }
    assert called == [
        (Path("run"), plain | {"checks": True, "seed": 0, "progress": True}),
        (Path("run"), given),
    ]
    with monkeypatch.context() as patch:
        patch.setattr("snnkern.training.own.named_network", lambda text: f"found {text}")
        assert main(["attack", "run", "--model", "a.b:c"]) == 0
    assert called[-1][1]["model"] == "found a.b:c"
    for wrong in ("much", "1/0"):
        assert leave("attack", "run", "--eps", wrong) == 2


def test_attack_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, quiet = str(tmp_path / "run"), ["--device", "cpu", "--quiet"]
    assert main(["train", "digits_rat", "--epochs", "2", "--folder", run, *quiet]) == 0
    capfd.readouterr()
    options = ["--images", "40", "--attacks", "pgd20", "fgsm", "--batch-size", "25"]
    assert main(["attack", run, *options, *quiet]) == 0
    told = capfd.readouterr()
    assert told.err == ""
    for words in ("pgd20", "worst case", "40 samples", "one step beats many by"):
        assert words in told.out
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (found["name"], found["dataset"], found["samples"]) == ("Digits, RAT", "digits", 40)
    assert list(found["attacks"]) == ["clean", "fgsm", "pgd20"]
    assert found["eps"] == "0.1"  # of the recipe
    assert len(found["checks"]) > 10
    test = digits().test[:40]
    model = load_run(tmp_path / "run")[1]
    right = model(test[0]).argmax(1) == test[1]
    assert found["attacks"]["clean"]["accuracy"] == pytest.approx(right.double().mean().item())
    assert found["worst_case_accuracy"] < found["attacks"]["clean"]["accuracy"]
    text = (tmp_path / "run" / "evaluation.md").read_text()
    assert text.startswith("# Digits, RAT\n\n| attack |")
    assert "| worst case |" in text
    assert "| one step beats many by |" in text
    options = ["--eps", "0.01", "8/255", "--certificates", "ibp", "--attacks", "fgsm"]
    assert main(["attack", run, *options, "--images", "30", "--batch-size", "20", *quiet]) == 0
    assert "ibp certified within 0.01" in capfd.readouterr().out
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert list(found["attacks"]) == ["clean", "fgsm 0.01", "fgsm 8/255"]
    assert [c["eps"] for c in found["certificates"]] == [0.01, 8 / 255]
    assert isinstance(model, SpikingNetwork)
    by_hand = verify(model, test[0][:30], test[1][:30], 0.01, "ibp").certified
    assert found["certificates"][0]["certified"] == by_hand.tolist()
    for arguments, message in (
        (["--attacks", "fgms"], "attacks has 'fgms', expected some of fgsm, pgd20, .*members19"),
        (["--eps", "-1"], "eps is -1.0, expected a finite number of at least 0"),
        (["--images", "0"], "images is 0, expected an int of at least 1"),
    ):
        assert main(["attack", run, *arguments, *quiet]) == 1
        assert_one_line(capfd.readouterr().err, message)
    assert main(["attack", str(tmp_path), *quiet]) == 1
    assert_one_line(capfd.readouterr().err, f"run is {tmp_path}, expected the folder of a run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "recipe is 'nothing', expected a file or one of those that ship"),
        (["digits_converted"], "start is missing, .* snnkern train digits_ann makes one"),
        (["digits_rat", "--epochs", "0"], "epochs is 0, expected an int of at least 1"),
        (["digits_rat", "--device", "gpu"], "device is 'gpu', expected one that torch can use: "),
        (["digits_rat", "--device", "cuda:99"], "device is 'cuda:99', expected one that torch"),
        (["digits_rat", "--data", "there"], "data.folder is .*expected no such key: digits has"),
    ],
)
def test_what_cannot_be_trained_is_told(
    arguments: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, "--quiet", "--folder", str(tmp_path / "out")]) == 1
    told = capfd.readouterr()
    assert told.out == ""
    assert_one_line(told.err, message)
    assert not (tmp_path / "out").exists()


def test_convert_then_train(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ann, snn = str(tmp_path / "ann"), str(tmp_path / "snn")
    quiet = ["--device", "cpu", "--quiet"]
    assert main(["train", "digits_ann", "--folder", ann, "--epochs", "3", *quiet]) == 0
    capfd.readouterr()
    options = ["--statistic", "maximum", "--batch-size", "32", "--layers", "2", "--scale", "0.5"]
    assert main(["convert", ann, "--timesteps", "6", *options, *quiet]) == 0
    told = capfd.readouterr()
    assert told.err == ""
    *rows, last = told.out.splitlines()
    assert [re.sub(r"[\d.]+$", "", row) for row in rows] == [
        f"layers.{i}: threshold " for i in (1, 3, 6)
    ]
    assert rows[2].endswith(" 1")
    assert re.fullmatch(
        r"test accuracy [\d.]+% of the ReLU network, [\d.]+% of the spiking network \(T = 6\); "
        rf"run in {ann}_converted",
        last,
    )
    assert main(["convert", ann, *quiet]) == 1
    assert_one_line(capfd.readouterr().err, "ann_converted, which holds a run")
    assert main(["convert", snn, *quiet]) == 1
    assert_one_line(capfd.readouterr().err, "snn, expected the folder of a run")
    start = ["--start", f"{ann}_converted"]
    line = ["train", "digits_converted", "--folder", snn, "--epochs", "1", *quiet]
    assert main([*line, *start]) == 0
    assert capfd.readouterr().out.startswith("Digits, converted: test accuracy")


def test_results_as_json_are_all_that_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    options = ["--device", "cpu", "--json", "--quiet"]

    def results(*arguments: str) -> dict[str, Any]:
        assert main([*arguments, *options]) == 0
        told = capfd.readouterr()
        assert told.err == ""
        found: dict[str, Any] = json.loads(told.out)
        return found

    trained = results("train", "digits_natural", "--epochs", "1", "--folder", run)
    (record,) = read_metrics(tmp_path / "run")
    assert (trained["folder"], trained["epochs"]) == (run, 1)
    assert trained["test_accuracy"] == record.val_accuracy
    few = ["--images", "10"]
    attacked = results("attack", run, "--attacks", "fgsm", "--no-checks", *few)
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written["attacks"]["fgsm"]["predictions"] == attacked["attacks"]["fgsm"]["predictions"]
    certified = results("certify", run, "--eps", "0.001", "1/255", *few)
    assert [c["eps"] for c in certified["certificates"]] == [0.001, 1 / 255]
    told = results("report", run, "--images", "4")
    page = tmp_path / "run" / "report.html"
    assert (told["html"], told["markdown"]) == (str(page), str(page.with_suffix(".md")))
    assert told["networks"][0]["attacked"][0]["name"] == "fgsm"
    assert any("members19" in line for line in told["networks"][0]["missing"])
    assert "<svg" in page.read_text(encoding="utf-8")


def test_several_runs_are_reported_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("")
        about = {"settings": {}, "versions": {"machine": "one"}}
        (folder / "run.json").write_text(json.dumps(about))
    assert main(["report", "a", "b", "--quiet"]) == 0
    assert (tmp_path / "runs" / "report" / "report.html").is_file()
    assert main(["report", "a", "b", "--folder", "there", "--quiet"]) == 0
    assert (tmp_path / "there" / "report.md").is_file()
    assert main(["report", "a", "--quiet"]) == 0
    assert (tmp_path / "a" / "report.html").is_file()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    need("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in COMMANDS:
        assert command in script
    assert "checkpoint-every" in script


def test_completion_without_shtab_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert_one_line(capsys.readouterr().err, "pip install 'snnkern.completion.'")


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "snnkern.cli", "info"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
        assert (process.wait(60), told) == (BROKEN_PIPE, b"")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snnkern.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_as_a_process() -> None:
    done = run("info")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"snnkern   {snnkern.__version__}\n")
    done = run("nothing")
    assert done.returncode == 2
    assert "invalid choice: 'nothing'" in done.stderr


def test_the_demo_writes_its_report(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snnkern.demo.CURVE_EPS", (0.0, 0.005, 0.1))
    monkeypatch.setattr("snnkern.demo.SAMPLES_SHOWN", 1)
    folder = tmp_path / "made" / "on the way"
    threads = torch.get_num_threads()
    try:
        assert main(["demo", "--folder", str(folder), "--epochs", "1", "--quiet"]) == 0
    finally:
        torch.set_num_threads(threads)
    told = capfd.readouterr()
    assert told.err == ""
    assert "Natural" in told.out
    assert "Robust" in told.out
    assert f"Report: {folder / 'report.html'}" in told.out
    files = {path.name for path in folder.iterdir()}
    assert {"report.html", "report.md", "study.json", "study.npz"} <= files
    study = Study.load(folder)
    assert [network.name for network in study.networks] == ["Natural", "Robust"]
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["demo", "train"])
def test_control_c_ends_with_130(command: str, tmp_path: Path) -> None:
    arguments = ["demo"] if command == "demo" else ["train", "digits_natural"]
    folder = tmp_path / "out"
    arguments += ["--epochs", "1000000", "--folder", str(folder)]
    with subprocess.Popen(
        [sys.executable, "-m", "snnkern.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stderr is not None
            told = b""
            limit = time.monotonic() + 60
            while b"train" not in told and time.monotonic() < limit:  # the bar, so it is training
                told += process.stderr.read1()  # type: ignore[attr-defined]
            process.send_signal(signal.SIGINT)
            out, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in told + rest
    assert out == b""
    if command == "demo":
        assert rest.endswith(b"snnkern: interrupted\n")
        assert not folder.exists()
    else:
        last = rest.decode().splitlines()[-1]
        told_how = re.fullmatch(
            rf"snnkern: interrupted after batch (\d+) of epoch (\d+); to go on from there: "
            rf"resume=True \(snnkern train --resume\) with folder {folder}",
            last,
        )
        assert told_how, last
        state = load_checkpoint(folder / "last.safetensors")
        assert (state["step"], state["epoch"]) == (int(told_how[1]), int(told_how[2]))


def test_train_under_torchrun(tmp_path: Path) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    train = ["train", "digits_natural", "--epochs", "2", "--device", "cpu", "--quiet"]
    folder = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "snnkern.cli", *train, "--folder", str(folder)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    about = json.loads((folder / "run.json").read_text())
    assert about["settings"]["ranks"] == 2
    assert len(load_checkpoint(folder / "last.safetensors")["ranks"]) == 2
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
