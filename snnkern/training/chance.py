"""All sources of chance in a training, to be written down and set again."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnkern.training.method import Memory


def _generators(loader: Iterable[Any], memory: Memory) -> list[torch.Generator]:
    """The generators that the method and the loader hold; one that is held twice comes twice."""
    holders = (loader, getattr(loader, "sampler", None))
    held = [getattr(holder, "generator", None) for holder in holders]
    return [memory.generator, memory.noise, *(g for g in held if isinstance(g, torch.Generator))]


def chance(loader: Iterable[Any], memory: Memory) -> dict[str, Any]:
    """The states of all generators: torch's, Python's, numpy's, the method's and the loader's."""
    _, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  the one that others draw from
    device = memory.generator.device
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "generators": [generator.get_state() for generator in _generators(loader, memory)],
    }


def set_chance(state: dict[str, Any], loader: Iterable[Any], memory: Memory) -> None:
    """Sets all generators to what ``chance`` found.

    Raises:
        ValueError: the loader has other generators now.
    """
    generators = _generators(loader, memory)
    states: list[Tensor] = state["generators"]
    if len(generators) != len(states):
        raise ValueError(
            f"train_loader has {len(generators) - 2} generators of its own, expected "
            f"{len(states) - 2}, as in the run to resume"
        )
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], memory.generator.device)
    random.setstate(state["python"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy(), *rest))  # noqa: NPY002
    for generator, generator_state in zip(generators, states, strict=True):
        generator.set_state(generator_state)
