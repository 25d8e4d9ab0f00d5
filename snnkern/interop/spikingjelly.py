"""SpikingJelly 2.0.0 and 0.0.0.0.14: IFNode, LIFNode and ParametricLIFNode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor

from snnkern.interop.fused import HALF, Fused, Library, bounded, input_decay, modules_of
from snnkern.surrogate import ATan, Erf, Exponential, FastSigmoid, Rectangle, Sigmoid, Triangle
from snnkern.surrogate import Surrogate as OurSurrogate

Tensors = tuple[Tensor, ...]
States = tuple[Any, ...]
# 2.0.0 hands states through functions; 0.0.0.0.14 has a step of its own in training and in eval.
HAS_TRANSITIONS = hasattr(neuron.BaseNode, "single_step_functional_forward")


def our_surrogate(theirs: Any) -> OurSurrogate | str:
    """The same surrogate in our words; or why there is none."""
    name = type(theirs).__name__
    if type(theirs) is not getattr(surrogate, name, None):
        return f"surrogate_function is {theirs!r}, which is not one of SpikingJelly's own"
    if not theirs.spiking:
        return "surrogate_function.spiking is False"
    alpha = getattr(theirs, "alpha", None)
    if not isinstance(alpha, int | float) or not alpha > 0:
        return f"surrogate_function is {theirs!r}, whose alpha is not a number above 0"
    if name == "ATan":
        return ATan(alpha)
    if name == "Sigmoid":
        return Sigmoid(alpha)
    if name == "PiecewiseQuadratic":
        return Triangle(1 / alpha, alpha * alpha)
    if name == "PiecewiseExp":
        return Exponential(alpha / 2, alpha)
    if name == "Erf":
        return Erf(alpha)
    if name == "Rect":
        return Rectangle(1 / alpha, alpha)
    if name == "SoftSign" and alpha == 2:
        return FastSigmoid(2.0)
    if name == "SuperSpike" and alpha == 1:
        return FastSigmoid(1.0)
    return f"there is no surrogate {name} with alpha={alpha} here"


class FusedNode(Fused):
    """What the nodes share: reset, surrogate, state and the library's ways of calling them."""

    v_threshold: float
    v_reset: float | None
    v: Any

    @property
    def rest(self) -> float:
        """Where the membrane decays to."""
        return 0.0 if self.v_reset is None else self.v_reset

    def why_not(self) -> str:
        """Precisions, parameters and surrogates that are not known here."""
        if getattr(self, "_neuron_precision", None) is not None:
            return "a neuron precision is configured"
        if not isinstance(self.v_threshold, int | float) or not self.v_threshold > 0:
            return f"v_threshold is {self.v_threshold!r}, not a number above 0"
        if self.v_reset is not None and not isinstance(self.v_reset, int | float):
            return f"v_reset is {self.v_reset!r}, neither a number nor None"
        ours = our_surrogate(self.surrogate_function)
        return ours if isinstance(ours, str) else ""

    def fused_options(self, x: Tensor) -> dict[str, Any]:
        """The options of ``lif``; here those that the nodes share."""
        return {
            "threshold": self.v_threshold,
            "reset": "soft" if self.v_reset is None else "hard",
            "v_reset": self.rest,
            "detach_reset": self.detach_reset,
            "surrogate": our_surrogate(self.surrogate_function),
        }


class FusedNode20(FusedNode):
    """The calls of 2.0.0."""

    def materialize_states(self, inputs: Tensors, states: States, step_mode: str) -> States:
        """The library's, but a number stays one, and a corrected float32 membrane of a half input.

        A number is what a state is before the first input and after ``reset``.
        """
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        v, *rest = states
        if isinstance(v, float):
            return states
        if self.corrected and x.dtype in HALF and (v.shape, v.device) == (x.shape, x.device):
            return (v.float(), *rest)
        v, *rest = self.of_library(inputs, states, step_mode)
        return (v.float() if self.corrected and x.dtype in HALF else v, *rest)

    def of_library(self, inputs: Tensors, states: States, step_mode: str) -> States:
        """States as the library's own steps want them."""
        own: Any = super()
        materialized: States = own.materialize_states(inputs, states, step_mode)
        return materialized

    def single_step_functional_forward(
        self, inputs: Tensors, states: States, **options: object
    ) -> tuple[Tensors, States]:
        """One step ``[N, ...]``."""
        own = super().single_step_functional_forward  # type: ignore[misc]
        return self.fused_or_own("s", own, inputs, states, options)

    def multi_step_functional_forward(
        self, inputs: Tensors, states: States, **options: object
    ) -> tuple[Tensors, States]:
        """All steps ``[T, N, ...]``."""
        own = super().multi_step_functional_forward  # type: ignore[misc]
        return self.fused_or_own("m", own, inputs, states, options)

    def fused_or_own(
        self,
        step_mode: str,
        own: Callable[..., tuple[Tensors, States]],
        inputs: Tensors,
        states: States,
        options: dict[str, object],
    ) -> tuple[Tensors, States]:
        """Spikes and states of one op, or where that cannot be, of the library's own call."""
        (x,) = inputs
        if reason := self.unfit(x):
            self.leave(reason)
            if isinstance(states[0], float):
                states = self.of_library(inputs, states, step_mode)
            return own(inputs, states, **options)
        run = self.step_fused if step_mode == "s" else self.run_fused
        spikes, v = run(x, states[0], **self.fused_options(x))
        return (spikes,), (v, *states[1:])


class FusedNode14(FusedNode):
    """The calls of 0.0.0.0.14."""

    @property
    def without_gradient(self) -> bool:
        """Whether spikes pass no gradient on: those of its scripted steps in eval mode do not.

        Unless ``snnkern.gradient`` asks for one: attacks are crafted in eval mode.
        """
        return not self.training and not self.corrected and self.gradient_mode is None

    def fused_options(self, x: Tensor) -> dict[str, Any]:
        """In eval mode the reset passes no gradient on either."""
        return super().fused_options(x) | {
            "detach_reset": self.detach_reset or self.without_gradient
        }

    def why_not(self) -> str:
        """Also another backend."""
        if self.backend != "torch":
            return f"backend is {self.backend!r}"
        return super().why_not()

    def _start(self, x: Tensor) -> Tensor:
        self.v_float_to_tensor(x)
        if self.corrected and x.dtype in HALF:
            self.v = self.v.float()
        v: Tensor = self.v
        return v

    def single_step_forward(self, x: Tensor) -> Tensor:
        """One step ``[N, ...]``."""
        if reason := self.unfit(x):
            self.leave(reason)
            own: Any = super()
            spikes: Tensor = own.single_step_forward(x)
            return spikes
        spikes, self.v = self.step_fused(x, self._start(x), **self.fused_options(x))
        return spikes.detach() if self.without_gradient else spikes

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """All steps ``[T, N, ...]``; with ``store_v_seq`` one after the other."""
        own: Any = super()
        spikes: Tensor
        if reason := self.unfit(x_seq):
            self.leave(reason)
            spikes = own.multi_step_forward(x_seq)
            return spikes
        if self.store_v_seq:
            steps, states = [], []
            for x in x_seq.unbind(0):
                steps.append(self.single_step_forward(x))
                states.append(self.v)
            self.v_seq = torch.stack(states)
            return torch.stack(steps)
        start = self._start(x_seq[0])
        spikes, self.v = self.run_fused(x_seq, start, **self.fused_options(x_seq))
        return spikes.detach() if self.without_gradient else spikes


Base: Any = FusedNode20 if HAS_TRANSITIONS else FusedNode14


class FusedIFNode(Base, neuron.IFNode):
    """``v + x``."""

    library_class = neuron.IFNode

    def fused_options(self, x: Tensor) -> dict[str, Any]:
        """The membrane keeps everything."""
        options: dict[str, Any] = super().fused_options(x)
        return options | {"leak": 1.0}


class FusedLIFNode(Base, neuron.LIFNode):
    """``v + (x - (v - v_reset)) / tau``, or without the decay of the input."""

    library_class = neuron.LIFNode

    def why_not(self) -> str:
        """Also a tau that is not a number from 1 on."""
        if not isinstance(self.tau, int | float) or not 1 <= self.tau < float("inf"):
            return f"tau is {self.tau!r}, not a number of at least 1"
        reason: str = super().why_not()
        return reason

    def _decays_by_product(self) -> bool:
        """Whether ``v * (1 - 1 / tau)`` is the decay, which takes less time than a division.

        For a power of two it is that of ``v - v / tau`` too: both round the same number once.
        Otherwise it is 0.0.0.0.14's, where the membrane rests at 0; in eval mode with a soft reset.
        """
        if self.rest != 0:
            return False
        if math.frexp(self.tau)[0] == 0.5:
            return True
        return not HAS_TRANSITIONS and (self.training or self.v_reset is None)

    def fused_options(self, x: Tensor) -> dict[str, Any]:
        """With the charge."""
        options: dict[str, Any] = super().fused_options(x)
        if not self.decay_input and self._decays_by_product():
            return options | {"charge": "leak", "leak": 1.0 - 1.0 / self.tau}
        options["v_rest"] = self.rest
        if self.decay_input:
            return options | input_decay(self.tau)
        return options | {"charge": "decay", "tau": self.tau}


class FusedParametricLIFNode(Base, neuron.ParametricLIFNode):
    """``v + (x - (v - v_reset)) * sigmoid(w)``, or without the decay of the input."""

    library_class = neuron.ParametricLIFNode

    @property
    def without_gradient(self) -> bool:
        """It has no scripted steps."""
        return False

    def why_not(self) -> str:
        """Also what decays by a product of its own."""
        if not self.decay_input and (HAS_TRANSITIONS or self.rest != 0):
            return "decay_input is False: v - (v - v_reset) * sigmoid(w) + x is no charge here"
        reason: str = super().why_not()
        return reason

    def fused_options(self, x: Tensor) -> dict[str, Any]:
        """``w`` learns through the rate."""
        rate = self.w.float().sigmoid() if x.dtype in HALF else self.w.sigmoid()
        options: dict[str, Any] = super().fused_options(x)
        if self.decay_input:
            return options | {"charge": "euler", "rate": bounded(rate), "v_rest": self.rest}
        return options | {"charge": "leak", "leak": bounded(1.0 - rate)}


LIBRARY = Library(
    "spikingjelly",
    ("2.0.0", "0.0.0.0.14"),
    modules_of(neuron),
    (FusedIFNode, FusedLIFNode, FusedParametricLIFNode),
)
