"""Norse 1.1.0: LIF, LIFCell, LIFBoxCell, IAF and IAFCell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from norse.torch.functional import iaf, lif, lif_box
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.module import iaf as iaf_module
from norse.torch.module import lif as lif_module
from norse.torch.module import lif_box as lif_box_module
from norse.torch.module import snn
from torch import Tensor, nn

from snnkern.interop.fused import Fused, Library, is_looked_at, is_number, number, spread
from snnkern.surrogate import FastSigmoid, Surrogate, Triangle


class FusedModule(Fused):
    """What the neurons share: parameters in a tuple, states that are passed and handed out."""

    library_step: ClassVar[Callable[..., Any]]
    initial_state: ClassVar[Callable[..., Any]]
    state_type: ClassVar[type]
    start: ClassVar[str]  # the parameter at which a membrane starts
    dt: float
    p: Any

    @property
    def surrogate(self) -> Surrogate | None:
        """The method in our words; None where there is no such surrogate here.

        SuperSpike is ``1 / (1 + alpha |x|)^2``, of which the library leaves out alpha.
        """
        alpha = number(self.p.alpha)
        if self.p.method == "super":
            return FastSigmoid(alpha if self.corrected else 1.0)
        if self.p.method == "triangle" and alpha > 0:
            return Triangle(1.0, alpha)
        return None

    @property
    def has_own_start(self) -> bool:
        """Whether ``state_fallback`` is the library's; compilers cannot compare bound methods."""
        fallback: Any = self.state_fallback
        function, owner = (getattr(fallback, name, None) for name in ("__func__", "__self__"))
        return function is type(self).initial_state and owner is self

    def decays(self) -> dict[str, Any]:
        """The shares of membrane and current that a step takes."""
        return {}

    def why_not(self) -> str:
        """Recorded states, adjoints, and parameters that are not numbers or out of range."""
        if getattr(self, "record_states", False):
            return "record_states is True"
        if self.activation is not type(self).library_step:
            return f"p.method is {self.p.method!r}"
        if not self.has_own_start:
            return f"state_fallback is {self.state_fallback!r}"
        if self.surrogate is None:
            return f"there is no surrogate {self.p.method} with alpha={self.p.alpha} here"
        for name in ("v_leak", "v_reset"):
            value = getattr(self.p, name, 0.0)
            # The library itself makes IAF's v_reset a leaf that asks for gradients.
            value = value if isinstance(value, nn.Parameter) else torch.as_tensor(value).detach()
            if not is_number(value):
                return f"p.{name} is not a number, or learns"
        ranges = {"p.v_th": (self.p.v_th, torch.inf)} | {
            f"dt * {name}": (value, 1.0) for name, value in self.decays().items()
        }
        for name, (value, high) in ranges.items():
            if is_looked_at(value) and not 0 < number(value) <= high:
                expected = "above 0" if high == torch.inf else "in (0, 1]"
                return f"{name} is {number(value)}, not {expected}"
        return ""

    def fused_options(self) -> dict[str, Any]:
        """The options of ``lif`` but those of the charge."""
        return {
            "threshold": self.p.v_th,
            "surrogate": self.surrogate,
            "strict": True,
            "reset": "hard",
            "v_reset": number(self.p.v_reset),
        }

    def forward(self, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Spikes and the last state."""
        options = self.fused_options()
        if reason := self.unfit(input_tensor, self.features_of(input_tensor), **options):
            self.leave(reason)
            own: Any = super()
            result: tuple[Tensor, Any] = own.forward(input_tensor, state)
            return result
        return self.advance(input_tensor, state)

    def features_of(self, x: Tensor) -> torch.Size:
        """The shape of a sample of the input."""
        return x.shape[2:]

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Spikes ``[T, ...]`` and the state after them."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        shape = x.shape[1:]
        states: list[Tensor] | list[float]
        if state is None:  # not that of state_fallback, which asks for a gradient nobody sees
            states = [number(getattr(self.p, self.start))]
        else:
            states = [part.to(x.device, dtype).expand(shape) for part in state]
        options = self.fused_options()
        for name, value in options.items():
            if is_looked_at(value):
                options[name] = number(value)
            elif isinstance(value, Tensor):
                options[name] = spread(name, value.to(x.device), shape)
        spikes, *ends = self.run_fused(x, *states, **options)
        return spikes, self.state_type(*ends)


class FusedCell(FusedModule):
    """A module that sees one step."""

    def features_of(self, x: Tensor) -> torch.Size:
        """The shape of a sample of the input."""
        return x.shape[1:]

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Spikes ``[N, ...]`` and the state after them."""
        spikes, state = super().advance(x.unsqueeze(0), state)
        return spikes.squeeze(0), state


class CurrentBased(FusedModule):
    """``v + k ((v_leak - v) + i)`` of a current that decays after its use."""

    library_step = staticmethod(lif.lif_feed_forward_step)
    state_type = lif.LIFFeedForwardState
    start = "v_leak"

    def decays(self) -> dict[str, Any]:
        """Of membrane and current."""
        return {
            "tau_mem_inv": self.dt * self.p.tau_mem_inv,
            "tau_syn_inv": self.dt * self.p.tau_syn_inv,
        }

    def fused_options(self) -> dict[str, Any]:
        """With the synapse."""
        decays = self.decays()
        return super().fused_options() | {
            "charge": "euler",
            "rate": decays["tau_mem_inv"],
            "v_rest": number(self.p.v_leak),
            "synapse": "jump",
            "synapse_decay": decays["tau_syn_inv"],
        }


class FusedLIF(CurrentBased, lif_module.LIF):
    """``norse.torch.LIF``."""

    library_class = lif_module.LIF


class FusedLIFCell(CurrentBased, FusedCell, lif_module.LIFCell):
    """``norse.torch.LIFCell``."""

    library_class = lif_module.LIFCell


class FusedLIFBoxCell(FusedCell, lif_box_module.LIFBoxCell):
    """``v + k ((x + v_leak) - v)``."""

    library_class = lif_box_module.LIFBoxCell
    library_step = staticmethod(lif_box.lif_box_feed_forward_step)
    state_type = lif_box.LIFBoxFeedForwardState
    start = "v_leak"

    def decays(self) -> dict[str, Any]:
        """Of the membrane."""
        return {"tau_mem_inv": self.dt * self.p.tau_mem_inv}

    def why_not(self) -> str:
        """Also resets of one's own."""
        if self.p.reset_method not in (reset_value, reset_subtract):
            return f"p.reset_method is {self.p.reset_method!r}"
        return super().why_not()

    def fused_options(self) -> dict[str, Any]:
        """With either reset."""
        return super().fused_options() | {
            "charge": "euler_box",
            "rate": self.decays()["tau_mem_inv"],
            "v_rest": number(self.p.v_leak),
            "reset": "hard" if self.p.reset_method is reset_value else "soft",
        }


class Integrator(FusedModule):
    """``v + x``."""

    library_step = staticmethod(iaf.iaf_feed_forward_step)
    state_type = iaf.IAFFeedForwardState
    start = "v_reset"

    def fused_options(self) -> dict[str, Any]:
        """Without a leak."""
        return super().fused_options() | {"leak": 1.0}


class FusedIAF(Integrator, iaf_module.IAF):
    """``norse.torch.IAF``."""

    library_class = iaf_module.IAF


class FusedIAFCell(Integrator, FusedCell, iaf_module.IAFCell):
    """``norse.torch.IAFCell``."""

    library_class = iaf_module.IAFCell


LIBRARY = Library(
    "norse",
    ("1.1.0",),
    (snn.SNN, snn.SNNCell, snn.SNNRecurrent, snn.SNNRecurrentCell),
    (FusedLIF, FusedLIFCell, FusedLIFBoxCell, FusedIAF, FusedIAFCell),
)
