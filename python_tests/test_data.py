from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from snnkern.data import digits, loader


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
