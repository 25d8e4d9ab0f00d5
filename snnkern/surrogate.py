"""Surrogate derivatives of the spike: what training and attacks put in place of the step's.

Each is a frozen configuration. ``z`` is the membrane minus the threshold, or, with
``normalized=True``, the membrane divided by the threshold, minus 1. ``surrogate.derivative(z)``
gives ds/dz for any float tensor ``z``, of the same shape and dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from snnkern import reference
from snnkern._checks import check_number
from snnkern._layout import pieces

KINDS = reference.KINDS


@dataclass(frozen=True)
class Surrogate:
    """Base of all surrogates. ``normalized``: z is ``v / threshold - 1``, not ``v - threshold``."""

    kind: ClassVar[str]
    # Whether the gradient of a current is the same at every step where that of the spikes is.
    held: ClassVar[bool] = False
    normalized: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Refuses parameters that are not finite and positive."""
        if not hasattr(type(self), "kind"):
            raise TypeError("Surrogate is a base class; use Triangle, ATan or another of its kinds")
        if not isinstance(self.normalized, bool):
            raise TypeError(
                f"{type(self).__name__}: normalized is {self.normalized!r}, expected True or False"
            )
        for name in (parameter.name for parameter in fields(self) if parameter.compare):
            if name != "normalized" and getattr(self, name) is not None:
                owner = type(self).__name__
                check_number(f"{owner}: {name}", getattr(self, name), low=0, open_low=True)

    @property
    def args(self) -> tuple[float, float]:
        """The two numbers that the kernels take."""
        return 0.0, 0.0

    def for_layer(self) -> Surrogate:
        """The surrogate of one layer of a model, for as long as ``snnkern.gradient`` sets it."""
        return self

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
class NotPointwise(Surrogate):
    """Base of what has no derivative at a point: whole neurons or layers are looked at at once.

    Where ``carried`` is True, ``derivatives`` is to be written, and the backend goes back through
    the neurons with what it gives; where it is False, ``derivative``, for the own current of a step
    alone, without a synapse: leak, threshold and initial state then get no gradient. A batch has
    one for all of its samples, and second derivatives are refused.
    """

    carried: ClassVar[bool] = True

    def derivative(self, z: Tensor) -> Tensor:
        """Raises a ValueError: there is none at a point."""
        raise ValueError(
            f"{type(self).__name__} has no derivative at a point"
            + ("" if self.carried else ", expected one, since its `carried` is False")
        )

    def derivatives(self, z: Tensor) -> Tensor:
        """ds/dz of all steps, ``[T, N, ...]``, from z of all steps, in plain PyTorch."""
        raise ValueError(
            f"{type(self).__name__} has no derivatives of all steps, expected it to write them, "
            "since its `carried` is True"
        )


@dataclass(frozen=True)
class Rate(NotPointwise):
    """Backpropagation through the rate (BPTR) instead of through time.

    The gradient of a spike passes, with factor 1, to the current of the same step where the neuron
    fired at least once. Leak, threshold and initial state get none. Ding et al. 2022, section 3.2;
    the constant 1/T of the text is left out, as in the authors' results.
    """

    kind: ClassVar[str] = "rate"
    held: ClassVar[bool] = True


@dataclass(frozen=True)
class RGA(NotPointwise):
    """Rate gradient approximation: through the slope of the rate over the mean current.

    The gradient of a spike passes to the current of the same step, times ``gamma`` where the mean
    over time of the current, in units of the threshold, is in ``[0, 1 - leak]``, plus ``(1 - gamma
    + gamma leak) / (leak + 1)`` where it is in ``[1 - leak, 2]``; over the threshold. Leak,
    threshold and initial state get none. For ``charge="leak"`` without a synapse. Bu et al. 2023,
    for a threshold of 1.
    """

    kind: ClassVar[str] = "rga"
    held: ClassVar[bool] = True
    gamma: float = 0.2

    def factor(self, current: Tensor, leak: Tensor, threshold: Tensor) -> Tensor:
        """What a spike's gradient is multiplied by, of the mean currents ``[N, ...]``."""
        return reference.rate_gain(current, leak, threshold, self.gamma)


@dataclass(frozen=True)
class HART(NotPointwise):
    """Hybrid of rate and time: no way back through the carried state, the mean over time instead.

    The gradient of a spike passes through ``Triangle(width)`` to the current of its own step alone;
    every step then gets the mean of all. Leak, threshold and initial state get none. Not with a
    synapse, which is no membrane to detach. Hao et al. 2024.
    """

    kind: ClassVar[str] = "hart"
    held: ClassVar[bool] = True
    carried: ClassVar[bool] = False
    width: float = 1.0

    def derivative(self, z: Tensor) -> Tensor:
        """ds/dz of the own step."""
        return z.abs().neg_().add_(self.width).clamp_(min=0).mul_(1 / self.width**2)


@dataclass(frozen=True)
class PDSG(NotPointwise):
    """Potential-dependent surrogate: a bell as wide as the layer's membranes are spread.

    ``exp(-(z - sigma / 2)^2 / (2 sigma^2)) / (sqrt(2 pi) sigma)``, where sigma is the standard
    deviation of z over the steps so far, the batch and space, per channel of a convolutional layer
    ``[T, N, C, ...]`` and over all neurons of another ``[T, N, C]``; 1 where z is all the same.
    The gradient of a sample so depends on its batch. Lun et al. 2025.
    """

    kind: ClassVar[str] = "pdsg"

    def derivatives(self, z: Tensor) -> Tensor:
        """ds/dz, ``[T, N, ...]``."""
        dims = [d for d in range(1, z.dim()) if d != 2 or z.dim() == 3]
        # Step by step, then steps together, from one of the numbers on: exactly 0 where all is the
        # same.
        anchor = z
        for d in dims:
            anchor = anchor.narrow(d, 0, 1)
        bells = z - anchor
        mean = bells.mean(dims, keepdim=True)
        var = bells.sub_(mean).square_().mean(dims, keepdim=True)
        mean += anchor
        steps = range(1, len(z) + 1)
        so_far = [var[:t].mean(0) + mean[:t].var(0, correction=0) for t in steps]
        sigma = torch.stack(so_far).sqrt()
        sigma = torch.where(sigma == 0, 1, sigma)
        for bell, far, spread in pieces(bells, z, sigma.expand_as(z)):
            torch.sub(far, spread / 2, out=bell).div_(spread).square_().mul_(-0.5).exp_()
            bell.div_(math.sqrt(2 * math.pi) * spread)
        return bells


@dataclass
class Moments:
    """What ``ASSG`` has seen of a layer's neurons, ``[T, N, ...]``: mean and deviation of ``|z|``.

    ``held``: see without remembering. A layer that runs several times in one forward pass has
    moments for every time, told apart by their order in the backward pass ``task``: these, and
    those of ``others``.
    """

    mean: Tensor | None = None
    deviation: Tensor | None = None
    held: bool = False
    others: list[Moments] = field(default_factory=list, repr=False)
    task: int = -1
    number: int = 0

    def of_call(self) -> Moments:
        """Those that the backward pass which runs now asks for next."""
        # A compiler cannot trace it: there a layer has moments for one time.
        task = -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()
        self.number = self.number + 1 if task == self.task != -1 else 0
        self.task = task
        if self.number == 0:
            return self
        if len(self.others) < self.number:
            self.others.append(Moments())
        other = self.others[self.number - 1]
        other.held = self.held
        return other

    def restart(self) -> None:
        """Forgets."""
        self.mean = self.deviation = None
        self.others.clear()

    def only(self, samples: Tensor) -> None:
        """Goes on with some of the samples alone: indices, or a mask."""
        for one in (self, *self.others):
            if one.mean is not None and one.deviation is not None:
                one.mean, one.deviation = one.mean[:, samples], one.deviation[:, samples]


@dataclass(frozen=True)
class ASSG(NotPointwise):
    """Adaptive sharpness: an arctangent as wide as each neuron's membrane strays from threshold.

    At every gradient that is asked for, per neuron and step::

        M = decay M + (1 - decay) |z|               starting at 1
        D = decay D + (1 - decay) ||z| - M|         starting at 0
        alpha = a / (M + relax D + 1e-4)            a = 2 tan(pi share) / pi
        ds/dz = alpha / 2 / (1 + (pi / 2 alpha z)^2)

    so that about ``share`` of the surrogate's mass on either side lies where z is. Wang et al.
    2025. In ``snnkern.gradient`` M and D start anew with the block and live until its end: an
    attack begins with none. ``snnkern.nn.hold_surrogates`` keeps them as they are, for the repeats
    of a gradient that is an expectation. Elsewhere every call starts anew.

    Args:
        share: A of the paper, below 0.5; there between 0.35 and 0.49.
        relax: weight of the deviation.
        decay: of the moving means, below 1.
        moments: what was seen so far, updated in place; None starts anew at every call.
    """

    kind: ClassVar[str] = "assg"
    share: float = 0.425
    relax: float = 1.5
    decay: float = 0.9
    moments: Moments | None = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        """Refuses shares and decays that mean nothing."""
        super().__post_init__()
        for name, high in (("share", 0.5), ("decay", 1.0)):
            if getattr(self, name) >= high:
                raise ValueError(
                    f"ASSG: {name} is {getattr(self, name)!r}, expected a number below {high:g}"
                )

    def for_layer(self) -> ASSG:
        """One that remembers its layer."""
        return replace(self, moments=Moments())

    def derivatives(self, z: Tensor) -> Tensor:
        """ds/dz, ``[T, N, ...]``; ``moments`` are updated."""
        seen = (self.moments or Moments()).of_call()
        if seen.mean is None or seen.deviation is None:
            seen.mean, seen.deviation = torch.ones_like(z), torch.zeros_like(z)
            held = False
        else:
            held = seen.held
        if seen.mean.shape != z.shape:
            raise ValueError(
                f"the neurons have shape {list(z.shape)}, expected {list(seen.mean.shape)} as "
                "before: ASSG follows every neuron of a batch from one gradient to the next"
            )
        a = 2 * math.tan(math.pi * self.share) / math.pi
        slopes = torch.empty_like(z)
        for slope, far, mean, deviation in pieces(slopes, z, seen.mean, seen.deviation):
            if not held:
                size = far.abs()
                mean.lerp_(size, 1 - self.decay)
                deviation.lerp_(size.sub_(mean).abs_(), 1 - self.decay)
            width = torch.add(mean, deviation, alpha=self.relax).add_(1e-4)
            # With alpha = a / width, both sides of the fraction times width squared.
            below = far.mul(math.pi / 2 * a).square_().add_(width.square())
            torch.mul(width.div_(below), a / 2, out=slope)
        return slopes


@dataclass(frozen=True)
class Deferred(NotPointwise):
    """A surrogate that is chosen when a gradient is asked for: one forward pass for several.

    Args:
        now: a list that holds one pointwise surrogate by the time of backward.
    """

    kind: ClassVar[str] = "deferred"
    now: list[Surrogate] = field(default_factory=list, compare=False)

    def settle(self, config: Any) -> Any:
        """The options of a layer with the surrogate that was chosen."""
        (one,) = self.now
        return config._replace(
            surrogate=KINDS.index(one.kind),
            surrogate_args=one.args,
            normalized=one.normalized,
            rule=None,
        )
