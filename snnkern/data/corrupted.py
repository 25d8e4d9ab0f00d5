"""CIFAR-10-C and CIFAR-100-C: the test images under common corruptions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from snnkern._checks import check_int
from snnkern.data.files import check_samples, reading
from snnkern.data.images import Images

SOURCE = "CIFAR-10-C and CIFAR-100-C are records 2535967 and 3555552 of Zenodo, unpacked."


def cifar10_c(folder: str | Path, corruption: str, severity: int) -> Images:
    """The test images of CIFAR-10 under one corruption (Hendrycks & Dietterich 2019).

    Args:
        folder: where ``CIFAR-10-C`` lies, with a file of 50,000 images for each corruption and
            ``labels.npy``. Nothing is ever downloaded.
        corruption: such as ``gaussian_noise`` or ``fog``.
        severity: 1 to 5.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is corrupt, or ``severity`` out of range.
    """
    return _corrupted("cifar10", Path(folder) / "CIFAR-10-C", corruption, severity)


def cifar100_c(folder: str | Path, corruption: str, severity: int) -> Images:
    """The same of CIFAR-100, in ``CIFAR-100-C``."""
    return _corrupted("cifar100", Path(folder) / "CIFAR-100-C", corruption, severity)


def _corrupted(name: str, root: Path, corruption: str, severity: int) -> Images:
    check_int("severity", severity, 1)
    if severity > 5:
        raise ValueError(f"severity is {severity}, expected 1 to 5")
    there = ", ".join(sorted(path.stem for path in root.glob("*.npy") if path.stem != "labels"))
    path = root / f"{corruption}.npy"
    with reading(root / "labels.npy", SOURCE):
        labels = np.load(root / "labels.npy")
    with reading(path, f"There are {there or 'none'}. {SOURCE}"):
        images = np.load(path, mmap_mode="r")
        if len(images) != len(labels) or len(labels) % 5:
            raise ValueError(
                f"{len(images)} images for {len(labels)} labels, expected one each, in five parts"
            )
        of_severity = slice((severity - 1) * len(labels) // 5, severity * len(labels) // 5)
        chosen = torch.tensor(images[of_severity]).permute(0, 3, 1, 2).contiguous()
        return Images(*check_samples(name, chosen, torch.tensor(labels[of_severity])))
