"""Spiking neurons as functions. Every argument error is raised here, alike for every device."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, MutableMapping, Sequence
from functools import lru_cache
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

from snnkern import _load, _triton, reference
from snnkern._checks import check_int, check_number
from snnkern._layout import step_strides
from snnkern.autograd import (
    POINT,
    Geometry,
    IntervalConfig,
    IntervalLIF,
    KernelRateCode,
    LIFConfig,
    LIFFunction,
    NormConfig,
    NormLIFFunction,
    RateCode,
    RelaxConfig,
    RelaxLIF,
    SpikeConv2d,
)
from snnkern.reference import RATE
from snnkern.surrogate import KINDS, RGA, NotPointwise, SpikeTime, Surrogate, Triangle

Charge = Literal["leak", "euler", "euler_box", "decay_input", "decay"]
Synapse = Literal["none", "charged", "decayed", "jump"]
Reset = Literal["hard", "soft", "delayed_soft", "none"]
SpikeFormat = Literal["input", "uint8", "bits"]
Backend = Literal["reference", "cpu", "cuda", "triton"]
BACKENDS = ("reference", "cpu", "cuda", "triton")
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SPIKE_DTYPES = (*FLOAT_DTYPES, torch.uint8, torch.bool)
# What each charge calls its parameter.
DECAYS = {
    "leak": "leak",
    "euler": "rate",
    "euler_box": "rate",
    "decay_input": "tau",
    "decay": "tau",
}


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
    tensors, config = _neurons(
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
    held, steps = _held(x, timesteps)
    outputs = LIFFunction.apply(held, *tensors, config._replace(timesteps=steps))
    result: Tensor | tuple[Tensor, ...] = _wanted(outputs, config)
    return result


def _neurons(
    x: Tensor,
    *,
    leak: float | Tensor | None,
    threshold: float | Tensor,
    charge: Charge,
    tau: float | Tensor | None,
    rate: float | Tensor | None,
    v_rest: float,
    gain: float,
    synapse: Synapse,
    synapse_decay: float | Tensor | None,
    reset: Reset,
    v_reset: float,
    v_init: float | Tensor | None,
    current_init: float | Tensor | None,
    surrogate: Surrogate | Sequence[Surrogate],
    detach_reset: bool,
    strict: bool,
    delayed_spike: bool,
    spike_format: SpikeFormat,
    return_state: bool,
    backend: Backend | None,
) -> tuple[tuple[Tensor | None, ...], LIFConfig]:
    """The checked arguments of ``lif``, as its Function takes them."""
    _check_x(x)
    options = (
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
        reference.state_dtype(x.dtype),
    )
    if torch.compiler.is_compiling():
        config = check_options(*options)
    else:
        try:
            config = _cached_config(*options)
        except TypeError:  # something unhashable, which is the wrong type too
            config = check_options(*options)
    decay = decay_of(charge, {"leak": leak, "tau": tau, "rate": rate})
    has_synapse = synapse != "none"
    for name, value in (("synapse_decay", synapse_decay), ("current_init", current_init)):
        if value is not None and not has_synapse:
            raise ValueError(
                f"{name} is given and synapse is 'none', expected no {name}, or a synapse"
            )
    if has_synapse and synapse_decay is None:
        raise ValueError(f"synapse_decay is None, expected a value for synapse={synapse!r}")
    own_steps = isinstance(surrogate, NotPointwise) and not surrogate.carried
    if (has_synapse and (own_steps or isinstance(surrogate, RGA))) or (
        isinstance(surrogate, RGA) and charge != "leak"
    ):
        raise ValueError(
            f"surrogate is {surrogate}, charge is {charge!r} and synapse is {synapse!r}, expected "
            + ("charge='leak' and " if isinstance(surrogate, RGA) else "")
            + "no synapse: the rule says nothing of others"
        )
    config, table = _with_surrogate(config, surrogate, x)
    config = config._replace(overload=_overload(backend, x))
    tensors = (
        _parameter(DECAYS[charge], decay, x),
        _parameter("threshold", threshold, x),
        None if synapse_decay is None else _parameter("synapse_decay", synapse_decay, x),
        _state("v_init", v_init, x),
        _state("current_init", current_init, x),
        table,
    )
    if spike_format != "input" and torch.is_grad_enabled():
        names = ("x", DECAYS[charge], "threshold", "synapse_decay", "v_init", "current_init")
        # A final state still carries the gradient of everything but the input.
        seen = (x,) if return_state else (x, *tensors)
        for name, tensor in zip(names, seen, strict=False):
            if tensor is not None and tensor.requires_grad:
                raise ValueError(
                    f"spike_format is {spike_format!r} and {name} requires a gradient, expected "
                    "'input': integers cannot be differentiated"
                )
    return tensors, config


def check_options(
    charge: Charge,
    v_rest: float,
    gain: float,
    synapse: Synapse,
    reset: Reset,
    v_reset: float,
    detach_reset: bool,
    strict: bool,
    delayed_spike: bool,
    spike_format: SpikeFormat,
    return_state: bool,
    dtype: torch.dtype,
) -> LIFConfig:
    """The checked options that are no tensors; ``dtype`` is that of the state."""
    for name, choice, choices in (
        ("charge", charge, reference.CHARGES),
        ("synapse", synapse, reference.SYNAPSES),
        ("reset", reset, reference.RESETS),
        ("spike_format", spike_format, reference.SPIKE_FORMATS),
    ):
        if choice not in choices:
            raise ValueError(f"{name} is {choice!r}, expected one of {', '.join(choices)}")
    for name, flag in (
        ("detach_reset", detach_reset),
        ("strict", strict),
        ("delayed_spike", delayed_spike),
        ("return_state", return_state),
    ):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is {flag!r} of type {type(flag).__name__}, expected a bool")
    for name, number in (("v_rest", v_rest), ("gain", gain), ("v_reset", v_reset)):
        check_number(name, number)
        _check_representable(name, number, dtype)
    if delayed_spike and reset in ("hard", "soft"):
        raise ValueError(
            f"delayed_spike is True and reset is {reset!r}, expected 'delayed_soft' or 'none': a "
            "state that was reset does not tell that a spike is still to leave"
        )
    if v_rest != 0 and charge == "leak":
        raise ValueError(
            f"v_rest is {v_rest!r} and charge is 'leak', which decays to 0, expected 0"
        )
    return LIFConfig(
        timesteps=0,
        charge=reference.CHARGES.index(charge),
        v_rest=float(v_rest),
        gain=float(gain),
        synapse=reference.SYNAPSES.index(synapse),
        reset=reference.RESETS.index(reset),
        v_reset=float(v_reset),
        strict=strict,
        delayed_spike=delayed_spike,
        detach_reset=detach_reset,
        surrogate=0,
        surrogate_args=(0.0, 0.0),
        normalized=False,
        spike_format=reference.SPIKE_FORMATS.index(spike_format),
        return_state=return_state,
        overload="default",
    )


# A layer asks with the same options every time. `typed`: 1 and True are not the same answer.
_cached_config = lru_cache(maxsize=256, typed=True)(check_options)


def _wanted(outputs: tuple[Tensor, Tensor, Tensor], config: LIFConfig) -> Any:
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


def norm_lif(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    group: Any = None,
    **neuron: Any,
) -> Any:
    """Batch norm over time, batch and space, then ``lif``; no normalised tensor is stored.

    The same as ``F.batch_norm`` over the merged axis ``T * N`` followed by ``lif``
    (threshold-dependent batch norm, Zheng et al. 2021, without its scaling by the threshold).

    Args:
        x: ``[T, N, C, ...]``, see ``lif``.
        running_mean: ``[C]``; changed in place when ``training``. Without it, and ``running_var``,
            the statistics are those of ``x`` whether training or not (calibration).
        running_var: ``[C]``, likewise; with the unbiased variance over ``T * N *`` space.
        weight: ``[C]``, or None for 1.
        bias: ``[C]``, or None for 0.
        training: normalise by the statistics of ``x`` and update the running ones.
        momentum: share of the new statistics in the running ones.
        eps: added to the variance.
        group: process group over which batch statistics are taken (as SyncBatchNorm), or None.
        neuron: every option of ``lif`` except ``timesteps``.

    Returns:
        What ``lif`` returns.

    Raises:
        TypeError, ValueError: as ``lif``, and for statistics or affine parameters that do not fit.
    """
    if "timesteps" in neuron:
        raise TypeError("timesteps is given, expected none: norm_lif normalises all steps of x")
    tensors, config = _neurons(x, **(LIF_DEFAULTS | neuron))
    if x.dim() < 3:
        raise ValueError(f"x has shape {list(x.shape)}, expected [T, N, C, ...]")
    channels, dtype = x.shape[2], reference.state_dtype(x.dtype)
    check_number("momentum", momentum, low=0, high=1)
    check_number("eps", eps, low=0, open_low=True)
    if (running_mean is None) != (running_var is None):
        raise ValueError(
            "running_mean and running_var are one given and one None, expected both or none"
        )

    def channel_values(name: str, value: Tensor | None, default: float) -> Tensor:
        if value is None:
            return torch.full((channels,), default, dtype=dtype, device=x.device)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = f"dtype {value.dtype}" if isinstance(value, Tensor) else repr(value)
            raise TypeError(f"{name} is {kind}, expected a floating-point tensor [{channels}]")
        if value.dtype == torch.float64 and dtype != torch.float64:
            raise TypeError(f"{name} has dtype float64 and x has {x.dtype}, expected {dtype}")
        if value.shape != (channels,) or value.device != x.device:
            raise ValueError(
                f"{name} has shape {list(value.shape)} on {value.device}, expected [{channels}] on "
                f"{x.device}"
            )
        return value.to(dtype)

    mean = channel_values("running_mean", running_mean, 0.0)
    var = channel_values("running_var", running_var, 1.0)
    count = 0
    if not training and running_mean is not None:
        mean = mean.clone()  # kept for backward, while training may move the running one
    else:
        mean, var, count = _batch_statistics(x, config.overload, group)
        if count == 1:
            raise ValueError(
                f"x has shape {list(x.shape)}, expected more than one number per channel: batch "
                "statistics of one say nothing"
            )
        if training and running_mean is not None and running_var is not None:
            with torch.no_grad():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    outputs = NormLIFFunction.apply(
        x,
        mean,
        var,
        channel_values("weight", weight, 1.0),
        channel_values("bias", bias, 0.0),
        *tensors,
        NormConfig(count, float(eps), group),
        config,
    )
    return _wanted(outputs, config)


@torch.no_grad()
def _batch_statistics(x: Tensor, overload: str, group: Any) -> tuple[Tensor, Tensor, int]:
    """Mean, biased variance and count per channel, over time, batch, space and processes."""
    count = x.numel() // x.shape[2]
    # Deviations from a number of the channel's own keep the variance exact where the mean is large.
    centre = x[0, 0].flatten(1)[:, 0] if x.dim() > 3 else x[0, 0]
    centre = centre.to(reference.state_dtype(x.dtype), copy=True).contiguous()
    if group is not None:
        torch.distributed.all_reduce(centre, group=group)
        centre /= torch.distributed.get_world_size(group)
    sums = torch.stack(getattr(torch.ops.snnkern.channel_moments, overload)(x, centre))
    if group is not None:
        torch.distributed.all_reduce(sums, group=group)
        counts = torch.tensor(count, device=x.device)
        torch.distributed.all_reduce(counts, group=group)
        count = int(counts.item())
    deviation, square = sums / count
    return centre + deviation, (square - deviation * deviation).clamp_min(0), count


Coding = Literal["poisson", "signed_poisson", "bernoulli"]
CODINGS = reference.CODINGS


def encode(
    x: Tensor,
    timesteps: int | None = None,
    coding: Coding = "poisson",
    *,
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Rate coding: spikes ``[T, N, ...]`` drawn anew in every step at the rate of ``x``.

    With uniform draws r in ``[0, 1)``: ``"poisson"`` fires where ``r <= x``, ``"bernoulli"`` where
    ``r < x`` (eq. 5 of Liang et al. 2022); ``"signed_poisson"`` gives ``sign(x)`` where ``r <=
    |x|``, for inputs in ``[-1, 1]`` (the code of Sharmin et al. 2020).

    Args:
        x: values ``[N, ...]``, floating point.
        timesteps: T, at least 1; not needed with ``draws``.
        coding: see above.
        generator: makes the draws repeatable.
        draws: the draws themselves, ``[T, N, ...]``, instead of new ones.
        backend: ``"triton"`` draws inside the kernel (Philox, float32 draws whatever the dtype),
            where no draw is ever stored; None draws with ``torch.rand``. The same generator gives
            the same spikes on the same backend and device, other ones elsewhere.

    Returns:
        Spikes of the dtype of ``x``. The gradient passes straight through the draw: that of ``x``
        is the sum over time.

    Raises:
        TypeError: ``x`` is no floating-point tensor.
        ValueError: an unknown coding, no time steps, draws of another shape, or a backend that does
            not draw.
        RuntimeError: ``backend`` cannot run here; the message says why.
    """
    if not isinstance(x, Tensor) or x.dtype not in FLOAT_DTYPES:
        kind = f"dtype {x.dtype}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise TypeError(f"x has {kind}, expected a floating-point tensor [N, ...]")
    if coding not in CODINGS:
        raise ValueError(f"coding is {coding!r}, expected one of {', '.join(CODINGS)}")
    number = CODINGS.index(coding)
    if backend is not None:
        if backend != "triton" or draws is not None:
            given = "draws are given" if draws is not None else "only 'triton' draws in a kernel"
            raise ValueError(f"backend is {backend!r} and {given}, expected None")
        check_int("timesteps", timesteps, 1)
        overload = _overload(backend, x)
        drawn: Tensor = KernelRateCode.apply(x, generator, timesteps, number, overload)
        return drawn
    if draws is None:
        check_int("timesteps", timesteps, 1)
        shape = (timesteps, *x.shape)
        draws = torch.rand(shape, dtype=x.dtype, device=x.device, generator=generator)
    elif draws.shape[1:] != x.shape or timesteps not in (None, len(draws)):
        raise ValueError(
            f"draws has shape {list(draws.shape)}, expected {[timesteps or 'T', *x.shape]}"
        )
    spikes: Tensor = RateCode.apply(x, draws, number)
    return spikes


def pack_spikes(spikes: Tensor, *, backend: Backend | None = None) -> Tensor:
    """Spikes as bits: 1/32 of the memory of float32. ``unpack_spikes`` gives them back.

    The format is that of ``lif(..., spike_format="bits")``.

    Args:
        spikes: ``[T, N, ...]``, all 0 or 1, in any layout; floating point, uint8 or bool.
        backend: see ``lif``.

    Returns:
        uint8 ``[T, ceil(neurons / 8)]``. The neurons of a step stand in the order in which they lie
        in memory (that of the dimensions where a step is not dense), the first in the lowest bit of
        the first byte; what is left of the last byte is 0.

    Raises:
        TypeError: ``spikes`` is no such tensor.
        ValueError: a value other than 0 and 1 (a RuntimeError of the running graph under
            torch.compile and in a CUDA graph, which cannot look at values), a tensor without a
            batch or without elements, or one that requires a gradient.
        RuntimeError: ``backend`` cannot run here.
    """
    _check_x(spikes, "spikes", SPIKE_DTYPES)
    if spikes.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "spikes requires a gradient, expected spikes.detach(): bits cannot be differentiated"
        )
    packed, stray = getattr(torch.ops.snnkern.pack_spikes, _overload(backend, spikes))(spikes)
    if torch.compiler.is_compiling() or _captured(spikes):
        torch._assert_async(stray == 0, "spikes has a value other than 0 and 1")
    elif (value := stray.item()) != 0:
        raise ValueError(f"spikes has the value {value:g}, expected 0 and 1 alone")
    result: Tensor = packed
    return result


def pack_if_spikes(x: Tensor) -> Tensor | None:
    """``pack_spikes(x)``, or None where ``x`` has a value other than 0 and 1.

    Looks at values: on a GPU it waits for them, and torch.compile cannot trace it.
    """
    _check_x(x, dtypes=SPIKE_DTYPES)
    with torch.no_grad():
        packed, stray = torch.ops.snnkern.pack_spikes(x)
    return packed if stray.item() == 0 else None


def pack_nonzero(x: Tensor) -> Tensor:
    """Where ``x`` is not zero, as bits; see ``pack_spikes``."""
    return pack_spikes(x.detach() != 0)


def unpack_spikes(
    packed: Tensor,
    like: Tensor | Sequence[int],
    dtype: torch.dtype | None = None,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Spikes ``[T, N, ...]`` from the bits of ``pack_spikes`` or ``lif(spike_format="bits")``.

    Args:
        packed: uint8 ``[T, ceil(neurons / 8)]``.
        like: a tensor of the shape and layout of the spikes, such as the input of ``lif``; or their
            shape, for contiguous ones.
        dtype: floating point, uint8 or bool; by default that of ``like``, float32 for a shape.
        backend: see ``lif``.

    Returns:
        Zeros and ones; the steps lie as those of ``like`` do.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: ``packed`` has another shape or device than the bits of ``like``.
        RuntimeError: ``backend`` cannot run here.
    """
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
        kind = f"dtype {packed.dtype}" if isinstance(packed, Tensor) else repr(packed)
        raise TypeError(f"packed is {kind}, expected a uint8 tensor [T, ceil(neurons / 8)]")
    if not isinstance(like, Tensor):
        like = torch.empty(tuple(like), dtype=torch.float32, device="meta")
    elif like.device != packed.device:
        raise ValueError(f"packed is on {packed.device}, expected {like.device} like `like`")
    dtype = like.dtype if dtype is None else dtype
    if dtype not in SPIKE_DTYPES:
        raise TypeError(f"dtype is {dtype}, expected a floating-point type, uint8 or bool")
    _check_x(like, "like", (like.dtype,))
    neurons = like[0].numel()
    if packed.shape != (like.shape[0], (neurons + 7) // 8):
        raise ValueError(
            f"packed has shape {list(packed.shape)}, expected "
            f"{[like.shape[0], (neurons + 7) // 8]} for spikes {list(like.shape)}"
        )
    op = getattr(torch.ops.snnkern.unpack_spikes, _overload(backend, packed))
    spikes: Tensor = op(packed.contiguous(), like.shape, like.stride(), dtype)
    return spikes


def as_kernel(weight: Tensor) -> Tensor:
    """The weight of a convolution; that of a linear layer as one of 1x1."""
    return weight if weight.dim() == 4 else weight[:, :, None, None]


# Numbers of a row: their sums stay in registers, and 64 rows, for which one word of channels says
# whether they are active, in the first cache of a core.
ROW = 96


def spike_block(weight: Tensor, geometry: Geometry) -> int:
    """How many outputs of a convolution ``[K, C, H, W]`` have their weights in rows together.

    Where an input is seen by neighbouring outputs, a row has the weights of all columns of the
    kernel; else those of one.
    """
    stride, _, dilation = geometry
    together = weight.shape[3] if stride[1] == dilation[1] == 1 else 1
    most = max(16, ROW // together // 16 * 16)
    return min(most, -(-weight.shape[0] // 16) * 16)


# Weights as rows, beside what tells that they were made of other values.
_rows: MutableMapping[Tensor, tuple[tuple[int, ...], Tensor]] = WeakTensorKeyDictionary()


def _state_of(weight: Tensor) -> tuple[int, ...]:
    """Version, place, and what the bits of a tensor are known by.

    To look at them takes a hundredth of what a layer does. Without it fused optimisers, and whoever
    writes through ``weight.data``, would go unnoticed: they make no new version.
    """
    bits = weight.detach().view(torch.int32 if weight.dtype == torch.float32 else torch.int16)
    known_by = int(torch.ops.snnkern.fingerprint(bits.contiguous()))
    return weight._version, weight.data_ptr(), known_by


def spike_rows(weight: Tensor, geometry: Geometry, overload: str = "default") -> Tensor:
    """The weight of a convolution or linear layer as ``spike_conv2d`` reads it, in float32.

    Made when its values are others than before, and kept as long as it lives.
    """

    def make() -> Tensor:
        kernel = as_kernel(weight.detach()).float().contiguous()
        rows: Tensor = getattr(torch.ops.snnkern.spike_rows, overload)(kernel, block)
        return rows

    block = spike_block(as_kernel(weight), geometry)

    with torch.no_grad():
        if torch.compiler.is_compiling() or weight.is_inference():
            return make()
        state = *_state_of(weight), block
        kept = _rows.get(weight)
        if kept is None or kept[0] != state:
            kept = state, make()
            _rows[weight] = kept
    return kept[1]


def _pair(name: str, value: int | Sequence[int], at_least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise ValueError(f"{name} is {value!r}, expected an int or two of them")
    for one in pair:
        check_int(name, one, at_least)
    return pair


def spike_conv2d(
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    like: Tensor | Sequence[int] | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """``torch.nn.functional.conv2d`` of spikes, on the CPU by their events.

    Where an input is active, a row of the weight is added to the outputs that see it; nothing is
    done where it is not. The gradient of the weight is summed from rows of the output's gradient in
    the same way (where stride and dilation are 1, else densely); that of the input is dense. Sums
    are made in float32, in an order that does not depend on the number of threads. On a GPU it is
    the dense convolution.

    Args:
        spikes: ``[N, C, H, W]``, all 0 or 1, floating point, uint8 or bool; or with ``like`` their
            bits, as ``pack_spikes`` gives them, for which there is no gradient.
        weight: ``[K, C, kernel height, kernel width]``, float32 or bfloat16.
        bias: ``[K]``.
        stride: an int, or one for height and one for width.
        padding: zeros at each border, like ``stride``.
        dilation: like ``stride``.
        like: a tensor of the shape and layout of the spikes, or their shape.
        backend: ``"reference"`` for the dense convolution; see ``lif``.

    Returns:
        ``[N, K, H', W']`` of the dtype of ``weight``, channels last in memory.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a value other than 0 and 1, or shapes that do not fit.
        RuntimeError: ``backend`` cannot run here.
    """
    if isinstance(weight, Tensor) and (weight.dim() != 4 or 0 in weight.shape):
        raise ValueError(
            f"weight has shape {list(weight.shape)}, expected [K, C, height, width], none of them 0"
        )
    return _spike_conv2d(spikes, weight, bias, stride, padding, dilation, like, backend)


def _spike_conv2d(
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    like: Tensor | Sequence[int] | None,
    backend: Backend | None,
) -> Tensor:
    """The same for the weight of a linear layer too."""
    if not isinstance(weight, Tensor) or weight.dtype not in (torch.float32, torch.bfloat16):
        kind = f"dtype {weight.dtype}" if isinstance(weight, Tensor) else repr(weight)
        raise TypeError(f"weight is {kind}, expected a float32 or bfloat16 tensor")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {list(bias.shape)}, expected {[weight.shape[0]]}")
    geometry = (
        _pair("stride", stride, 1),
        _pair("padding", padding, 0),
        _pair("dilation", dilation, 1),
    )
    x = spikes if like is None else _like_of(spikes, like)
    if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != weight.shape[1]:
        shown = f"shape {list(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ValueError(
            f"spikes has {shown}, expected [N, {weight.shape[1]}, H, W] as weight "
            f"{list(weight.shape)} has it"
        )
    kernel = as_kernel(weight).shape[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, geometry[2], strict=True)]
    if any(
        extent + 2 * p < r for extent, p, r in zip(x.shape[2:], geometry[1], reach, strict=True)
    ):
        raise ValueError(
            f"spikes has maps of {list(x.shape[2:])} and padding is {list(geometry[1])}, expected "
            f"at least the {reach} that the kernel reaches over"
        )
    if like is None:
        x = maps_in_order(x)
        packed = pack_spikes(x.detach(), backend=backend)
    else:
        packed = spikes.contiguous()
    return convolve_packed(x, packed, weight, bias, geometry, _overload(backend, packed))


def _like_of(packed: Tensor, like: Tensor | Sequence[int]) -> Tensor:
    """A tensor without values of the shape and layout of spikes that are given as bits."""
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
        kind = f"dtype {packed.dtype}" if isinstance(packed, Tensor) else repr(packed)
        raise TypeError(f"spikes is {kind}, expected the uint8 bits of pack_spikes beside like")
    shape = tuple(like.shape if isinstance(like, Tensor) else like)
    x = torch.empty(shape, dtype=torch.float32, device="meta")
    if isinstance(like, Tensor):
        x = torch.empty_strided(shape, like.stride(), dtype=torch.float32, device="meta")
    if maps_in_order(x) is not x:
        raise ValueError(
            f"like has strides {list(x.stride())} for shape {list(shape)}, expected channels first "
            "or last in memory"
        )
    expected = [shape[0], (x[0].numel() + 7) // 8]
    if list(packed.shape) != expected:
        raise ValueError(
            f"spikes has shape {list(packed.shape)}, expected {expected} for spikes {list(shape)}"
        )
    return x


def maps_in_order(x: Tensor) -> Tensor:
    """``[N, C, H, W]`` with channels first or last in memory: itself where it is, else a copy."""
    if any(
        x.is_contiguous(memory_format=order)
        for order in (torch.contiguous_format, torch.channels_last)
    ):
        return x
    return x.contiguous()


def convolve_packed(
    x: Tensor,
    packed: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    overload: str = "default",
    *,
    graded: bool = False,
) -> Tensor:
    """``spike_conv2d`` of ``x`` by its bits, past all checks, or ``spike_linear`` of maps.

    Where ``graded``, ``x`` has any values, and its bits are those of ``pack_nonzero``.
    """
    rows = spike_rows(weight, geometry, overload)
    result: Tensor = SpikeConv2d.apply(
        x, packed, graded, rows, as_kernel(weight), bias, geometry, overload
    )
    return result


def spike_linear(
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    like: Tensor | Sequence[int] | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """``torch.nn.functional.linear`` of spikes ``[N, ..., features]``, on the CPU by their events.

    A convolution by a kernel of 1x1; all else as for ``spike_conv2d``.

    Args:
        spikes: ``[N, ..., features]``, or with ``like`` their bits.
        weight: ``[K, features]``.
        bias: ``[K]``.
        like: their shape, or a contiguous tensor of it.
        backend: see ``spike_conv2d``.

    Returns:
        ``[N, ..., K]``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a value other than 0 and 1, or shapes that do not fit.
        RuntimeError: ``backend`` cannot run here.
    """
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        kind = f"shape {list(weight.shape)}" if isinstance(weight, Tensor) else repr(weight)
        raise ValueError(f"weight has {kind}, expected [K, features]")
    given = spikes if like is None else like
    shape = tuple(given.shape if isinstance(given, Tensor) else given)
    if len(shape) < 2 or shape[-1] != weight.shape[1] or 0 in (*shape, *weight.shape):
        raise ValueError(
            f"spikes has shape {list(shape)}, expected [N, ..., {weight.shape[1]}] as weight "
            f"{list(weight.shape)} has it, and neither empty"
        )
    if like is not None:
        like = features_as_maps(torch.empty(shape, dtype=torch.float32, device="meta"))
    maps = spikes if like is not None else features_as_maps(spikes)
    out = _spike_conv2d(maps, weight, bias, *POINT, like, backend)
    return maps_as_features(out, shape)


def features_as_maps(x: Tensor) -> Tensor:
    """``[N, ..., features]`` as ``[N, features, positions, 1]``, channels last."""
    return x.reshape(x.shape[0], -1, x.shape[-1], 1).transpose(1, 2)


def maps_as_features(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """``[N, K, positions, 1]`` as ``[N, ..., K]`` for features of this shape."""
    return maps.transpose(1, 2).reshape(*shape[:-1], maps.shape[1])


Slope = Literal["edge", "paper"]


def _bounded_neurons(
    x: Tensor,
    leak: float | Tensor,
    threshold: float | Tensor,
    reset: Reset,
    v_reset: float,
    v_init: float,
    strict: bool,
) -> tuple[Tensor, Tensor, float, int, float, bool]:
    """The checked neurons of an op of certification, as it takes them."""
    dtype = reference.state_dtype(x.dtype)
    if reset not in reference.RESETS:
        raise ValueError(f"reset is {reset!r}, expected one of {', '.join(reference.RESETS)}")
    if not isinstance(strict, bool):
        raise TypeError(f"strict is {strict!r} of type {type(strict).__name__}, expected a bool")
    numbers = []
    for name, number in (("v_init", v_init), ("v_reset", v_reset)):
        check_number(name, number)
        _check_representable(name, number, dtype)
        numbers.append(torch.tensor(number, dtype=dtype).item())  # as neurons see it
    return (
        _parameter("leak", leak, x),
        _parameter("threshold", threshold, x),
        numbers[0],
        reference.RESETS.index(reset),
        numbers[1],
        strict,
    )


def _check_ends(names: tuple[str, str], lower: Tensor, upper: Tensor) -> None:
    _check_x(lower, names[0])
    _check_x(upper, names[1])
    if lower.shape != upper.shape or lower.dtype != upper.dtype or lower.device != upper.device:
        raise ValueError(
            f"{names[0]} is {lower.dtype} {list(lower.shape)} on {lower.device} and {names[1]} "
            f"{upper.dtype} {list(upper.shape)} on {upper.device}, expected two like tensors"
        )


def interval_lif(
    lower: Tensor,
    upper: Tensor,
    leak: float | Tensor = 1.0,
    threshold: float | Tensor = 1.0,
    *,
    reset: Reset = "hard",
    v_reset: float = 0.0,
    v_init: float = 0.0,
    strict: bool = False,
    surrogate: Surrogate = Triangle(),  # noqa: B008  frozen
    return_membranes: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, ...]:
    """Bounds of what ``lif`` fires for any currents between ``lower`` and ``upper``, as one op.

    S-IBP of Liang et al. 2022 (eq. 7 to 9) for every reset: a membrane in ``[l, u]`` fires for sure
    where ``l`` fires and may fire where ``u`` does; what is carried on is the smallest interval
    around the states of both cases. Charge, fire and reset are monotone in floating point too, so
    the bounds hold for spikes as they are computed. They are attained in a single step, and over
    time where no step is unsure.

    Args:
        lower: currents ``[T, N, ...]``, see ``lif``; not NaN.
        upper: the same, nowhere below ``lower``, which is not checked.
        leak: see ``lif``, like the other options; tensors get gradients.
        threshold: likewise.
        reset: likewise.
        v_reset: likewise.
        v_init: a number.
        strict: likewise.
        surrogate: the derivative of a spike, at either end of the membrane. Of the reset, what was
            selected is differentiated, and what selected it is not, as in the paper's code.
        return_membranes: also give the bounds of the membranes before reset.
        backend: see ``lif``.

    Returns:
        Lower and upper spikes, 0 or 1, of the shape, dtype and layout of ``lower``; with
        ``return_membranes`` also lower and upper membranes, float32 (float64 for float64).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a value, shape or device that does not fit.
        RuntimeError: ``backend`` cannot run here.
    """
    _check_ends(("lower", "upper"), lower, upper)
    decay, threshold, start, kind_of_reset, after, strict = _bounded_neurons(
        lower, leak, threshold, reset, v_reset, v_init, strict
    )
    if not isinstance(surrogate, Surrogate) or isinstance(surrogate, NotPointwise | SpikeTime):
        raise ValueError(f"surrogate is {surrogate!r}, expected a function of the membrane alone")
    overload = _overload(backend, lower)
    config = IntervalConfig(
        start,
        kind_of_reset,
        after,
        strict,
        KINDS.index(surrogate.kind),
        surrogate.args,
        surrogate.normalized,
        return_membranes,
        overload,
    )
    outputs: tuple[Tensor, ...] = IntervalLIF.apply(lower, upper, decay, threshold, config)
    return outputs if return_membranes else outputs[:2]


def relax_lif(
    rows: Tensor,
    v_lower: Tensor,
    v_upper: Tensor,
    leak: float | Tensor = 1.0,
    threshold: float | Tensor = 1.0,
    *,
    reset: Reset = "hard",
    v_reset: float = 0.0,
    v_init: float = 0.0,
    strict: bool = False,
    slope: Slope | Tensor = "edge",
    mix: Tensor | None = None,
    after: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """A linear function of the currents below one of the spikes: S-CROWN's step through neurons.

    For all spikes s and currents x of a ``lif`` whose membranes stay between ``v_lower`` and
    ``v_upper``::

        sum(rows[r] * s) >= sum(lines[r] * x) + sum(bias[r])

    with the sums over time and neurons. It holds for s as ``lif`` computes it: rounding errors of
    the membrane, and of the lines, are within ``bias``. What a step fires and what it carries on
    are both functions of its one membrane, and one line lies below their weighted sum, instead of
    one each as in eq. 8 and 10 of Liang et al. 2022.

    Args:
        rows: weights of the spikes, ``[R, T, N, ...]``, float32 or float64.
        v_lower: membranes ``[T, N, ...]`` as ``interval_lif`` gives them, of the dtype of ``rows``.
        v_upper: likewise.
        leak: see ``lif``, like the other options.
        threshold: likewise.
        reset: likewise.
        v_reset: likewise.
        v_init: a number.
        strict: likewise.
        slope: of the lines of neurons that may or may not fire. ``"edge"``: the longer edge of the
            lower hull; ``"paper"``: eq. 8 and 10; or slopes like ``rows``. Any of them is sound.
        mix: shares like ``rows``, in place of ``slope``: 0 for the left edge of the hull, 1 for the
            right one, where it has two. Sound beyond as well.
        after: weights ``[R, N, ...]`` of the membrane that would come after the last step, but for
            the current and the rounding of that step.
        backend: see ``interval_lif``.

    Returns:
        Lines, of the shape and dtype of ``rows``, and their bias ``[R, N, ...]``, float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a value, shape or device that does not fit.
        RuntimeError: ``backend`` cannot run here.
    """
    _check_ends(("v_lower", "v_upper"), v_lower, v_upper)
    if v_lower.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"v_lower has dtype {v_lower.dtype}, expected float32 or float64")
    slopes = slope if isinstance(slope, Tensor) else mix
    if mix is not None and slope != "edge":
        raise ValueError("mix and slope are given, expected one of them")
    if slopes is None and slope not in ("edge", "paper"):
        raise ValueError(f"slope is {slope!r}, expected 'edge', 'paper' or a tensor like rows")
    given = "slope" if mix is None else "mix"
    for name, value in (("rows", rows), (given, slopes), ("after", after)):
        if value is not None and (value.dtype, value.device) != (v_lower.dtype, v_lower.device):
            raise TypeError(
                f"{name} is {value.dtype} on {value.device}, expected {v_lower.dtype} on "
                f"{v_lower.device} like v_lower"
            )
    if rows.shape[1:] != v_lower.shape or rows.shape[0] == 0:
        raise ValueError(
            f"rows has shape {list(rows.shape)}, expected {['R', *v_lower.shape]} with R > 0"
        )
    if slopes is not None and slopes.shape != rows.shape:
        raise ValueError(f"{given} has shape {list(slopes.shape)}, expected {list(rows.shape)}")
    if after is not None and after.shape != rows[:, 0].shape:
        raise ValueError(f"after has shape {list(after.shape)}, expected {list(rows[:, 0].shape)}")
    neurons = _bounded_neurons(v_lower, leak, threshold, reset, v_reset, v_init, strict)
    if mix is not None:
        kind = reference.MIXED
    else:
        kind = reference.GIVEN if slopes is not None else reference.SLOPES.index(str(slope))
    config = RelaxConfig(*neurons[2:], kind, _overload(backend, v_lower))
    tensors = (rows, v_lower, v_upper, *neurons[:2], slopes, after)
    result: tuple[Tensor, Tensor] = RelaxLIF.apply(*tensors, config)
    return result


def _held(x: Tensor, timesteps: int | None) -> tuple[Tensor, int]:
    """What the op reads; and the number of steps where it is one that is held, else 0."""
    if timesteps is not None:
        check_int("timesteps", timesteps, 1)
        if x.shape[0] != 1:
            raise ValueError(
                f"timesteps is {timesteps} and x has {x.shape[0]} steps, expected one that is held"
            )
        return x, timesteps
    return x, 0


def decay_of(charge: str, given: dict[str, float | Tensor | None]) -> float | Tensor:
    """The parameter that ``charge`` takes; the others must not be given."""
    name = DECAYS[charge]
    for other, value in given.items():
        if other != name and value is not None:
            shown = "a tensor" if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"{other} is given ({shown}) and charge is {charge!r}, expected {name} instead"
            )
    value = given[name]
    if value is None:
        if name == "leak":
            return 1.0
        raise ValueError(f"{name} is None, expected a value for charge={charge!r}")
    return value


def _with_surrogate(
    config: LIFConfig, surrogate: Surrogate | Sequence[Surrogate], x: Tensor
) -> tuple[LIFConfig, Tensor | None]:
    """The options with their surrogate; and a table, where every sample has one of its own."""
    wanted = "a snnkern.surrogate.Surrogate such as snnkern.surrogate.Triangle()"
    if isinstance(surrogate, Surrogate):
        number = KINDS.index(surrogate.kind) if surrogate.kind in KINDS else 0
        by_rule = surrogate.kind not in KINDS
        config = config._replace(
            surrogate=RATE if isinstance(surrogate, RGA) else number,
            surrogate_args=surrogate.args,
            normalized=surrogate.normalized,
            rule=surrogate if by_rule else None,
        )
        return config, None
    if not isinstance(surrogate, Sequence) or isinstance(surrogate, str):
        raise TypeError(
            f"surrogate is {surrogate!r} of type {type(surrogate).__name__}, expected {wanted}"
        )
    if len(surrogate) != x.shape[1]:
        raise ValueError(
            f"surrogate has {len(surrogate)} entries, expected {x.shape[1]}, one for every sample"
        )
    rows: list[list[float]] = []
    for number, one in enumerate(surrogate):
        if number > 0 and one is surrogate[number - 1]:
            rows.append(rows[-1])
            continue
        if not isinstance(one, Surrogate):
            raise TypeError(f"surrogate[{number}] is {one!r}, expected {wanted}")
        if isinstance(one, NotPointwise):
            raise ValueError(f"surrogate[{number}] is {one}, expected one of a single step")
        rows.append([float(KINDS.index(one.kind)), *one.args, float(one.normalized)])
    return config, torch.tensor(rows, dtype=torch.float64, device=x.device)


def _check_dense(name: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} has {kind}, expected a dense tensor (torch.strided)")


def _check_x(x: Tensor, name: str = "x", dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} is of type {type(x).__name__}, expected a torch.Tensor [T, N, ...]"
        )
    if x.dtype not in dtypes:
        *most, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} has dtype {x.dtype}, expected {', '.join(most)} or {last}")
    _check_dense(name, x)
    if x.dim() < 2:
        raise ValueError(
            f"{name} has shape {list(x.shape)}, expected [T, N, ...]: time first, then the batch"
        )
    if 0 in x.shape:
        what = "time steps" if x.shape[0] == 0 else "samples" if x.shape[1] == 0 else "neurons"
        raise ValueError(
            f"{name} has shape {list(x.shape)} and so no {what}, expected at least one"
        )


RANGES: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "leak": ("in [0, 1]", lambda low, high: low >= 0 and high <= 1),
    "rate": ("in [0, 1]", lambda low, high: low >= 0 and high <= 1),
    "synapse_decay": ("in [0, 1]", lambda low, high: low >= 0 and high <= 1),
    "tau": ("finite and at least 1", lambda low, high: low >= 1 and high < math.inf),
    "threshold": ("finite and above 0", lambda low, high: low > 0 and high < math.inf),
}


def check_parameter(name: str, value: float | Tensor) -> None:
    """Raises ValueError unless a neuron can have every value of its parameter ``name``."""
    expected, fits = RANGES[name]
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(
                f"{name} is {value!r} of type {type(value).__name__}, expected a number or a tensor"
            )
        low = high = value
    elif value.numel() == 1:
        low = high = value.item()
    else:
        low, high = (bound.item() for bound in torch.aminmax(value.detach()))
    if not fits(low, high):
        shown = low if low == high or low != low else f"between {low} and {high}"
        raise ValueError(f"{name} is {shown}, expected {expected}")


# Names that tensors on a GPU were looked at for, and the version that was.
_seen: MutableMapping[Tensor, dict[str, int]] = WeakTensorKeyDictionary()


def waits_for_device(value: Tensor) -> bool:
    """Whether a look at the values of a tensor waits for its device."""
    return value.is_cuda


def _captured(t: Tensor) -> bool:
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def check_values(name: str, value: Tensor) -> None:
    """``check_parameter`` as often as values may have changed.

    On a GPU a look waits for the device. So a tensor is looked at once for every version of it, and
    not at all where a module keeps it within its bounds or a CUDA graph captures the call.
    """
    if not waits_for_device(value):
        check_parameter(name, value)
        return
    versions = _seen.setdefault(value, {})
    if (
        versions.get(name) == value._version
        or getattr(value, "within_bounds", False)
        or _captured(value)
    ):
        return
    check_parameter(name, value)
    versions[name] = value._version


def _check_representable(name: str, value: float, dtype: torch.dtype) -> None:
    """Raises ValueError where the state's dtype turns a number into infinity, or into 0."""
    limits = torch.finfo(dtype)
    if abs(value) > limits.max or 0 < abs(value) < limits.smallest_normal * limits.eps:
        raise ValueError(f"{name} is {value!r}, expected a number that {dtype} can hold")


@lru_cache(maxsize=256)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # kept for calls that save it for backward
        return torch.full((), value, dtype=dtype, device=device)


def _parameter(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    dtype = reference.state_dtype(x.dtype)
    if not isinstance(value, Tensor):
        check_parameter(name, value)
        _check_representable(name, value, dtype)
        # What is made in a trace, for a CUDA graph, or under a mode that makes its own is not kept.
        if (
            torch.compiler.is_compiling()
            or _get_current_dispatch_mode() is not None
            or _captured(x)
        ):
            return torch.full((), value, dtype=dtype, device=x.device)
        return _constant(float(value), dtype, x.device)
    _check_dense(name, value)
    if not value.is_floating_point():
        raise TypeError(f"{name} has dtype {value.dtype}, expected a floating-point tensor")
    if value.dtype == torch.float64 and dtype != torch.float64:
        raise TypeError(
            f"{name} has dtype float64 and x has {x.dtype}: pass {name} as float32, or x as float64"
        )
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, expected {x.device} like x")
    channels = x.shape[2] if x.dim() > 2 else None
    per_channel = value.dim() == 1 and value.shape[0] == channels
    per_neuron = value.shape == x.shape[2:] and value.dim() > 0
    if value.dim() > 0 and not per_channel and not per_neuron:
        allowed = "[]"
        if channels is not None:
            allowed += f" or [{channels}] (one per channel of x)"
        if x.dim() > 3:
            allowed += f" or {list(x.shape[2:])} (one per neuron)"
        raise ValueError(f"{name} has shape {list(value.shape)}, expected {allowed}")
    if not torch.compiler.is_compiling():
        check_values(name, value)
    value = value.to(dtype)
    if per_neuron and not per_channel:
        # One for every neuron of the batch, where the kernel finds it beside the neuron.
        value = value.expand(x.shape[1:])
        return torch.empty_strided(
            value.shape, step_strides(x), dtype=dtype, device=x.device
        ).copy_(value)
    return value.contiguous()


def _state(name: str, value: float | Tensor | None, x: Tensor) -> Tensor | None:
    if value is None:
        return None
    dtype = reference.state_dtype(x.dtype)
    if not isinstance(value, Tensor):
        check_number(name, value)
        _check_representable(name, value, dtype)
        if value == 0:  # where they start without being told
            return None
        return torch.full(x.shape[1:], value, dtype=dtype, device=x.device)
    _check_dense(name, value)
    if value.dtype not in (dtype, x.dtype):
        raise TypeError(f"{name} has dtype {value.dtype}, expected {dtype}, the dtype of the state")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, expected {x.device} like x")
    if value.shape != x.shape[1:]:
        raise ValueError(
            f"{name} has shape {list(value.shape)}, expected {list(x.shape[1:])}, that of x[0]"
        )
    return value.to(dtype)


def why_not(backend: str, device: torch.device) -> str:
    """Why ``backend`` cannot run on ``device``; empty where it can."""
    if backend == "reference":
        return ""
    if backend == "cpu":
        if device.type != "cpu":
            return f"the tensor is on {device}"
        return _load.why_not
    if backend == "cuda":
        return _load.why_not_cuda(device)
    return _triton.why_not(device)


def _overload(backend: str | None, x: Tensor) -> str:
    if backend is None:
        return "default"
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected None or one of {', '.join(BACKENDS)}")
    if reason := why_not(backend, x.device):
        raise RuntimeError(
            f"backend is {backend!r}, which cannot run here: {reason}. backend=None takes what is "
            "there"
        )
    return backend if backend in ("reference", "triton") else "default"
