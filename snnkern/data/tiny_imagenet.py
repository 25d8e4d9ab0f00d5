"""TinyImageNet from its folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snnkern.data.files import check_samples, reading
from snnkern.data.images import FORMATS, Images, Split

SOURCE = "TinyImageNet is cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked."


def tiny_imagenet(folder: str | Path, augment: Iterable[str] = ()) -> Split[Images]:
    """TinyImageNet: 110,000 photographs, 64x64 in colour, 200 classes (Le & Yang 2015).

    To train on: ``train/<wnid>/images/*.JPEG``; to test with: ``val/images/*.JPEG``, labelled by
    ``val/val_annotations.txt``. Classes have the order of their sorted wnids. All images are held
    in memory, 1.3 GB.

    Args:
        folder: where ``tiny-imagenet-200`` lies. Nothing is ever downloaded.
        augment: of the training images, see ``Images``.

    Raises:
        ImportError: Pillow is missing.
        FileNotFoundError: a file is missing.
        ValueError: a file is corrupt, or ``augment`` unknown.
    """
    root = Path(folder) / "tiny-imagenet-200"
    with reading(root / "wnids.txt", SOURCE):
        wnids = sorted((root / "wnids.txt").read_text(encoding="ascii").split())
    train: list[tuple[Path, int]] = []
    for label, wnid in enumerate(wnids):
        images = root / "train" / wnid / "images"
        files = sorted(images.glob("*.JPEG"))
        if not files:
            raise FileNotFoundError(f"{images} is missing or has no images. {SOURCE}")
        train += [(file, label) for file in files]
    annotations = root / "val" / "val_annotations.txt"
    with reading(annotations, SOURCE):
        lines = annotations.read_text(encoding="ascii").splitlines()
        named = [line.split("\t")[:2] for line in lines]
        test = [(root / "val" / "images" / name, wnids.index(wnid)) for name, wnid in named]
    return Split(Images(*_read(train), augment), Images(*_read(test)))


def _read(files: Sequence[tuple[Path, int]]) -> tuple[Tensor, Tensor]:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "TinyImageNet is read by Pillow, which is not installed: pip install 'snnkern[data]'"
        ) from error
    channels, height, width = FORMATS["tiny_imagenet"].shape
    images = np.empty((len(files), channels, height, width), dtype=np.uint8)

    def read(index: int) -> None:
        path, _ = files[index]
        with reading(path, SOURCE), Image.open(path) as image:
            if image.size != (width, height):
                raise ValueError(f"it has {image.size} pixels, expected {(width, height)}")
            images[index] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)

    with ThreadPoolExecutor() as threads:
        for _ in threads.map(read, range(len(files))):
            pass  # an error of any thread is raised here
    labels = torch.tensor([label for _, label in files])
    return check_samples("tiny_imagenet", torch.from_numpy(images), labels)
