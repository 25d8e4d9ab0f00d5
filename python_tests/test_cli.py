from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import snnkern
from snnkern.cli import main
from snnkern.report import Study

COMMANDS = ("demo", "info")


def leave(*arguments: str) -> int:
    """The exit code of argparse."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_says_what_it_does_with_one_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave(*filter(None, [command]), "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    examples = re.findall(r"example: snnkern (\w+)", text)
    assert examples == [command or "demo"]
    assert len(re.findall(r"[.]( |$)", text)) >= 1
    if not command:
        for name in COMMANDS:
            assert f" {name} " in text


def test_the_examples_of_the_help_are_accepted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr("snnkern.demo.demo", lambda *options: called.append(options))
    for command in COMMANDS:
        leave(command, "--help")
        example = re.search(r"example: snnkern (.*)", capsys.readouterr().out)
        assert example is not None
        assert main(example[1].split()) == 0
    assert called == [(Path("runs/demo"), 0, 40, True)]


def test_options_reach_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = []
    monkeypatch.setattr("snnkern.demo.demo", lambda *options: called.append(options))
    arguments = ["demo", "--folder", str(tmp_path), "--seed", "3", "--epochs", "2", "--quiet"]
    assert main(arguments) == 0
    assert called == [(tmp_path, 3, 2, False)]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--version") == 0
    assert capsys.readouterr().out == f"snnkern {snnkern.__version__}\n"


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr() == (snnkern.info() + "\n", "")


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


def test_control_c_ends_with_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "snnkern.cli", "demo", "--epochs", "1000000"]
    with subprocess.Popen(
        [*command, "--folder", str(tmp_path / "out")],
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
    assert rest.endswith(b"snnkern: interrupted\n")
    assert b"Traceback" not in told + rest
    assert out == b""
    assert not (tmp_path / "out").exists()
