"""Neuron layers: modules that run all time steps of a layer in one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnkern import functional
from snnkern.autograd import Bounded
from snnkern.functional import Backend, Reset, check_parameter
from snnkern.nn.gradient import GradientMode
from snnkern.surrogate import Surrogate, Triangle


class LIF(GradientMode):
    """Leaky integrate-and-fire neurons, ``[T, N, ...] -> [T, N, ...]``.

    A drop-in for the neuron layer of a model that runs layer by layer over time. Every call starts
    from rest unless ``stateful``.

    Args:
        leak: share of the state that a step keeps, in ``[0, 1]``; a number, or one per channel
            ``[C]`` (dimension 2 of the input).
        threshold: above 0; a number, or one per channel.
        learn_leak: make the leak a parameter. It acts clamped to ``[0, 1]``, and its gradient is
            stopped where it would lead further out.
        learn_threshold: make the threshold a parameter, which acts at ``min_threshold`` at least.
        min_threshold: the least threshold, where it is learnt.
        stateful: start where the last call ended, until ``reset_state()``. The gradient does not
            flow into earlier calls.
        reset, v_reset, v_init, surrogate, detach_reset, strict, return_state, backend: see
            ``snnkern.functional.lif``.

    Raises:
        ValueError: a leak or threshold that no neuron can have; with ``stateful``, an input whose
            shape does not fit the state of the call before.
    """

    leak: Tensor
    threshold: Tensor

    def __init__(
        self,
        leak: float | Tensor = 0.9,
        threshold: float | Tensor = 1.0,
        *,
        learn_leak: bool = False,
        learn_threshold: bool = False,
        min_threshold: float = 1e-3,
        stateful: bool = False,
        reset: Reset = "hard",
        v_reset: float = 0.0,
        v_init: float | None = None,
        surrogate: Surrogate = Triangle(),  # noqa: B008  frozen
        detach_reset: bool = False,
        strict: bool = False,
        return_state: bool = False,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        check_parameter("threshold", min_threshold)
        for name, value, learn in (
            ("leak", leak, learn_leak),
            ("threshold", threshold, learn_threshold),
        ):
            check_parameter(name, value)
            if isinstance(value, Tensor):
                tensor = value.detach().clone()
            else:
                tensor = torch.tensor(float(value))
            if learn:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        self.min_threshold = min_threshold
        self.stateful = stateful
        self.reset: Reset = reset
        self.v_reset = v_reset
        self.v_init = v_init
        self.surrogate = surrogate
        self.detach_reset = detach_reset
        self.strict = strict
        self.return_state = return_state
        self.backend = backend
        self._state: Tensor | None = None

    def dynamics(self) -> tuple[Tensor, Tensor]:
        """Leak and threshold as they act: learnt ones within their bounds."""
        leak, threshold = self.leak, self.threshold
        if isinstance(leak, nn.Parameter):
            leak = Bounded.apply(leak, 0.0, 1.0)
        if isinstance(threshold, nn.Parameter):
            threshold = Bounded.apply(threshold, self.min_threshold, torch.inf)
        return leak, threshold

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Spikes, and the final state with ``return_state``."""
        if self.is_relu:
            return x.relu()
        leak, threshold = self.dynamics()
        carry = self.stateful or self.return_state
        result = functional.lif(
            x,
            leak,
            threshold,
            reset=self.reset,
            v_reset=self.v_reset,
            v_init=self._carried_state(x),
            surrogate=self.active_surrogate(self.surrogate),
            detach_reset=self.detach_reset,
            strict=self.strict,
            return_state=carry,
            backend=self.backend,
        )
        if isinstance(result, Tensor):
            return result
        spikes, state = result
        if self.stateful:
            self._state = state.detach()
        return (spikes, state) if self.return_state else spikes

    def reset_state(self) -> None:
        """Forgets the state of earlier calls. Only a stateful layer has one."""
        self._state = None

    def _carried_state(self, x: Tensor) -> float | Tensor | None:
        state = self._state
        if state is None:
            return self.v_init
        if state.shape != x.shape[1:]:
            raise ValueError(
                f"x has steps of shape {list(x.shape[1:])}, expected {list(state.shape)}, that of "
                "the state which the call before left; call reset_state() between sequences"
            )
        return state

    def extra_repr(self) -> str:
        """The options that differ from the defaults, leak and threshold always."""

        def shown(value: Tensor) -> str:
            if value.numel() == 1:
                return f"{value.item():.4g}"
            return f"[{value.min().item():.4g} to {value.max().item():.4g}] x {value.numel()}"

        parts = [f"leak={shown(self.leak)}", f"threshold={shown(self.threshold)}"]
        learnt = [name for name, _ in self.named_parameters(recurse=False)]
        if learnt:
            parts.append("learns " + " and ".join(learnt))
        parts += [f"reset={self.reset!r}", f"surrogate={self.surrogate}"]
        for name, usual in (
            ("v_reset", 0.0),
            ("v_init", None),
            ("detach_reset", False),
            ("strict", False),
            ("stateful", False),
            ("backend", None),
        ):
            if getattr(self, name) != usual:
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(parts)


class IF(LIF):
    """Integrate-and-fire neurons: LIF that never leaks. Options as for ``LIF``."""

    def __init__(self, threshold: float | Tensor = 1.0, **options: Any) -> None:
        for name in ("leak", "learn_leak"):
            if name in options:
                raise TypeError(
                    f"{name} is {options[name]!r}, expected none: IF never leaks; use LIF"
                )
        super().__init__(1.0, threshold, **options)
