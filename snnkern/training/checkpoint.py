"""Checkpoints: nested states in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from snnkern._files import write_atomically

# Marks what JSON has no word for. No state has such a key of its own.
_TENSOR, _PAIRS, _TUPLE = "$tensor", "$pairs", "$tuple"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes nested dicts, lists, numbers, strings and tensors.

    Tensors are named by their way through the state, ``model.layers.0.weight``, and the rest is
    JSON in the metadata. A process or machine that dies on the way leaves the old file or the new.

    Raises:
        TypeError: the state holds something else.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_without_tensors(state, "", tensors))
    write_atomically(path, lambda file: save_file(tensors, file, {"state": skeleton}))


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """What ``save_checkpoint`` wrote, with all tensors on the CPU.

    ``model.load_state_dict(load_checkpoint(path)["model"])`` gives a model the weights of a run.

    Raises:
        ValueError: the file is not such a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            skeleton = json.loads((file.metadata() or {})["state"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not a checkpoint of snnkern: {error}") from error
    state: dict[str, Any] = _with_tensors(skeleton, tensors)
    return state


def _without_tensors(value: Any, way: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory, as tied weights do.
        tensors[way] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {_TENSOR: way}
    if isinstance(value, dict):
        pairs = [
            (key, _without_tensors(part, f"{way}.{key}" if way else str(key), tensors))
            for key, part in value.items()
        ]
        return dict(pairs) if all(isinstance(key, str) for key in value) else {_PAIRS: pairs}
    if isinstance(value, list | tuple):
        parts = [_without_tensors(part, f"{way}.{i}", tensors) for i, part in enumerate(value)]
        return {_TUPLE: parts} if isinstance(value, tuple) else parts
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{way} is {value!r} of type {type(value).__name__}, expected what a checkpoint can hold: "
        "tensors, numbers, strings, and dicts and lists of them"
    )


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_with_tensors(value[_TUPLE], tensors))
    pairs = value.get(_PAIRS, value.items())
    return {key: _with_tensors(part, tensors) for key, part in pairs}
