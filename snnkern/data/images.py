"""Images in memory as bytes, whole batches of them converted and augmented at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from snnkern.data.augment import augmentations

Samples = Dataset[tuple[Tensor, ...]]
D = TypeVar("D", bound=Samples)


class Split(NamedTuple, Generic[D]):
    """Samples to train on and to test with: ``[C, H, W]`` in ``[0, 1]`` and a label each."""

    train: D
    test: D


class Format(NamedTuple):
    """What the samples of a data set look like."""

    shape: tuple[int, ...]
    classes: int


FORMATS = {
    "digits": Format((1, 8, 8), 10),
    "mnist": Format((1, 28, 28), 10),
    "fashion_mnist": Format((1, 28, 28), 10),
    "cifar10": Format((3, 32, 32), 10),
    "cifar100": Format((3, 32, 32), 100),
    "svhn": Format((3, 32, 32), 10),
    "tiny_imagenet": Format((3, 64, 64), 200),
    "nmnist": Format((10, 2, 34, 34), 10),
}


class Images(Dataset[tuple[Tensor, ...]]):
    """Images held as bytes, a quarter of their size as floats.

    A ``DataLoader`` asks for whole batches; worker processes gain nothing. Augmentation draws from
    torch's global generator.

    Args:
        images: ``[N, C, H, W]``, or frames of events ``[N, T, C, H, W]``, uint8.
        labels: ``[N]``, int64.
        augment: what is done to each sample anew whenever it is asked for, in this order, of
            ``crop``, ``crop_reflect``, ``resized_crop``, ``flip`` and ``cutout``
            (``snnkern.data.augment``).
        white: the byte that becomes 1.

    Raises:
        ValueError: other dtypes, as many labels as images are not there, an unknown augmentation.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, augment: Iterable[str] = (), *, white: int = 255
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() < 2:
            raise ValueError(
                f"images is {images.dtype} {list(images.shape)}, expected uint8 [N, C, H, W]"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels is {labels.dtype} {list(labels.shape)}, expected int64 [{len(images)}], "
                "one per image"
            )
        self.images = images
        self.labels = labels
        self.white = white
        self.augment = augmentations(augment, images)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice) -> tuple[Tensor, Tensor]:
        """One sample, or those of a slice as a batch."""
        if isinstance(index, slice):
            return self._batch(index)
        images, labels = self._batch([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """The samples of a batch, for a ``DataLoader``, which stacks them."""
        return list(zip(*self._batch(indices), strict=True))

    def _batch(self, index: slice | list[int]) -> tuple[Tensor, Tensor]:
        images = self.images[index].float().div_(self.white)
        for change in self.augment:
            images = change(images)
        return images, self.labels[index]


def loader(
    dataset: Samples, batch_size: int = 64, *, shuffle: bool = False, seed: int = 0
) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of a dataset; a shuffled order repeats with the seed."""
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size, shuffle=shuffle, generator=generator)
