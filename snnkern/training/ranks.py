"""The processes of a distributed training; one process is the simplest of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from snnkern.training.method import Losses


def usable_device(device: str | None) -> torch.device:
    """That device; None: the GPU of this process, where there is one.

    Raises:
        ValueError: torch does not know it, or has none.
    """
    if device is None:
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        device = gpu if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device is {device!r}, expected one that torch can use: {why}") from error


class Ranks:
    """This process among those that train together.

    Under ``torchrun`` the process group is made here, unless the caller made one.

    Args:
        device: where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        available = distributed.is_available()
        if (
            available
            and distributed.is_torchelastic_launched()
            and not distributed.is_initialized()
        ):
            if device.type == "cuda":
                torch.cuda.set_device(device)  # where nccl puts what it gathers
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        together = available and distributed.is_initialized()
        self.device = device
        self.rank = distributed.get_rank() if together else 0
        self.count = distributed.get_world_size() if together else 1

    def check_loader(self, name: str, loader: Iterable[Any]) -> None:
        """Raises where all ranks would train on the same samples."""
        if self.count == 1 or not isinstance(loader, DataLoader):
            return
        if not isinstance(loader.sampler, DistributedSampler):
            raise ValueError(
                f"{name} has sampler={type(loader.sampler).__name__} on {self.count} ranks, "
                "expected a torch.utils.data.DistributedSampler, which gives each its share"
            )

    def sum(self, values: list[float]) -> list[float]:
        """The sums over all ranks."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return list(total.tolist())

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on all ranks."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def advance(self, model: nn.Module) -> Callable[[Losses], tuple[Tensor, Tensor] | None]:
        """What runs a method up to its next loss, or gives None at its end.

        On several ranks by way of DDP, so that the gradients of that loss are those of all ranks'
        samples. The method itself sees ``model``, not what wraps it.
        """
        step = _Advance(model)
        if self.count == 1:
            return step
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(step, device_ids=devices)


class _Advance(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, losses: Losses) -> tuple[Tensor, Tensor] | None:
        return next(losses, None)
