"""What writer and reader agree on: the nodes of NIR, and what we add to them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

Convention = Literal["hard", "soft"]
Array = NDArray[np.float64]
# NIR 1.0.4, which other libraries insist on, has none.
HAS_V_RESET = any(field.name == "v_reset" for field in fields(nir.LIF))
OURS = "snnkern"  # the key of what we add to a node, for whoever reads it with the same dt
NORM = ("running_mean", "running_var", "weight", "bias")


def check_reset(reset: str) -> None:
    """Raises unless ``reset`` is a ``Convention``."""
    if reset not in ("hard", "soft"):
        raise ValueError(f"reset is {reset!r}, expected 'hard' or 'soft'")


def with_metadata(node: Any, ours: dict[str, Any]) -> Any:
    """The node, with what we add to it."""
    node.metadata = {OURS: ours}
    return node


def kept_in(node: Any) -> dict[str, Any]:
    """What we added to a node."""
    return dict((getattr(node, "metadata", None) or {}).get(OURS, {}))


def kept_norm(node: Any) -> dict[str, Any]:
    """What we added to the node of a norm, if the node still is what that gives."""
    kept = kept_in(node) if isinstance(node, nir.Conv2d) else {}
    if kept and all(map(np.array_equal, (node.weight, node.bias), folded(kept))):
        return kept
    return {}


def folded(kept: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight and bias of the 1x1 convolution that a norm is, of what we keep of it."""
    mean, var = (np.asarray(kept[part], dtype=np.float64) for part in NORM[:2])
    scale = kept.get("weight", 1) / np.sqrt(var + kept["eps"])
    shift = kept.get("bias", 0) - mean * scale
    # nir's shapes know no groups
    return np.diag(scale).astype(np.float32)[:, :, None, None], shift.astype(np.float32)


def pair(value: Any) -> tuple[int, int]:
    """Of a size, the same for both axes or one for each."""
    a, b = np.broadcast_to(np.asarray(value), (2,)).tolist()
    return int(a), int(b)
