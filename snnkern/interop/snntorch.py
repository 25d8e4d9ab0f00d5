"""snnTorch 1.0.0: Leaky and Synaptic."""

from __future__ import annotations

from typing import Any, ClassVar

import snntorch
import torch
from torch import Tensor

from snnkern.interop.fused import Fused, Library, bounded, modules_of, number, spread
from snnkern.surrogate import ATan, FastSigmoid, Sigmoid, StraightThrough, Surrogate

SURROGATES: dict[str, Any] = {
    "atan": ATan,
    "fast_sigmoid": FastSigmoid,
    "sigmoid": Sigmoid,
    "straight_through_estimator": StraightThrough,
}
RESETS = {"_base_sub": "delayed_soft", "_base_zero": "hard", "_base_int": "none"}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def read_surrogate(theirs: Any) -> tuple[str, tuple[float, ...]] | str:
    """The name and the numbers of a surrogate, from the closure that it is; or why it has none."""
    name = getattr(theirs, "__qualname__", "").removesuffix(".<locals>.inner")
    if getattr(theirs, "__module__", "") != "snntorch.surrogate":
        return f"spike_grad is {theirs!r}, which is not one of snnTorch's own"
    if name not in SURROGATES:
        return f"there is no surrogate {name} here"
    widths = tuple(cell.cell_contents for cell in theirs.__closure__ or ())
    if not all(isinstance(width, int | float) and width > 0 for width in widths):
        return f"spike_grad is {name}({widths[0]!r}), expected a number above 0"
    return name, widths


def our_surrogate(theirs: Any) -> Surrogate | str:
    """The same surrogate in our words; or why there is none."""
    read = read_surrogate(theirs)
    return read if isinstance(read, str) else SURROGATES[read[0]](*read[1])


def is_one(factor: Tensor) -> bool:
    """Whether a factor changes nothing."""
    known = not factor.requires_grad and not torch.compiler.is_compiling()
    return known and factor.numel() == 1 and number(factor) == 1


class FusedNeuron(Fused):
    """What Leaky and Synaptic share: the membrane, its reset, and the spikes' factor."""

    states: ClassVar[tuple[str, ...]] = ("mem",)  # in the order of the library's arguments
    synapse: ClassVar[dict[str, Any]] = {}
    beta: Tensor
    threshold: Tensor
    mem: Tensor
    syn: Tensor

    def why_not(self) -> str:
        """Options that act on membranes or spikes between the equations."""
        for name in ("inhibition", "state_quant", "surrogate_disable"):
            if getattr(self, name):
                return f"{name} is {getattr(self, name)!r}"
        ours = our_surrogate(self.spike_grad)
        return ours if isinstance(ours, str) else ""

    @property
    def mechanism(self) -> str:
        """The reset as ``lif`` calls it; the library decides by what its constructor chose."""
        return RESETS[self.state_function.__name__]

    def parameters_of_step(self) -> dict[str, Tensor]:
        """The decays as they act, and the threshold."""
        return {"leak": bounded(self.beta.clamp(0, 1)), "threshold": self.threshold}

    def fired(self, mem: Tensor) -> Tensor:
        """Where the next step resets."""
        return mem.detach() > self.threshold.detach()

    def advance(self, x: Tensor, reset: str) -> Tensor:
        """Spikes of all steps ``[T, N, ...]`` or ``[T, features]``; the states move on."""
        states = [self.mem, *([self.syn] if self.synapse else [])]
        mem = states[0]
        if self.mechanism == "hard":
            states[0] = torch.where(self.fired(mem), 0, mem)
        batched = x.dim() > 2
        if not batched:
            x, states = x.unsqueeze(1), [state.unsqueeze(0) for state in states]
        parameters = {n: spread(n, p, x.shape[1:]) for n, p in self.parameters_of_step().items()}
        spikes, *states = self.run_fused(
            x,
            *states,
            surrogate=our_surrogate(self.spike_grad),
            reset=reset,
            strict=True,
            detach_reset=True,
            **self.synapse,
            **parameters,
        )
        for name, state in zip(("mem", "syn"), states, strict=False):
            setattr(self, name, state if batched else state.squeeze(0))
        return spikes if batched else spikes.squeeze(1)

    def graded(self, spikes: Tensor) -> Tensor:
        """Spikes times their factor."""
        factor = self.graded_spikes_factor
        return spikes if is_one(factor) else spikes * factor

    def reset_now(self, before: Tensor, spikes: Tensor) -> None:
        """What this step's spikes add to the reset, where it is not delayed."""
        more = spikes - self.fired(before).to(spikes.dtype)
        if self.reset_mechanism_val == 0:
            self.mem = self.mem - more * self.threshold
        elif self.reset_mechanism_val == 1:
            self.mem = self.mem - more * self.mem

    def take(self, x: Tensor) -> None:
        """States for an input of this shape."""
        for name in self.states:
            state = getattr(self, name)
            if state.shape != x.shape:
                setattr(self, name, torch.zeros_like(x, device=state.device))

    def features_of(self, x: Tensor) -> torch.Size:
        """The shape of a sample of one step, which has a batch where it has two dimensions."""
        return x.shape[1:] if x.dim() > 1 else x.shape

    def in_one(self, x: Tensor, *given: Tensor) -> Tensor | None:
        """Spikes of all steps ``[T, N, ...]`` in one op; None where a step has more to it."""
        x_0 = x[0]
        if not self.reset_delay or self.unfit(
            x_0, self.features_of(x_0), **self.parameters_of_step()
        ):
            return None
        for name, state in zip(self.states, given, strict=False):
            setattr(self, name, state)
        self.take(x_0)
        return self.graded(self.advance(x, self.mechanism))

    def call(self, x: Tensor, **given: Tensor | None) -> Any:
        """One step, with the states that were handed in or those of the call before."""
        passed = {name: state for name, state in given.items() if state is not None}
        misused = self.init_hidden and passed
        parameters = self.parameters_of_step()
        reason = "" if misused else self.unfit(x, self.features_of(x), **parameters)
        if misused or reason:
            if reason:
                self.leave(reason)
            own: Any = super()
            return own.forward(x, **given)
        for name, state in passed.items():
            setattr(self, name, state)
        self.take(x)
        before = self.mem
        # The membrane that is kept is the one before the reset.
        reset = "none" if self.mechanism == "hard" else self.mechanism
        spikes = self.advance(x.unsqueeze(0), reset).squeeze(0)
        if not self.reset_delay:
            self.reset_now(before, spikes)
        spikes = self.graded(spikes)
        if self.init_hidden and not self.output:
            return spikes
        return spikes, *(getattr(self, name) for name in self.states)


class FusedLeaky(FusedNeuron, snntorch.Leaky):
    """``beta * mem + x``, with the reset of the step before."""

    library_class = snntorch.Leaky

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """One step."""
        return self.call(input_, mem=mem)


class FusedSynaptic(FusedNeuron, snntorch.Synaptic):
    """``Leaky`` of a current that decays by ``alpha``."""

    library_class = snntorch.Synaptic
    states = ("syn", "mem")
    synapse: ClassVar = {"synapse": "charged"}
    alpha: Tensor

    def why_not(self) -> str:
        """Also its reset to zero, which drops the input of the step."""
        if self.mechanism == "hard":
            return "reset_mechanism is 'zero', which drops the current of the step after a spike"
        return super().why_not()

    def parameters_of_step(self) -> dict[str, Tensor]:
        """With the decay of the current."""
        return super().parameters_of_step() | {"synapse_decay": bounded(self.alpha.clamp(0, 1))}

    def forward(self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None) -> Any:
        """One step."""
        return self.call(input_, syn=syn, mem=mem)


LIBRARY = Library("snntorch", ("1.0.0",), modules_of(snntorch), (FusedLeaky, FusedSynaptic))
