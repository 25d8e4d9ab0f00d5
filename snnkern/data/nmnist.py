"""N-MNIST from its own files of events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snnkern._checks import check_int
from snnkern.data.events import mark
from snnkern.data.files import check_samples, reading
from snnkern.data.images import FORMATS, Images, Split

SOURCE = "N-MNIST is garrickorchard.com/datasets/n-mnist, unpacked."


def nmnist(folder: str | Path, milliseconds: int = 20, first: int = 5) -> Split[Images]:
    """N-MNIST: 70,000 handwritten digits seen by an event camera (Orchard et al. 2015).

    A sample is ten frames ``[T, 2, 34, 34]``; a pixel of one is 1 where there was an event of that
    polarity (0 darker, 1 brighter) in the frame's time, however many. Liang et al. 2022 use frames
    5 to 14 of at least 15 and do not say how long one is: 15 of 20 ms fill the 300 ms of a
    recording.

    Args:
        folder: where ``NMNIST`` lies, with ``Train/<digit>/*.bin`` and ``Test``. Nothing is ever
            downloaded. Files have five bytes per event: x, y, and from the highest bit on one of
            polarity and 23 of the time in microseconds.
        milliseconds: of a frame.
        first: the first frame, counted from 0.

    Raises:
        FileNotFoundError: a folder is missing, or empty.
        ValueError: a file is corrupt.
    """
    check_int("milliseconds", milliseconds, 1)
    check_int("first", first, 0)
    root = Path(folder) / "NMNIST"
    train, test = (_read(root / part, milliseconds * 1000, first) for part in ("Train", "Test"))
    return Split(Images(*train, white=1), Images(*test, white=1))


def _read(root: Path, microseconds: int, first: int) -> tuple[Tensor, Tensor]:
    shape, classes = FORMATS["nmnist"]
    files: list[tuple[Path, int]] = []
    for digit in range(classes):
        found = sorted((root / str(digit)).glob("*.bin"))
        if not found:
            raise FileNotFoundError(f"{root / str(digit)} is missing or has no files. {SOURCE}")
        files += [(file, digit) for file in found]
    frames = np.zeros((len(files), *shape), dtype=np.uint8)
    for (path, _), sample in zip(files, frames, strict=True):
        with reading(path, SOURCE):
            x, y, *rest = np.fromfile(path, dtype=np.uint8).reshape(-1, 5).T.astype(np.int64)
            events = np.empty(len(x), dtype=[(name, np.int64) for name in "xytp"])
            events["x"], events["y"], events["p"] = x, y, rest[0] >> 7
            events["t"] = (rest[0] & 127) << 16 | rest[1] << 8 | rest[2]
            mark(sample, events, microseconds, first)
    labels = torch.tensor([digit for _, digit in files])
    return check_samples("nmnist", torch.from_numpy(frames), labels)
