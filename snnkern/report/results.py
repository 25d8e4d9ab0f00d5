"""What is known of a network, as plain numbers and arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from snnkern._intervals import wilson

CurveKind = Literal["attack", "certificate"]
Raster = tuple[NDArray[np.bool_], NDArray[np.bool_]]


def check_text(name: str, value: object) -> None:
    """Raises unless ``value`` is a str."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {value!r}")


def _check_int(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")


def _check_float(name: str, value: object, minimum: float, maximum: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float, got {value!r}")
    if not (math.isfinite(value) and minimum <= value <= maximum):
        raise ValueError(f"{name} must be finite and in [{minimum:g}, {maximum:g}], got {value!r}")


def check_unique(name: str, values: list[object]) -> None:
    """Raises where two of ``values`` are the same."""
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise ValueError(f"{name} must differ from one another, got {repeated[0]!r} twice")


@dataclass(frozen=True)
class Score:
    """The share of images, in [0, 1], that stay right at perturbation size `eps`.

    Attributes:
        name: the attack or the certificate, "PGD-20" or "S-IBP" for example.
        eps: size of the perturbation in units of the pixel range [0, 1]; 0 for clean images.
        value: share of images, in [0, 1].
        count: number of images the share was taken over.

    Raises:
        TypeError, ValueError: naming the argument that is not as above.
    """

    name: str
    eps: float
    value: float
    count: int

    def __post_init__(self) -> None:
        check_text("name", self.name)
        _check_float("eps", self.eps, 0.0)
        _check_float("value", self.value, 0.0, 1.0)
        _check_int("count", self.count, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the share."""
        return wilson(self.value, self.count)


@dataclass(frozen=True)
class Curve:
    """The share of images that stay right, as a function of eps.

    Attributes:
        name: the attack or the certificate.
        kind: "attack" bounds the true robust accuracy from above, "certificate" from below.
        eps: strictly increasing sizes of the perturbation.
        value: the share at each eps, in [0, 1].
        count: number of images behind each share.

    Raises:
        TypeError, ValueError: naming the argument that is not as above.
    """

    name: str
    kind: CurveKind
    eps: tuple[float, ...]
    value: tuple[float, ...]
    count: int

    def __post_init__(self) -> None:
        check_text("name", self.name)
        if self.kind not in get_args(CurveKind):
            raise ValueError(f"kind must be one of {get_args(CurveKind)}, got {self.kind!r}")
        if not self.eps or len(self.eps) != len(self.value):
            raise ValueError(
                "eps and value must have one length of at least 1, "
                f"got {len(self.eps)} and {len(self.value)}"
            )
        for eps in self.eps:
            _check_float("eps", eps, 0.0)
        if any(left >= right for left, right in pairwise(self.eps)):
            raise ValueError(f"eps must be strictly increasing, got {self.eps!r}")
        for value in self.value:
            _check_float("value", value, 0.0, 1.0)
        _check_int("count", self.count, 1)


@dataclass(frozen=True)
class Epoch:
    """One epoch of training: its number, mean loss and training accuracy in [0, 1].

    And the accuracy on images that were not trained on, where it was measured.
    """

    epoch: int
    loss: float
    accuracy: float
    val_accuracy: float | None = None

    def __post_init__(self) -> None:
        _check_int("epoch", self.epoch, 0)
        _check_float("loss", self.loss, -math.inf)
        _check_float("accuracy", self.accuracy, 0.0, 1.0)
        if self.val_accuracy is not None:
            _check_float("val_accuracy", self.val_accuracy, 0.0, 1.0)


@dataclass(frozen=True)
class Layer:
    """What a layer of neurons does, on the mean over images.

    Attributes:
        name: of the layer.
        neurons: how many it has.
        clean: spikes per neuron and time step on clean images.
        adversarial: the same on attacked ones.
        rate_distance: l_2 distance of the firing rates, clean and attacked.
        train_distance: distance D_2 of the spike trains: the root of the number of spikes that
            differ.

    Raises:
        TypeError, ValueError: naming the argument that is not as above.
    """

    name: str
    neurons: int
    clean: float
    adversarial: float
    rate_distance: float
    train_distance: float

    def __post_init__(self) -> None:
        check_text("name", self.name)
        _check_int("neurons", self.neurons, 1)
        for name in ("clean", "adversarial"):
            _check_float(name, getattr(self, name), 0.0, 1.0)
        for name in ("rate_distance", "train_distance"):
            _check_float(name, getattr(self, name), 0.0)


@dataclass(frozen=True)
class Energy:
    """Picojoules of the arithmetic of one image: clean, attacked, and as a ReLU network."""

    clean: float
    adversarial: float
    dense: float

    def __post_init__(self) -> None:
        for name in ("clean", "adversarial", "dense"):
            _check_float(name, getattr(self, name), 0.0)


class Membrane(NamedTuple):
    """The membrane of one neuron before reset at every step, float32 [T], clean and attacked."""

    neuron: int
    threshold: float
    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32]


def _check_dtype(name: str, array: object, dtype: str) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} must be a {dtype} array, got {got}")


def _check_image(name: str, image: NDArray[np.float32]) -> None:
    _check_dtype(name, image, "float32")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.size == 0:
        raise ValueError(f"{name} must have shape [1 or 3, H, W], got {list(image.shape)}")
    if not bool(np.all((image >= 0) & (image <= 1))):
        raise ValueError(
            f"{name} must lie in [0, 1], got values from {image.min()} to {image.max()}"
        )


def _check_raster(name: str, raster: Raster) -> None:
    for spikes in raster:
        _check_dtype(name, spikes, "bool")
        if spikes.ndim != 2 or spikes.size == 0:
            raise ValueError(f"{name} must have shape [T, neurons], got {list(spikes.shape)}")
    clean, adversarial = raster
    if clean.shape != adversarial.shape:
        raise ValueError(
            f"{name} must have one shape for clean and adversarial, "
            f"got {list(clean.shape)} and {list(adversarial.shape)}"
        )


def _check_membrane(name: str, membrane: Membrane) -> None:
    _check_int(f"neuron of {name}", membrane.neuron, 0)
    _check_float(f"threshold of {name}", membrane.threshold, -math.inf)
    for trace in (membrane.clean, membrane.adversarial):
        _check_dtype(name, trace, "float32")
        if trace.ndim != 1 or trace.shape != membrane.clean.shape or trace.size == 0:
            raise ValueError(
                f"{name} must have shape [T] for clean and adversarial, got {list(trace.shape)}"
            )


@dataclass(frozen=True, eq=False)
class Sample:
    """One image, its adversarial twin, and what the network made of both.

    Attributes:
        label: the true class.
        clean: float32 image [C, H, W] in [0, 1], with C 1 (grey) or 3 (red, green, blue).
        adversarial: the same for the attacked image.
        predicted_clean: class the network gives the clean image.
        predicted_adversarial: class the network gives the attacked image.
        eps: size of the perturbation the attack was allowed.
        attack: name of the attack.
        rasters: for each layer the clean and the adversarial spikes, bool [T, neurons] each.
        membranes: for layers of these the membrane of one neuron, whose spikes stand there.

    Raises:
        TypeError, ValueError: naming the argument that is not as above.
    """

    label: int
    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32]
    predicted_clean: int
    predicted_adversarial: int
    eps: float
    attack: str
    rasters: Mapping[str, Raster] = field(default_factory=dict)
    membranes: Mapping[str, Membrane] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("label", "predicted_clean", "predicted_adversarial"):
            _check_int(name, getattr(self, name), 0)
        _check_image("clean", self.clean)
        _check_image("adversarial", self.adversarial)
        if self.clean.shape != self.adversarial.shape:
            raise ValueError(
                f"adversarial must have the shape of clean {list(self.clean.shape)}, "
                f"got {list(self.adversarial.shape)}"
            )
        _check_float("eps", self.eps, 0.0)
        check_text("attack", self.attack)
        for layer, raster in self.rasters.items():
            check_text("layer name in rasters", layer)
            _check_raster(f"rasters[{layer!r}]", raster)
        for layer, membrane in self.membranes.items():
            _check_membrane(f"membranes[{layer!r}]", membrane)
            shape = self.rasters[layer][0].shape if layer in self.rasters else (0, 0)
            if shape[0] != len(membrane.clean) or shape[1] <= membrane.neuron:
                raise ValueError(
                    f"membranes[{layer!r}] must be of a neuron in rasters, got neuron "
                    f"{membrane.neuron} with {len(membrane.clean)} steps for {list(shape)}"
                )

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sample):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))


def _same(a: Any, b: Any) -> bool:
    """Equality of numbers, texts and arrays, and of what holds them."""
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


@dataclass(frozen=True)
class NetworkResult:
    """Everything measured on one network.

    Attributes:
        name: shown in every table and figure; unique in a study.
        method: how it was trained, in a few words.
        timesteps: T, which is that of the rasters; 0 for a ReLU network, None where not known.
        clean: accuracy on clean images (eps 0).
        attacked: accuracy under each attack.
        certified: certified share, or None where nothing was certified.
        spikes_per_image: mean number of spikes for one image, over all neurons and time steps.
        seconds: wall time of training.
        curves: accuracy and certified share against eps.
        members: accuracy under one attack through different gradients, each on its own.
        history: one entry per epoch of training.
        layers: what its layers do, from the first to the last.
        energy: of the arithmetic of one image.
        samples: images shown with their adversarial twins.
        missing: what was not measured, and how it is, in words.

    Raises:
        TypeError, ValueError: naming the argument that is not as above.
    """

    name: str
    method: str
    timesteps: int | None
    clean: Score | None
    attacked: tuple[Score, ...]
    certified: Score | None
    spikes_per_image: float | None
    seconds: float | None
    curves: tuple[Curve, ...] = ()
    members: tuple[Score, ...] = ()
    history: tuple[Epoch, ...] = ()
    layers: tuple[Layer, ...] = ()
    energy: Energy | None = None
    samples: tuple[Sample, ...] = ()
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_text("name", self.name)
        check_text("method", self.method)
        if self.timesteps is not None:
            _check_int("timesteps", self.timesteps, 0)
        for name in ("spikes_per_image", "seconds"):
            if (value := getattr(self, name)) is not None:
                _check_float(name, value, 0.0)
        for line in self.missing:
            check_text("missing", line)
        for name, scores in (("attacked", self.attacked), ("members", self.members)):
            check_unique(name, [(score.name, score.eps) for score in scores])
        check_unique("curves", [(curve.kind, curve.name) for curve in self.curves])
        check_unique("layers' names", [layer.name for layer in self.layers])
        for sample in self.samples:
            for layer, (clean, _) in sample.rasters.items():
                if clean.shape[0] != self.timesteps:
                    raise ValueError(
                        f"rasters[{layer!r}] of {self.name!r} must have {self.timesteps} time "
                        f"steps, got {clean.shape[0]}"
                    )
