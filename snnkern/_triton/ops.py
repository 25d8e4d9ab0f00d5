"""The ops on Triton kernels: layout, outputs and launches. Shapes are those of the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import wrap_triton

from snnkern import reference
from snnkern._layout import empty_rows, empty_step, empty_steps, empty_steps_of, step_strides
from snnkern._triton.bounds import (
    interval_backward_kernel,
    interval_forward_kernel,
    relax_backward_kernel,
    relax_kernel,
)
from snnkern._triton.encoding import rate_code_kernel
from snnkern._triton.lif import lif_backward_kernel, lif_forward_kernel
from snnkern._triton.norm import channel_moments_kernel, norm_backward_kernel
from snnkern._triton.packing import pack_spikes_kernel, unpack_spikes_kernel

WARPS = 4
ROW_BYTES = 16  # of a row to a thread, at most
# A block of steps is unrolled with its rows in registers: at most so many steps where they are all
# there are, and else at most so many at a time.
WHOLE_STEPS, BLOCK_STEPS = 32, 16
# How many neuron-steps a thread holds, as far as the registers go: 32-bit numbers.
FORWARD_HOLDS, BACKWARD_HOLDS = 64, 16


def launch(kernel: Any, grid: int, /, **arguments: Any) -> None:
    """Runs a kernel, or puts it into the graph that is being traced."""
    wrap_triton(kernel)[(grid,)](**arguments, num_warps=WARPS)


def steps_like(x: Tensor, t: Tensor) -> Tensor:
    """``t`` with its steps where those of ``x`` are; one step long where constant in time."""
    wanted = step_strides(x)
    there = zip(t.shape[1:], t.stride()[1:], wanted, strict=True)
    if all(size == 1 or stride == expected for size, stride, expected in there):
        return t
    distinct = t[:1] if t.stride(0) == 0 else t
    return empty_steps(x, t.dtype, len(distinct)).copy_(distinct)


def step_like(x: Tensor, t: Tensor | None) -> Tensor | None:
    """A state of the shape of ``x[0]`` in the layout of the steps of ``x``."""
    if t is None:
        return None
    if t.shape != x.shape[1:] or t.dtype != reference.state_dtype(x.dtype):
        raise RuntimeError(
            f"snnkern: a state has shape {list(t.shape)} and {t.dtype}, expected "
            f"{list(x.shape[1:])}, that of x[0], and the dtype of the state"
        )
    return steps_like(x, t.unsqueeze(0))[0]


def time_stride(t: Tensor) -> int:
    """Elements from one step to the next, 0 where a tensor is constant in time."""
    return 0 if t.shape[0] == 1 else t.stride(0)


class Plan(NamedTuple):
    """How a layer is cut: blocks of neurons, one to a program, and blocks of steps."""

    neurons: int
    channels: int
    repeat: int  # neighbouring neurons of one channel
    block: int
    steps: int
    blocks: int

    @classmethod
    def of(cls, x: Tensor, timesteps: int, holds: int = FORWARD_HOLDS) -> Plan:
        """``holds``: how many neuron-steps a thread is to hold."""
        neurons = math.prod(x.shape[1:])
        channels = x.shape[2] if x.dim() > 2 else 1
        repeat = neurons if channels == 1 else step_strides(x)[1]
        if repeat >= 2**31:
            raise RuntimeError(
                f"snnkern: a channel has {repeat} neighbouring neurons, expected less than 2^31"
            )
        # A number of steps that is not known when a graph is traced is taken one by one.
        steps = 1
        if isinstance(timesteps, int):
            steps = timesteps
            if steps > WHOLE_STEPS:
                steps = max(n for n in range(1, BLOCK_STEPS + 1) if timesteps % n == 0)
        width = ROW_BYTES // x.element_size()
        while width > 1 and width * steps * max(4, x.element_size()) > 4 * holds:
            width //= 2
        return cls(neurons, channels, repeat, 32 * WARPS * width, steps, timesteps // steps)

    @property
    def programs(self) -> int:
        """One for every block of neurons."""
        return -(-self.neurons // self.block)

    def group(self, of: str) -> int:
        """How many neighbouring neurons share a parameter and are summed in the kernel."""
        if of == "one":
            return self.block
        return math.gcd(self.repeat, self.block) if of == "channel" else 1

    def partial_sums(self, of: str, like: Tensor) -> Tensor:
        """Where the kernel leaves those sums; of a parameter per neuron its gradient itself."""
        if of == "neuron":
            return torch.empty_like(like)
        return like.new_empty(-(-self.neurons // self.group(of)))

    def total(self, partial: Tensor, of: str, like: Tensor) -> Tensor:
        """The gradient of a parameter, added up in float64 in an order that is always the same."""
        if of == "neuron":
            return partial
        if of == "one":
            total = partial.sum(dtype=torch.float64)
        else:
            within = self.repeat // self.group(of)
            total = partial.view(-1, self.channels, within).sum((0, 2), dtype=torch.float64)
        return total.to(like.dtype).view(like.shape)


def parameter_of(x: Tensor, values: Tensor) -> str:
    """Whose parameter it is: ``"one"`` for all, one per ``"channel"``, or per ``"neuron"``."""
    if values.dtype != reference.state_dtype(x.dtype):
        raise RuntimeError("snnkern: a parameter needs the dtype of the state")
    if values.numel() == 1:
        return "one"
    if values.dim() == 1 and x.dim() > 2 and len(values) == x.shape[2] and values.is_contiguous():
        return "channel"
    there = zip(values.shape, values.stride(), step_strides(x), strict=False)
    if values.shape != x.shape[1:] or any(n != 1 and a != b for n, a, b in there):
        raise RuntimeError(
            "snnkern: a parameter needs one value, one per channel, or one per neuron in the "
            "layout of the steps of x"
        )
    return "neuron"


class Neurons(NamedTuple):
    """What describes the neurons of a layer, as the ops take it."""

    decay: Tensor
    threshold: Tensor
    synapse_decay: Tensor | None
    v_init: Tensor | None
    current_init: Tensor | None
    charge: int
    v_rest: float
    gain: float
    synapse: int
    reset: int
    v_reset: float
    strict: bool
    delayed_spike: bool

    @property
    def has_synapse(self) -> bool:
        """Whether there is a synaptic current."""
        return self.synapse != reference.NO_SYNAPSE

    def parameters(self, x: Tensor) -> dict[str, str]:
        """Whose each of the parameters is."""
        synapse_decay = self.synapse_decay if self.has_synapse else None
        if self.has_synapse and synapse_decay is None:
            raise RuntimeError("snnkern: a synapse without synapse_decay")
        return {
            "decay": parameter_of(x, self.decay),
            "threshold": parameter_of(x, self.threshold),
            "synapse_decay": "one" if synapse_decay is None else parameter_of(x, synapse_decay),
        }

    def arguments(self, x: Tensor) -> dict[str, Any]:
        """What forward and backward kernel have in common."""
        of = self.parameters(x)
        return {
            "decay": self.decay,
            "threshold": self.threshold,
            "synapse_decay": self.synapse_decay if self.has_synapse else None,
            "v_init": step_like(x, self.v_init),
            "current_init": step_like(x, self.current_init),
            "V_REST": self.v_rest,
            "V_RESET": self.v_reset,
            "GAIN": self.gain,
            "CHARGE": reference.CHARGES[self.charge],
            "SYNAPSE": reference.SYNAPSES[self.synapse],
            "RESET": reference.RESETS[self.reset],
            "STRICT": self.strict,
            "DELAYED": self.delayed_spike,
            "DECAY_OF": of["decay"],
            "THRESHOLD_OF": of["threshold"],
            "SYNAPSE_DECAY_OF": of["synapse_decay"],
        }


def _timesteps(x: Tensor, held: int) -> int:
    if held and x.shape[0] != 1:
        raise RuntimeError(f"snnkern: x has {x.shape[0]} steps, expected one that is held")
    return held or x.shape[0]


def _check_channels(x: Tensor, *values: Tensor | None) -> None:
    for t in values:
        if t is not None and (x.dim() < 3 or t.shape != x.shape[2:3] or not t.is_contiguous()):
            raise RuntimeError("snnkern: normalisation needs one contiguous value per channel of x")


def _forward(
    x: Tensor,
    held: int,
    scale: Tensor | None,
    shift: Tensor | None,
    neurons: Neurons,
    spike_format: int,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    timesteps, dtype = _timesteps(x, held), reference.state_dtype(x.dtype)
    _check_channels(x, scale, shift)
    plan = Plan.of(x, timesteps)
    steps = steps_like(x, x)
    bits = spike_format == reference.BITS
    if bits:
        spikes = x.new_empty((timesteps, (plan.neurons + 7) // 8), dtype=torch.uint8)
    else:
        other = {reference.UINT8: torch.uint8, reference.MEMBRANES: dtype}
        spikes = empty_steps(x, other.get(spike_format, x.dtype), timesteps)
    state = empty_step(x, dtype) if return_state else None
    current = empty_step(x, dtype) if return_state and neurons.has_synapse else None
    launch(
        lif_forward_kernel,
        plan.programs,
        x=steps,
        spikes=spikes,
        state=state,
        current=current,
        scale=scale,
        shift=shift,
        neurons=plan.neurons,
        blocks=plan.blocks,
        x_step=time_stride(steps),
        spikes_step=spikes.shape[1] if bits else plan.neurons,
        channels=plan.channels,
        repeat=plan.repeat,
        FORMAT={reference.BITS: "bits", reference.MEMBRANES: "membranes"}.get(
            spike_format, "numbers"
        ),
        CONSTANT=time_stride(steps) == 0,
        STEPS=plan.steps,
        BLOCK=plan.block,
        **neurons.arguments(x),
    )
    return (
        spikes,
        x.new_empty(0, dtype=dtype) if state is None else state,
        x.new_empty(0, dtype=dtype) if current is None else current,
    )


def lif_forward(
    x: Tensor, timesteps: int, *neuron_and_format: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``snnkern.reference.lif_forward``."""
    *neuron, spike_format, return_state = neuron_and_format
    return _forward(x, timesteps, None, None, Neurons(*neuron), spike_format, return_state)


def norm_lif_forward(
    x: Tensor, scale: Tensor, shift: Tensor, *neuron_and_format: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``snnkern.reference.norm_lif_forward``."""
    *neuron, spike_format, return_state = neuron_and_format
    return _forward(x, 0, scale, shift, Neurons(*neuron), spike_format, return_state)


class Spiking(NamedTuple):
    """How spikes are differentiated, as the ops take it."""

    detach_reset: bool
    surrogate: int
    surrogate_args: Sequence[float]
    normalized: bool
    surrogate_table: Tensor | None
    derivatives: Tensor | None
    parameter_gradients: bool

    @property
    def kind(self) -> str:
        """The surrogate's name; ``"mixed"`` where every sample has its own; or ``"given"``."""
        if self.derivatives is not None:
            return "given"
        return "mixed" if self.surrogate_table is not None else reference.KINDS[self.surrogate]


class Norm(NamedTuple):
    """A normalised input, and whether its own gradient needs sums."""

    scale: Tensor | None = None
    shift: Tensor | None = None
    mean: Tensor | None = None
    sums: bool = False


def _backward(
    grad_spikes: Tensor,
    grad_state: Tensor | None,
    grad_current: Tensor | None,
    x: Tensor,
    held: int,
    norm: Norm,
    neurons: Neurons,
    spiking: Spiking,
) -> tuple[Tensor, ...]:
    timesteps, dtype = _timesteps(x, held), reference.state_dtype(x.dtype)
    _check_channels(x, norm.scale, norm.shift, norm.mean)
    if grad_spikes.shape != (timesteps, *x.shape[1:]) or grad_spikes.dtype != x.dtype:
        raise RuntimeError("snnkern: grad_spikes needs the dtype of x and the shape of the spikes")
    table = spiking.surrogate_table
    if table is not None:
        if table.shape != (x.shape[1], 4):
            raise RuntimeError(f"snnkern: surrogates are a tensor [{x.shape[1]}, 4]")
        table = table.to(x.device, torch.float64).contiguous()
    derivatives = spiking.derivatives
    if derivatives is not None:
        before = reference.looks_at_start(neurons.reset, neurons.delayed_spike)
        expected = (timesteps + before, *x.shape[1:])
        if derivatives.shape != expected or derivatives.dtype != dtype or table is not None:
            raise RuntimeError(
                f"snnkern: derivatives have shape {list(derivatives.shape)} and "
                f"{derivatives.dtype}, expected {list(expected)}, the dtype of the state, and no "
                "surrogates of single samples beside them"
            )
        derivatives = steps_like(x, derivatives)
    timed = spiking.kind in ("spike_time", "mixed")
    plan = Plan.of(x, timesteps, BACKWARD_HOLDS)
    whole = isinstance(timesteps, int) and plan.blocks == 1
    steps, grads = steps_like(x, x), steps_like(x, grad_spikes)
    grad_x = empty_steps(x, x.dtype, x.shape[0])
    of = neurons.parameters(x)

    def partial_sums(wanted: bool, of_whom: str, like: Tensor | None) -> Tensor | None:
        return plan.partial_sums(of_whom, like) if wanted and like is not None else None

    def kept(carried: bool) -> Tensor | None:
        if whole or not carried:
            return None
        return x.new_empty((plan.blocks - 1, plan.neurons), dtype=dtype)

    parameters = {
        "decay": neurons.decay,
        "threshold": neurons.threshold,
        "synapse_decay": neurons.synapse_decay if neurons.has_synapse else None,
    }
    partial = {
        name: partial_sums(spiking.parameter_gradients, of[name], parameter)
        for name, parameter in parameters.items()
    }
    of_channels = [partial_sums(norm.sums, "channel", norm.scale) for _ in range(2)]
    grad_v_init = None if neurons.v_init is None else empty_step(x, dtype)
    grad_current_init = None if neurons.current_init is None else empty_step(x, dtype)
    launch(
        lif_backward_kernel,
        plan.programs,
        grad_x=grad_x,
        grad_decay=partial["decay"],
        grad_threshold=partial["threshold"],
        grad_synapse_decay=partial["synapse_decay"],
        grad_v_init=grad_v_init,
        grad_current_init=grad_current_init,
        sums=of_channels[0],
        dots=of_channels[1],
        kept_state=kept(True),
        kept_current=kept(neurons.has_synapse),
        kept_since=kept(timed),
        grad_spikes=grads,
        grad_state=step_like(x, grad_state),
        grad_current=step_like(x, grad_current),
        x=steps,
        scale=norm.scale,
        shift=norm.shift,
        mean=norm.mean if norm.sums else None,
        surrogates=table,
        derivatives=derivatives,
        neurons=plan.neurons,
        blocks=plan.blocks,
        x_step=time_stride(steps),
        grad_step=time_stride(grads),
        derivatives_step=0 if derivatives is None else time_stride(derivatives),
        channels=plan.channels,
        repeat=plan.repeat,
        samples=x.shape[1],
        sample_repeat=plan.neurons if x.shape[1] == 1 else step_strides(x)[0],
        DETACH_RESET=spiking.detach_reset,
        SURROGATE=spiking.kind,
        FIRST=float(spiking.surrogate_args[0]),
        SECOND=float(spiking.surrogate_args[1]),
        NORMALIZED=spiking.normalized,
        DECAY_GROUP=plan.group(of["decay"]),
        THRESHOLD_GROUP=plan.group(of["threshold"]),
        SYNAPSE_DECAY_GROUP=plan.group(of["synapse_decay"]),
        CHANNEL_GROUP=plan.group("channel"),
        HELD=held > 0,
        CONSTANT=time_stride(steps) == 0,
        WHOLE=whole,
        STEPS=plan.steps,
        BLOCK=plan.block,
        **neurons.arguments(x),
    )
    empty = x.new_empty(0, dtype=dtype)

    def total(sums: Tensor | None, of_whom: str, like: Tensor | None) -> Tensor:
        return empty.clone() if sums is None or like is None else plan.total(sums, of_whom, like)

    return (
        grad_x,
        *(total(sums, "channel", norm.scale) for sums in of_channels),
        *(total(partial[name], of[name], parameter) for name, parameter in parameters.items()),
        empty.clone() if grad_v_init is None else grad_v_init,
        empty.clone() if grad_current_init is None else grad_current_init,
    )


FIELDS = len(Neurons._fields)


def lif_backward(
    grad_spikes: Tensor,
    grad_state: Tensor | None,
    grad_current: Tensor | None,
    x: Tensor,
    timesteps: int,
    *neuron_and_spiking: Any,
) -> tuple[Tensor, ...]:
    """See ``snnkern.reference.lif_backward``."""
    neurons, spiking = Neurons(*neuron_and_spiking[:FIELDS]), Spiking(*neuron_and_spiking[FIELDS:])
    grad_x, _, _, *rest = _backward(
        grad_spikes, grad_state, grad_current, x, timesteps, Norm(), neurons, spiking
    )
    return grad_x, *rest


def norm_lif_backward(
    grad_spikes: Tensor,
    grad_state: Tensor | None,
    grad_current: Tensor | None,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    *neuron_and_spiking: Any,
) -> tuple[Tensor, ...]:
    """See ``snnkern.reference.norm_lif_backward``."""
    *rest, sums = neuron_and_spiking
    norm = Norm(scale, shift, mean, sums)
    neurons, spiking = Neurons(*rest[:FIELDS]), Spiking(*rest[FIELDS:])
    return _backward(grad_spikes, grad_state, grad_current, x, 0, norm, neurons, spiking)


def channel_moments(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """See ``snnkern.reference.channel_moments``."""
    _check_channels(x, centre)
    plan = Plan.of(x, x.shape[0])
    steps = steps_like(x, x)
    sums, squares = (plan.partial_sums("channel", centre) for _ in range(2))
    launch(
        channel_moments_kernel,
        plan.programs,
        sums=sums,
        squares=squares,
        x=steps,
        centre=centre,
        neurons=plan.neurons,
        blocks=plan.blocks,
        x_step=time_stride(steps),
        channels=plan.channels,
        repeat=plan.repeat,
        GROUP=plan.group("channel"),
        CONSTANT=time_stride(steps) == 0,
        STEPS=plan.steps,
        BLOCK=plan.block,
    )
    return plan.total(sums, "channel", centre), plan.total(squares, "channel", centre)


def norm_backward_(
    g: Tensor, x: Tensor, mean: Tensor, from_g: Tensor, from_x: Tensor, constant: Tensor
) -> None:
    """See ``snnkern.reference.norm_backward_``."""
    _check_channels(x, mean, from_g, from_x, constant)
    plan = Plan.of(x, 1)
    if (
        g.dtype != x.dtype
        or g.shape != x.shape
        or steps_like(x, g) is not g
        or time_stride(g) not in (0, plan.neurons)
    ):
        raise RuntimeError("snnkern: g needs the dtype, shape and layout of x")
    steps = steps_like(x, x)
    launch(
        norm_backward_kernel,
        plan.programs * x.shape[0],
        g=g,
        x=steps,
        mean=mean,
        from_g=from_g,
        from_x=from_x,
        constant=constant,
        neurons=plan.neurons,
        programs=plan.programs,
        x_step=time_stride(steps),
        channels=plan.channels,
        repeat=plan.repeat,
        BLOCK=plan.block,
    )


def rate_code(x: Tensor, seed: Tensor, timesteps: int, coding: int) -> Tensor:
    """See ``snnkern.reference.rate_code``."""
    steps = steps_like(x.unsqueeze(0), x.unsqueeze(0))
    spikes = empty_steps(steps, x.dtype, timesteps)
    block = 32 * WARPS * (ROW_BYTES // x.element_size())
    launch(
        rate_code_kernel,
        -(-x.numel() // block),
        spikes=spikes,
        x=steps,
        seed=seed,
        values=x.numel(),
        timesteps=timesteps,
        CODING=reference.CODINGS[coding],
        BLOCK=block,
    )
    return spikes


PACKED_BLOCK = 1024


def pack_spikes(spikes: Tensor) -> tuple[Tensor, Tensor]:
    """See ``snnkern.reference.pack_spikes``."""
    # Triton has no pointer to bool.
    steps = steps_like(spikes, spikes)
    steps = steps.view(torch.uint8) if steps.dtype == torch.bool else steps
    rows, neurons = len(spikes), math.prod(spikes.shape[1:])
    programs = -(-neurons // PACKED_BLOCK)
    packed = spikes.new_empty((rows, (neurons + 7) // 8), dtype=torch.uint8)
    strays = spikes.new_empty(rows * programs, dtype=torch.int64)
    launch(
        pack_spikes_kernel,
        rows * programs,
        packed=packed,
        strays=strays,
        spikes=steps,
        neurons=neurons,
        row_bytes=packed.shape[1],
        programs=programs,
        step=time_stride(steps),
        BLOCK=PACKED_BLOCK,
    )
    # Without a look at the values, for which the GPU would have to be waited for.
    first = strays.min()
    there = first < rows * neurons
    place = torch.where(there, first, 0).view(1)
    by_place = steps.as_strided((rows, neurons), (time_stride(steps), 1))
    value = by_place[place // neurons, place % neurons].squeeze(0).to(torch.float64)
    return packed, torch.where(there, value, 0)


def unpack_spikes(packed: Tensor, size: list[int], stride: list[int], dtype: torch.dtype) -> Tensor:
    """See ``snnkern.reference.unpack_spikes``."""
    spikes = empty_steps_of(packed, size, stride, dtype)
    neurons = math.prod(size[1:])
    programs = -(-neurons // PACKED_BLOCK)
    launch(
        unpack_spikes_kernel,
        size[0] * programs,
        spikes=spikes.view(torch.uint8) if dtype == torch.bool else spikes,
        packed=packed,
        neurons=neurons,
        row_bytes=packed.shape[1],
        programs=programs,
        BLOCK=PACKED_BLOCK,
    )
    return spikes


# How many neurons a thread of a kernel of certification has: with both ends, and in float64.
ENDS_HOLD, LINES_HOLD = 2, 1


class Bounded(NamedTuple):
    """What describes the neurons that are bounded, as the ops take it."""

    decay: Tensor
    threshold: Tensor
    v_init: float
    reset: int
    v_reset: float
    strict: bool

    def arguments(self, x: Tensor, plan: Plan) -> dict[str, Any]:
        """What all kernels have in common."""
        return {
            "decay": self.decay,
            "threshold": self.threshold,
            "neurons": plan.neurons,
            "timesteps": x.shape[0],
            "channels": plan.channels,
            "repeat": plan.repeat,
            "V_INIT": self.v_init,
            "V_RESET": self.v_reset,
            "RESET": reference.RESETS[self.reset],
            "STRICT": self.strict,
            "DECAY_OF": parameter_of(x, self.decay),
            "THRESHOLD_OF": parameter_of(x, self.threshold),
            "BLOCK": plan.block,
        }

    def gradients(self, x: Tensor, plan: Plan, wanted: bool) -> dict[str, Any]:
        """Where kernels leave sums for the gradients of the parameters."""
        found: dict[str, Any] = {}
        for name, parameter in (("decay", self.decay), ("threshold", self.threshold)):
            of = parameter_of(x, parameter)
            found[f"grad_{name}"] = plan.partial_sums(of, parameter) if wanted else None
            found[f"{name.upper()}_GROUP"] = plan.group(of)
        return found

    def totals(self, x: Tensor, plan: Plan, sums: dict[str, Any]) -> tuple[Tensor, ...]:
        """The gradients of the parameters; empty where they are not wanted."""
        parts = ((sums["grad_decay"], self.decay), (sums["grad_threshold"], self.threshold))
        return tuple(
            parameter.new_empty(0)
            if part is None
            else plan.total(part, parameter_of(x, parameter), parameter)
            for part, parameter in parts
        )


def interval_lif_forward(
    lower: Tensor, upper: Tensor, *neuron_and_membranes: Any
) -> tuple[Tensor, ...]:
    """See ``snnkern.reference.interval_lif_forward``."""
    *neuron, return_membranes = neuron_and_membranes
    plan = Plan.of(lower, 1, ENDS_HOLD)
    timesteps, dtype = lower.shape[0], reference.state_dtype(lower.dtype)
    ends = [steps_like(lower, t) for t in (lower, upper)]
    spikes = [empty_steps(lower, lower.dtype, timesteps) for _ in ends]
    membranes = [empty_steps(lower, dtype, timesteps) if return_membranes else None for _ in ends]
    launch(
        interval_forward_kernel,
        plan.programs,
        spikes_lower=spikes[0],
        spikes_upper=spikes[1],
        v_lower=membranes[0],
        v_upper=membranes[1],
        lower=ends[0],
        upper=ends[1],
        lower_step=time_stride(ends[0]),
        upper_step=time_stride(ends[1]),
        **Bounded(*neuron).arguments(lower, plan),
    )
    return (*spikes, *(lower.new_empty(0, dtype=dtype) if v is None else v for v in membranes))


def interval_lif_backward(
    grad_spikes_lower: Tensor,
    grad_spikes_upper: Tensor,
    grad_v_lower: Tensor | None,
    grad_v_upper: Tensor | None,
    lower: Tensor,
    upper: Tensor,
    *neuron_and_spiking: Any,
) -> tuple[Tensor, ...]:
    """See ``snnkern.reference.interval_lif_backward``."""
    *neuron, surrogate, surrogate_args, normalized, parameter_gradients = neuron_and_spiking
    neurons, plan = Bounded(*neuron), Plan.of(lower, 1, ENDS_HOLD)
    timesteps, dtype = lower.shape[0], reference.state_dtype(lower.dtype)
    low, high, spikes_low, spikes_high, v_low, v_high = (
        None if t is None else steps_like(lower, t)
        for t in (lower, upper, grad_spikes_lower, grad_spikes_upper, grad_v_lower, grad_v_upper)
    )
    assert low is not None
    assert high is not None
    assert spikes_low is not None
    assert spikes_high is not None
    grads = [empty_steps(lower, lower.dtype, timesteps) for _ in range(2)]
    sums = neurons.gradients(lower, plan, parameter_gradients)
    launch(
        interval_backward_kernel,
        plan.programs,
        grad_lower=grads[0],
        grad_upper=grads[1],
        membranes=lower.new_empty((2, timesteps, plan.neurons), dtype=dtype),
        grad_spikes_lower=spikes_low,
        grad_spikes_upper=spikes_high,
        grad_v_lower=v_low,
        grad_v_upper=v_high,
        lower=low,
        upper=high,
        lower_step=time_stride(low),
        upper_step=time_stride(high),
        spikes_lower_step=time_stride(spikes_low),
        spikes_upper_step=time_stride(spikes_high),
        v_lower_step=0 if v_low is None else time_stride(v_low),
        v_upper_step=0 if v_high is None else time_stride(v_high),
        SURROGATE=reference.KINDS[surrogate],
        FIRST=float(surrogate_args[0]),
        SECOND=float(surrogate_args[1]),
        NORMALIZED=normalized,
        **sums,
        **neurons.arguments(lower, plan),
    )
    return (*grads, *neurons.totals(lower, plan, sums))


def rows_like(x: Tensor, rows: Tensor) -> Tensor:
    """``rows`` ``[R, T, ...]`` one after the other, with their steps where those of ``x`` are."""
    numel = math.prod(rows.shape[2:])
    there = (rows.shape[1] * numel, numel, *step_strides(x))
    strides = zip(rows.shape, rows.stride(), there, strict=True)
    if all(size == 1 or stride == expected for size, stride, expected in strides):
        return rows
    return empty_rows(rows, x, rows.dtype).copy_(rows)


def _relaxed(
    rows: Tensor, v_lower: Tensor, v_upper: Tensor, slopes: Tensor | None, after: Tensor | None
) -> dict[str, Any]:
    """What both kernels of lines read."""
    low, high = (steps_like(v_lower, t) for t in (v_lower, v_upper))
    return {
        "rows": rows_like(v_lower, rows),
        "v_lower": low,
        "v_upper": high,
        "lower_step": time_stride(low),
        "upper_step": time_stride(high),
        "slopes": None if slopes is None else rows_like(v_lower, slopes),
        "after": None if after is None else rows_like(v_lower, after.unsqueeze(1)),
    }


def relax_lif(
    rows: Tensor, v_lower: Tensor, v_upper: Tensor, *neuron_and_slope: Any
) -> tuple[Tensor, Tensor]:
    """See ``snnkern.reference.relax_lif``."""
    *neuron, slope, slopes, after = neuron_and_slope
    plan = Plan.of(v_lower, 1, LINES_HOLD)
    lines = empty_rows(rows, v_lower, rows.dtype)
    bias = empty_rows(rows[:, :1], v_lower, torch.float64)
    launch(
        relax_kernel,
        rows.shape[0] * plan.programs,
        lines=lines,
        bias=bias,
        programs=plan.programs,
        SLOPE=reference.SLOPES[slope],
        **_relaxed(rows, v_lower, v_upper, slopes, after),
        **Bounded(*neuron).arguments(v_lower, plan),
    )
    return lines, bias[:, 0]


def relax_lif_backward(
    grad_lines: Tensor,
    grad_bias: Tensor,
    rows: Tensor,
    lines: Tensor,
    v_lower: Tensor,
    v_upper: Tensor,
    *neuron_and_slope: Any,
) -> tuple[Tensor, ...]:
    """See ``snnkern.reference.relax_lif_backward``."""
    *neuron, slope, slopes, after, parameter_gradients = neuron_and_slope
    neurons, plan = Bounded(*neuron), Plan.of(v_lower, 1, LINES_HOLD)
    samples = v_lower.shape[1] if v_lower.dim() > 1 else 1
    # What a sum over neurons has expanded is one number to a sample.
    expanded = grad_bias.dim() > 2 and not any(
        size > 1 and stride
        for size, stride in zip(grad_bias.shape[2:], grad_bias.stride()[2:], strict=True)
    )
    if expanded:
        upstream = grad_bias.flatten(2)[:, :, 0].contiguous()
    else:
        upstream = rows_like(v_lower, grad_bias.unsqueeze(1))
    of_rows = empty_rows(rows, v_lower, rows.dtype)
    of_slopes = None if slopes is None else torch.empty_like(of_rows)
    of_after = None if after is None else empty_rows(rows[:, :1], v_lower, rows.dtype)
    summed = [empty_steps(v_lower, torch.float64, v_lower.shape[0]).zero_() for _ in range(2)]
    sums = neurons.gradients(v_lower, plan, parameter_gradients)
    launch(
        relax_backward_kernel,
        plan.programs,
        grad_rows=of_rows,
        sums_lower=summed[0],
        sums_upper=summed[1],
        grad_slopes=of_slopes,
        grad_after=of_after,
        grad_lines=rows_like(v_lower, grad_lines),
        grad_bias=upstream,
        lines=rows_like(v_lower, lines),
        count=rows.shape[0],
        bias_step=upstream.numel() // rows.shape[0],
        samples=samples,
        sample_repeat=plan.neurons if samples == 1 else step_strides(v_lower)[0],
        BIAS_OF="channel" if expanded else "neuron",
        SLOPE=reference.SLOPES[slope],
        **sums,
        **_relaxed(rows, v_lower, v_upper, slopes, after),
        **neurons.arguments(v_lower, plan),
    )
    ends = [empty_steps(v_lower, rows.dtype, len(end)).copy_(end) for end in summed]
    empty = v_lower.new_empty(0)
    return (
        of_rows,
        *ends,
        *neurons.totals(v_lower, plan, sums),
        empty.clone() if of_slopes is None else of_slopes,
        empty if of_after is None else of_after[:, 0],
    )
