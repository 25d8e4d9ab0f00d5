from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from snnkern.data import (
    FORMATS,
    Images,
    Split,
    digits,
    enlarged_digits,
    loader,
    synthetic,
)


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_digits_are_all_there() -> None:
    split = digits()
    (train, train_labels), (test, test_labels) = split.train.tensors, split.test.tensors
    assert len(train) + len(test) == 1797
    assert len(train) == len(train_labels) == len(split.train)
    assert len(test) == 360
    for images in (train, test):
        assert images.dtype == torch.float32
        assert images.shape[1:] == (1, 8, 8)
        assert images.min() == 0
        assert images.max() == 1
        assert torch.equal(images * 16, (images * 16).round())
    for labels in (train_labels, test_labels):
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) == set(range(10))


def test_digits_carry_their_own_labels() -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    known = {(raw.images[i] / 16).astype("float32").tobytes(): raw.target[i] for i in range(1797)}
    assert len(known) == 1797  # no two images are alike
    seen = set()
    for part in digits(seed=3):
        for image, label in zip(*part.tensors, strict=True):
            key = image.numpy().tobytes()
            assert known[key] == label
            assert key not in seen
            seen.add(key)
    assert len(seen) == 1797


@pytest.mark.parametrize("share", [0.2, 0.35])
def test_the_split_is_stratified(share: float) -> None:
    split = digits(share)
    all_labels = torch.cat([part.tensors[1] for part in split])
    tested = torch.bincount(split.test.tensors[1])
    assert ((tested - share * torch.bincount(all_labels)).abs() <= 1).all()
    assert abs(len(split.test) - share * 1797) < 1


def test_the_split_repeats_with_its_seed() -> None:
    first, again, other = digits(seed=1), digits(seed=1), digits(seed=2)
    for part in range(2):
        for a, b in zip(first[part].tensors, again[part].tensors, strict=True):
            assert torch.equal(a, b)
    assert rows(first.test.tensors[0]) != rows(other.test.tensors[0])
    assert rows(first.test.tensors[0]) == rows(again.test.tensors[0])


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"test_share is {share}, expected a number between"):
        digits(share)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"scikit-learn.*pip install 'snnkern\[demo\]'"):
        digits()


def order(shuffle: bool, seed: int = 0, epochs: int = 1) -> list[list[int]]:
    numbers = torch.arange(10)
    batches = loader(TensorDataset(numbers, numbers), 4, shuffle=shuffle, seed=seed)
    sizes = [len(x) for x, _ in batches]
    assert sizes == [4, 4, 2]
    return [[int(n) for x, _ in batches for n in x] for _ in range(epochs)]


def test_loader() -> None:
    assert order(False) == [list(range(10))]
    shuffled = order(True, seed=1, epochs=2)
    assert shuffled == order(True, seed=1, epochs=2)
    assert shuffled != order(True, seed=2, epochs=2)
    assert shuffled[0] != shuffled[1]
    for epoch in shuffled:
        assert sorted(epoch) == list(range(10))


def test_the_order_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    digits()
    order(True)
    assert torch.equal(torch.random.get_rng_state(), before)


# Images


def test_images_are_bytes_until_they_are_asked_for() -> None:
    raw = torch.randint(256, (5, 3, 4, 2), generator=torch.Generator().manual_seed(0)).byte()
    labels = torch.tensor([4, 0, 3, 1, 2])
    images = Images(raw, labels)
    expected = raw.float() / 255
    for i in (0, 4, -1):
        x, y = images[i]
        assert torch.equal(x, expected[i])
        assert y == labels[i]
    x, y = images[1:4]
    assert torch.equal(x, expected[1:4])
    assert torch.equal(y, labels[1:4])
    batches = list(loader(images, 2, shuffle=True, seed=4))
    assert [len(y) for _, y in batches] == [2, 2, 1]
    order = torch.cat([y for _, y in batches])
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(torch.cat([x for x, _ in batches]), expected[labels.argsort()[order]])
    in_workers = DataLoader(images, 2, num_workers=1)
    assert torch.equal(torch.cat([x for x, _ in in_workers]), expected)
    assert torch.equal(Images(raw % 2, labels, white=1)[:][0], (raw % 2).float())


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2).long(), r"images is torch.float32 \[2, 1, 3, 3\]"),
        (torch.zeros(2).byte(), torch.zeros(2).long(), r"expected uint8 \[N, C, H, W\]"),
        (torch.zeros(2, 1, 3, 3).byte(), torch.zeros(2).int(), "labels is torch.int32"),
        (torch.zeros(2, 1, 3, 3).byte(), torch.zeros(3).long(), r"expected int64 \[2\], one per"),
    ],
)
def test_what_is_not_images_is_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Images(images, labels)


# Synthetic


def nearest(split: Split[Images]) -> float:
    """The share of test images that are nearest to the mean of their class."""
    (x, y), (test, labels) = split.train[:], split.test[:]
    means = torch.stack([x[y == c].mean(0) for c in range(int(y.max()) + 1)]).flatten(1)
    return (torch.cdist(test.flatten(1), means).argmin(1) == labels).float().mean().item()


@pytest.mark.parametrize("name", FORMATS)
def test_generated_samples_of_every_format(name: str) -> None:
    shape, classes = FORMATS[name]
    split = synthetic(shape, classes, train=2 * classes + 1, test=classes)
    assert (len(split.train), len(split.test)) == (2 * classes + 1, classes)
    x, y = split.train[:]
    assert x.shape == (2 * classes + 1, *shape)
    assert x.min() >= 0
    assert 0.9 < x.max() <= 1
    assert set(y.tolist()) == set(range(classes))
    assert nearest(split) > 0.8
    if name == "nmnist":
        assert set(x.unique().tolist()) == {0, 1}


def test_generated_images_repeat_with_their_seed() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (synthetic(train=300, test=20, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for part in range(2):
        assert torch.equal(first[part].images, again[part].images)
        assert not torch.equal(first[part].images, other[part].images)
    assert len(rows(first.train.images) | rows(first.test.images)) == 320  # no two alike


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (3, 32)}, r"shape is \[3, 32\], expected \[C, H, W\]"),
        ({"shape": (3, 0, 32)}, r"shape is \[3, 0, 32\]"),
        ({"classes": 0}, "classes is 0, expected an int of at least 1"),
        ({"train": 0}, "train is 0"),
        ({"test": -1}, "test is -1"),
        ({"augment": ("turn",)}, "augment is 'turn'"),
    ],
)
def test_impossible_images_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic(**options)


def test_frames_of_digits_fire_at_the_rate_of_the_image() -> None:
    frames, image = enlarged_digits((40, 2, 16, 16)).test[:50][0], enlarged_digits((2, 16, 16))
    assert set(frames.unique().tolist()) == {0, 1}
    assert not torch.equal(frames[:, 0], frames[:, 1])
    difference = frames.mean(1) - image.test[:50][0]
    assert difference.abs().mean() < 0.05
    assert abs(difference.mean()) < 0.003


def test_enlarged_digits_are_the_digits() -> None:
    small, large = digits(), enlarged_digits((3, 16, 24), 12, augment=("flip",))
    assert len(large.train.augment) == 1
    assert not large.test.augment
    x, labels = large.test[:]
    assert x.shape == (360, 3, 16, 24)
    torch.testing.assert_close(labels, small.test[:][1])
    assert torch.equal(x[:, 0], x[:, 2])
    means = torch.nn.functional.avg_pool2d(x[:, :1], (2, 3))
    pairs = torch.stack([means.flatten(), small.test[:][0].flatten()])
    assert torch.corrcoef(pairs)[0, 1] > 0.95  # blurred, and nothing else
    with pytest.raises(ValueError, match=r"shape is \[8, 8\], expected \[C, H, W\]"):
        enlarged_digits((8, 8))
    with pytest.raises(ValueError, match="classes is 9, expected an int of at least 10"):
        enlarged_digits(classes=9)
