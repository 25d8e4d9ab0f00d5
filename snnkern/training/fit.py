"""The loop that all training methods share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sized
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from snnkern._checks import check_int
from snnkern.training.method import Method, Natural


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: its number from 0, the mean loss, the share classified right while training."""

    epoch: int
    loss: float
    accuracy: float


def fit(
    model: nn.Module,
    train_loader: Iterable[tuple[Tensor, Tensor]],
    method: Method = Natural(),  # noqa: B008  frozen
    *,
    epochs: int,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: bool = True,
) -> list[EpochRecord]:
    """Trains ``model`` in place by Adam with a cosine schedule over the epochs.

    Args:
        model: images to logits; trained on the device of its parameters.
        train_loader: batches of images ``[N, ...]`` in ``[0, 1]`` and labels ``[N]``.
        method: what to train for.
        epochs: passes over the loader.
        lr: learning rate at the start.
        weight_decay: of the optimiser.
        seed: of the method's random choices.
        progress: show a progress bar.

    Returns:
        One record per epoch.

    Raises:
        ValueError: ``epochs`` below 1, or a loader without a batch.
        FloatingPointError: the loss is no longer a finite number.
    """
    check_int("epochs", epochs, 1)
    parameters = list(model.parameters())
    device = parameters[0].device
    generator = torch.Generator(device).manual_seed(seed)
    optimiser = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    history = []
    total = epochs * len(train_loader) if isinstance(train_loader, Sized) else None
    label = type(method).__name__.lower()
    with tqdm(
        total=total, desc=f"train {label}", unit="batch", disable=not progress, delay=1
    ) as bar:
        for epoch in range(epochs):
            model.train()
            loss_sum, right, count = 0.0, 0, 0
            for x, y in train_loader:
                x, y = x.to(device), y.to(device)  # noqa: PLW2901  the batch, where the model is
                loss, logits = method.loss(model, x, y, generator)
                value = loss.item()
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"the loss became {value} in epoch {epoch}; lr is {lr}, try a lower one"
                    )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                method.after_step(model, generator)
                loss_sum += value * len(y)
                right += int((logits.argmax(1) == y).sum().item())
                count += len(y)
                bar.update()
            if count == 0:
                raise ValueError("train_loader is empty, expected at least one batch")
            schedule.step()
            history.append(EpochRecord(epoch, loss_sum / count, right / count))
            bar.set_postfix(loss=f"{loss_sum / count:.3f}", accuracy=f"{right / count:.1%}")
    return history
