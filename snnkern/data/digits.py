"""The handwritten digits that ship with scikit-learn: real images, no download."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from snnkern.data.images import Split


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
