"""BrainCog 0.2.7.19: IFNode, LIFNode and PLIFNode."""

from __future__ import annotations

from typing import Any

import torch
from braincog.base.node import node
from braincog.base.strategy import surrogate
from torch import Tensor

from snnkern.interop.fused import Fused, Library, bounded, input_decay, is_number, number
from snnkern.surrogate import ATan, Rectangle, Sigmoid, Surrogate, Triangle


class FusedNode(Fused):
    """What the nodes share: membranes that survive until ``n_reset``, and a hard reset to 0."""

    threshold: Tensor
    mem: Any

    @property
    def surrogate(self) -> Surrogate | None:
        """The surrogate in our words; None where there is none."""
        theirs: Any = self.act_fun
        alpha = number(theirs.alpha) if isinstance(theirs, surrogate.SurrogateFunctionBase) else 0
        if not alpha > 0 or theirs.alpha.requires_grad:
            return None
        if type(theirs) is surrogate.QGateGrad:
            return Triangle(1 / alpha, alpha * alpha)
        if type(theirs) is surrogate.AtanGrad:
            return ATan(alpha)
        if type(theirs) is surrogate.GateGrad:
            return Rectangle(2 / alpha, 1.0)
        if type(theirs) is surrogate.SigmoidGrad:
            return Sigmoid(alpha)
        return None

    @property
    def sees_all_steps(self) -> bool:
        """Whether a call has them all."""
        return bool(self.layer_by_layer or self.groups != 1)

    def why_not(self) -> str:
        """Surrogates that learn or are not known here, and membranes that are kept or cut."""
        if self.surrogate is None:
            kind, alpha = type(self.act_fun).__name__, getattr(self.act_fun, "alpha", None)
            learns = isinstance(alpha, Tensor) and alpha.requires_grad
            return f"act_fun is {kind}, " + ("whose alpha learns" if learns else "unknown here")
        if self.requires_mem:
            return "requires_mem is True"
        if self.mem_detach and self.sees_all_steps:
            return "mem_detach is True, which cuts time into steps"
        if is_number(self.threshold) and not number(self.threshold) > 0:
            return f"threshold is {number(self.threshold)}, not above 0"
        return ""

    def fused_options(self) -> dict[str, Any]:
        """The options of ``lif``; here those that the nodes share."""
        return {
            "threshold": self.get_thres(),
            "surrogate": self.surrogate,
            "detach_reset": True,
            # Its sigmoid fires at the threshold, the others above it.
            "strict": type(self.act_fun) is not surrogate.SigmoidGrad,
        }

    def forward(self, inputs: Tensor) -> Tensor:
        """Spikes of one step, or of all where they are merged into the batch or the channels."""
        options = self.fused_options()
        if reason := self.unfit(inputs, **options):
            self.leave(reason)
            of_library: Any = super()
            result: Tensor = of_library.forward(inputs)
            return result
        x = self.rearrange2node(inputs) if self.sees_all_steps else inputs.unsqueeze(0)
        if self.sees_all_steps:
            x = x[: self.step]
        mem = self.mem
        if not isinstance(mem, Tensor):
            mem = torch.full_like(x[0], mem, requires_grad=False)
        elif self.mem_detach:
            mem = mem.detach()
        spikes, self.mem = self.run_fused(x, mem, **options)
        if self.requires_fp is True:
            self.feature_map.extend(spikes.unbind(0))
        if not self.sees_all_steps:
            spike = self.spike = spikes.squeeze(0)
            return spike
        self.spike = spikes[-1]
        merged: Tensor = self.rearrange2op(spikes)
        return merged


class FusedIFNode(FusedNode, node.IFNode):
    """``mem + x * dt``."""

    library_class = node.IFNode

    def fused_options(self) -> dict[str, Any]:
        """Without a leak."""
        return super().fused_options() | {"leak": 1.0, "gain": float(self.dt)}


class FusedLIFNode(FusedNode, node.LIFNode):
    """``mem + (x - mem) / tau``."""

    library_class = node.LIFNode

    def why_not(self) -> str:
        """Also a tau below 1."""
        if is_number(self.tau) and not 1 <= number(self.tau) < float("inf"):
            return f"tau is {number(self.tau)}, not at least 1"
        return super().why_not()

    def fused_options(self) -> dict[str, Any]:
        """It takes its threshold as it is, whatever ``sigmoid_thres`` says."""
        return super().fused_options() | input_decay(self.tau) | {"threshold": self.threshold}


class FusedPLIFNode(FusedNode, node.PLIFNode):
    """``mem + (x - mem) * sigmoid(w) * dt``."""

    library_class = node.PLIFNode

    def why_not(self) -> str:
        """Also another time step."""
        return f"dt is {self.dt}" if self.dt != 1 else super().why_not()

    def fused_options(self) -> dict[str, Any]:
        """``w`` learns through the rate."""
        return super().fused_options() | {"charge": "euler", "rate": bounded(self.w.sigmoid())}


LIBRARY = Library(
    "braincog",
    ("0.2.7.19",),
    (node.BaseNode, node.BaseMCNode),
    (FusedIFNode, FusedLIFNode, FusedPLIFNode),
)
