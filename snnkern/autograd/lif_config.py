"""The options of a LIF layer, as its Functions take them."""

from __future__ import annotations

from typing import Any, NamedTuple


class LIFConfig(NamedTuple):
    """Everything about a LIF layer that is not a tensor; options by number, see reference."""

    timesteps: int
    charge: int
    v_rest: float
    gain: float
    synapse: int
    reset: int
    v_reset: float
    strict: bool
    delayed_spike: bool
    detach_reset: bool
    surrogate: int
    surrogate_args: tuple[float, float]
    normalized: bool
    spike_format: int
    return_state: bool
    overload: str
    rule: Any = None  # what differentiates instead of a surrogate of the ops

    @property
    def dynamics(self) -> tuple[int, float, float, int, int, float, bool, bool]:
        """The options that forward and backward share."""
        return self[1:9]

    def settled(self) -> LIFConfig:
        """With the surrogate that was chosen by the time of backward, where that was put off."""
        settle = getattr(self.rule, "settle", None)
        return self if settle is None else settle(self)
