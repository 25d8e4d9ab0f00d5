from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from python_tests.helpers import random
from snnkern.data import Images, augment, loader, synthetic
from snnkern.training import load_checkpoint
from snnkern.training.recipe import Recipe
from snnkern.training.train import train


def images(count: int, height: int = 9, width: int = 7) -> Tensor:
    return random(count, 3, height, width, seed=1).sigmoid()


def equal(one: Tensor, other: Tensor) -> bool:
    return bool((one == other).all())


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop_is_one_of_all_windows_each_as_often(mode: str) -> None:
    x = images(1).expand(8100, 3, 9, 7)
    torch.manual_seed(0)
    cropped = augment.crop(x, mode=mode)
    padded = F.pad(x[:1], (4, 4, 4, 4), mode)[0]
    counts = []
    for top in range(9):
        for left in range(9):
            window = padded[:, top : top + 9, left : left + 7]
            counts.append(int((cropped == window).flatten(1).all(1).sum()))
    assert sum(counts) == 8100  # no two windows are alike
    assert min(counts) > 50  # five standard deviations from 100
    assert max(counts) < 150


def test_flip_mirrors_half() -> None:
    x = images(2000)
    torch.manual_seed(0)
    flipped = augment.flip(x)
    mirrored = x[:, :, :, [6, 5, 4, 3, 2, 1, 0]]
    as_is = [equal(new, old) for new, old in zip(flipped, x, strict=True)]
    other = [equal(new, old) for new, old in zip(flipped, mirrored, strict=True)]
    assert sum(as_is) + sum(other) == 2000
    assert 880 < sum(other) < 1120


@pytest.mark.parametrize("size", [32, 64])
def test_cutout_is_one_hole_around_any_pixel(size: int) -> None:
    fill = torch.tensor([2.0, 3.0, 4.0])
    x = images(1, size, size).expand(size * 100, 3, size, size)
    torch.manual_seed(0)
    holes = augment.cutout(x, fill)
    covered = (holes != x).all(1)
    assert equal(holes, torch.where(covered[:, None], fill[:, None, None], x))
    half = size // 8  # 8x8 in 32x32 and 16x16 in 64x64
    centres = []
    for hole in covered[:200]:
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert equal(hole.nonzero(), torch.cartesian_prod(rows, columns))  # a rectangle
        for pixels in (rows, columns):
            first, last = int(pixels[0]), int(pixels[-1])
            assert last - first + 1 == 2 * half or first == 0 or last == size - 1
            centre = first + half if first else last + 1 - half
            assert max(0, centre - half) == first
            assert min(size, centre + half) == last + 1
            centres.append(centre)
    assert min(centres) < half / 2
    assert max(centres) >= size - half / 2
    expected = [min(size, c + half) - max(0, c - half) for c in range(size)]
    assert covered.float().sum((1, 2)).mean().item() == pytest.approx(
        (sum(expected) / size) ** 2, rel=0.03
    )


def test_resized_crop_is_torchvisions(torchvision: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window given, its pixels; see below for the windows."""
    from torchvision.transforms import functional

    x = images(64, 16, 12)
    windows = []
    right = F.grid_sample

    def seen(x: Tensor, grid: Tensor, align_corners: bool) -> Tensor:
        windows.append(grid)
        return right(x, grid, align_corners=align_corners)

    monkeypatch.setattr(F, "grid_sample", seen)
    torch.manual_seed(0)
    result = augment.resized_crop(x)
    (grid,) = windows
    # Window and grid of positions p: first and last clamped to the centres of its border pixels.
    left, right_ = ((grid[:, 0, i, 0] + 1) / 2 * 11 for i in (0, -1))
    top, bottom = ((grid[:, i, 0, 1] + 1) / 2 * 15 for i in (0, -1))
    sizes = set()
    for i in range(64):
        box = [round(float(edge[i])) for edge in (top, left, bottom, right_)]
        height, width = box[2] - box[0] + 1, box[3] - box[1] + 1
        sizes.add((height, width))
        expected = functional.resized_crop(x[i], box[0], box[1], height, width, [16, 12])
        torch.testing.assert_close(result[i], expected, rtol=0, atol=2e-5)
    assert len(sizes) > 30


def test_resized_crop_draws_as_torchvision(torchvision: object) -> None:
    """Of a ramp, the corners say which window was drawn."""
    from torchvision.transforms import RandomResizedCrop

    across = torch.arange(64.0).expand(64, 64)
    ramp = torch.stack([across, across.T])
    torch.manual_seed(0)
    ours = augment.resized_crop(ramp.expand(3000, 2, 64, 64))
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(ramp, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(3000)]
    )
    left, right = ours[:, 0, 0, 0], ours[:, 0, 0, -1]
    top, bottom = ours[:, 1, 0, 0], ours[:, 1, -1, 0]
    mine = torch.stack([top, left, bottom - top + 1, right - left + 1], 1)
    torch.testing.assert_close(mine, mine.round(), rtol=0, atol=1e-3)
    their = theirs.float()
    for i in range(4):
        spread = float(their[:, i].std())
        assert abs(mine[:, i].mean() - their[:, i].mean()) < 0.12 * spread
        assert mine[:, i].std() == pytest.approx(spread, rel=0.06)
    at_the_end = [
        (sizes[:, 0] + sizes[:, 2] > 63.5).float().mean().item() for sizes in (mine, their)
    ]
    assert at_the_end[0] == pytest.approx(at_the_end[1], rel=0.2)
    ratio = [(sizes[:, 3] / sizes[:, 2]).log() for sizes in (mine, their)]
    assert ratio[0].std().item() == pytest.approx(ratio[1].std().item(), rel=0.06)


def test_a_batch_is_augmented_in_the_order_asked_for() -> None:
    split = synthetic((3, 8, 8), train=50, augment=("cutout", "flip", "crop"))
    torch.manual_seed(3)
    (x, y), *_ = loader(split.train, 20)
    torch.manual_seed(3)
    expected = split.train.images[:20].float() / 255
    mean = (split.train.images.double() / 255).mean((0, 2, 3)).float()
    expected = augment.crop(augment.flip(augment.cutout(expected, mean)))
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-7)
    assert equal(y, split.train.labels[:20])
    (again, _), *_ = loader(split.train, 20)
    assert not equal(again, x)
    (x, _), *_ = loader(split.test, 20)
    assert equal(x, split.test.images[:20].float() / 255)  # the test set is as it is


def test_unknown_augmentations_are_refused() -> None:
    x, y = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(
        ValueError,
        match="augment is 'mixup', expected some of crop, crop_reflect, cutout, flip, resized_crop",
    ):
        Images(x, y, ["crop", "mixup"])
    with pytest.raises(ValueError, match=r"augment is \['flip'\] for images .*, expected \[N, C, "):
        Images(x[:, None], y, "flip")


RECIPE = """
title = "Tiny"
epochs = 2
batch_size = 300

[data]
name = "synthetic"
shape = [1, 8, 8]
train = 1400
augment = ["crop", "flip", "cutout"]

[model]
name = "fc_net"
timesteps = 2
input_shape = [1, 8, 8]
hidden = [8]

[method]
name = "Natural"

[optimizer]
name = "SGD"
lr = 0.1

[schedule]
name = "constant"
"""


def test_a_run_with_augmentation_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    recipe = Recipe.load(path)
    options: dict[str, Any] = {"seed": 3, "progress": False, "checkpoint_every": 2}
    train(recipe, tmp_path / "whole", **options)
    training = sys.modules["snnkern.training.fit"]._Training
    right, calls = training._train_on, []

    def cut(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        right(*arguments)

    monkeypatch.setattr(training, "_train_on", cut)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", **options)
    torch.rand(5)  # another process, another state
    train(recipe, tmp_path / "cut", resume=True, **options)
    whole, resumed = (load_checkpoint(tmp_path / n / "last.safetensors") for n in ("whole", "cut"))
    assert len(calls) == 8 + 3  # from the checkpoint after batch 7 of 10
    for name, value in whole["model"].items():
        assert equal(resumed["model"][name], value), name
