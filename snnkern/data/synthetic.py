"""Generated images, for speed and for trying out what real data would take too long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from snnkern._checks import check_int
from snnkern.data.images import Images, Split


def synthetic(
    shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    *,
    train: int = 512,
    test: int = 128,
    seed: int = 0,
    augment: Iterable[str] = (),
) -> Split[Images]:
    """Images that are half noise and half a blurred pattern of their class.

    Args:
        shape: of an image, ``[C, H, W]``; of frames ``[T, C, H, W]``, whose pixels are then drawn
            to be 0 or 1.
        classes: how many there are; the images have them in turn.
        train: how many images to train on.
        test: how many to test with.
        seed: of all of it.
        augment: of the training images, see ``Images``.

    Raises:
        ValueError: an option out of range.
    """
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ValueError(f"shape is {list(shape)}, expected [C, H, W] or [T, C, H, W]")
    for name, value in {"classes": classes, "train": train, "test": test}.items():
        check_int(name, value, 1)
    generator = torch.Generator().manual_seed(seed)
    *rest, height, width = shape
    coarse = torch.rand(classes, rest[-1], 4, 4, generator=generator)
    patterns = F.interpolate(coarse, (height, width), mode="bilinear")
    if len(shape) == 4:
        patterns = patterns.unsqueeze(1)

    def images(labels: Tensor) -> Tensor:
        noise = torch.rand(len(labels), *shape, generator=generator)
        if len(shape) == 4:
            return (noise < patterns[labels]).byte()
        return ((noise + patterns[labels]) * 127.5).byte()

    def samples(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % classes
        return torch.cat([images(part) for part in labels.split(256)]), labels

    white = 1 if len(shape) == 4 else 255
    first, second = samples(train), samples(test)
    return Split(Images(*first, augment, white=white), Images(*second, white=white))
