"""The neuron that is measured, in snnkern's words, in plain PyTorch and in SpikingJelly."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from snnkern.functional import lif
from snnkern.surrogate import ATan

Layer = Callable[[Tensor], Tensor]

# With a leak of 1/2, SpikingJelly's v - v / tau + x at tau = 2 rounds like leak * v + x.
LEAK, THRESHOLD, ALPHA = 0.5, 1.0, 2.0
OPTIONS: dict[str, Any] = {
    "leak": LEAK,
    "threshold": THRESHOLD,
    "reset": "hard",
    "surrogate": ATan(ALPHA),
    "detach_reset": True,
}


def snnkern_lif(x: Tensor) -> Tensor:
    """The layer of the same neuron that is measured."""
    spikes: Tensor = lif(x, **OPTIONS)
    return spikes


class ATanSpike(torch.autograd.Function):
    """1 where ``v >= THRESHOLD``; derivative ``ALPHA / 2 / (1 + (pi / 2 ALPHA z)^2)``."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        # (v >= threshold).to(v.dtype) goes twice over memory.
        return torch.ge(v, THRESHOLD, out=torch.empty_like(v))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (v,) = ctx.saved_tensors
        (grad_spikes,) = grads
        q = math.pi / 2 * ALPHA * (v - THRESHOLD)
        grad_v: Tensor = grad_spikes * (0.5 * ALPHA / (1 + q * q))
        return grad_v


def lif_loop(x: Tensor) -> Tensor:
    """A LIF layer with hard reset to 0, detached, and the ATan surrogate: one loop over time.

    ``x`` is ``[T, N, ...]`` and finite; the spikes have its shape.
    """
    u = torch.zeros_like(x[0])
    spikes = []
    # unbind, since the backward of x[t] fills a whole [T, N, ...] with zeros, at every step.
    for current in x.unbind(0):
        v = LEAK * u + current
        s = ATanSpike.apply(v)
        spikes.append(s)
        # Not torch.where, which takes several times as long on the CPU.
        u = v * (1 - s.detach())
    return torch.stack(spikes)


def _compiled(layer: Any) -> Any:
    """One graph per shape, direction and number of threads.

    That is more than the usual limit, beyond which fullgraph raises; the overloads of torch.compile
    do not list that argument.
    """
    compiler: Any = torch.compile
    return compiler(layer, fullgraph=True, dynamic=False, recompile_limit=64)


compiled_lif_loop: Layer = _compiled(lif_loop)


def _spikingjelly() -> tuple[dict[str, Layer], str]:
    """SpikingJelly's layers of the same neuron, and its version or why there are none."""
    try:
        from spikingjelly.activation_based import functional, neuron, surrogate
    except ImportError as error:
        return {}, (
            f"not compared, since it cannot be imported ({error}); "
            "`pip install --no-deps spikingjelly==2.0.0 loguru` is all that its neurons need"
        )
    node = neuron.LIFNode(
        tau=1 / (1 - LEAK),
        decay_input=False,
        v_threshold=THRESHOLD,
        v_reset=0.0,
        surrogate_function=surrogate.ATan(ALPHA),
        detach_reset=True,
        step_mode="m",
    )

    def layer(multi_step: Any) -> Layer:
        def run(x: Tensor) -> Tensor:
            spikes: Tensor = multi_step(x)
            # As its users do after every batch; microseconds, and the state lets go of its graph.
            functional.reset_net(node)
            return spikes

        return run

    layers = {
        "SpikingJelly": layer(node),
        "SpikingJelly, torch.compile": layer(_compiled(node)),
    }
    return layers, version("spikingjelly")


spikingjelly_layers, spikingjelly_version = _spikingjelly()
