"""How far a share of a few images may be from that of all."""

from __future__ import annotations

import math

from snnkern._checks import check_int, check_number

_NORMAL_975 = 1.959963984540054


def wilson(value: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share ``value`` observed over ``count`` images.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", Journal of the American Statistical Association 22 (1927).

    Raises:
        TypeError, ValueError: a share outside ``[0, 1]``, or no images.
    """
    check_number("value", value, low=0, high=1)
    check_int("count", count, 1)
    z2n = _NORMAL_975**2 / count
    centre = (value + z2n / 2) / (1 + z2n)
    half = math.sqrt(z2n * (value * (1 - value) + z2n / 4)) / (1 + z2n)
    # Rounding must not push the share itself out of its interval.
    return max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))
