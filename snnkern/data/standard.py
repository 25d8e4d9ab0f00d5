"""The data sets that torchvision reads, from the files that it keeps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnkern.data.files import check_samples, reading
from snnkern.data.images import Images, Split


def cifar10(folder: str | Path, augment: Iterable[str] = ()) -> Split[Images]:
    """CIFAR-10: 60,000 photographs, 32x32 in colour, ten classes (Krizhevsky 2009).

    Args:
        folder: where ``cifar-10-batches-py`` lies. Nothing is ever downloaded.
        augment: of the training images, see ``Images``.

    Raises:
        ImportError: torchvision is missing, or does not fit torch.
        FileNotFoundError: a file is missing.
        ValueError: a file is corrupt, or ``augment`` unknown.
    """
    return _cifar("cifar10", _datasets().CIFAR10, folder, augment)


def cifar100(folder: str | Path, augment: Iterable[str] = ()) -> Split[Images]:
    """CIFAR-100: as CIFAR-10, with 100 classes; ``folder`` is where ``cifar-100-python`` lies."""
    return _cifar("cifar100", _datasets().CIFAR100, folder, augment)


def svhn(folder: str | Path, augment: Iterable[str] = ()) -> Split[Images]:
    """SVHN: 73,257 and 26,032 house numbers, 32x32 in colour (Netzer et al. 2011).

    ``folder`` is where ``train_32x32.mat`` and ``test_32x32.mat`` lie; all else as in ``cifar10``.
    scipy reads them.
    """
    kind = _datasets().SVHN
    parts = []
    for part in ("train", "test"):
        path = Path(folder) / kind.split_list[part][1]
        with reading(path, _source(kind, folder, f"split={part!r}")):
            try:
                read = kind(folder, split=part)
            except ImportError as error:
                raise ImportError(
                    "SVHN's files are read by scipy, which is not installed: "
                    "pip install 'snnkern[data]'"
                ) from error
            images = torch.from_numpy(np.ascontiguousarray(read.data))
            parts.append(check_samples("svhn", images, torch.from_numpy(read.labels)))
    return Split(Images(*parts[0], augment), Images(*parts[1]))


def mnist(folder: str | Path, augment: Iterable[str] = ()) -> Split[Images]:
    """MNIST: 70,000 handwritten digits, 28x28 grey (LeCun et al. 1998).

    ``folder`` is where ``MNIST/raw`` lies, with the four files unpacked; all else as in
    ``cifar10``.
    """
    return _mnist("mnist", _datasets().MNIST, folder, augment)


def fashion_mnist(folder: str | Path, augment: Iterable[str] = ()) -> Split[Images]:
    """Fashion-MNIST: 70,000 pieces of clothing, 28x28 grey, ten classes (Xiao et al. 2017).

    ``folder`` is where ``FashionMNIST/raw`` lies; all else as in ``mnist``.
    """
    return _mnist("fashion_mnist", _datasets().FashionMNIST, folder, augment)


def _datasets() -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError(
            "this data set is read by torchvision, which is not installed: "
            "pip install 'snnkern[data]'"
        ) from error
    except RuntimeError as error:  # "operator torchvision::nms does not exist"
        raise ImportError(
            f"torchvision was built for another torch than {torch.__version__}, which is installed "
            f"({error}): install them from the same index"
        ) from error
    return datasets


def _source(kind: Any, folder: str | Path, *options: str) -> str:
    arguments = ", ".join([repr(str(folder)), *options, "download=True"])
    return f"torchvision.datasets.{kind.__name__}({arguments}) downloads it."


def _cifar(name: str, kind: Any, folder: str | Path, augment: Iterable[str]) -> Split[Images]:
    from torchvision.datasets.utils import check_integrity

    base = Path(folder) / kind.base_folder
    # torchvision checks all of them as well, and does not say which one is wrong.
    for file, md5 in [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]:
        with reading(base / file, _source(kind, folder)):
            if not check_integrity(base / file, md5):
                raise ValueError(f"its MD5 checksum is not {md5}")
    parts = []
    for train in (True, False):
        with reading(base, _source(kind, folder)):
            read = kind(folder, train=train)
            images = torch.from_numpy(read.data).permute(0, 3, 1, 2).contiguous()
            parts.append(check_samples(name, images, torch.tensor(read.targets)))
    return Split(Images(*parts[0], augment), Images(*parts[1]))


def _mnist(name: str, kind: Any, folder: str | Path, augment: Iterable[str]) -> Split[Images]:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    raw = Path(folder) / kind.__name__ / "raw"

    def read(file: str, reader: Any) -> Tensor:
        with reading(raw / file, _source(kind, folder)):
            tensor: Tensor = reader(raw / file)
        return tensor

    parts = []
    for part in ("train", "t10k"):
        images = read(f"{part}-images-idx3-ubyte", read_image_file).unsqueeze(1)
        labels = read(f"{part}-labels-idx1-ubyte", read_label_file)
        with reading(raw / f"{part}-labels-idx1-ubyte", _source(kind, folder)):
            parts.append(check_samples(name, images, labels))
    return Split(Images(*parts[0], augment), Images(*parts[1]))
