"""Checks of numbers that callers pass, with one wording for all."""

from __future__ import annotations

import math
import numbers


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
