"""The folder of a run: its settings, metrics line by line, the last and the best checkpoint."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snnkern._files import write_atomically
from snnkern._info import machine
from snnkern._version import __version__
from snnkern.training.checkpoint import load_checkpoint, save_checkpoint


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
    """``run.json``, ``recipe.toml``, ``metrics.jsonl``, and the last and the best checkpoint.

    Only the process that ``writes`` changes anything; the others read.

    Args:
        path: made where it does not exist.
        settings: what makes a run this one. A run is resumed with those that it began with.
        recipe: likewise, kept as ``recipe.toml``.
        writes: whether this process does.
        resume: go on from the last checkpoint, where there is one.

    Raises:
        ValueError: there is a run already and ``resume`` is not asked for, or its settings were
            others.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        recipe: str | None,
        writes: bool,
        resume: bool,
    ) -> None:
        self.path = path
        self.settings = settings
        self.recipe = recipe
        self.writes = writes
        self.last = path / "last.safetensors"
        self.best = path / "best.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.state: dict[str, Any] | None = None
        if self.last.exists():
            if not resume:
                check_free(path)
            self.state = load_checkpoint(self.last)
            self._check_settings(self.state["settings"])
            kept = path / "recipe.toml"
            if recipe is not None and kept.exists() and kept.read_text(encoding="utf-8") != recipe:
                raise ValueError(f"recipe is not {kept}, expected the one that the run began with")

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
        about = {"settings": self.settings, "versions": versions}
        self._write("run.json", json.dumps(about, indent=1) + "\n")
        if self.recipe is not None:
            self._write("recipe.toml", self.recipe)
        # A process that was killed between a line and its checkpoint left one too many.
        self._write(self.metrics.name, "".join(map(_line, self.history())))

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

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.path / name, text.encode())

    def _check_settings(self, begun: dict[str, Any]) -> None:
        for name, value in self.settings.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"{name} is {value!r}, expected {begun.get(name)!r}, with which the run in "
                    f"{self.path} began"
                )


def check_free(folder: Path) -> None:
    """Raises where a folder holds a run."""
    if (folder / "last.safetensors").exists():
        raise ValueError(
            f"folder is {folder}, which holds a run: resume=True (snnkern train --resume) goes on "
            "with it, another folder starts a new one"
        )


def _line(record: EpochRecord) -> str:
    return json.dumps(asdict(record)) + "\n"


def read_metrics(folder: Path) -> list[EpochRecord]:
    """The epochs of a run, from its ``metrics.jsonl``.

    Raises:
        ValueError: the file is corrupt.
    """
    path = folder / "metrics.jsonl"
    try:
        lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
        return [EpochRecord(**json.loads(line)) for line in lines]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is corrupt or truncated: {error}") from error


@contextmanager
def scalars(run: RunFolder | None, epoch: int) -> Iterator[Callable[[EpochRecord], None]]:
    """What writes the metrics of an epoch for TensorBoard, or nothing without a run."""
    if run is None or not run.writes:
        yield lambda record: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard is True, and it is not installed: pip install 'snnkern[tensorboard]'"
        ) from error
    with SummaryWriter(run.path / "tensorboard", purge_step=epoch) as writer:

        def write(record: EpochRecord) -> None:
            for name in ("loss", "accuracy", "val_accuracy", "lr"):
                value = getattr(record, name)
                if value is not None:
                    writer.add_scalar(name, value, record.epoch)

        yield write
