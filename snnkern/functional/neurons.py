"""The options of neurons, checked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from snnkern import reference
from snnkern._checks import check_number
from snnkern.autograd import LIFConfig
from snnkern.functional import backends
from snnkern.functional.backends import Backend
from snnkern.functional.checks import as_parameter, as_state, check_representable, check_x
from snnkern.reference import RATE
from snnkern.surrogate import KINDS, RGA, NotPointwise, Surrogate

Charge = Literal["leak", "euler", "euler_box", "decay_input", "decay"]
Synapse = Literal["none", "charged", "decayed", "jump"]
Reset = Literal["hard", "soft", "delayed_soft", "none"]
SpikeFormat = Literal["input", "uint8", "bits"]
# What each charge calls its parameter.
DECAYS = {
    "leak": "leak",
    "euler": "rate",
    "euler_box": "rate",
    "decay_input": "tau",
    "decay": "tau",
}


def neurons(
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
    check_x(x)
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
    config = config._replace(overload=backends.overload_for(backend, x))
    tensors = (
        as_parameter(DECAYS[charge], decay, x),
        as_parameter("threshold", threshold, x),
        None if synapse_decay is None else as_parameter("synapse_decay", synapse_decay, x),
        as_state("v_init", v_init, x),
        as_state("current_init", current_init, x),
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
        check_representable(name, number, dtype)
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
