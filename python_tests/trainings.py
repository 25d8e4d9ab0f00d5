"""Trainings for tests to run as processes of their own, to be killed, resumed and distributed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import sklearn.model_selection
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from python_tests.helpers import leave
from python_tests.networks import tiny_net
from snnkern.attacks import BIM
from snnkern.data import digits
from snnkern.models import SpikingNetwork, fc_net
from snnkern.nn import NormLIF, TimeDistributed
from snnkern.training import (
    HIRE,
    RAT,
    TRADES,
    EpochRecord,
    Method,
    Natural,
    RobustFinetune,
    fit,
    save_checkpoint,
)

# What would be imported at first use: processes forked from one that has it start at once.
IMPORTED = (sklearn.datasets, sklearn.model_selection, torch._dynamo)

METHODS: dict[str, Method] = {
    "natural": Natural(),
    "rat": RAT(eps=0.05, beta=1e-3, wide=16, share=0.5),
    "hire": HIRE(0.02, 0.03),
    "finetune": RobustFinetune(0.05),
    "trades": TRADES(beta=2.0, attack=BIM(0.05, steps=2)),
}


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Augments by all three global generators."""

    def __init__(self, data: TensorDataset, size: int) -> None:
        self.data, self.size = data, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.data[index]
        noise = random.random() * torch.rand_like(x) * float(np.random.rand())  # noqa: NPY002
        return (x + 0.1 * noise).clamp(0, 1), y


def network() -> SpikingNetwork:
    """Batch norm, dropout, learnt leaks: all that a checkpoint could forget."""
    torch.manual_seed(0)
    model = fc_net(
        timesteps=4, input_shape=(1, 8, 8), hidden=(24,), leak=0.9, threshold=0.5, learn_leak=True
    )
    layers = list(model.layers.children())
    layers.insert(1, TimeDistributed(nn.BatchNorm1d(64)))
    layers.insert(-1, nn.Dropout(0.2))
    model.layers = nn.Sequential(*layers)
    return model


def plain_network() -> SpikingNetwork:
    """Neither norm nor chance."""
    torch.manual_seed(1)
    return fc_net(timesteps=4, input_shape=(1, 8, 8), hidden=(24,), leak=0.5, threshold=0.5)


def shared_norm_network() -> SpikingNetwork:
    """Without chance, and with statistics over all ranks."""
    model = tiny_net(4, seed=1, classes=10)
    torch.manual_seed(1)
    model.layers = nn.Sequential(
        TimeDistributed(nn.Conv2d(1, 4, 3, padding=1)),
        NormLIF(4, leak=0.5, threshold=0.5, process_group="world"),
        TimeDistributed(nn.Sequential(nn.AvgPool2d(2), nn.Flatten())),
        TimeDistributed(nn.Linear(64, 10)),
    )
    return model


def held_out() -> list[tuple[Tensor, Tensor]]:
    """All test images at once."""
    images, labels = digits().test.tensors
    return [(images, labels)]


def single(
    method: str, folder: Path | None = None, workers: int = 0, every: int | None = None
) -> nn.Module:
    """One process, with a loader that draws from its own generator."""
    model = network()
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    loader = DataLoader(
        Noisy(digits().train, 320),
        32,
        shuffle=True,
        num_workers=workers,
        generator=torch.Generator().manual_seed(5),
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 3)
    fit(
        model,
        loader,
        METHODS[method],
        epochs=3,
        optimizer=sgd,
        scheduler=schedule,
        val_loader=held_out(),
        clip_norm=5.0,
        seed=2,
        folder=folder,
        resume=folder is not None,
        checkpoint_every=every,
        progress=False,
    )
    return model


class EpochOrder:
    """Batches of one process that are those of all ranks together, epoch by epoch."""

    def __init__(self, train: TensorDataset, ranks: int, batch: int) -> None:
        self.train, self.batch, self.epoch = train, batch, 0
        self.samplers: list[DistributedSampler[Any]] = [
            DistributedSampler(train, ranks, rank, shuffle=True, seed=3) for rank in range(ranks)
        ]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for sampler in self.samplers:
            sampler.set_epoch(self.epoch)
        orders = [list(sampler) for sampler in self.samplers]
        self.epoch += 1
        share = self.batch // len(orders)
        for start in range(0, len(orders[0]), share):
            picked = [index for order in orders for index in order[start : start + share]]
            x, y = self.train[picked]
            yield x, y


def shared(
    method: str, folder: Path, batch: int, ranks: int = 0, every: int | None = None
) -> tuple[nn.Module, list[EpochRecord]]:
    """Without chance: two processes get the weights of one.

    ``ranks``: one process takes the batches of so many; 0: a share of them in each of the group.
    """
    model = plain_network() if method in ("rat", "hire") else shared_norm_network()
    train = TensorDataset(*(tensor[:320] for tensor in digits().train.tensors))
    loader: Any
    if ranks:
        loader = EpochOrder(train, ranks, batch)
    else:
        count = torch.distributed.get_world_size()
        sampler: DistributedSampler[Any] = DistributedSampler(train, shuffle=True, seed=3)
        loader = DataLoader(train, batch // count, sampler=sampler)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    history = fit(
        model,
        loader,
        METHODS[method],
        epochs=2,
        optimizer=sgd,
        val_loader=held_out(),
        folder=folder,
        resume=True,
        checkpoint_every=every,
        progress=False,
    )
    return model, history


def rank(method: str, folder: Path, batch: int, rank: int, every: int | None = None) -> None:
    """One of two processes of a distributed training; leaves its weights beside the run's."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}{every}"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2)
    try:
        model, _ = shared(method, folder / "run", batch, every=every)
        save_checkpoint(folder / f"rank{rank}.safetensors", {"model": model.state_dict()})
        leave()
    finally:
        torch.distributed.destroy_process_group()


def life(method: str, folder: Path) -> None:
    """One process of a training that is killed again and again."""
    torch.set_num_threads(1)
    model = single(method, folder, every=3)
    save_checkpoint(folder / "done.safetensors", {"model": model.state_dict()})
