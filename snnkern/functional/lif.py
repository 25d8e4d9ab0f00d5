"""A layer of spiking neurons."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, overload

from torch import Tensor

from snnkern._checks import check_int
from snnkern.autograd import LIFConfig, LIFFunction
from snnkern.functional.backends import Backend
from snnkern.functional.neurons import Charge, Reset, SpikeFormat, Synapse, neurons
from snnkern.surrogate import Surrogate, Triangle


@overload
def lif(
    x: Tensor,
    leak: float | Tensor | None = ...,
    threshold: float | Tensor = ...,
    *,
    charge: Charge = ...,
    tau: float | Tensor | None = ...,
    rate: float | Tensor | None = ...,
    v_rest: float = ...,
    gain: float = ...,
    synapse: Synapse = ...,
    synapse_decay: float | Tensor | None = ...,
    reset: Reset = ...,
    v_reset: float = ...,
    v_init: float | Tensor | None = ...,
    current_init: float | Tensor | None = ...,
    surrogate: Surrogate | Sequence[Surrogate] = ...,
    detach_reset: bool = ...,
    strict: bool = ...,
    delayed_spike: bool = ...,
    timesteps: int | None = ...,
    spike_format: SpikeFormat = ...,
    return_state: Literal[False] = ...,
    backend: Backend | None = ...,
) -> Tensor: ...


@overload
def lif(
    x: Tensor,
    leak: float | Tensor | None = ...,
    threshold: float | Tensor = ...,
    *,
    charge: Charge = ...,
    tau: float | Tensor | None = ...,
    rate: float | Tensor | None = ...,
    v_rest: float = ...,
    gain: float = ...,
    synapse: Synapse = ...,
    synapse_decay: float | Tensor | None = ...,
    reset: Reset = ...,
    v_reset: float = ...,
    v_init: float | Tensor | None = ...,
    current_init: float | Tensor | None = ...,
    surrogate: Surrogate | Sequence[Surrogate] = ...,
    detach_reset: bool = ...,
    strict: bool = ...,
    delayed_spike: bool = ...,
    timesteps: int | None = ...,
    spike_format: SpikeFormat = ...,
    return_state: Literal[True],
    backend: Backend | None = ...,
) -> tuple[Tensor, ...]: ...


@overload
def lif(
    x: Tensor,
    leak: float | Tensor | None = ...,
    threshold: float | Tensor = ...,
    *,
    charge: Charge = ...,
    tau: float | Tensor | None = ...,
    rate: float | Tensor | None = ...,
    v_rest: float = ...,
    gain: float = ...,
    synapse: Synapse = ...,
    synapse_decay: float | Tensor | None = ...,
    reset: Reset = ...,
    v_reset: float = ...,
    v_init: float | Tensor | None = ...,
    current_init: float | Tensor | None = ...,
    surrogate: Surrogate | Sequence[Surrogate] = ...,
    detach_reset: bool = ...,
    strict: bool = ...,
    delayed_spike: bool = ...,
    timesteps: int | None = ...,
    spike_format: SpikeFormat = ...,
    return_state: bool,
    backend: Backend | None = ...,
) -> Tensor | tuple[Tensor, ...]: ...


def lif(
    x: Tensor,
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
    reset: Reset = "hard",
    v_reset: float = 0.0,
    v_init: float | Tensor | None = None,
    current_init: float | Tensor | None = None,
    surrogate: Surrogate | Sequence[Surrogate] = Triangle(),  # noqa: B008  frozen
    detach_reset: bool = False,
    strict: bool = False,
    delayed_spike: bool = False,
    timesteps: int | None = None,
    spike_format: SpikeFormat = "input",
    return_state: bool = False,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """A layer of leaky integrate-and-fire neurons over all its time steps, as one op.

    At every step ``t``, with the carried state ``u`` starting at ``v_init``::

        i = gain * x[t], through the synapse                       conduct
        v = leak * u + i                      charge="leak"        charge
        v = u + rate * ((v_rest - u) + i)     charge="euler"       (Norse LIF)
        v = u + rate * ((i + v_rest) - u)     charge="euler_box"   (Norse LIFBox)
        v = u + ((v_rest - u) + i) / tau      charge="decay_input" (SpikingJelly, its default)
        v = (u - (u - v_rest) / tau) + i      charge="decay"       (SpikingJelly, decay_input=False)
        s[t] = 1 if v >= threshold else 0                          fire
        u = v_reset if s[t] else v            reset="hard"         reset
        u = v - threshold * s[t]              reset="soft"
        u = v                                 reset="none", and reset="delayed_soft", where the next
                                              charge subtracts threshold * s[t] at its end

    The synapse holds a current ``c``, which starts at ``current_init``: ``c = synapse_decay * c +
    i`` and gives ``c`` (``"charged"``, snnTorch); ``c = synapse_decay * (c + i)`` and gives ``c``
    (``"decayed"``, sinabs); or gives ``j = c + i`` and keeps ``c = j - synapse_decay * j``
    (``"jump"``, Norse). Associations and divisions are the libraries' own, so spikes equal theirs
    bit for bit.

    Args:
        x: input currents ``[T, N, ...]``, float16, bfloat16, float32 or float64, with any dense
            layout of the dimensions after the first; a time axis of stride 0 (a constant current)
            is read in place.
        leak: share of the state that a step keeps, in ``[0, 1]``, by default 1; a number, a 0-d
            tensor, one value per channel ``[C]`` (dimension 2 of ``x``), or one per neuron (the
            shape of ``x[0, 0]``). Tensors get gradients.
        threshold: above 0; a number or a tensor like ``leak``.
        charge: how a neuron takes up its current, see above.
        tau: time constant in steps, at least 1, for ``"decay_input"`` and ``"decay"``; like
            ``leak``.
        rate: in ``[0, 1]``, for ``"euler"`` and ``"euler_box"``; like ``leak``.
        v_rest: where the membrane decays to; for every charge but ``"leak"``.
        gain: of the input current.
        synapse: a second state in front of the membrane, see above.
        synapse_decay: in ``[0, 1]``; like ``leak``.
        reset: what happens after a spike, see above.
        v_reset: the state after a hard reset.
        v_init: the state before the first step: a number or a tensor of the shape of ``x[0]``; None
            is 0. A delayed reset takes a state at or above the threshold for one that has just
            fired. Tensors get gradients.
        current_init: the synapse's current before the first step; like ``v_init``.
        surrogate: the derivative of a spike, see ``snnkern.surrogate``; or a pointwise one for
            every sample of the batch, so that samples are differentiated each in its own way.
        detach_reset: no gradient through the spike in the reset; the threshold in it still gets
            one.
        strict: fire at ``v > threshold`` instead of ``v >= threshold``.
        delayed_spike: a spike leaves one step after the membrane reached the threshold, as in the
            networks of hybrid training (``strict=True``); with ``reset="delayed_soft"`` or
            ``"none"``.
        timesteps: T, where ``x`` is ``[1, N, ...]`` and held for all steps.
        spike_format: ``"input"``: the dtype of ``x``; ``"uint8"``; or ``"bits"``, packed
            ``[T, ceil(neurons / 8)]`` in the order of memory. The latter two cannot be
            differentiated.
        return_state: also return the final state, and the final synaptic current if there is one.
        backend: None takes the fastest that is there for the device of ``x`` (``snnkern.info()``
            says which); ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"`` insist on one.

    Returns:
        Spikes, 0 or 1, of the shape, dtype and layout of ``x`` (see ``spike_format``); with
        ``return_state`` also the final state, of the shape of ``x[0]``, float32 (float64 for
        float64 input), and with a synapse its current.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a value, shape or device that does not fit.
        RuntimeError: ``backend`` cannot run here; the message says why.

    The state is float32 for half types too. The values of parameters that are tensors are not
    checked under torch.compile, which cannot look at them.

    NaN in ``x`` never fires; the neuron stays NaN until the end, its neighbours do not notice. An
    infinite current fires, and a hard reset brings the neuron back; with a soft reset it fires on.
    The gradient of a neuron that saw NaN or inf is not defined, nor that of a parameter it shares.
    """
    tensors, config = neurons(
        x,
        leak=leak,
        threshold=threshold,
        charge=charge,
        tau=tau,
        rate=rate,
        v_rest=v_rest,
        gain=gain,
        synapse=synapse,
        synapse_decay=synapse_decay,
        reset=reset,
        v_reset=v_reset,
        v_init=v_init,
        current_init=current_init,
        surrogate=surrogate,
        detach_reset=detach_reset,
        strict=strict,
        delayed_spike=delayed_spike,
        spike_format=spike_format,
        return_state=return_state,
        backend=backend,
    )
    steps, count = held(x, timesteps)
    outputs = LIFFunction.apply(steps, *tensors, config._replace(timesteps=count))
    result: Tensor | tuple[Tensor, ...] = wanted(outputs, config)
    return result


def held(x: Tensor, timesteps: int | None) -> tuple[Tensor, int]:
    """What the op reads; and the number of steps where it is one that is held, else 0."""
    if timesteps is not None:
        check_int("timesteps", timesteps, 1)
        if x.shape[0] != 1:
            raise ValueError(
                f"timesteps is {timesteps} and x has {x.shape[0]} steps, expected one that is held"
            )
        return x, timesteps
    return x, 0


def wanted(outputs: tuple[Tensor, Tensor, Tensor], config: LIFConfig) -> Any:
    """Of spikes, state and synaptic current what the caller asked for."""
    spikes, state, current = outputs
    if not config.return_state:
        return spikes
    return (spikes, state, current) if config.synapse else (spikes, state)


LIF_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(lif).parameters.items()
    if name not in ("x", "timesteps")
}
