"""The neuron of one step: synapse, charge, fire and reset, and the derivatives of the first two."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Options that the ops take as a number are its place in these.
CHARGES = ("leak", "euler", "euler_box", "decay_input", "decay")
LEAK, EULER, EULER_BOX, DECAY_INPUT, DECAY = range(len(CHARGES))
SYNAPSES = ("none", "charged", "decayed", "jump")
NO_SYNAPSE, CHARGED, DECAYED, JUMP = range(len(SYNAPSES))
RESETS = ("hard", "soft", "delayed_soft", "none")
HARD, SOFT, DELAYED_SOFT, NONE = range(len(RESETS))


class Neuron(NamedTuple):
    """The neurons of one layer; parameters are broadcastable to a step."""

    decay: Tensor
    threshold: Tensor
    synapse_decay: Tensor | None = None
    charging: int = LEAK
    v_rest: float = 0.0
    gain: float = 1.0
    synapse: int = NO_SYNAPSE
    reset: int = HARD
    v_reset: float = 0.0
    strict: bool = False

    def fires(self, v: Tensor) -> Tensor:
        """Fire."""
        return v > self.threshold if self.strict else v >= self.threshold

    def charge(self, u: Tensor, x: Tensor) -> Tensor:
        """The membrane before reset, from the carried state and the current that reaches it."""
        if self.charging == LEAK:
            v = self.decay * u + x
        elif self.charging == EULER:
            v = u + self.decay * ((self.v_rest - u) + x)
        elif self.charging == EULER_BOX:
            v = u + self.decay * ((x + self.v_rest) - u)
        elif self.charging == DECAY_INPUT:
            v = u + ((self.v_rest - u) + x) / self.decay
        else:
            v = (u - (u - self.v_rest) / self.decay) + x
        if self.reset == DELAYED_SOFT:
            v = v - torch.where(self.fires(u), self.threshold, 0)
        return v

    def charge_derivatives(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dv/du, dv/dx and dv/ddecay of the charge."""
        decay, one = self.decay, torch.ones_like(self.decay)
        if self.charging == LEAK:
            return decay, one, u
        if self.charging in (EULER, EULER_BOX):
            return 1 - decay, decay, (x - u) + self.v_rest
        if self.charging == DECAY_INPUT:
            return 1 - 1 / decay, 1 / decay, ((u - self.v_rest) - x) / (decay * decay)
        return 1 - 1 / decay, one, (u - self.v_rest) / (decay * decay)

    def carry(self, v: Tensor, s: Tensor) -> Tensor:
        """Reset: the state that the next step starts from."""
        if self.reset == HARD:
            return torch.where(s, self.v_reset, v)
        if self.reset == SOFT:
            return v - torch.where(s, self.threshold, 0)
        return v

    def conduct(self, c: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Synapse: what reaches the membrane, and the synaptic current that is carried on."""
        x = self.gain * x if self.gain != 1 else x
        if self.synapse_decay is None:
            return x, c
        if self.synapse == CHARGED:
            c = self.synapse_decay * c + x
            return c, c
        if self.synapse == DECAYED:
            c = self.synapse_decay * (c + x)
            return c, c
        jump = c + x
        return jump, jump + -self.synapse_decay * jump

    def conduct_gradient(
        self, g: Tensor, gc: Tensor, c: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | float]:
        """Backward through the synapse: gradients of x, of the current before, of its decay."""
        decay = self.synapse_decay
        if decay is None:
            return self.gain * g if self.gain != 1 else g, gc, 0.0
        x = self.gain * x
        if self.synapse == CHARGED:
            total = g + gc
            return self.gain * total, decay * total, total * c
        if self.synapse == DECAYED:
            total = g + gc
            return self.gain * (decay * total), decay * total, total * (c + x)
        back = g + (1 - decay) * gc
        return self.gain * back, back, -(gc * (c + x))
