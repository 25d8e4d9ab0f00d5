"""The folder of a run: its settings, metrics line by line, the last and the best checkpoint."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snnkern._info import machine
from snnkern._version import __version__
from snnkern.training.checkpoint import load_checkpoint, save_checkpoint, write_atomically


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Args:
        epoch: its number, from 0.
        loss: the mean over the samples while training.
        accuracy: the share classified right while training.
        val_accuracy: the share of the validation samples classified right after it.
        lr: the learning rate of the optimiser's first group.
        seconds: how long it took, in this process.
    """

    epoch: int
    loss: float
    accuracy: float
    val_accuracy: float | None = None
    lr: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)


class RunFolder:
    """``run.json``, ``metrics.jsonl``, ``last.safetensors`` and ``best.safetensors``.

    Only the process that ``writes`` changes anything; the others read.

    Args:
        path: made where it does not exist.
        settings: what makes a run this one. A run is resumed with those that it began with.
        writes: whether this process does.
        resume: go on from the last checkpoint, where there is one.

    Raises:
        ValueError: there is a run already and ``resume`` is not asked for, or its settings were
            others.
    """

    def __init__(self, path: Path, settings: dict[str, Any], writes: bool, resume: bool) -> None:
        self.path = path
        self.settings = settings
        self.writes = writes
        self.last = path / "last.safetensors"
        self.best = path / "best.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.state: dict[str, Any] | None = None
        if self.last.exists():
            if not resume:
                raise ValueError(
                    f"folder is {path}, which holds a run: resume=True (snnkern train --resume) "
                    "goes on with it, another folder starts a new one"
                )
            self.state = load_checkpoint(self.last)
            self._check_settings(self.state["settings"])

    def begin(self) -> None:
        """Writes down what runs here, and makes the metrics those of the checkpoint."""
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        versions = {
            "snnkern": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": machine(),
            "threads": torch.get_num_threads(),
        }
        text = json.dumps({"settings": self.settings, "versions": versions}, indent=1) + "\n"
        write_atomically(self.path / "run.json", lambda file: _write(file, text))
        # A process that was killed between a line and its checkpoint left one too many, or few.
        lines = "".join(map(_line, self.history()))
        write_atomically(self.metrics, lambda file: _write(file, lines))

    def history(self) -> list[EpochRecord]:
        """The epochs of the checkpoint that the run goes on from."""
        return [EpochRecord(**record) for record in self.state["history"]] if self.state else []

    def append(self, record: EpochRecord) -> None:
        """Adds a line to the metrics."""
        if self.writes:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())

    def save(self, state: dict[str, Any], *, best: bool) -> None:
        """Writes the last checkpoint, and before it the best, where it is that."""
        if self.writes:
            state = {"settings": self.settings} | state
            for path in [self.best, self.last] if best else [self.last]:
                save_checkpoint(path, state)

    def _check_settings(self, begun: dict[str, Any]) -> None:
        for name, value in self.settings.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"{name} is {value!r}, expected {begun.get(name)!r}, with which the run in "
                    f"{self.path} began"
                )


def _line(record: EpochRecord) -> str:
    return json.dumps(asdict(record)) + "\n"


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def read_metrics(folder: Path) -> list[EpochRecord]:
    """The epochs of a run, from its ``metrics.jsonl``."""
    lines: Iterable[str] = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [EpochRecord(**json.loads(line)) for line in lines]
