"""The loop that all training methods share."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.data import DistributedSampler
from tqdm import tqdm

from snnkern._checks import check_int, check_number
from snnkern.nn import check_stateless, evaluation_mode
from snnkern.training.chance import chance, set_chance
from snnkern.training.interrupts import interrupts_noted
from snnkern.training.method import Memory, Method, Natural
from snnkern.training.ranks import Ranks
from snnkern.training.run import EpochRecord, RunFolder, scalars

Batches = Iterable[tuple[Tensor, Tensor]]


def fit(
    model: nn.Module,
    train_loader: Batches,
    method: Method = Natural(),  # noqa: B008  frozen
    *,
    epochs: int,
    lr: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    val_loader: Batches | None = None,
    clip_norm: float | None = None,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    recipe: str | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> list[EpochRecord]:
    """Trains ``model`` in place.

    Under ``torchrun`` every process trains on its share of the batches, gradients are averaged by
    DDP, and rank 0 alone writes. Loaders then need a ``DistributedSampler``. Norm layers share
    their statistics where they say so (``NormLIF``'s ``process_group``).

    Args:
        model: images to logits; trained on the device of its parameters.
        train_loader: batches of images ``[N, ...]`` in ``[0, 1]`` and labels ``[N]``.
        method: what to train for.
        epochs: passes over the loader.
        lr: learning rate at the start, 1e-3 by default, of Adam with a cosine schedule over the
            epochs, which is what trains where no ``optimizer`` is given.
        optimizer: another one, of torch's or like them.
        scheduler: of that ``optimizer``, stepped after every epoch; None keeps its rates.
        val_loader: batches to measure the accuracy on after every epoch.
        clip_norm: the largest norm of all gradients together.
        autocast: dtype of automatic mixed precision, ``torch.float16`` (with scaled gradients) or
            ``torch.bfloat16``.
        seed: of the method's random choices. Weights, dropout and the order of the samples come
            from the generators of torch and of the loader.
        folder: of the run: ``run.json`` with settings and versions, ``metrics.jsonl`` with one line
            per epoch, ``last.safetensors`` after every epoch, and ``best.safetensors``, the epoch
            of the highest accuracy on ``val_loader``, or else in training. Ctrl-C writes a last
            checkpoint.
        recipe: a text that says how model, data and all of this came about, kept as
            ``recipe.toml``.
        resume: go on from the last checkpoint in ``folder``, if there is one. On the CPU, with as
            many threads, the run ends with the bits it would have had undisturbed.
        checkpoint_every: write the last checkpoint after so many batches too.
        tensorboard: write the metrics for TensorBoard too, to ``folder/tensorboard``.
        progress: show a progress bar.

    Returns:
        One record per epoch, of those before a resumption too.

    Raises:
        ValueError: ``epochs`` below 1, a model without parameters, a loader without a batch, a
            folder that holds another run.
        FloatingPointError: the loss, or a weight, is no longer a finite number. The last good
            checkpoint stays.
        KeyboardInterrupt: on Ctrl-C, with a message that says how to resume.
    """
    check_int("epochs", epochs, 1)
    if clip_norm is not None:
        check_number("clip_norm", clip_norm, low=0, open_low=True)
    if autocast not in (None, torch.float16, torch.bfloat16):
        raise ValueError(f"autocast is {autocast}, expected torch.float16, torch.bfloat16 or None")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"model {type(model).__name__} has no parameters, expected some to train")
    check_stateless(model)
    if folder is None:
        for name, value in {
            "recipe": recipe,
            "resume": resume,
            "checkpoint_every": checkpoint_every,
            "tensorboard": tensorboard,
        }.items():
            if value:
                raise ValueError(f"{name} is {value} and folder is None, expected a run's folder")
    if checkpoint_every is not None:
        check_int("checkpoint_every", checkpoint_every, 1)
    if optimizer is None:
        if scheduler is not None:
            raise ValueError("scheduler is given without its optimizer, expected both")
        optimizer = torch.optim.Adam(parameters, lr=1e-3 if lr is None else lr)
        scheduler = CosineAnnealingLR(optimizer, epochs)
    elif lr is not None:
        raise ValueError(f"lr is {lr} and optimizer is given, expected one: the optimizer has its")
    ranks = Ranks(parameters[0].device)
    ranks.check_loader("train_loader", train_loader)
    run = None
    if folder is not None:
        settings = {
            "method": str(method),
            "epochs": epochs,
            "batches": len(train_loader) if isinstance(train_loader, Sized) else None,
            "optimizer": type(optimizer).__name__,
            "optimizer_options": {name: str(value) for name, value in optimizer.defaults.items()},
            "scheduler": type(scheduler).__name__,
            "clip_norm": clip_norm,
            "autocast": str(autocast),
            "seed": seed,
            "ranks": ranks.count,
        }
        run = RunFolder(Path(folder), settings, recipe, ranks.rank == 0, resume)
    training = _Training(
        model, train_loader, method, optimizer, scheduler, ranks, run, clip_norm, autocast, seed
    )
    return training.train(epochs, val_loader, checkpoint_every, tensorboard, progress)


class _Training:
    """All that moves while training; a checkpoint is what it takes to stand there again."""

    def __init__(
        self,
        model: nn.Module,
        loader: Batches,
        method: Method,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None,
        ranks: Ranks,
        run: RunFolder | None,
        clip_norm: float | None,
        autocast: torch.dtype | None,
        seed: int,
    ) -> None:
        self.model = model
        self.loader = loader
        self.method = method
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.ranks = ranks
        self.run = run
        self.clip_norm = clip_norm
        self.autocast = autocast
        self.device = ranks.device
        self.memory = Memory.seeded(seed, self.device, ranks.rank, ranks.count)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=autocast == torch.float16)
        self.epoch = 0
        self.step = 0  # batches of the epoch that lie behind
        self.sums = [0.0, 0.0, 0.0]  # of the epoch: loss, classified right, samples
        self.best: float | None = None
        self.history: list[EpochRecord] = []
        self.epoch_chance: dict[str, Any] = {}  # when the epoch began
        self.restored_chance: dict[str, Any] | None = None
        self.noted = False  # Ctrl-C, in this process
        self.interrupted = False  # Ctrl-C in any, as all know since the last step
        if run is not None and run.state is not None:
            self._restore(run.state)
            self.history = run.history()
        self.advance = ranks.advance(model)

    def train(
        self,
        epochs: int,
        val_loader: Batches | None,
        checkpoint_every: int | None,
        tensorboard: bool,
        progress: bool,
    ) -> list[EpochRecord]:
        """Trains up to that many epochs."""
        if self.run is not None:
            self.run.begin()
        batches = len(self.loader) if isinstance(self.loader, Sized) else None
        with (
            interrupts_noted(self._note) if self.run is not None else nullcontext(),
            scalars(self.run if tensorboard else None, self.epoch) as write_scalars,
            tqdm(
                total=epochs * batches if batches else None,
                initial=self.epoch * batches + self.step if batches else 0,
                desc=f"train {type(self.method).__name__.lower()}",
                unit="batch",
                disable=not progress or self.ranks.rank > 0,
                delay=1,
            ) as bar,
        ):
            while self.epoch < epochs:
                start = time.perf_counter()
                for _ in self._batches(epochs, batches):
                    bar.update()
                    if checkpoint_every and self.step % checkpoint_every == 0:
                        self._save()
                record = self._end_epoch(val_loader, start)
                write_scalars(record)
                if self.run is not None and self.ranks.sum([float(self.noted)])[0] > 0:
                    self._stop()
                bar.set_postfix(loss=f"{record.loss:.3f}", accuracy=f"{record.accuracy:.1%}")
        return self.history

    def _batches(self, epochs: int, count: int | None) -> Iterator[None]:
        """Trains on the batches of the epoch that are left, of ``count``, and yields after each."""
        self.model.train()
        sampler = getattr(self.loader, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(self.epoch)
        now, self.restored_chance = self.restored_chance, None
        if now:  # the order of the samples is drawn as it was
            set_chance(self.epoch_chance, self.loader, self.memory)
        else:
            self.epoch_chance = chance(self.loader, self.memory)
        batches = iter(self.loader)
        for _ in range(self.step):
            next(batches)
        if now and self.step:
            set_chance(now, self.loader, self.memory)
        for x, y in batches:
            self.memory.progress = (self.epoch + (self.step / count if count else 0)) / epochs
            self._train_on(x.to(self.device), y.to(self.device))
            self.step += 1
            yield
            if self.interrupted:
                self._stop()
        if self.step == 0:
            raise ValueError("train_loader is empty, expected at least one batch")

    def _train_on(self, x: Tensor, y: Tensor) -> None:
        """The steps that the method makes on one batch."""
        with closing(self.method.losses(self.model, x, y, self.memory)) as losses:
            while (yielded := self._next(losses)) is not None:
                loss, logits = yielded
                right = (logits.argmax(1) == y).sum()
                self._count(loss.item() * len(y), right.item(), len(y))
                self.optimizer.zero_grad()
                self.scaler.scale(loss).backward()
                if self.clip_norm is not None:
                    self.scaler.unscale_(self.optimizer)
                    nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
                self.scaler.step(self.optimizer)
                self.scaler.update()

    def _next(self, losses: Any) -> tuple[Tensor, Tensor] | None:
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return self.advance(losses)

    def _count(self, loss: float, right: float, samples: float) -> None:
        """Adds up over all ranks, which therefore stop at the same step."""
        *counted, interrupted = self.ranks.sum([loss, right, samples, float(self.noted)])
        self.interrupted = interrupted > 0
        if not math.isfinite(counted[0]):
            self._diverged(f"the loss became {counted[0]}")
        self.sums = [before + more for before, more in zip(self.sums, counted, strict=True)]

    def _end_epoch(self, val_loader: Batches | None, start: float) -> EpochRecord:
        loss, right, samples = self.sums
        record = EpochRecord(
            self.epoch,
            loss / samples,
            right / samples,
            None if val_loader is None else self._accuracy(val_loader),
            self.optimizer.param_groups[0]["lr"],
            time.perf_counter() - start,
        )
        if self.scheduler is not None:
            self.scheduler.step()
        self.history.append(record)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, [0.0, 0.0, 0.0]
        metric = record.accuracy if record.val_accuracy is None else record.val_accuracy
        better = self.best is None or metric > self.best
        if better:
            self.best = metric
        if self.run is not None:
            self.run.append(record)
            self._save(best=better)
        return record

    def _accuracy(self, loader: Batches) -> float:
        right, samples = 0.0, 0.0
        with torch.no_grad(), evaluation_mode(self.model):
            for x, y in loader:
                predicted = self.model(x.to(self.device)).argmax(1).cpu()
                right += (predicted == y.cpu()).sum().item()
                samples += len(y)
        right, samples = self.ranks.sum([right, samples])
        if samples == 0:
            raise ValueError("val_loader is empty, expected at least one batch")
        return right / samples

    def _save(self, *, best: bool = False) -> None:
        """Writes a checkpoint, on rank 0; the others tell it their part."""
        if self.run is None:
            return
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            self._diverged("a weight is no longer finite")
        now = chance(self.loader, self.memory)
        rank = {
            "chance": now,
            "epoch_chance": self.epoch_chance if self.step else now,
            "memory": {name: tensor.cpu() for name, tensor in self.memory.tensors.items()},
        }
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "best": self.best,
            "history": [vars(record) for record in self.history],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
            "scaler": self.scaler.state_dict(),
            "ranks": self.ranks.gather(rank),
        }
        self.run.save(state, best=best)

    def _restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]
        self.sums, self.best = state["sums"], state["best"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        rank = state["ranks"][self.ranks.rank]
        self.memory.tensors = {
            name: tensor.to(self.device) for name, tensor in rank["memory"].items()
        }
        self.epoch_chance, self.restored_chance = rank["epoch_chance"], rank["chance"]

    def _note(self) -> None:
        self.noted = True

    def _stop(self) -> None:
        assert self.run is not None
        self._save()
        raise KeyboardInterrupt(
            f"interrupted after batch {self.step} of epoch {self.epoch}; to go on from there: "
            f"resume=True (snnkern train --resume) with folder {self.run.path}"
        )

    def _diverged(self, what: str) -> None:
        rates = ", ".join(f"{group['lr']:g}" for group in self.optimizer.param_groups)
        kept = ""
        if self.run is not None and self.run.last.exists():
            kept = f"; the last good checkpoint is {self.run.last}"
        raise FloatingPointError(
            f"{what} in epoch {self.epoch}; lr is {rates}, try a lower one{kept}"
        )
