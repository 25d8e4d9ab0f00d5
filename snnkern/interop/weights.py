"""Pretrained weights of the papers' own repositories, into our networks of the same papers.

Known are the files of SNN-RAT (Ding et al. 2022), RobustSNNConversion (Ozdenizci & Legenstein 2023)
and HIRE-SNN (Kundu et al. 2021). Their names differ; their layers come in the order of ours, but
for shortcuts. HIRE-SNN published no ResNet12: its names are taken for those of its base, DIET-SNN.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnkern.nn import LIF, NormLIF, Residual

State = Mapping[str, Tensor]
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_NORM = "(?:weight|bias|running_mean|running_var|num_batches_tracked)"
# Names as the repositories have them.
NAMES = re.compile(
    "|".join(
        (
            # The VGGs of all, and what is in front of and behind the blocks of RobustSNNConversion
            rf"(?:features|classifier|layer\d)\.\d+\.(?:{_NORM}|v_th)",
            r"threshold\.t\d+|leak\.l\d+",
            # Blocks: WRN16-4 of SNN-RAT, then WRN16-4 and ResNet20 of RobustSNNConversion
            rf"(?:block\d\.\d+|features\.\d+)\.(?:conv\d|bn\d)\.{_NORM}",
            r"(?:block\d\.\d+|features\.\d+)\.(?:convShortcut\.weight|convex\.comb)",
            rf"features\.\d+\.(?:act\d\.v_th|shortcut\.\d\.{_NORM})",
            rf"conv1\.weight|bn1\.{_NORM}|fc\.(?:weight|bias)",
            # ResNet12
            r"(?:pre_process|layer\d\.\d+\.(?:residual|identity))\.\d+\.weight",
        )
    )
)
SHORTCUT = re.compile(r"(.*)\.(?:convShortcut|shortcut|identity)\.")


def load_weights(model: nn.Module, weights: State | str | Path) -> None:
    """Copies the weights of a paper's repository into the network of ours that has its layers.

    Weights, norms, thresholds, leaks and branch weights are matched in the order in which layers
    act, and every shape is compared. The mean and std of the pixels are not in those files: they
    are arguments of our networks. A file is read without running code from it.

    Args:
        model: such as ``snnkern.models.vgg11(paper="ozdenizci")``, with the biases that the weights
            have.
        weights: a state_dict, or the file of one (also inside a checkpoint, and of DataParallel).

    Raises:
        ValueError: the layers differ, or a file holds more than tensors; nothing was copied then.
    """
    theirs = _by_kind(_state_of(weights))
    ours = _places(model)
    copies: list[tuple[Tensor, Tensor]] = []
    for kind, places in ours.items():
        found = theirs.pop(kind, [])
        if kind in ("threshold", "leak") and not found:
            continue  # what a repository does not learn is not in its files
        if len(found) != len(places):
            raise ValueError(
                f"weights has {len(found)} of kind {kind!r}, expected {len(places)} as "
                f"{type(model).__name__} has"
            )
        for (name, tensor), (place, target) in zip(found, places, strict=True):
            one = tensor.numel() == target.numel() == 1
            if tensor.shape != target.shape and not one:
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}, expected {list(target.shape)} for "
                    f"{place}"
                )
            copies.append((target, tensor.reshape(target.shape)))
    if theirs:
        names = [name for found in theirs.values() for name, _ in found]
        raise ValueError(f"weights has {names}, expected none that {type(model).__name__} lacks")
    with torch.no_grad():
        for target, tensor in copies:
            target.copy_(tensor)


def _state_of(weights: State | str | Path) -> dict[str, Tensor]:
    """Tensors by name, without what wraps them."""
    state: Any = weights
    if not isinstance(weights, Mapping):
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{weights} holds more than tensors, which only running its code could load: save "
                f"its state_dict ({error})"
            ) from error
    for key in ("state_dict", "net", "model"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
    stray = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if stray:
        raise ValueError(f"weights has {stray}, expected tensors alone")
    tensors = {name.removeprefix("module."): value for name, value in state.items()}
    if unknown := [name for name in tensors if not NAMES.fullmatch(name)]:
        raise ValueError(f"weights has {unknown}, expected names of the papers' repositories alone")
    return tensors


def _by_kind(state: State) -> dict[str, list[tuple[str, Tensor]]]:
    """Tensors by what they are, in the order in which the layers act."""
    kinds: dict[str, list[tuple[str, Tensor]]] = {}
    for name in _in_order(state):
        owner, _, leaf = name.rpartition(".")
        normed = f"{owner}.running_mean" in state
        if normed:
            kind = f"norm {leaf}"
        elif owner == "threshold" or leaf == "v_th":
            kind = "threshold"
        elif owner == "leak":
            kind = "leak"
        elif leaf == "comb":
            kind = "branch weights"
        else:
            kind = leaf
        kinds.setdefault(kind, []).append((name, state[name]))
    return kinds


def _in_order(state: State) -> list[str]:
    """Names in the order of their layers: a block's shortcut before its branch."""

    def place(item: tuple[int, str]) -> tuple[float, ...]:
        number, name = item
        if match := re.fullmatch(r"(?:threshold\.t|leak\.l)(\d+)", name):
            return (len(names), float(match[1]))  # by number: as text t10 comes before t3
        if match := SHORTCUT.match(name):
            first = next(n for n, other in enumerate(names) if other.startswith(match[1] + "."))
            return (first - 0.5,)
        return (float(number),)

    names = list(state)
    return [name for _, name in sorted(enumerate(names), key=place)]


def _places(model: nn.Module) -> dict[str, list[tuple[str, Tensor]]]:
    """Where tensors of each kind go in a network of ours."""
    places: dict[str, list[tuple[str, Tensor]]] = {}
    for kind, name, tensor in _tensors(model):
        if tensor is not None:
            places.setdefault(kind, []).append((name, tensor))
    return places


def _tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor | None]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            for leaf in ("weight", "bias"):
                yield leaf, f"{name}.{leaf}", getattr(module, leaf)
        if isinstance(module, NormLIF | nn.BatchNorm2d):
            for leaf in NORM:
                yield f"norm {leaf}", f"{name}.{leaf}", getattr(module, leaf)
        if isinstance(module, LIF):
            for leaf in ("threshold", "leak"):
                yield leaf, f"{name}.{leaf}", getattr(module, leaf)
        if isinstance(module, Residual):
            yield "branch weights", f"{name}.branch_weights", module.branch_weights
