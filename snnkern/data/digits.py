"""The handwritten digits that ship with scikit-learn: real images, no download."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from snnkern._checks import check_int
from snnkern.data.images import Images, Split


def digits(test_share: float = 0.2, seed: int = 0) -> Split[TensorDataset]:
    """1,797 handwritten digits, 8x8 grey, ten classes (Alpaydin & Kaynak 1998).

    Args:
        test_share: share of images kept for testing, the same share of every class.
        seed: of the split.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: ``test_share`` is not between 0 and 1.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share is {test_share!r}, expected a number between 0 and 1")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "the digits ship with scikit-learn, which is not installed: pip install 'snnkern[demo]'"
        ) from error
    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(raw.target, dtype=torch.int64)
    train, test = train_test_split(
        range(len(labels)), test_size=test_share, random_state=seed, stratify=raw.target
    )
    return Split(
        TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])
    )


def enlarged_digits(
    shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    *,
    test_share: float = 0.2,
    seed: int = 0,
    augment: Iterable[str] = (),
) -> Split[Images]:
    """The handwritten digits at the size of other images: real ones for their networks to try.

    Args:
        shape: of an image, ``[C, H, W]``: enlarged bilinearly, the same in all channels; of frames
            ``[T, C, H, W]``, whose pixels are then drawn to be 0 or 1, 1 at the rate of the image.
        classes: how many the network tells apart, at least ten; the others have no images.
        test_share: see ``digits``.
        seed: see ``digits``; of frames too.
        augment: of the training images, see ``Images``.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: an option out of range.
    """
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ValueError(f"shape is {list(shape)}, expected [C, H, W] or [T, C, H, W]")
    check_int("classes", classes, 10)
    generator = torch.Generator().manual_seed(seed)

    def images(small: TensorDataset, augment: Iterable[str]) -> Images:
        x, labels = small.tensors
        large = F.interpolate(x, tuple(shape[-2:]), mode="bilinear").expand(-1, shape[-3], -1, -1)
        if len(shape) == 4:
            draws = torch.rand(len(x), *shape, generator=generator)
            return Images((draws < large[:, None]).byte(), labels, augment, white=1)
        return Images((large * 255).round().byte(), labels, augment)

    train, test = digits(test_share, seed)
    return Split(images(train, augment), images(test, ()))
