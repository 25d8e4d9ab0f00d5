"""Checks of what callers pass, with one wording for all."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor


def check_number(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
) -> None:
    """Raises unless ``value`` is a finite number in ``[low, high]`` (``(low, high]`` if open_low).

    Raises:
        TypeError: not an int or float.
        ValueError: not finite, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    above = number > low if open_low else number >= low
    if not (math.isfinite(number) and above and number <= high):
        expected = "a finite number"
        if low > -math.inf:
            expected += f" above {low:g}" if open_low else f" of at least {low:g}"
        if high < math.inf:
            expected += f" and at most {high:g}"
        raise ValueError(f"{name} is {value!r}, expected {expected}")


def check_int(name: str, value: object, at_least: int) -> None:
    """Raises unless ``value`` is an int of at least ``at_least``.

    Raises:
        TypeError: not an int.
        ValueError: too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}, expected an int")
    if value < at_least:
        raise ValueError(f"{name} is {value}, expected an int of at least {at_least}")


def check_images(x: Tensor, y: Tensor) -> None:
    """Raises unless ``x`` is a batch of images in ``[0, 1]`` with one label ``y`` each."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or x.numel() == 0:
        shown = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x is {shown}, expected a float tensor [N, ...] of at least one image")
    low, high = (bound.item() for bound in torch.aminmax(x))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"x has values between {low} and {high}, expected pixels in [0, 1]")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        shown = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y is {shown}, expected int64 labels [{x.shape[0]}], one per image")
    if (least := int(y.min())) < 0:  # -100 among them, which torch's cross entropy leaves out
        raise ValueError(f"y has a label {least}, expected classes from 0 on")
