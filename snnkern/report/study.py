"""A study, which a report tells: the results of some networks, and the files that keep them."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnkern._files import write_atomically
from snnkern.report.results import (
    Curve,
    Energy,
    Epoch,
    Layer,
    Membrane,
    NetworkResult,
    Sample,
    Score,
    check_text,
    check_unique,
)

_FORMAT = 2
_JSON_NAME = "study.json"
_ARRAYS_NAME = "study.npz"
# What of a network is more than a number or a text.
_PARTS: Mapping[str, type] = {
    "clean": Score,
    "attacked": Score,
    "certified": Score,
    "curves": Curve,
    "members": Score,
    "history": Epoch,
    "layers": Layer,
    "energy": Energy,
    "samples": Sample,
}


@dataclass(frozen=True)
class Study:
    """A study: what ran, on what, and what came out for every network.

    Attributes:
        title: the headline.
        description: one or two sentences beneath it.
        provenance: what is needed to run it again (date, command, machine, versions, seed).
        dataset: the images, in a few words.
        networks: at least one, with different names.

    Raises:
        TypeError, ValueError: naming the argument that is not as above.
    """

    title: str
    description: str
    provenance: Mapping[str, str]
    dataset: str
    networks: tuple[NetworkResult, ...]

    def __post_init__(self) -> None:
        for name in ("title", "description", "dataset"):
            check_text(name, getattr(self, name))
        for key, value in self.provenance.items():
            check_text("provenance key", key)
            check_text(f"provenance[{key!r}]", value)
        if not self.networks:
            raise ValueError(f"networks must not be empty, got {self.networks!r}")
        check_unique("networks' names", [network.name for network in self.networks])

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
        "membranes": [
            {"layer": layer, "neuron": m.neuron, "threshold": m.threshold}
            for layer, m in sample.membranes.items()
        ],
    }


def _sample_arrays(sample: Sample) -> dict[str, NDArray[Any]]:
    # Layers go by number: their names may hold anything, an archive's member names may not.
    arrays: dict[str, NDArray[Any]] = {"clean": sample.clean, "adversarial": sample.adversarial}
    for number, (clean, adversarial) in enumerate(sample.rasters.values()):
        arrays[f"layer{number}.clean"] = clean
        arrays[f"layer{number}.adversarial"] = adversarial
    for number, membrane in enumerate(sample.membranes.values()):
        arrays[f"membrane{number}.clean"] = membrane.clean
        arrays[f"membrane{number}.adversarial"] = membrane.adversarial
    return arrays


def _network_numbers(network: NetworkResult) -> dict[str, Any]:
    numbers = {
        part.name: getattr(network, part.name)
        for part in fields(network)
        if part.name not in _PARTS
    }
    for name, kind in _PARTS.items():
        value = getattr(network, name)
        if kind is Sample:
            numbers[name] = [_sample_numbers(sample) for sample in value]
        elif isinstance(value, tuple):
            numbers[name] = [asdict(part) for part in value]
        else:
            numbers[name] = None if value is None else asdict(value)
    return numbers


def _load_network(
    numbers: dict[str, Any], arrays: Mapping[str, NDArray[Any]], prefix: str
) -> NetworkResult:
    for name, kind in _PARTS.items():
        value = numbers[name]
        if kind is Sample:
            numbers[name] = tuple(
                _load_sample(sample, arrays, f"{prefix}.sample{s}")
                for s, sample in enumerate(value)
            )
        elif isinstance(value, list):
            numbers[name] = tuple(kind(**_with_tuples(part)) for part in value)
        elif value is not None:
            numbers[name] = kind(**value)
    return NetworkResult(**_with_tuples(numbers))


def _with_tuples(numbers: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in numbers.items()}


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
    membranes = {
        m["layer"]: Membrane(
            m["neuron"],
            m["threshold"],
            arrays[f"{prefix}.membrane{number}.clean"],
            arrays[f"{prefix}.membrane{number}.adversarial"],
        )
        for number, m in enumerate(numbers.pop("membranes"))
    }
    return Sample(
        clean=arrays[f"{prefix}.clean"],
        adversarial=arrays[f"{prefix}.adversarial"],
        rasters=rasters,
        membranes=membranes,
        **numbers,
    )
