"""sinabs 3.1.3: LIF, IAF and their forms for merged batch and time."""

from __future__ import annotations

from typing import Any

import torch
from sinabs import activation
from sinabs.layers import IAF, LIF, IAFSqueeze, LIFSqueeze, StatefulLayer
from torch import Tensor

from snnkern.autograd import is_wanted
from snnkern.interop.fused import Fused, Library, bounded, is_looked_at, is_number, number, spread
from snnkern.surrogate import Erf, Exponential, Surrogate

CHUNK = 1 << 16  # numbers that are summed in their own precision


class GainGradient(torch.autograd.Function):
    """The gradient of a learnt leak through the gain ``1 - leak``, which ``lif`` takes as a number.

    Hands on ``x``, whose gradient is the gain times that of what the neurons see.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, leak: Tensor, gain: float) -> Tensor:
        """``x`` itself."""
        ctx.save_for_backward(x)
        ctx.gain, ctx.leak = gain, leak.detach()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """With the sum of the product of gradient and input, which is never stored."""
        if not is_wanted(ctx, 1):
            return grad, None, None
        (x,) = ctx.saved_tensors
        pairs = [t.transpose(0, 1).reshape(-1).split(CHUNK) for t in (grad, x)]
        dots = torch.stack([torch.dot(*pair) for pair in zip(*pairs, strict=True)])
        of_gain = dots.sum(dtype=torch.float64) / ctx.gain
        return grad, -of_gain.to(ctx.leak.dtype).reshape(ctx.leak.shape), None


class FusedLayer(Fused):
    """What LIF and IAF share; batch first, ``[N, T, ...]``."""

    spike_threshold: Tensor
    v_mem: Tensor
    i_syn: Any
    recordings: dict[str, Tensor]

    @property
    def single_spike(self) -> bool:
        """Whether a step has one spike at most."""
        if type(self.spike_fn) is activation.MaxSpike:
            return bool(self.spike_fn.max_num_spikes_per_bin == 1)
        # torch.compile has no `is` for Functions.
        return id(self.spike_fn) == id(activation.SingleSpike)

    @property
    def surrogate(self) -> Surrogate | None:
        """The surrogate in our words; None where there is none."""
        theirs: Any = self.surrogate_grad_fn
        if type(theirs) is activation.SingleExponential:
            width = theirs.grad_width
            return Exponential(theirs.grad_scale / width, 1 / width, normalized=True)
        if type(theirs) is activation.Gaussian and theirs.mu == 0 and theirs.grad_scale == 1:
            return Erf(1 / (theirs.sigma * 2**0.5))
        return None

    @property
    def resets(self) -> dict[str, Any] | None:
        """The reset in our words; None where there is none."""
        theirs: Any = self.reset_fn
        if type(theirs) is activation.MembraneSubtract and theirs.subtract_value is None:
            return {"reset": "soft"}
        # Of another value than 0, the library adds it to neurons that stayed silent, too.
        if type(theirs) is activation.MembraneReset and (theirs.reset_value == 0 or self.corrected):
            return {"reset": "hard", "v_reset": theirs.reset_value, "detach_reset": True}
        return None

    def why_not(self) -> str:
        """What fires several times a step, is bounded or recorded."""
        if not self.single_spike:
            return (
                f"spike_fn is {self.spike_fn!r}, which can fire several times a step; SingleSpike "
                "and MaxSpike(1) are fused"
            )
        for name in ("record_states", "min_v_mem"):
            value = getattr(self, name)
            if value is not None and value is not False:
                return f"{name} is {value!r}"
        if self.tau_syn_calculated is not None and self.norm_input:
            return "tau_syn is given and norm_input is True"
        if self.resets is None:
            return f"reset_fn is {self.reset_fn!r}"
        if self.surrogate is None:
            return f"there is no surrogate {self.surrogate_grad_fn!r} here"
        if is_looked_at(self.spike_threshold) and not number(self.spike_threshold) > 0:
            return f"spike_threshold is {number(self.spike_threshold)}, not above 0"
        return ""

    def take(self, x: Tensor) -> None:
        """States for an input of this shape, as the library makes them of those it has."""
        shape = (len(x), *x.shape[2:])
        if not self.is_state_initialised():
            self.init_state_with_shape(shape)
        elif not self.state_has_shape(shape):
            if self.has_trailing_dimension(x.shape[2:]):
                self.handle_state_batch_size_mismatch(len(x))
            else:
                self.init_state_with_shape(shape)

    def forward(self, input_data: Tensor) -> Tensor:
        """Spikes ``[N, T, ...]``."""
        leak, decay = self.alpha_mem_calculated, self.alpha_syn_calculated
        options = {"leak": leak, "threshold": self.spike_threshold}
        if decay is not None:
            options["synapse_decay"] = decay
        if not self.train_alphas:  # but exp(-1 / tau)
            options |= {n: bounded(p) for n, p in options.items() if n != "threshold"}
        if reason := self.unfit(input_data, input_data.shape[2:], **options):
            self.leave(reason)
            of_library: Any = super()
            result: Tensor = of_library.forward(input_data)
            return result
        self.take(input_data)
        x = input_data.transpose(0, 1)
        options = {n: spread(n, p.to(x.device), x.shape[1:]) for n, p in options.items()}
        gain = 1.0
        if self.norm_input:
            known = leak.numel() == 1 and not leak.is_cuda and self.gradient_mode is None
            known = (known or is_number(leak)) and not torch.compiler.is_compiling()
            gain = number((1 - leak).detach()) if known else 0.0
            if gain == 0:
                gain, x = 1.0, (1 - leak) * x
            elif leak.requires_grad:
                x = GainGradient.apply(x, leak, gain)  # type: ignore[no-untyped-call]
        states = [self.v_mem, *([] if decay is None else [self.i_syn])]
        spikes, *states = self.run_fused(
            x,
            *states,
            surrogate=self.surrogate,
            synapse="none" if decay is None else "decayed",
            gain=gain,
            **options,
            **(self.resets or {}),
        )
        spikes = spikes.transpose(0, 1).contiguous()
        self.v_mem = states[0]
        self.i_syn = None if decay is None else states[1]
        self.recordings = {}
        self.firing_rate = spikes.mean()
        return spikes

    def __deepcopy__(self, memo: Any = None) -> Any:
        """The library's, which makes a new layer of the arguments it knows."""
        of_library: Any = super()
        copy = of_library.__deepcopy__(memo)
        if self.corrected:
            copy.corrected = True
        return copy


class FusedLIF(FusedLayer, LIF):
    """``alpha * v + (1 - alpha) * x``."""

    library_class = LIF


class FusedIAF(FusedLayer, IAF):
    """``v + x``."""

    library_class = IAF


class FusedLIFSqueeze(LIFSqueeze, FusedLIF):
    """``LIF`` of ``[N * T, ...]``; the library's reshaping comes first."""

    library_class = LIFSqueeze


class FusedIAFSqueeze(IAFSqueeze, FusedIAF):
    """``IAF`` of ``[N * T, ...]``."""

    library_class = IAFSqueeze


LIBRARY = Library(
    "sinabs",
    ("3.1.3",),
    (StatefulLayer,),
    (FusedLIF, FusedIAF, FusedLIFSqueeze, FusedIAFSqueeze),
)
