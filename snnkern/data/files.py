"""What all readers of data files check, and say when a file is not as it should be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from snnkern.data.images import FORMATS


@contextmanager
def reading(path: Path, source: str) -> Iterator[None]:
    """Names the file in whatever goes wrong within the block, which reads it.

    Args:
        path: a file or folder.
        source: a sentence that says where it comes from.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is corrupt or truncated.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing. {source}")
    try:
        yield
    except (FileNotFoundError, ImportError, MemoryError):
        raise
    except Exception as error:
        why = str(error) or type(error).__name__
        raise ValueError(f"{path} is corrupt or truncated: {why}") from error


def check_samples(name: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What was read, or an error where it is not what data set ``name`` consists of.

    Args:
        name: of the data set, in ``FORMATS``.
        images: uint8 ``[N, *shape]``.
        labels: ``[N]``, of any integer type.

    Raises:
        ValueError: other shapes, none at all, or labels beyond the classes.
    """
    shape, classes = FORMATS[name]
    if images.dtype != torch.uint8 or images.shape[1:] != shape or len(images) == 0:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}, expected uint8 [N, "
            f"{', '.join(map(str, shape))}]"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{labels.numel()} labels for {len(images)} images, expected one each")
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise ValueError(f"labels are from {low} to {high}, expected 0 to {classes - 1}")
    return images, labels.long()
