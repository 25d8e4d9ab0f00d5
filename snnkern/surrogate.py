"""Surrogate derivatives of the spike: what training and attacks put in place of the step's.

Each is a frozen configuration. ``z`` is the membrane minus the threshold, or, with
``normalized=True``, the membrane divided by the threshold, minus 1. ``surrogate.derivative(z)``
gives ds/dz for any float tensor ``z``, of the same shape and dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

from torch import Tensor

from snnkern import reference
from snnkern._checks import check_number

KINDS = reference.KINDS


@dataclass(frozen=True)
class Surrogate:
    """Base of all surrogates. ``normalized``: z is ``v / threshold - 1``, not ``v - threshold``."""

    kind: ClassVar[str]
    normalized: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Refuses parameters that are not finite and positive."""
        if not hasattr(type(self), "kind"):
            raise TypeError("Surrogate is a base class; use Triangle, ATan or another of its kinds")
        if not isinstance(self.normalized, bool):
            raise TypeError(
                f"{type(self).__name__}: normalized is {self.normalized!r}, expected True or False"
            )
        for name in (parameter.name for parameter in fields(self)):
            if name != "normalized" and getattr(self, name) is not None:
                owner = type(self).__name__
                check_number(f"{owner}: {name}", getattr(self, name), low=0, open_low=True)

    @property
    def args(self) -> tuple[float, float]:
        """The two numbers that the kernels take."""
        raise NotImplementedError

    def derivative(self, z: Tensor) -> Tensor:
        """ds/dz."""
        return reference.SURROGATES[self.kind](z, *self.args)


@dataclass(frozen=True)
class Triangle(Surrogate):
    """``scale * max(0, width - |z|)``; ``scale`` is ``1 / width^2`` unless given.

    Esser et al. 2016; PCW of Ozdenizci & Legenstein 2023; eq. 10 of Ding et al. 2022.
    """

    kind: ClassVar[str] = "triangle"
    width: float = 1.0
    scale: float | None = None

    @property
    def args(self) -> tuple[float, float]:
        """Width and scale."""
        return self.width, 1 / self.width**2 if self.scale is None else self.scale


@dataclass(frozen=True)
class Rectangle(Surrogate):
    """``scale`` where ``|z| < width / 2``; ``scale`` is ``1 / width`` unless given.

    Wu et al. 2018; RECT of Ozdenizci & Legenstein 2023.
    """

    kind: ClassVar[str] = "rectangle"
    width: float = 1.0
    scale: float | None = None

    @property
    def args(self) -> tuple[float, float]:
        """Width and scale."""
        return self.width, 1 / self.width if self.scale is None else self.scale


@dataclass(frozen=True)
class Exponential(Surrogate):
    """``scale * exp(-slope |z|)``. Shrestha & Orchard 2018; EXP of Ozdenizci & Legenstein 2023."""

    kind: ClassVar[str] = "exponential"
    scale: float = 1.0
    slope: float = 1.0

    @property
    def args(self) -> tuple[float, float]:
        """Scale and slope."""
        return self.scale, self.slope


@dataclass(frozen=True)
class ATan(Surrogate):
    """``alpha / 2 / (1 + (pi / 2 alpha z)^2)``. Fang et al. 2021."""

    kind: ClassVar[str] = "atan"
    alpha: float = 2.0

    @property
    def args(self) -> tuple[float, float]:
        """Alpha."""
        return self.alpha, 0.0


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """``alpha sigmoid(alpha z) (1 - sigmoid(alpha z))``."""

    kind: ClassVar[str] = "sigmoid"
    alpha: float = 4.0

    @property
    def args(self) -> tuple[float, float]:
        """Alpha."""
        return self.alpha, 0.0


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """``1 / (1 + slope |z|)^2``. Zenke & Ganguli 2018."""

    kind: ClassVar[str] = "fast_sigmoid"
    slope: float = 25.0

    @property
    def args(self) -> tuple[float, float]:
        """Slope."""
        return self.slope, 0.0


@dataclass(frozen=True)
class Erf(Surrogate):
    """``alpha / sqrt(pi) exp(-(alpha z)^2)``."""

    kind: ClassVar[str] = "erf"
    alpha: float = 2.0

    @property
    def args(self) -> tuple[float, float]:
        """Alpha."""
        return self.alpha, 0.0


@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """1: the spike is differentiated as if it were its argument."""

    kind: ClassVar[str] = "straight_through"

    @property
    def args(self) -> tuple[float, float]:
        """None are used."""
        return 0.0, 0.0


@dataclass(frozen=True)
class SpikeTime(Surrogate):
    """``alpha exp(-beta n)``, n the steps since the neuron last fired: spike-time dependent (STDB).

    Rathi et al. 2020; Sharmin et al. 2020. It does not depend on the membrane. Before its first
    spike a neuron gets no gradient. The authors' code evaluates ``alpha (exp(-n))^beta``, which
    float32 rounds to 0 from n = 104 on, where the formula still gives 0.106 for the defaults; here
    it is the formula.
    """

    kind: ClassVar[str] = "spike_time"
    alpha: float = 0.3
    beta: float = 0.01

    @property
    def args(self) -> tuple[float, float]:
        """Alpha and beta."""
        return self.alpha, self.beta

    def derivative(self, z: Tensor) -> Tensor:
        """ds/dz, with the steps since the last spike in place of z."""
        return super().derivative(z)


@dataclass(frozen=True)
class Rate(Surrogate):
    """Backpropagation through the rate (BPTR) instead of through time.

    The gradient of a spike passes, with factor 1, to the current of the same step where the neuron
    fired at least once. Leak, threshold and initial state get none. Ding et al. 2022, section 3.2;
    the constant 1/T of the text is left out, as in the authors' results.
    """

    kind: ClassVar[str] = "rate"

    @property
    def args(self) -> tuple[float, float]:
        """None are used."""
        return 0.0, 0.0

    def derivative(self, z: Tensor) -> Tensor:
        """Raises a ValueError: there is none at a point."""
        raise ValueError("Rate has no derivative at a point")
