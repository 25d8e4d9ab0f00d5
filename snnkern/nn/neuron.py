"""Neuron layers: modules that run all time steps of a layer in one op."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from snnkern import functional
from snnkern.autograd import Bounded
from snnkern.functional import (
    DECAYS,
    Backend,
    Charge,
    Reset,
    SpikeFormat,
    Synapse,
    check_options,
    check_parameter,
    decay_of,
)
from snnkern.nn.gradient import GradientMode
from snnkern.surrogate import Surrogate, Triangle

# What a layer hands on to functional.lif as it is.
OPTIONS = (
    "charge",
    "v_rest",
    "gain",
    "synapse",
    "reset",
    "v_reset",
    "detach_reset",
    "strict",
    "delayed_spike",
    "spike_format",
    "backend",
)
# Where a learnt parameter means something.
BOUNDS = {
    "leak": (0.0, 1.0),
    "rate": (0.0, 1.0),
    "synapse_decay": (0.0, 1.0),
    "tau": (1.0, torch.inf),
}


class LIF(GradientMode):
    """Leaky integrate-and-fire neurons, ``[T, N, ...] -> [T, N, ...]``.

    A drop-in for the neuron layer of a model that runs layer by layer over time. Every call starts
    from rest unless ``stateful``.

    Args:
        leak: share of the state that a step keeps, in ``[0, 1]``; a number, one per channel ``[C]``
            (dimension 2 of the input), or one per neuron (the shape of a sample). 0.9 unless given.
        threshold: above 0; like ``leak``.
        tau, rate: what other charges take instead of ``leak``; see ``snnkern.functional.lif``.
        synapse_decay: of a synapse, see there; like ``leak``.
        learn_leak: make the leak (or tau, or rate) a parameter. It acts clamped to where it means
            something, and its gradient is stopped where it would lead further out.
        learn_threshold: make the threshold a parameter, which acts at ``min_threshold`` at least.
        learn_synapse: make ``synapse_decay`` a parameter.
        min_threshold: the least threshold, where it is learnt.
        stateful: start where the last call ended, until ``reset_state()``. The gradient does not
            flow into earlier calls.
        charge, v_rest, gain, synapse, reset, v_reset, v_init: see ``snnkern.functional.lif``.
        surrogate, detach_reset, strict, delayed_spike: likewise.
        spike_format, return_state, backend: likewise.

    Raises:
        ValueError: a parameter that no neuron can have; with ``stateful``, an input whose shape
            does not fit the state of the call before.
    """

    is_neuron = True
    threshold: Tensor
    synapse_decay: Tensor | None

    def __init__(
        self,
        leak: float | Tensor | None = None,
        threshold: float | Tensor = 1.0,
        *,
        charge: Charge = "leak",
        tau: float | Tensor | None = None,
        rate: float | Tensor | None = None,
        v_rest: float = 0.0,
        gain: float = 1.0,
        synapse: Synapse = "none",
        synapse_decay: float | Tensor | None = None,
        learn_leak: bool = False,
        learn_threshold: bool = False,
        learn_synapse: bool = False,
        min_threshold: float = 1e-3,
        stateful: bool = False,
        reset: Reset = "hard",
        v_reset: float = 0.0,
        v_init: float | None = None,
        surrogate: Surrogate = Triangle(),  # noqa: B008  frozen
        detach_reset: bool = False,
        strict: bool = False,
        delayed_spike: bool = False,
        spike_format: SpikeFormat = "input",
        return_state: bool = False,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        check_parameter("threshold", min_threshold)
        if charge == "leak" and leak is None:
            leak = 0.9
        check_options(
            charge,
            v_rest,
            gain,
            synapse,
            reset,
            v_reset,
            detach_reset,
            strict,
            delayed_spike,
            spike_format,
            return_state,
            torch.float32,
        )
        self.decay_name = DECAYS[charge]
        given = {"leak": leak, "tau": tau, "rate": rate}
        self._make_parameter(self.decay_name, decay_of(charge, given), learn_leak)
        self._make_parameter("threshold", threshold, learn_threshold)
        if synapse_decay is None:
            self.synapse_decay = None
        else:
            self._make_parameter("synapse_decay", synapse_decay, learn_synapse)
        self.min_threshold = min_threshold
        self.stateful = stateful
        self.v_init = v_init
        self.surrogate = surrogate
        self.return_state = return_state
        self.charge: Charge = charge
        self.v_rest = v_rest
        self.gain = gain
        self.synapse: Synapse = synapse
        self.reset: Reset = reset
        self.v_reset = v_reset
        self.detach_reset = detach_reset
        self.strict = strict
        self.delayed_spike = delayed_spike
        self.spike_format: SpikeFormat = spike_format
        self.backend = backend
        self._state: tuple[Tensor, ...] = ()

    def _make_parameter(self, name: str, value: float | Tensor, learn: bool) -> None:
        check_parameter(name, value)
        tensor = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(float(value))
        if learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def dynamics(self) -> dict[str, Any]:
        """Decay, threshold and synapse as they act: learnt ones within their bounds."""
        bounds = BOUNDS | {"threshold": (self.min_threshold, torch.inf)}
        acting = {}
        for name in (self.decay_name, "threshold", "synapse_decay"):
            value = getattr(self, name)
            if value is not None:
                if isinstance(value, nn.Parameter):
                    value = Bounded.apply(value, *bounds[name])
                    if not torch.compiler.is_compiling():
                        value.within_bounds = True  # nobody needs to look
                acting[name] = value
        return acting

    def neuron_options(self) -> dict[str, Any]:
        """What ``functional.lif`` is called with."""
        return {
            **{name: getattr(self, name) for name in OPTIONS},
            **self.dynamics(),
            "v_init": self.v_init,
            "surrogate": self.active_surrogate(self.surrogate),
            "return_state": self.return_state,
        }

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Spikes, and the final state with ``return_state``."""
        if self.is_relu:
            return x.relu()
        v_init, current_init = self.carried_state(x)
        options = self.neuron_options() | {
            "v_init": v_init,
            "current_init": current_init,
            "return_state": self.stateful or self.return_state,
        }
        result: Tensor | tuple[Tensor, ...] = functional.lif(x, **options)
        if isinstance(result, Tensor):
            return result
        if self.stateful:
            self._state = tuple(part.detach() for part in result[1:])
        return result if self.return_state else result[0]

    def current(self, x: Tensor) -> Tensor:
        """The input current of the neurons when the layer sees ``x``."""
        return x

    def reset_state(self) -> None:
        """Forgets the state of earlier calls. Only a stateful layer has one."""
        self._state = ()

    def carried_state(self, x: Tensor) -> tuple[float | Tensor | None, Tensor | None]:
        """``v_init`` and ``current_init`` of a call with ``x``.

        Raises:
            ValueError: the state that the call before left does not fit ``x``.
        """
        if not self._state:
            return self.v_init, None
        shape = self._state[0].shape
        if shape != x.shape[1:]:
            raise ValueError(
                f"x has steps of shape {list(x.shape[1:])}, expected {list(shape)}, that of the "
                "state which the call before left; call reset_state() between sequences"
            )
        return self._state[0], self._state[1] if len(self._state) > 1 else None

    def extra_repr(self) -> str:
        """Parameters, surrogate, and the options that differ from the defaults."""

        def shown(value: Tensor) -> str:
            if value.numel() == 1:
                return f"{value.item():.4g}"
            return f"[{value.min().item():.4g} to {value.max().item():.4g}] x {value.numel()}"

        parameters = {name: getattr(self, name) for name in (self.decay_name, "threshold")}
        if self.synapse_decay is not None:
            parameters["synapse_decay"] = self.synapse_decay
        parts = [f"{name}={shown(value)}" for name, value in parameters.items()]
        learnt = [name for name, _ in self.named_parameters(recurse=False)]
        if learnt:
            parts.append("learns " + " and ".join(learnt))
        parts += [f"reset={self.reset!r}", f"surrogate={self.surrogate}"]
        for name in (*OPTIONS, "v_init", "stateful", "return_state"):
            value = getattr(self, name)
            if name != "reset" and value != inspect.signature(LIF).parameters[name].default:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)


class IF(LIF):
    """Integrate-and-fire neurons: LIF that never leaks. Options as for ``LIF``."""

    def __init__(self, threshold: float | Tensor = 1.0, **options: Any) -> None:
        for name in ("leak", "tau", "rate", "charge", "learn_leak"):
            if name in options:
                raise TypeError(
                    f"{name} is {options[name]!r}, expected none: IF never leaks; use LIF"
                )
        super().__init__(1.0, threshold, **options)
