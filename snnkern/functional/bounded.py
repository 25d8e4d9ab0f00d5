"""Checks of arguments that bounds of neurons share."""

from __future__ import annotations

import torch
from torch import Tensor

from snnkern import reference
from snnkern._checks import check_number
from snnkern.functional.checks import as_parameter, check_representable, check_x
from snnkern.functional.neurons import Reset


def bounded_neurons(
    x: Tensor,
    leak: float | Tensor,
    threshold: float | Tensor,
    reset: Reset,
    v_reset: float,
    v_init: float,
    strict: bool,
) -> tuple[Tensor, Tensor, float, int, float, bool]:
    """The checked neurons of an op of certification, as it takes them."""
    dtype = reference.state_dtype(x.dtype)
    if reset not in reference.RESETS:
        raise ValueError(f"reset is {reset!r}, expected one of {', '.join(reference.RESETS)}")
    if not isinstance(strict, bool):
        raise TypeError(f"strict is {strict!r} of type {type(strict).__name__}, expected a bool")
    numbers = []
    for name, number in (("v_init", v_init), ("v_reset", v_reset)):
        check_number(name, number)
        check_representable(name, number, dtype)
        numbers.append(torch.tensor(number, dtype=dtype).item())  # as neurons see it
    return (
        as_parameter("leak", leak, x),
        as_parameter("threshold", threshold, x),
        numbers[0],
        reference.RESETS.index(reset),
        numbers[1],
        strict,
    )


def check_ends(names: tuple[str, str], lower: Tensor, upper: Tensor) -> None:
    """Raises unless both ends of an interval fit, and each other."""
    check_x(lower, names[0])
    check_x(upper, names[1])
    if lower.shape != upper.shape or lower.dtype != upper.dtype or lower.device != upper.device:
        raise ValueError(
            f"{names[0]} is {lower.dtype} {list(lower.shape)} on {lower.device} and {names[1]} "
            f"{upper.dtype} {list(upper.shape)} on {upper.device}, expected two like tensors"
        )
