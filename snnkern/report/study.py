"""What a report tells: the results of one study, as plain numbers and arrays.

Nothing here needs torch, so a report can be read and drawn anywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from snnkern._files import write_atomically
from snnkern._intervals import wilson

CurveKind = Literal["attack", "certificate"]
Raster = tuple[NDArray[np.bool_], NDArray[np.bool_]]

_FORMAT = 1
_JSON_NAME = "study.json"
_ARRAYS_NAME = "study.npz"


def _check_text(name: str, value: object) -> None:
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


def _check_unique(name: str, values: list[object]) -> None:
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
        _check_text("name", self.name)
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
        _check_text("name", self.name)
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
    """One epoch of training: its number, mean loss and training accuracy in [0, 1]."""

    epoch: int
    loss: float
    accuracy: float

    def __post_init__(self) -> None:
        _check_int("epoch", self.epoch, 0)
        _check_float("loss", self.loss, -math.inf)
        _check_float("accuracy", self.accuracy, 0.0, 1.0)


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
        _check_text("attack", self.attack)
        for layer, raster in self.rasters.items():
            _check_text("layer name in rasters", layer)
            _check_raster(f"rasters[{layer!r}]", raster)

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sample):
            return NotImplemented
        mine, theirs = _sample_arrays(self), _sample_arrays(other)
        return (
            _sample_numbers(self) == _sample_numbers(other)
            and mine.keys() == theirs.keys()
            and all(np.array_equal(mine[key], theirs[key]) for key in mine)
        )


@dataclass(frozen=True)
class NetworkResult:
    """Everything measured on one network.

    Attributes:
        name: shown in every table and figure; unique in a study.
        method: how it was trained, in a few words.
        clean: accuracy on clean images (eps 0).
        attacked: accuracy under each attack.
        certified: certified share, or None where nothing was certified.
        spikes_per_image: mean number of spikes for one image, over all neurons and time steps.
        seconds: wall time of training.
        curves: accuracy and certified share against eps.
        history: one entry per epoch of training.
        samples: images shown with their adversarial twins.

    Raises:
        TypeError, ValueError: naming the argument that is not as above.
    """

    name: str
    method: str
    clean: Score
    attacked: tuple[Score, ...]
    certified: Score | None
    spikes_per_image: float
    seconds: float
    curves: tuple[Curve, ...] = ()
    history: tuple[Epoch, ...] = ()
    samples: tuple[Sample, ...] = ()

    def __post_init__(self) -> None:
        _check_text("name", self.name)
        _check_text("method", self.method)
        _check_float("spikes_per_image", self.spikes_per_image, 0.0)
        _check_float("seconds", self.seconds, 0.0)
        _check_unique("attacked", [(score.name, score.eps) for score in self.attacked])
        _check_unique("curves", [(curve.kind, curve.name) for curve in self.curves])


@dataclass(frozen=True)
class Study:
    """A study: what ran, on what, and what came out for every network.

    Attributes:
        title: the headline.
        description: one or two sentences beneath it.
        provenance: what is needed to run it again (date, command, machine, versions, seed).
        dataset: the images, in a few words.
        timesteps: T of the networks; the rasters have as many time steps.
        networks: at least one, with different names.

    Raises:
        TypeError, ValueError: naming the argument that is not as above.
    """

    title: str
    description: str
    provenance: Mapping[str, str]
    dataset: str
    timesteps: int
    networks: tuple[NetworkResult, ...]

    def __post_init__(self) -> None:
        for name in ("title", "description", "dataset"):
            _check_text(name, getattr(self, name))
        for key, value in self.provenance.items():
            _check_text("provenance key", key)
            _check_text(f"provenance[{key!r}]", value)
        _check_int("timesteps", self.timesteps, 0)
        if not self.networks:
            raise ValueError(f"networks must not be empty, got {self.networks!r}")
        _check_unique("networks' names", [network.name for network in self.networks])
        for network in self.networks:
            for sample in network.samples:
                for layer, (clean, _) in sample.rasters.items():
                    if clean.shape[0] != self.timesteps:
                        raise ValueError(
                            f"rasters[{layer!r}] of {network.name!r} must have "
                            f"{self.timesteps} time steps, got {clean.shape[0]}"
                        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write study.json (numbers) and study.npz (arrays) into `folder`, making it if needed."""
        path = Path(folder)
        arrays = {
            f"network{n}.sample{s}.{key}": array
            for n, network in enumerate(self.networks)
            for s, sample in enumerate(network.samples)
            for key, array in _sample_arrays(sample).items()
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        numbers = {
            "format": _FORMAT,
            "arrays_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            "title": self.title,
            "description": self.description,
            "provenance": dict(self.provenance),
            "dataset": self.dataset,
            "timesteps": self.timesteps,
            "networks": [_network_numbers(network) for network in self.networks],
        }
        text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(path / _ARRAYS_NAME, buffer.getvalue())
        write_atomically(path / _JSON_NAME, text.encode())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Study:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: `folder` holds no study.
            ValueError: another format, or arrays that do not belong to the numbers.
        """
        path = Path(folder)
        numbers: dict[str, Any] = json.loads((path / _JSON_NAME).read_text(encoding="utf-8"))
        found = numbers.pop("format", None)
        if found != _FORMAT:
            raise ValueError(f"{path / _JSON_NAME} must have format {_FORMAT}, got {found!r}")
        content = (path / _ARRAYS_NAME).read_bytes()
        if hashlib.sha256(content).hexdigest() != numbers.pop("arrays_sha256"):
            raise ValueError(
                f"{path / _ARRAYS_NAME} must be the file written with {_JSON_NAME}, "
                "got one with another checksum"
            )
        with np.load(io.BytesIO(content)) as file:
            arrays = dict(file)
        networks = tuple(
            _load_network(network, arrays, f"network{n}")
            for n, network in enumerate(numbers.pop("networks"))
        )
        return cls(**numbers, networks=networks)


def _sample_numbers(sample: Sample) -> dict[str, Any]:
    return {
        "label": sample.label,
        "predicted_clean": sample.predicted_clean,
        "predicted_adversarial": sample.predicted_adversarial,
        "eps": sample.eps,
        "attack": sample.attack,
        "layers": list(sample.rasters),
    }


def _sample_arrays(sample: Sample) -> dict[str, NDArray[Any]]:
    # Layers go by number: their names may hold anything, an archive's member names may not.
    arrays: dict[str, NDArray[Any]] = {"clean": sample.clean, "adversarial": sample.adversarial}
    for number, (clean, adversarial) in enumerate(sample.rasters.values()):
        arrays[f"layer{number}.clean"] = clean
        arrays[f"layer{number}.adversarial"] = adversarial
    return arrays


def _network_numbers(network: NetworkResult) -> dict[str, Any]:
    return {
        "name": network.name,
        "method": network.method,
        "clean": asdict(network.clean),
        "attacked": [asdict(score) for score in network.attacked],
        "certified": None if network.certified is None else asdict(network.certified),
        "spikes_per_image": network.spikes_per_image,
        "seconds": network.seconds,
        "curves": [asdict(curve) for curve in network.curves],
        "history": [asdict(epoch) for epoch in network.history],
        "samples": [_sample_numbers(sample) for sample in network.samples],
    }


def _load_network(
    numbers: dict[str, Any], arrays: Mapping[str, NDArray[Any]], prefix: str
) -> NetworkResult:
    certified = numbers.pop("certified")
    return NetworkResult(
        clean=Score(**numbers.pop("clean")),
        attacked=tuple(Score(**score) for score in numbers.pop("attacked")),
        certified=None if certified is None else Score(**certified),
        curves=tuple(
            Curve(eps=tuple(curve.pop("eps")), value=tuple(curve.pop("value")), **curve)
            for curve in numbers.pop("curves")
        ),
        history=tuple(Epoch(**epoch) for epoch in numbers.pop("history")),
        samples=tuple(
            _load_sample(sample, arrays, f"{prefix}.sample{s}")
            for s, sample in enumerate(numbers.pop("samples"))
        ),
        **numbers,
    )


def _load_sample(
    numbers: dict[str, Any], arrays: Mapping[str, NDArray[Any]], prefix: str
) -> Sample:
    rasters = {
        layer: (
            arrays[f"{prefix}.layer{number}.clean"],
            arrays[f"{prefix}.layer{number}.adversarial"],
        )
        for number, layer in enumerate(numbers.pop("layers"))
    }
    return Sample(
        clean=arrays[f"{prefix}.clean"],
        adversarial=arrays[f"{prefix}.adversarial"],
        rasters=rasters,
        **numbers,
    )
