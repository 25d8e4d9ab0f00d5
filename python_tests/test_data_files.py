"""Data sets from small files in their own formats."""

from __future__ import annotations

import hashlib
import pickle
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from snnkern import data, models
from snnkern.data import Images, Split

Bytes = NDArray[np.uint8]


def pixels(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def whole(images: Images) -> tuple[torch.Tensor, list[int]]:
    x, y = images[:]
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    return x, y.tolist()


# Files


class Python2(pickle._Pickler):
    """Writes what Python 2 and the numpy of its time wrote, as CIFAR's files were."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=2)

    def save_bytes(self: Any, value: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    def save_string(self: Any, value: str) -> None:
        self.save_bytes(value.encode("latin1"))

    dispatch[bytes] = save_bytes
    dispatch[str] = save_string

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, np.dtype):
            return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return NotImplemented


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> list[Path]:
    """Five samples in each file, and torchvision told their checksums."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    base = folder / kind.base_folder
    base.mkdir()
    written = []

    def write(file: str, content: dict[str, Any]) -> str:
        with (base / file).open("wb") as stream:
            Python2(stream).dump(content)
        old = (base / file).read_bytes().replace(b"numpy._core", b"numpy.core")
        (base / file).write_bytes(old)
        written.append(base / file)
        return hashlib.md5(old).hexdigest()

    for files in ("train_list", "test_list"):
        sums = []
        for file, _ in getattr(kind, files):
            seed = len(written)
            labels = [(seed + i) % data.FORMATS[name].classes for i in (3, 1, 4, 1, 5)]
            content: dict[str, Any] = {"data": pixels(5, 3072, seed=seed), "filenames": ["a.png"]}
            if name == "cifar10":
                content["labels"] = labels
            else:
                content |= {"fine_labels": labels, "coarse_labels": [0] * 5}
            sums.append([file, write(file, content)])
        monkeypatch.setattr(kind, files, sums)
    names = {kind.meta["key"]: ["name"] * data.FORMATS[name].classes}
    checksum = write(kind.meta["filename"], names)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": checksum})
    return written


def write_svhn(folder: Path, monkeypatch: pytest.MonkeyPatch, _: str) -> list[Path]:
    import scipy.io
    from torchvision.datasets import SVHN

    written, sums = [], dict(SVHN.split_list)
    for seed, part in enumerate(("train", "test")):
        url, file, _ = SVHN.split_list[part]
        labels = np.array([[10], [1], [9], [10]], dtype=np.uint8) - seed
        content = {"X": pixels(32, 32, 3, 4, seed=seed), "y": labels}
        scipy.io.savemat(folder / file, content, do_compression=True)
        sums[part] = [url, file, hashlib.md5((folder / file).read_bytes()).hexdigest()]
        written.append(folder / file)
    monkeypatch.setattr(SVHN, "split_list", sums)
    return written


def write_mnist(folder: Path, _: pytest.MonkeyPatch, name: str) -> list[Path]:
    raw = folder / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name] / "raw"
    raw.mkdir(parents=True)
    written = []
    for count, part in ((7, "train"), (4, "t10k")):
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels(count, 28, 28).tobytes()
        labels = struct.pack(">II", 2049, count) + bytes((i * 3) % 10 for i in range(count))
        for kind, content in ("images-idx3", images), ("labels-idx1", labels):
            written.append(raw / f"{part}-{kind}-ubyte")
            written[-1].write_bytes(content)
    return written


STANDARD: dict[str, Callable[[Path, pytest.MonkeyPatch, str], list[Path]]] = {
    "cifar10": write_cifar,
    "cifar100": write_cifar,
    "svhn": write_svhn,
    "mnist": write_mnist,
    "fashion_mnist": write_mnist,
}


# What torchvision reads


@pytest.mark.parametrize("name", STANDARD)
def test_samples_are_those_that_torchvision_gives(
    name: str, tmp_path: Path, torchvision: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets
    from torchvision.transforms.functional import to_tensor

    STANDARD[name](tmp_path, monkeypatch, name)
    split: Split[Images] = getattr(data, name)(tmp_path, augment=["flip"])
    kind = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN", "mnist": "MNIST"}
    theirs = getattr(datasets, kind.get(name, "FashionMNIST"))
    for part, images in zip(("train", "test"), split, strict=True):
        which = {"split": part} if name == "svhn" else {"train": part == "train"}
        expected = theirs(tmp_path, **which)
        images.augment = []
        assert len(images) == len(expected)
        x, y = whole(images)
        assert x.shape[1:] == data.FORMATS[name].shape
        for i, (image, label) in enumerate(expected):
            assert torch.equal(x[i], to_tensor(image))
            assert y[i] == label
        assert len(set(y)) > 1


def test_cifars_pixels_and_labels(
    tmp_path: Path, torchvision: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of its files are 1024 red, 1024 green, 1024 blue, row by row."""
    write_cifar(tmp_path, monkeypatch, "cifar10")
    split = data.cifar10(tmp_path)
    assert (len(split.train), len(split.test)) == (25, 5)
    for images, seed in ((split.test, 5), (split.train, 0)):
        x, y = whole(images)
        raw = pixels(5, 3072, seed=seed)
        assert torch.equal(x[:5], torch.tensor(raw.reshape(5, 3, 32, 32)) / 255)
        assert y[:5] == [(seed + i) % 10 for i in (3, 1, 4, 1, 5)]


def test_svhns_ten_is_a_zero(
    tmp_path: Path, torchvision: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_svhn(tmp_path, monkeypatch, "svhn")
    x, y = whole(data.svhn(tmp_path).train)
    assert y == [0, 1, 9, 0]
    raw = pixels(32, 32, 3, 4)
    assert torch.equal(x[2, :, 5, 9], torch.tensor(raw[5, 9, :, 2]) / 255)


@pytest.mark.parametrize("name", STANDARD)
def test_wrong_files_are_named(
    name: str, tmp_path: Path, torchvision: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("nothing is downloaded")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    read = getattr(data, name)
    for path in STANDARD[name](tmp_path, monkeypatch, name):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"is missing.*datasets\..*download=True") as no:
            read(tmp_path)
        assert str(path) in str(no.value)
        wrong = [content[:-1], content[: len(content) // 2], content[:3], b""]
        if "idx1" not in path.name and "idx3" not in path.name:  # the others have a checksum
            wrong.append(content[:-1] + bytes([content[-1] ^ 1]))
        for corrupt in wrong:
            path.write_bytes(corrupt)
            with pytest.raises(ValueError, match=r"is corrupt or truncated: .") as error:
                read(tmp_path)
            assert str(path) in str(error.value)
        path.write_bytes(content)
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="is missing"):
        read(tmp_path / "elsewhere")


def test_labels_and_images_that_do_not_fit_are_named(
    tmp_path: Path, torchvision: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels, *_ = write_mnist(tmp_path, monkeypatch, "mnist")
    content = labels.read_bytes()
    labels.write_bytes(content[:-1] + b"\x0a")
    with pytest.raises(ValueError, match=r"train-labels.*: labels are from 0 to 10, expected 0 to"):
        data.mnist(tmp_path)
    labels.write_bytes(content[:4] + struct.pack(">I", 6) + content[8:-1])
    with pytest.raises(ValueError, match=r"train-labels.*: 6 labels for 7 images, expected one"):
        data.mnist(tmp_path)
    images.write_bytes(struct.pack(">IIII", 2051, 7, 14, 56) + images.read_bytes()[16:])
    with pytest.raises(ValueError, match=r"\[7, 1, 14, 56\], expected uint8 \[N, 1, 28, 28\]"):
        data.mnist(tmp_path)


def forget(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)


@pytest.mark.parametrize("name", STANDARD)
def test_without_torchvision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"torchvision.*pip install 'snnkern\[data\]'"):
        getattr(data, name)(tmp_path)


def test_with_the_torchvision_of_another_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch, "torchvision")
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=rf"another torch than {torch.__version__[:4]}.*nms does"):
        data.mnist(tmp_path)


def test_svhn_without_scipy(
    tmp_path: Path, torchvision: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_svhn(tmp_path, monkeypatch, "svhn")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"scipy, which is not.*pip install 'snnkern\[data\]'"):
        data.svhn(tmp_path)


# TinyImageNet

WNIDS = ("n02124075", "n01443537", "n03444034")
COLOURS = ((200, 30, 90), (10, 160, 220), (90, 90, 90))


def write_tiny_imagenet(folder: Path) -> Path:
    """Two images of each class to train on, one to test with; an image of a class in its colour."""
    from PIL import Image

    root = folder / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    lines = []
    for i, (wnid, colour) in enumerate(zip(WNIDS, COLOURS, strict=True)):
        image = Image.new("RGB", (64, 64), colour)
        image.paste((0, 0, 0), (0, 0, 64, 16))  # the upper quarter
        if i == 2:
            image = image.convert("L")  # some are grey
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        for number in range(2):
            image.save(images / f"{wnid}_{number}.JPEG")
        image.save(root / "val" / "images" / f"val_{9 - i}.JPEG")
        lines.append(f"val_{9 - i}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenet(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    split = data.tiny_imagenet(tmp_path, ["crop"])
    split.train.augment = []
    order = sorted(WNIDS)
    expected = {order.index(wnid): c for wnid, c in zip(WNIDS, COLOURS, strict=True)}
    for images, labels in ((split.train, [0, 0, 1, 1, 2, 2]), (split.test, [1, 0, 2])):
        x, y = whole(images)
        assert x.shape[1:] == (3, 64, 64)
        assert y == labels
        for image, label in zip(x, y, strict=True):
            assert image[:, :8].max() < 0.05
            colour = torch.tensor(expected[label])[:, None, None] / 255
            assert (image[:, 24:] - colour).abs().max() < 0.05


def test_wrong_files_of_tiny_imagenet_are_named(tmp_path: Path) -> None:
    from PIL import Image

    root = write_tiny_imagenet(tmp_path)
    image = root / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_1.JPEG"
    content = image.read_bytes()
    for wrong in (content[:-200], content[:20], b"", b"not an image"):
        image.write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"{image.name} is corrupt or truncated: ."):
            data.tiny_imagenet(tmp_path)
    Image.new("RGB", (64, 32)).save(image)
    with pytest.raises(ValueError, match=rf"{image.name} .*\(64, 32\) pixels, expected \(64, 64\)"):
        data.tiny_imagenet(tmp_path)
    image.write_bytes(content)
    for path in (root / "val" / "images" / "val_8.JPEG", root / "val" / "val_annotations.txt"):
        path.rename(root / "kept")
        with pytest.raises(FileNotFoundError, match=rf"{path.name} is missing\. TinyImageNet is"):
            data.tiny_imagenet(tmp_path)
        (root / "kept").rename(path)
    annotations = root / "val" / "val_annotations.txt"
    text = annotations.read_text()
    annotations.write_text(text.replace(WNIDS[1], "n0"))
    with pytest.raises(ValueError, match=r"val_annotations.txt is corrupt or truncated: .*'n0'"):
        data.tiny_imagenet(tmp_path)
    annotations.write_text(text)
    (root / "train" / WNIDS[2]).rename(root / "train" / "n1")
    with pytest.raises(FileNotFoundError, match=rf"{WNIDS[2]}.images is missing or has no images"):
        data.tiny_imagenet(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"wnids.txt is missing"):
        data.tiny_imagenet(root)


def test_tiny_imagenet_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_imagenet(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"Pillow.*pip install 'snnkern\[data\]'"):
        data.tiny_imagenet(tmp_path)


# CIFAR-10-C and CIFAR-100-C


@pytest.mark.parametrize("name", ["cifar10_c", "cifar100_c"])
def test_corrupted(name: str, tmp_path: Path) -> None:
    """The severities lie one after the other; each has the labels of the test set."""
    read = getattr(data, name)
    root = tmp_path / name.upper().replace("CIFAR", "CIFAR-").replace("_", "-")
    root.mkdir()
    images = pixels(20, 32, 32, 3)
    np.save(root / "fog.npy", images)
    np.save(root / "labels.npy", np.array([3, 9, 0, 6] * 5, dtype=np.uint8))
    for severity in range(1, 6):
        x, y = whole(read(tmp_path, "fog", severity))
        expected = images[4 * severity - 4 : 4 * severity]
        assert torch.equal(x, torch.tensor(expected.transpose(0, 3, 1, 2)) / 255)
        assert y == [3, 9, 0, 6]
    with pytest.raises(FileNotFoundError, match=r"snow.npy is missing. There are fog. CIFAR-10-C "):
        read(tmp_path, "snow", 1)
    for severity in (0, 6):
        with pytest.raises(ValueError, match=f"severity is {severity}, expected"):
            read(tmp_path, "fog", severity)
    for path in (root / "fog.npy", root / "labels.npy"):
        content = path.read_bytes()
        for wrong in (content[:-1], content[:9], b""):
            path.write_bytes(wrong)
            with pytest.raises(ValueError, match=rf"{path.name} is corrupt or truncated: ."):
                read(tmp_path, "fog", 5)
        path.write_bytes(content)
    np.save(root / "fog.npy", images[:16])
    with pytest.raises(ValueError, match=r"fog.npy .*16 images for 20 labels"):
        read(tmp_path, "fog", 1)


# N-MNIST


def events(*rows: tuple[int, int, int, int]) -> bytes:
    """Of x, y, polarity and microseconds."""
    return b"".join(
        bytes([x, y]) + (polarity << 23 | time).to_bytes(3, "big") for x, y, polarity, time in rows
    )


def write_nmnist(folder: Path) -> Path:
    root = folder / "NMNIST"
    for part in ("Train", "Test"):
        for digit in range(10):
            (root / part / str(digit)).mkdir(parents=True)
            (root / part / str(digit) / "00002.bin").write_bytes(events((digit, 1, 0, 100_000)))
    return root


def test_nmnist(tmp_path: Path) -> None:
    """Frames 5 to 14 of 20 ms: 100 to 300 ms. They have time, polarity, y and x."""
    root = write_nmnist(tmp_path)
    (root / "Train" / "3" / "00001.bin").write_bytes(
        events(
            (7, 30, 1, 99_999),  # too early
            (33, 2, 1, 100_000),
            (33, 2, 1, 101_000),  # a second one in the same place
            (4, 5, 0, 139_999),
            (0, 33, 1, 299_999),
            (9, 9, 0, 300_000),  # too late
        )
    )
    split = data.nmnist(tmp_path)
    x, y = whole(split.train)
    assert x.shape == (11, 10, 2, 34, 34)
    assert y == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]
    assert x[3].nonzero().tolist() == [[0, 1, 2, 33], [1, 0, 5, 4], [9, 1, 33, 0]]
    assert x.max() == 1
    x, y = whole(split.test)
    assert y == list(range(10))
    assert x.nonzero().tolist() == [[digit, 0, 0, 1, digit] for digit in range(10)]
    from_start, _ = data.nmnist(tmp_path, milliseconds=30, first=0).train[0]
    assert from_start.nonzero().tolist() == [[3, 0, 1, 0]]


def test_wrong_files_of_nmnist_are_named(tmp_path: Path) -> None:
    root = write_nmnist(tmp_path)
    path = root / "Test" / "4" / "00002.bin"
    content = path.read_bytes()
    for wrong in (content[:-1], content + b"\0", events((34, 0, 0, 100_000))):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"4.00002.bin is corrupt or truncated: ."):
            data.nmnist(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"Test.4 is missing or has no files. N-MNIST is"):
        data.nmnist(tmp_path)
    with pytest.raises(ValueError, match="milliseconds is 0, expected"):
        data.nmnist(tmp_path, milliseconds=0)


# Recordings as arrays

TONIC = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", bool)])


def test_arrays_of_events_become_frames() -> None:
    recordings: list[tuple[NDArray[Any], SupportsIndex]] = [
        (np.array([(4, 0, 9_999, 1), (3, 2, 10_000, 0), (3, 2, 12_000, 0)], dtype=TONIC), 1),
        (np.array([(0, 1, 29_999, 1), (0, 1, 30_000, 1)], dtype=TONIC), np.int64(7)),
        (np.array([], dtype=TONIC), 0),
    ]
    frames = data.event_frames(iter(recordings), (2, 3, 5), frames=2, milliseconds=10, first=1)
    x, y = whole(frames)
    assert x.shape == (3, 2, 2, 3, 5)
    assert y == [1, 7, 0]
    assert x.nonzero().tolist() == [[0, 0, 0, 2, 3], [1, 1, 1, 1, 0]]
    assert x.max() == 1
    model = models.conv_net(
        timesteps=2, input_shape=(2, 3, 5), channels=(2,), hidden=(), coding="events"
    )
    assert model(x).shape == (3, 10)


def test_nmnist_and_its_arrays_are_the_same_frames(tmp_path: Path) -> None:
    root = write_nmnist(tmp_path)
    rows = np.random.default_rng(0).integers((34, 34, 2, 400_000), size=(60, 4)).tolist()
    (root / "Train" / "0" / "00002.bin").write_bytes(events(*(tuple(row) for row in rows)))
    recording = np.array([(x, y, time, polarity) for x, y, polarity, time in rows], dtype=TONIC)
    frames = data.event_frames([(recording, 0)], (2, 34, 34), frames=10, milliseconds=20, first=5)
    assert torch.equal(frames[0][0], data.nmnist(tmp_path).train[0][0])


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ((5, 0, 0, 0), r"recordings\[1\]: events have x from 5 to 5, expected 0 to 4"),
        ((0, -1, 0, 0), r"recordings\[1\]: events have y from -1 to -1, expected 0 to 2"),
    ],
)
def test_events_beyond_the_camera_are_refused(event: tuple[int, ...], message: str) -> None:
    recordings = [(np.array([row], dtype=TONIC), 0) for row in ((0, 0, 0, 0), event)]
    with pytest.raises(ValueError, match=message):
        data.event_frames(recordings, (2, 3, 5), frames=1, milliseconds=1)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("p", np.float32, "p of float32, expected integers$"),
        ("x", np.float64, "x of float64, expected integers$"),
        ("y", object, "y of object, expected integers$"),
        ("t", np.float64, "t of float64, expected integers of microseconds"),
    ],
)
def test_events_are_integers(name: str, kind: type, words: str) -> None:
    fields = [(field, kind if field == name else np.int64) for field in "xytp"]
    recordings = [(np.ones(2, dtype=fields), 0)]
    with pytest.raises(ValueError, match=rf"recordings\[0\]: events have {words}"):
        data.event_frames(recordings, (2, 3, 5), frames=1, milliseconds=1)


@pytest.mark.parametrize("time", [9_999, 30_000])
def test_a_recording_of_which_nothing_would_be_shown_is_refused(time: int) -> None:
    recordings = [(np.array([(0, 0, t, 0)], dtype=TONIC), 0) for t in (10_000, 29_999, time)]
    frames = data.event_frames(recordings[:2], (2, 3, 5), frames=2, milliseconds=10, first=1)
    assert whole(frames)[0].sum((1, 2, 3, 4)).tolist() == [1, 1]
    words = rf"\[2\]: events have t from {time} to {time}, expected some from 10000 to 29999 micro"
    with pytest.raises(ValueError, match=words):
        data.event_frames(recordings, (2, 3, 5), frames=2, milliseconds=10, first=1)


@pytest.mark.parametrize(
    ("recording", "words"),
    [
        ((np.zeros(1, dtype=TONIC), "cat"), "label is 'cat', expected an int"),
        ((np.zeros(1, dtype=TONIC), None), "label is None, expected an int"),
        ((np.zeros(1, dtype=TONIC), 0.7), "label is 0.7, expected an int"),
        (np.zeros(2, dtype=TONIC), r"ndarray, expected \(events, label\)"),
        ((np.zeros(1, dtype=TONIC),), r"tuple, expected \(events, label\)"),
        ((np.zeros((), dtype=TONIC), 0), r"events have the shape \[\], expected \[E\]"),
    ],
)
def test_what_is_no_recording_is_named(recording: Any, words: str) -> None:
    recordings: Any = [(np.zeros(1, dtype=TONIC), 0), recording]
    with pytest.raises(ValueError, match=rf"recordings\[1\]: {words}"):
        data.event_frames(recordings, (2, 3, 5), frames=1, milliseconds=1)


def test_what_are_no_events_is_refused() -> None:
    def frames(recordings: Any, shape: Any = (2, 3, 5), **options: int) -> None:
        data.event_frames(recordings, shape, **{"frames": 1, "milliseconds": 1} | options)

    with pytest.raises(ValueError, match=r"\[0\]: events have the fields \[\], expected x"):
        frames([(np.zeros((3, 4)), 0)])
    with pytest.raises(ValueError, match="recordings is empty"):
        frames([])
    with pytest.raises(ValueError, match=r"shape is \[3, 5\], expected \[C, H, W\]"):
        frames([], (3, 5))
    for name in ("frames", "milliseconds"):
        with pytest.raises(ValueError, match=f"{name} is 0, expected"):
            frames([], **{name: 0})
    with pytest.raises(ValueError, match="first is -1, expected"):
        frames([], first=-1)
