"""Augmentations of whole batches; every sample has a draw of its own from torch's generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def crop(x: Tensor, padding: int = 4, mode: str = "constant") -> Tensor:
    """Pads ``[N, C, H, W]`` and cuts a window of the old size out of it.

    Args:
        x: the images.
        padding: pixels on each side.
        mode: what they are: ``"constant"`` black, ``"reflect"`` the image mirrored.
    """
    N, _, H, W = x.shape
    top, left = torch.randint(2 * padding + 1, (2, N))
    windows = F.pad(x, (padding,) * 4, mode).unfold(2, H, 1).unfold(3, W, 1)
    return windows[torch.arange(N), :, top, left]


def resized_crop(x: Tensor) -> Tensor:
    """Cuts a window of random area and shape out of ``[N, C, H, W]``, enlarged to the old size.

    From 8 to 100 % of the area, width over height from 3/4 to 4/3 and log-uniform, the whole image
    where ten draws do not fit; bilinear (Szegedy et al. 2015, as torchvision has it).
    """
    N, _, H, W = x.shape
    area = torch.empty(10, N).uniform_(0.08, 1) * H * W
    shape = torch.empty(10, N).uniform_(-1, 1).mul_(torch.tensor(4 / 3).log()).exp_()
    place = torch.rand(2, N)
    height, width = (area / shape).sqrt().round(), (area * shape).sqrt().round()
    fits = (height > 0) & (height <= H) & (width > 0) & (width <= W)
    first = fits.byte().argmax(0, keepdim=True)
    any_fits = fits.any(0)
    height = torch.where(any_fits, height.gather(0, first)[0], H)
    width = torch.where(any_fits, width.gather(0, first)[0], W)
    top, left = (place * (torch.stack([H - height, W - width]) + 1)).floor()

    def positions(start: Tensor, length: Tensor, size: int) -> Tensor:
        """Where in the image, from -1 to 1, the pixels of the result lie: ``[N, size]``."""
        inside = (torch.arange(size) + 0.5) * (length / size)[:, None] - 0.5
        inside = inside.clamp_min(0).minimum(length[:, None] - 1)
        return (start[:, None] + inside) * 2 / max(size - 1, 1) - 1

    across, down = positions(left, width, W), positions(top, height, H)
    grid = torch.stack(
        [across[:, None, :].expand(N, H, W), down[:, :, None].expand(N, H, W)], dim=-1
    )
    return F.grid_sample(x, grid, align_corners=True)


def flip(x: Tensor) -> Tensor:
    """Mirrors half of the images ``[N, C, H, W]``, left to right."""
    return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)


def cutout(x: Tensor, fill: Tensor) -> Tensor:
    """Covers a square hole in ``[N, C, H, W]`` (DeVries & Taylor 2017).

    Its sides are a quarter of the image's: 8 of 32 pixels, 16 of 64. Its centre may be any pixel,
    so that it may reach over the border.

    Args:
        x: the images.
        fill: the colour of the hole, ``[C]``.
    """
    N, _, H, W = x.shape

    def covered(size: int) -> Tensor:
        centre = torch.randint(size, (N, 1))
        pixels = torch.arange(size)
        return (pixels >= centre - size // 8) & (pixels < centre + size // 8)

    rows, columns = covered(H), covered(W)
    hole = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(hole, fill[:, None, None], x)


def _mean(images: Tensor) -> Tensor:
    """The mean of uint8 images over all but the channels, in [0, 1], in parts for the memory."""
    sums = [part.sum((0, 2, 3), dtype=torch.int64) for part in images.split(1000)]
    total = torch.stack(sums).sum(0).double()
    return (total / (images.numel() / images.shape[1]) / 255).float()


def augmentations(names: Iterable[str], images: Tensor) -> list[Callable[[Tensor], Tensor]]:
    """The augmentations of those names for batches ``[N, C, H, W]`` of uint8 ``images``.

    ``crop`` pads with black, ``crop_reflect`` with the image mirrored; ``cutout`` fills its hole
    with the mean of all ``images``.

    Raises:
        ValueError: an unknown name, or images of another shape.
    """
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "crop": crop,
        "crop_reflect": partial(crop, mode="reflect"),
        "resized_crop": resized_crop,
        "flip": flip,
    }
    names = [names] if isinstance(names, str) else list(names)
    if names and images.dim() != 4:
        raise ValueError(
            f"augment is {names!r} for images {list(images.shape)}, expected [N, C, H, W]"
        )
    if "cutout" in names:
        known["cutout"] = partial(cutout, fill=_mean(images))
    for name in names:
        if name not in known:
            raise ValueError(
                f"augment is {name!r}, expected some of {', '.join(sorted({*known, 'cutout'}))}"
            )
    return [known[name] for name in names]
