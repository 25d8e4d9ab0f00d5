"""Every op in plain PyTorch: the definition that all backends are held to, and their fallback.

The spikes and membranes of a backend equal these bit for bit in float32, its gradients to 1e-6
relative. That fixes the arithmetic: multiply, then add, each rounded on its own; true division.

Shapes: ``x`` is ``[T, N, ...]``. The state is float32, and float64 for float64 input. A parameter
is a tensor of the dtype of the state, with one value, or one per channel (dimension 2 of ``x``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnkern._layout import empty_rows, empty_spikes, empty_step, empty_steps, empty_steps_of

# Options that the ops take as a number are its place in these.
CHARGES = ("leak", "euler", "euler_box", "decay_input", "decay")
LEAK, EULER, EULER_BOX, DECAY_INPUT, DECAY = range(len(CHARGES))
SYNAPSES = ("none", "charged", "decayed", "jump")
NO_SYNAPSE, CHARGED, DECAYED, JUMP = range(len(SYNAPSES))
RESETS = ("hard", "soft", "delayed_soft", "none")
HARD, SOFT, DELAYED_SOFT, NONE = range(len(RESETS))
SPIKE_FORMATS = ("input", "uint8", "bits")
INPUT_DTYPE, UINT8, BITS = range(len(SPIKE_FORMATS))
# Membranes before reset in place of spikes, in the dtype of the state: for rules, see lif_backward.
MEMBRANES = len(SPIKE_FORMATS)
CODINGS = ("poisson", "signed_poisson", "bernoulli")
POISSON, SIGNED_POISSON, BERNOULLI = range(len(CODINGS))


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the membrane for inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# Surrogate derivatives ds/dz. Each takes z and two numbers, unused ones included, like the kernels.


def triangle(z: Tensor, width: float, scale: float) -> Tensor:
    """``scale * max(0, width - |z|)``."""
    height = width - z.abs()
    return torch.where(height > 0, scale * height, 0)


def rectangle(z: Tensor, width: float, scale: float) -> Tensor:
    """``scale`` where ``|z| < width / 2``."""
    return scale * (z.abs() < width / 2).to(z.dtype)


def exponential(z: Tensor, scale: float, slope: float) -> Tensor:
    """``scale * exp(-slope |z|)``."""
    return scale * torch.exp(-(slope * z.abs()))


def atan(z: Tensor, alpha: float, _: float) -> Tensor:
    """``alpha / 2 / (1 + (pi / 2 alpha z)^2)``."""
    q = math.pi / 2 * alpha * z
    return 0.5 * alpha / (1 + q * q)


def sigmoid(z: Tensor, alpha: float, _: float) -> Tensor:
    """The derivative of ``sigmoid(alpha z)``, without cancellation for large z."""
    e = torch.exp(-(alpha * z.abs()))
    return alpha * e / ((1 + e) * (1 + e))


def fast_sigmoid(z: Tensor, slope: float, _: float) -> Tensor:
    """``1 / (1 + slope |z|)^2``."""
    d = 1 + slope * z.abs()
    return 1 / (d * d)


def erf(z: Tensor, alpha: float, _: float) -> Tensor:
    """``alpha / sqrt(pi) exp(-(alpha z)^2)``."""
    q = alpha * z
    return alpha / math.sqrt(math.pi) * torch.exp(-(q * q))


def straight_through(z: Tensor, _: float, __: float) -> Tensor:
    """1."""
    return torch.ones_like(z)


def spike_time(steps: Tensor, alpha: float, beta: float) -> Tensor:
    """``alpha exp(-beta steps)``, of the steps since the last spike instead of z."""
    return alpha * torch.exp(-(beta * steps))


Derivative = Callable[[Tensor, float, float], Tensor]

SURROGATES: dict[str, Derivative] = {
    "triangle": triangle,
    "rectangle": rectangle,
    "exponential": exponential,
    "atan": atan,
    "sigmoid": sigmoid,
    "fast_sigmoid": fast_sigmoid,
    "erf": erf,
    "straight_through": straight_through,
    "spike_time": spike_time,
}


def rate_gain(current: Tensor, leak: Tensor, threshold: Tensor, gamma: float) -> Tensor:
    """Slope of a neuron's rate at its mean current; see ``snnkern.surrogate.RGA``."""
    mean = current / threshold
    low = torch.where((mean >= 0) & (mean <= 1 - leak), gamma, 0)
    slope = (1 - gamma + gamma * leak) / (leak + 1)
    high = torch.where((mean >= 1 - leak) & (mean <= 2), slope, 0)
    return (low + high) / threshold


# The rate is no surrogate of the ops: see snnkern.autograd.
KINDS = (*SURROGATES, "rate")
SPIKE_TIME = KINDS.index("spike_time")
RATE = KINDS.index("rate")


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


def broadcast(values: Tensor, x: Tensor) -> Tensor:
    """A parameter (one value, one per channel, or one per neuron), broadcastable to a step of x."""
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape(-1, *(1,) * (x.dim() - 3)) if values.dim() == 1 else values


def pack_bits(spikes: Tensor) -> Tensor:
    """Spikes ``[T, neurons]`` as bits ``[T, ceil(neurons / 8)]`` uint8, first neuron lowest."""
    padded = torch.nn.functional.pad(spikes.bool().to(torch.uint8), (0, -spikes.shape[1] % 8))
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=spikes.device)
    return (padded.view(len(spikes), -1, 8) * weights).sum(2, dtype=torch.uint8)


def in_memory_order(spikes: Tensor) -> Tensor:
    """``[T, neurons]``: the neurons of a step in the order in which they lie in memory."""
    strides = spikes.stride()
    order = sorted(range(1, spikes.dim()), key=lambda d: -strides[d])
    return spikes.permute(0, *order).flatten(1)


def pack_spikes(spikes: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, ...]`` as bits, and the first value in memory that is neither 0 nor 1.

    That is a float64 number on its own, 0 where there is none; the bits mean nothing otherwise.
    """
    dense = empty_steps(spikes, spikes.dtype, spikes.shape[0]).copy_(spikes)
    rows = in_memory_order(dense)
    strays = ((rows != 0) & (rows != 1)).flatten()
    # Without a look at the values, for which a GPU would have to be waited for.
    first = rows.flatten()[strays.to(torch.uint8).argmax()].to(torch.float64)
    return pack_bits(rows), torch.where(strays.any(), first, 0)


def unpack_spikes(packed: Tensor, size: list[int], stride: list[int], dtype: torch.dtype) -> Tensor:
    """Bits as spikes, whose steps lie as those of a tensor of this size and these strides do."""
    spikes = empty_steps_of(packed, size, stride, dtype)
    rows = in_memory_order(spikes)  # a view, since the steps are dense
    bits = packed.unsqueeze(2) >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    rows.copy_((bits & 1).flatten(1)[:, : rows.shape[1]])
    return spikes


def count_spikes(packed: Tensor) -> Tensor:
    """How many bits are 1."""
    bits = packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (bits & 1).sum()


def fingerprint(words: Tensor) -> Tensor:
    """A number that other words, int16 or int32, or these in another order have only by chance.

    Of each word and its place one number modulo 2^64, whose upper half is mixed into the lower, and
    the sum of these.
    """
    place = torch.arange(words.numel(), device=words.device)
    mixed = words.flatten().long() * _signed(0x9E3779B97F4A7C15) + place * _signed(
        0xC2B2AE3D27D4EB4F
    )
    return (mixed ^ ((mixed >> 32) & 0xFFFFFFFF)).sum()


def _signed(word: int) -> int:
    """64 bits as torch has them."""
    return word - 2**64


def spike_rows(weight: Tensor, block: int) -> Tensor:
    """A convolution's weight ``[K, C, H, W]`` as rows of ``block`` neighbouring outputs.

    ``[ceil(K / block), H, C, W, block]``, the columns of the kernel from the last to the first:
    what an active input adds to the outputs of a line that see it lies together. Zero beyond K.
    """
    padded = torch.nn.functional.pad(weight.flip(3), (0, 0) * 3 + (0, -len(weight) % block))
    rows: Tensor = padded.unflatten(0, (-1, block)).permute(0, 3, 2, 4, 1).contiguous()
    return rows


def empty_maps(
    rows: Tensor,
    size: list[int],
    out_channels: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """What spikes of this size convolved by these rows give, uninitialised, channels last."""
    kernel = rows.shape[1], rows.shape[3]
    height, width = (
        (extent + 2 * p - d * (k - 1) - 1) // s + 1
        for extent, k, s, p, d in zip(size[2:], kernel, stride, padding, dilation, strict=True)
    )
    strides = (height * width * out_channels, 1, width * out_channels, out_channels)
    return rows.new_empty_strided((size[0], out_channels, height, width), strides)


def spike_conv2d(
    packed: Tensor,
    values: Tensor | None,
    size: list[int],
    strides: list[int],
    rows: Tensor,
    bias: Tensor | None,
    out_channels: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """The convolution of spikes ``[N, C, H, W]``, given as bits, by the rows of ``spike_rows``.

    Graded spikes are given as ``values``, whose bits tell where they are not zero.
    """
    weight = rows.permute(0, 4, 2, 1, 3).flatten(0, 1)[:out_channels].flip(3)
    spikes = unpack_spikes(packed, size, strides, rows.dtype) if values is None else values
    maps = empty_maps(rows, size, out_channels, stride, padding, dilation)
    return maps.copy_(torch.nn.functional.conv2d(spikes, weight, bias, stride, padding, dilation))


def pooled_size(size: list[int], pool: list[int]) -> list[int]:
    """That of images ``[N, C, H, W]`` after pooling by windows of this height and width."""
    return [*size[:2], size[2] // pool[0], size[3] // pool[1]]


def spike_conv2d_lif(
    packed: Tensor,
    timesteps: int,
    size: list[int],
    pool: list[int],
    rows: Tensor,
    bias: Tensor,
    current: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    decay: Tensor,
    threshold: Tensor,
    synapse_decay: Tensor | None,
    v_init: Tensor | None,
    current_init: Tensor | None,
    *options: Any,
) -> Tensor:
    """Neurons behind a convolution: spikes ``[N * T, C, H, W]`` as bits, and so what they fire.

    All lies channels last, parameters and states of neurons too. What falls into one window of
    ``pool`` is added up; ``current`` ``[N * T, H, W, K]`` comes on top of the convolution.
    """
    weight = rows.permute(0, 4, 2, 1, 3).flatten(0, 1)[: len(bias)].flip(3)
    _, channels, height, width = size
    strides = [channels * height * width, 1, width * channels, channels]
    spikes = unpack_spikes(packed, size, strides, rows.dtype)
    window = torch.nn.functional.avg_pool2d(spikes, pool, divisor_override=1)
    x = torch.nn.functional.conv2d(window, weight, bias, stride, padding, dilation)
    x = x.permute(0, 2, 3, 1)
    x = (x if current is None else x + current).reshape(-1, timesteps, x[0].numel()).transpose(0, 1)

    def of_neurons(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.repeat(x.shape[2] // value.numel())

    arguments: list[Any] = [of_neurons(value) for value in (decay, threshold, synapse_decay)]
    arguments += [
        None if state is None else state.expand(x.shape[1:]).contiguous()
        for state in (v_init, current_init)
    ]
    arguments += [*options, INPUT_DTYPE, False]
    fired, _, _ = lif_forward(x.contiguous(), 0, *arguments)
    return pack_bits(fired.transpose(0, 1).flatten(0, 1))


def spike_conv2d_weight(
    grad: Tensor,
    packed: Tensor,
    values: Tensor | None,
    size: list[int],
    strides: list[int],
    kernel: list[int],
    padding: list[int],
    block: int,
) -> Tensor:
    """The gradient of a convolution's weight ``[K, C, H, W]``, of stride and dilation 1.

    ``values`` as for ``spike_conv2d``.
    """
    spikes = unpack_spikes(packed, size, strides, grad.dtype) if values is None else values
    weight = grad.new_empty((grad.shape[1], size[1], *kernel))
    _, of_weight, _ = torch.ops.aten.convolution_backward(
        grad, spikes, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [False, True, False]
    )
    return weight.copy_(of_weight)


def _neuron(
    x: Tensor,
    decay: Tensor,
    threshold: Tensor,
    synapse_decay: Tensor | None,
    charge: int,
    v_rest: float,
    gain: float,
    synapse: int,
    reset: int,
    v_reset: float,
    strict: bool,
) -> Neuron:
    return Neuron(
        broadcast(decay, x),
        broadcast(threshold, x),
        None if synapse_decay is None or synapse == NO_SYNAPSE else broadcast(synapse_decay, x),
        charge,
        v_rest,
        gain,
        synapse,
        reset,
        v_reset,
        strict,
    )


def _start(init: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros_like(x[0], dtype=state_dtype(x.dtype)) if init is None else init


def lif_forward(
    x: Tensor,
    timesteps: int,
    decay: Tensor,
    threshold: Tensor,
    synapse_decay: Tensor | None,
    v_init: Tensor | None,
    current_init: Tensor | None,
    charge: int,
    v_rest: float,
    gain: float,
    synapse: int,
    reset: int,
    v_reset: float,
    strict: bool,
    delayed_spike: bool,
    spike_format: int,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Conduct, charge, fire and reset over all time steps: ``(spikes, state, synaptic current)``.

    ``timesteps`` is 0 where ``x`` has them all, and their number where its one step is held. The
    final state and current are empty unless ``return_state``, the current also where there is no
    synapse. A delayed spike leaves one step after the membrane reached the threshold; as
    ``MEMBRANES``, each is that of its own step.
    """
    dtype = state_dtype(x.dtype)
    neuron = _neuron(
        x, decay, threshold, synapse_decay, charge, v_rest, gain, synapse, reset, v_reset, strict
    )
    u, c = _start(v_init, x), _start(current_init, x)
    timesteps = timesteps or x.shape[0]
    membranes = spike_format == MEMBRANES
    spikes = empty_spikes(x, dtype if membranes else x.dtype, timesteps)
    fired = neuron.fires(u)
    for x_t, out in zip(x.expand(timesteps, *x.shape[1:]).unbind(0), spikes.unbind(0), strict=True):
        if delayed_spike and not membranes:
            out.copy_(fired)
        current, c = neuron.conduct(c, x_t.to(dtype))
        v = neuron.charge(u, current)
        fired = neuron.fires(v)
        u = neuron.carry(v, fired)
        if membranes:
            out.copy_(v)
        elif not delayed_spike:
            out.copy_(fired)
    if spike_format == UINT8:
        spikes = empty_spikes(x, torch.uint8, timesteps).copy_(spikes)
    elif spike_format == BITS:
        spikes = pack_bits(in_memory_order(spikes))
    none = x.new_empty(0, dtype=dtype)
    with_current = return_state and synapse != NO_SYNAPSE
    return (
        spikes,
        empty_step(x, dtype).copy_(u) if return_state else none,
        empty_step(x, dtype).copy_(c) if with_current else none.clone(),
    )


def looks_at_start(reset: int, delayed_spike: bool) -> bool:
    """Whether the state before the first step may fire: for a delayed reset or a delayed spike."""
    return reset == DELAYED_SOFT or delayed_spike


def lif_backward(
    grad_spikes: Tensor,
    grad_state: Tensor | None,
    grad_current: Tensor | None,
    x: Tensor,
    timesteps: int,
    decay: Tensor,
    threshold: Tensor,
    synapse_decay: Tensor | None,
    v_init: Tensor | None,
    current_init: Tensor | None,
    charge: int,
    v_rest: float,
    gain: float,
    synapse: int,
    reset: int,
    v_reset: float,
    strict: bool,
    delayed_spike: bool,
    detach_reset: bool,
    surrogate: int,
    surrogate_args: list[float],
    normalized: bool,
    surrogate_table: Tensor | None,
    derivatives: Tensor | None,
    parameter_gradients: bool,
) -> tuple[Tensor, ...]:
    """Backpropagation through time.

    Gradients of ``x`` (summed over time where it is held), ``decay``, ``threshold``,
    ``synapse_decay``, ``v_init`` and ``current_init``. The membrane is recomputed from ``x``.
    Gradients of parameters are empty unless ``parameter_gradients``, those of what is not there are
    empty too. ``surrogate_table`` gives every sample a surrogate of its own: rows of
    ``(kind, arg, arg, normalized)``. ``derivatives`` ``[T, N, ...]``, in the dtype of the state,
    are ds/dz in place of a surrogate's; where ``looks_at_start`` they are ``[T + 1, N, ...]``,
    those of the state before the first step in front.
    """
    dtype = state_dtype(x.dtype)
    neuron = _neuron(
        x, decay, threshold, synapse_decay, charge, v_rest, gain, synapse, reset, v_reset, strict
    )
    start = _start(v_init, x)
    held, timesteps = timesteps > 0, timesteps or x.shape[0]
    states, synapses = [start], [_start(current_init, x)]
    membranes, currents, inputs = [], [], []
    for x_t in x.expand(timesteps, *x.shape[1:]).unbind(0):
        inputs.append(x_t.to(dtype))
        current, c = neuron.conduct(synapses[-1], inputs[-1])
        v = neuron.charge(states[-1], current)
        currents.append(current)
        synapses.append(c)
        membranes.append(v)
        states.append(neuron.carry(v, neuron.fires(v)))

    grad_x = empty_spikes(x, x.dtype, x.shape[0])
    empty = x.new_empty(0, dtype=dtype)

    def gradients(
        steps: list[Tensor], parameters: dict[str, Tensor], of_state: Tensor, of_current: Tensor
    ) -> tuple[Tensor, ...]:
        if held:
            grad_x[0].copy_(torch.stack(steps).flip(0).sum(0))
        else:
            for out, step in zip(grad_x.unbind(0), steps, strict=True):
                out.copy_(step)
        owners = {"decay": decay, "threshold": threshold, "synapse_decay": synapse_decay}
        of_parameters = [
            empty.clone()
            if owner is None or not parameter_gradients or (name == "synapse_decay" and not synapse)
            else _sum_to(owner, parameters[name])
            for name, owner in owners.items()
        ]
        return (
            grad_x,
            *of_parameters,
            empty.clone() if v_init is None else empty_step(x, dtype).copy_(of_state),
            empty.clone() if current_init is None else empty_step(x, dtype).copy_(of_current),
        )

    # What each step's spikes get: of a delayed spike, the gradient of the step after.
    zero = torch.zeros_like(start)
    given = [gs.to(dtype) for gs in grad_spikes.unbind(0)]
    at_start = given[0] if delayed_spike else zero
    grads = [*given[1:], zero] if delayed_spike else given
    sums = {"decay": zero, "threshold": zero, "synapse_decay": zero}
    if surrogate_table is None:
        choices = [(surrogate, *surrogate_args, float(normalized))]
    else:
        choices = surrogate_table.tolist()
    is_normalized = torch.tensor([choice[3] for choice in choices], dtype=dtype, device=x.device)
    is_normalized = is_normalized.reshape(-1, *(1,) * (x.dim() - 2))
    inverse = 1 / neuron.threshold
    scale = torch.where(is_normalized != 0, inverse, 1)
    shift = torch.where(is_normalized != 0, 1, neuron.threshold)
    with_start = looks_at_start(reset, delayed_spike)
    if derivatives is not None:
        expected = (timesteps + with_start, *start.shape)
        if surrogate_table is not None or (derivatives.dtype, derivatives.shape) != (
            dtype,
            expected,
        ):
            raise ValueError(
                f"derivatives are {derivatives.dtype} {list(derivatives.shape)}, expected {dtype} "
                f"{list(expected)} and no surrogate_table"
            )
    ds_dv: list[Tensor] = []
    if derivatives is not None:
        ds_dv = [*([] if with_start else [zero]), *(derivatives * scale).unbind(0)]
    since = torch.full_like(start, math.inf)
    for number, v in enumerate([start, *membranes] if derivatives is None else []):
        z = v * scale - shift
        since = since + 1
        parts = []
        for sample, (kind, first, second, _) in enumerate(choices):
            argument = since if int(kind) == SPIKE_TIME else z
            part = argument if surrogate_table is None else argument[sample : sample + 1]
            derivative = SURROGATES[KINDS[int(kind)]]
            parts.append(derivative(part, first, second))
        ds_dv.append(torch.cat(parts) * scale)
        if number > 0 or with_start:
            since = torch.where(neuron.fires(v), 0, since)
        else:
            since = torch.full_like(start, math.inf)

    def spike_step(
        v: Tensor, ds_dv: Tensor, gs: Tensor, g_next: Tensor, du: Tensor, delayed: float
    ) -> Tensor:
        """One step back, to dL/dv[t] from dL/dv[t+1]; the threshold's share is added up.

        ``du`` is dv[t+1]/du[t], ``delayed`` is 1 if the next step subtracts what a delayed reset
        owes.
        """
        s = neuron.fires(v)
        by_spike, by_state, by_threshold = zero, du, zero
        if reset == HARD:
            by_spike = du * ((v_reset - v) * ds_dv)
            by_state = torch.where(s, 0, du)
        elif reset == SOFT:
            by_spike = -du * (neuron.threshold * ds_dv)
            by_threshold = torch.where(s, -du, 0)
        elif reset == DELAYED_SOFT:
            by_spike = -delayed * (neuron.threshold * ds_dv)
            by_threshold = torch.where(s, -delayed, zero)
        if detach_reset:
            by_spike = zero
        from_above = gs * ds_dv
        minus_dthreshold = torch.where(is_normalized != 0, v * inverse, 1)
        through_spike = from_above + g_next * by_spike
        share = g_next * by_threshold - through_spike * minus_dthreshold
        sums["threshold"] = sums["threshold"] + share
        return from_above + g_next * (by_spike + by_state)

    # At the end of time stands the final state instead of a next step.
    g = zero if grad_state is None else grad_state
    du, delayed = torch.ones_like(zero), 0.0
    gc = zero if grad_current is None else grad_current
    steps: list[Tensor] = []
    for t in reversed(range(timesteps)):
        g = spike_step(membranes[t], ds_dv[t + 1], grads[t], g, du, delayed)
        du, dx, ddecay = neuron.charge_derivatives(states[t], currents[t])
        delayed = 1.0
        sums["decay"] = sums["decay"] + g * ddecay
        step, gc, synapse_share = neuron.conduct_gradient(dx * g, gc, synapses[t], inputs[t])
        sums["synapse_decay"] = sums["synapse_decay"] + synapse_share
        steps.append(step)
    of_start = spike_step(start, ds_dv[0], at_start, g, du, delayed) if with_start else du * g
    return gradients(steps[::-1], sums, of_start, gc)


def _sum_to(parameter: Tensor, neuron_grad: Tensor) -> Tensor:
    """Sums gradients per neuron to those of a parameter, in float64."""
    dims = [d for d in range(neuron_grad.dim()) if parameter.numel() == 1 or d != 1]
    if parameter.dim() == neuron_grad.dim() and parameter.numel() > 1:
        dims = []
    total = neuron_grad.double().sum(dims) if dims else neuron_grad
    return torch.empty_like(parameter).copy_(total.reshape(parameter.shape))


def channel_moments(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ``x - centre`` and of its square per channel, over time, batch and space."""
    deviation = x.to(centre.dtype) - broadcast(centre, x)
    dims = [d for d in range(x.dim()) if d != 2]
    sums = deviation.double().sum(dims), deviation.double().square().sum(dims)
    return sums[0].to(centre.dtype), sums[1].to(centre.dtype)


def scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """What the neurons see of a normalised input: ``scale * x + shift`` per channel."""
    y = broadcast(scale, x) * x.to(scale.dtype) + broadcast(shift, x)
    return empty_steps(x, scale.dtype, x.shape[0]).copy_(y)


def norm_lif_forward(
    x: Tensor, scale: Tensor, shift: Tensor, *neuron: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """``lif_forward`` of ``scale * x + shift`` (per channel), which is never stored."""
    spikes, state, current = lif_forward(scaled(x, scale, shift), 0, *neuron)
    if neuron[-2] == INPUT_DTYPE:
        spikes = spikes.to(x.dtype)
    return spikes, state, current


def norm_lif_backward(
    grad_spikes: Tensor,
    grad_state: Tensor | None,
    grad_current: Tensor | None,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    *neuron_and_sums: Any,
) -> tuple[Tensor, ...]:
    """Backward of ``norm_lif_forward`` up to the normalisation, whose own is ``norm_backward_``.

    The gradient g of what the neurons see; with ``sums`` the sums of g and of ``g * (x - mean)``
    per channel, else empty; then the gradients of the neurons' tensors as in lif_backward.
    """
    *neuron, sums = neuron_and_sums
    g, *rest = lif_backward(
        grad_spikes.to(scale.dtype),
        grad_state,
        grad_current,
        scaled(x, scale, shift),
        0,
        *neuron,
    )
    dims = [d for d in range(x.dim()) if d != 2]
    total, dot = (
        part.double().sum(dims).to(scale.dtype) if sums else scale.new_empty(0)
        for part in (g, g * (x.to(scale.dtype) - broadcast(mean, x)))
    )
    return empty_steps(x, x.dtype, x.shape[0]).copy_(g), total, dot, *rest


def norm_backward_(
    g: Tensor, x: Tensor, mean: Tensor, from_g: Tensor, from_x: Tensor, constant: Tensor
) -> None:
    """The gradient of normalisation, in place of g: ``from_g g + from_x (x - mean) + constant``."""
    mean, from_g, from_x, constant = (broadcast(t, x) for t in (mean, from_g, from_x, constant))
    g.copy_(from_g * g.to(mean.dtype) + from_x * (x.to(mean.dtype) - mean) + constant)


def code(x: Tensor, draws: Tensor, coding: int) -> Tensor:
    """Spikes ``[T, N, ...]`` of values ``[N, ...]`` from uniform draws ``[T, N, ...]``."""
    if coding == SIGNED_POISSON:
        return x.sign() * (draws <= x.abs())
    return (draws < x if coding == BERNOULLI else draws <= x).to(x.dtype)


def rate_code(x: Tensor, seed: Tensor, timesteps: int, coding: int) -> Tensor:
    """Rate coding of values ``[N, ...]`` with draws of its own; ``seed`` is one int64.

    Backends draw differently: the same seed gives the same spikes on the same backend alone.
    """
    generator = torch.Generator(x.device).manual_seed(int(seed))
    steps = x.unsqueeze(0)
    draws = torch.rand((timesteps, *x.shape), dtype=x.dtype, device=x.device, generator=generator)
    return empty_steps(steps, x.dtype, timesteps).copy_(code(x, draws, coding))


# Bounds: what neurons do with every current between two, and lines below what they give.


class Interval(NamedTuple):
    """Elementwise bounds."""

    lower: Tensor
    upper: Tensor

    def map(self, f: Callable[[Tensor], Tensor]) -> Interval:
        """The image under a function that is monotone in floating point."""
        return Interval(f(self.lower), f(self.upper))


def _lesser(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b < a, b, a)


def _greater(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > a, b, a)


def charge_interval(neuron: Neuron, u: Interval, x: Interval) -> Interval:
    """Bounds of the membrane before reset, from those of the carried state and of the current.

    A delayed reset subtracts here what a step before may owe that fired.
    """
    rest = neuron._replace(reset=NONE)
    low, high = rest.charge(u.lower, x.lower), rest.charge(u.upper, x.upper)
    if neuron.reset != DELAYED_SOFT:
        return Interval(low, high)
    threshold = neuron.threshold
    surely, maybe = u.map(neuron.fires)
    # Both cases meet at the threshold, where one has fired and the other has not.
    fired, silent = rest.charge(threshold, x.lower) - threshold, rest.charge(threshold, x.upper)
    return Interval(
        torch.where(surely, low - threshold, torch.where(maybe, _lesser(low, fired), low)),
        torch.where(
            surely, high - threshold, torch.where(maybe, _greater(silent, high - threshold), high)
        ),
    )


def carry_interval(neuron: Neuron, v: Interval) -> Interval:
    """Bounds of the state after reset (eq. 9 of Liang et al. 2022, for any reset).

    Where ``v`` may or may not fire, the smallest interval around the states of both cases.
    """
    if neuron.reset not in (HARD, SOFT):
        return v
    threshold = neuron.threshold
    surely, maybe = v.map(neuron.fires)
    if neuron.reset == HARD:
        fired = v.map(lambda end: torch.full_like(end, neuron.v_reset))
        least = fired.lower
    else:
        fired = v.map(lambda end: end - threshold)
        least = torch.zeros_like(v.lower)
    return Interval(
        torch.where(surely, fired.lower, torch.where(maybe, _lesser(v.lower, least), v.lower)),
        torch.where(
            surely, fired.upper, torch.where(maybe, _greater(threshold, fired.upper), v.upper)
        ),
    )


class _EndGradient(NamedTuple):
    """Derivatives of one end of the next membrane: by the same end of this one, and parameters."""

    v: Tensor
    threshold: Tensor
    decay: Tensor


def _transition(neuron: Neuron, v: Interval, x: Interval) -> tuple[_EndGradient, _EndGradient]:
    """Derivatives from a membrane to that of the step after, whose current is ``x``.

    Of what was selected; what selected it is constant.
    """
    decay, threshold = neuron.decay, neuron.threshold
    zero = torch.zeros_like(v.lower)
    one = zero + 1
    surely, maybe = v.map(neuron.fires)
    if neuron.reset == DELAYED_SOFT:
        rest = neuron._replace(reset=NONE)
        low, high = rest.charge(v.lower, x.lower), rest.charge(v.upper, x.upper)
        met = rest.charge(threshold, x.lower) - threshold
        at_met = maybe & ~surely & (met < low)
        below = rest.charge(threshold, x.upper)
        owing = maybe & (surely | (high - threshold > below))
        at_below = maybe & ~owing
        return (
            _EndGradient(
                torch.where(at_met, 0, decay + zero),
                torch.where(surely, -one, torch.where(at_met, decay - 1, zero)),
                torch.where(at_met, threshold, v.lower),
            ),
            _EndGradient(
                torch.where(at_below, 0, decay + zero),
                torch.where(owing, -one, torch.where(at_below, decay, zero)),
                torch.where(at_below, threshold, v.upper),
            ),
        )
    state = carry_interval(neuron, v)
    low = high = one
    low_threshold = high_threshold = zero
    if neuron.reset == HARD:
        reset = torch.full_like(v.lower, neuron.v_reset)
        low = torch.where(surely, 0, torch.where(maybe & (reset < v.lower), 0, one))
        high = torch.where(maybe, 0, one)
        high_threshold = torch.where(maybe & ~surely & ~(reset > threshold), 1, zero)
    elif neuron.reset == SOFT:
        low = torch.where(maybe & ~surely & (zero < v.lower), 0, one)
        low_threshold = torch.where(surely, -1, zero)
        subtracted = maybe & (surely | (v.upper - threshold > threshold))
        high = torch.where(maybe & ~subtracted, 0, one)
        high_threshold = torch.where(subtracted, -1, torch.where(maybe, 1, zero))
    return (
        _EndGradient(decay * low, decay * low_threshold, state.lower),
        _EndGradient(decay * high, decay * high_threshold, state.upper),
    )


def _bounded_neuron(
    x: Tensor, decay: Tensor, threshold: Tensor, reset: int, v_reset: float, strict: bool
) -> Neuron:
    return Neuron(
        broadcast(decay, x), broadcast(threshold, x), reset=reset, v_reset=v_reset, strict=strict
    )


def interval_lif_forward(
    lower: Tensor,
    upper: Tensor,
    decay: Tensor,
    threshold: Tensor,
    v_init: float,
    reset: int,
    v_reset: float,
    strict: bool,
    return_membranes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S-IBP over all time steps (Liang et al. 2022, eq. 7 to 9), for charge by leak.

    Bounds of the spikes and, unless they are empty, of the membranes before reset, for all currents
    between ``lower`` and ``upper``. Charge, fire and reset are monotone in floating point: bounds
    hold for the spikes of ``lif_forward`` bit for bit.
    """
    dtype = state_dtype(lower.dtype)
    neuron = _bounded_neuron(lower, decay, threshold, reset, v_reset, strict)
    timesteps = lower.shape[0]
    state = Interval(*(torch.full_like(lower[0], v_init, dtype=dtype),) * 2)
    spikes = Interval(*(empty_steps(lower, lower.dtype, timesteps) for _ in range(2)))
    kept = timesteps if return_membranes else 0
    membranes = Interval(
        *(
            empty_steps(lower, dtype, timesteps) if kept else lower.new_empty(0, dtype=dtype)
            for _ in range(2)
        )
    )
    for t in range(timesteps):
        x = Interval(lower[t].to(dtype), upper[t].to(dtype))
        v = charge_interval(neuron, state, x)
        for end, fired in zip(spikes, v.map(neuron.fires), strict=True):
            end[t].copy_(fired)
        for end, membrane in zip(membranes, v, strict=True):
            if kept:
                end[t].copy_(membrane)
        state = carry_interval(neuron, v)
    return (*spikes, *membranes)


def interval_lif_backward(
    grad_spikes_lower: Tensor,
    grad_spikes_upper: Tensor,
    grad_v_lower: Tensor | None,
    grad_v_upper: Tensor | None,
    lower: Tensor,
    upper: Tensor,
    decay: Tensor,
    threshold: Tensor,
    v_init: float,
    reset: int,
    v_reset: float,
    strict: bool,
    surrogate: int,
    surrogate_args: list[float],
    normalized: bool,
    parameter_gradients: bool,
) -> tuple[Tensor, ...]:
    """Backpropagation through time of the bounds: ``lower``, ``upper``, decay, threshold.

    The surrogate at either end of the membrane; of the reset, what was selected is differentiated
    and what selected it is not, as in the code of Liang et al. 2022. Gradients of parameters are
    empty unless ``parameter_gradients``.
    """
    dtype = state_dtype(lower.dtype)
    neuron = _bounded_neuron(lower, decay, threshold, reset, v_reset, strict)
    start = Interval(*(torch.full_like(lower[0], v_init, dtype=dtype),) * 2)
    currents = [
        Interval(low.to(dtype), high.to(dtype)) for low, high in zip(lower, upper, strict=True)
    ]
    membranes, state = [], start
    for x in currents:
        membranes.append(charge_interval(neuron, state, x))
        state = carry_interval(neuron, membranes[-1])
    inverse = 1 / neuron.threshold
    scale = inverse if normalized else torch.ones_like(inverse)
    shift = torch.ones_like(inverse) if normalized else neuron.threshold
    derivative = SURROGATES[KINDS[surrogate]]
    from_above = (grad_spikes_lower, grad_spikes_upper)
    from_membranes = (grad_v_lower, grad_v_upper)
    grads = tuple(empty_steps(lower, lower.dtype, lower.shape[0]) for _ in range(2))
    zero = torch.zeros_like(start.lower)
    of_decay, of_threshold = zero, zero
    for end in range(2):
        g = zero  # dL/dv of the step after
        for t in reversed(range(len(currents))):
            v = membranes[t][end]
            if t + 1 < len(currents):
                step = _transition(neuron, membranes[t], currents[t + 1])[end]
                of_decay = of_decay + g * step.decay
                of_threshold = of_threshold + g * step.threshold
                g = g * step.v
            ds_dv = derivative(v * scale - shift, *surrogate_args) * scale
            through_spike = from_above[end][t].to(dtype) * ds_dv
            minus_dthreshold = v * inverse if normalized else 1
            of_threshold = of_threshold - through_spike * minus_dthreshold
            g = g + through_spike
            of_membrane = from_membranes[end]
            if of_membrane is not None:
                g = g + of_membrane[t]
            grads[end][t].copy_(g)
        # Into the first step nothing was reset, but a delayed reset looks at what it started from.
        if reset == DELAYED_SOFT:
            of_threshold = of_threshold - torch.where(neuron.fires(start[end]), g, 0)
        of_decay = of_decay + g * start[end]
    if not parameter_gradients:
        return (*grads, *(lower.new_empty(0, dtype=dtype) for _ in range(2)))
    return (*grads, _sum_to(decay, of_decay), _sum_to(threshold, of_threshold))


SLOPES = ("edge", "paper", "given", "mixed")
EDGE, PAPER, GIVEN, MIXED = range(len(SLOPES))


class _Pieces(NamedTuple):
    """What a membrane fires and carries on, weighed: a line where it is silent, one where it fired.

    ``on_state * v`` and ``constant + fired_slope * v``, of a membrane between ``low`` and ``high``.
    """

    low: Tensor
    high: Tensor
    on_state: Tensor
    constant: Tensor
    fired_slope: Tensor
    surely: Tensor
    maybe: Tensor


def _pieces(
    neuron: Neuron, on_spike: Tensor, on_next: Tensor, v_lower: Tensor, v_upper: Tensor
) -> _Pieces:
    threshold = neuron.threshold.double()
    on_state = neuron.decay.double() * on_next
    if neuron.reset == HARD:
        constant, fired_slope = on_spike + on_state * neuron.v_reset, torch.zeros_like(on_state)
    elif neuron.reset == SOFT:
        constant, fired_slope = on_spike - on_state * threshold, on_state
    elif neuron.reset == DELAYED_SOFT:
        constant, fired_slope = on_spike - on_next * threshold, on_state
    else:
        constant, fired_slope = on_spike, on_state
    surely, maybe = neuron.fires(v_lower), neuron.fires(v_upper)
    low, high = v_lower.double(), v_upper.double()
    return _Pieces(low, high, on_state, constant, fired_slope, surely, maybe)


def relaxed(
    rows: Tensor,
    v_lower: Tensor,
    v_upper: Tensor,
    decay: Tensor,
    threshold: Tensor,
    v_init: float,
    reset: int,
    v_reset: float,
    strict: bool,
    slope: int,
    slopes: Tensor | None,
    after: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``relax_lif`` as a function that autograd can differentiate."""
    neuron = _bounded_neuron(v_lower, decay, threshold, reset, v_reset, strict)
    unit = torch.finfo(v_lower.dtype).eps / 2
    decay, threshold = neuron.decay.double(), neuron.threshold.double()
    after = torch.zeros_like(rows[:, 0]) if after is None else after
    bias = torch.zeros_like(after, dtype=torch.float64)
    lines: list[Tensor] = []
    rest = threshold + abs(v_reset)
    for t in reversed(range(rows.shape[1])):
        on_spike, on_next = rows[:, t].double(), after.double()
        low, high, on_state, constant, fired_slope, surely, maybe = _pieces(
            neuron, on_spike, on_next, v_lower[t], v_upper[t]
        )
        below, above = threshold - low, high - threshold
        left, right = on_state * low, constant + fired_slope * high
        silent, fired = on_state * threshold, constant + fired_slope * threshold
        # Nothing is divided by 0, not even where nobody looks: the gradient would.
        either = maybe & ~surely
        rising, falling = (torch.where(either & (side > 0), side, 1) for side in (below, above))
        if slope in (EDGE, MIXED):
            middle = _lesser(silent, fired)
            chord = (right - left) / torch.where(either, high - low, 1)
            one, other = (middle - left) / rising, (right - middle) / falling
            one, other = torch.where(below > 0, one, other), torch.where(above > 0, other, one)
            if slope == EDGE:
                edge = torch.where(below >= above, one, other)
            else:
                assert slopes is not None
                edge = one + slopes[:, t].double() * (other - one)
            line = torch.where(middle - left < chord * below, edge, chord)
        elif slope == PAPER:
            if reset == HARD:
                jump = constant - on_state * torch.where(on_state > 0, low, threshold)
            else:
                jump = constant
            up = torch.where(above >= below, jump / falling, 0)
            down = torch.where(above >= below, 0, jump / rising)
            line = torch.where(jump > 0, up, torch.where(jump < 0, down, 0)) + fired_slope
        else:
            assert slopes is not None
            line = slopes[:, t].double()
        line = torch.where(surely, fired_slope, torch.where(maybe, line, on_state))
        after = line.to(rows.dtype)
        line = after.double()
        lowest = _lesser(
            _lesser(left - line * low, silent - line * threshold),
            _lesser(fired - line * threshold, right - line * high),
        )
        lowest = torch.where(
            surely,
            _lesser(constant + (fired_slope - line) * low, constant + (fired_slope - line) * high),
            torch.where(maybe, lowest, _lesser((on_state - line) * low, (on_state - line) * high)),
        )
        size = _greater(low.abs(), high.abs())
        if t > 0:
            before = _greater(v_lower[t - 1].double().abs(), v_upper[t - 1].double().abs()) + rest
        else:
            before = torch.full_like(size, abs(v_init))
        of_state = on_state.abs() * (size + rest)
        of_charge = line.abs() * (size + threshold + decay * before)
        slack = 2 * unit * (of_charge + of_state)
        own = (
            on_spike.abs() + of_state + on_next.abs() * threshold + line.abs() * (size + threshold)
        )
        bias = bias + (lowest - (slack + 2.0**-49 * own))
        lines.append(after)
    first = after.double()
    start = torch.full_like(v_lower[0], v_init)
    bias = bias + first * (decay * v_init)
    if reset == DELAYED_SOFT:
        bias = bias - torch.where(neuron.fires(start), first * threshold, 0)
    return torch.stack(lines[::-1], 1), bias


def relax_lif(
    rows: Tensor, v_lower: Tensor, v_upper: Tensor, *neuron_and_slope: Any
) -> tuple[Tensor, Tensor]:
    """S-CROWN's step backward through fire and reset, over all time steps, for a stack of rows.

    ``rows[r, t]`` weighs the spikes of step t. Given is a function below them all: for spikes s and
    currents x of neurons whose membranes stay within ``v_lower`` and ``v_upper``, as computed,
    ``sum(rows[r] * s) >= sum(lines[r] * x) + sum(bias[r])``, rounding errors of the neurons and of
    this included. ``bias`` is float64, one per neuron. ``after`` ``[R, N, ...]`` weighs the
    membrane that would come after the last step, without the current and the rounding of that step.

    What a step carries on and what it fires are both functions of its one membrane; a line lies
    below their weighted sum where it does so at the ends of its two affine pieces, whatever its
    slope. ``slope`` says which: that of the longer edge of the lower hull, of eq. 8 and 10 of Liang
    et al. 2022, ``slopes`` themselves, which are shaped like ``rows``, or between the edges of the
    hull, with ``slopes`` as the share of the right one. Arguments are those of ``relaxed``.
    """
    lines, bias = relaxed(rows, v_lower, v_upper, *neuron_and_slope)
    return (
        empty_rows(rows, v_lower, rows.dtype).copy_(lines),
        empty_rows(rows[:, :1], v_lower, torch.float64)[:, 0].copy_(bias),
    )


def relax_lif_backward(
    grad_lines: Tensor,
    grad_bias: Tensor,
    rows: Tensor,
    lines: Tensor,
    v_lower: Tensor,
    v_upper: Tensor,
    decay: Tensor,
    threshold: Tensor,
    v_init: float,
    reset: int,
    v_reset: float,
    strict: bool,
    slope: int,
    slopes: Tensor | None,
    after: Tensor | None,
    parameter_gradients: bool,
) -> tuple[Tensor, ...]:
    """The derivative of ``relax_lif``, which gave ``lines``, from the first step to the last.

    Of rows, both bounds of the membranes, decay, threshold, ``slopes`` and ``after``; those of
    parameters are empty unless ``parameter_gradients``, and so are those of what is not given. What
    is subtracted for rounding errors is constant.
    """
    neuron = _bounded_neuron(v_lower, decay, threshold, reset, v_reset, strict)
    leak, at = neuron.decay.double(), neuron.threshold.double()
    timesteps = rows.shape[1]
    of_rows: list[Tensor] = []
    of_slopes: list[Tensor] = []
    of_lower: list[Tensor] = []
    of_upper: list[Tensor] = []
    first = lines[:, 0].double()
    upstream = grad_bias.double()
    started = upstream * leak * v_init
    of_decay = upstream * first * v_init
    of_threshold = torch.zeros_like(first)
    if reset == DELAYED_SOFT:
        fired = neuron.fires(torch.full_like(v_lower[0], v_init))
        started = started - torch.where(fired, upstream * at, 0)
        of_threshold = of_threshold - torch.where(fired, upstream * first, 0)
    for t in range(timesteps):
        on_next = torch.zeros_like(first)
        if t + 1 < timesteps:
            on_next = lines[:, t + 1].double()
        elif after is not None:
            on_next = after.double()
        low, high, on_state, constant, fired_slope, surely, maybe = _pieces(
            neuron, rows[:, t].double(), on_next, v_lower[t], v_upper[t]
        )
        line, of_line = lines[:, t].double(), grad_lines[:, t].double() + started
        either = maybe & ~surely
        zero = torch.zeros_like(line)
        # Derivatives by the ends of both pieces: heights of the four, and places.
        ends = [on_state * low, on_state * at, constant + fired_slope * at]
        ends.append(constant + fired_slope * high)
        left, silent, fired, right = ends
        gaps = [y - line * x for y, x in zip(ends, (low, at, at, high), strict=True)]
        to_right = _lesser(gaps[2], gaps[3]) < _lesser(gaps[0], gaps[1])
        outer = torch.where(to_right, gaps[3] < gaps[2], ~(gaps[1] < gaps[0]))
        touches = [~to_right & outer, ~to_right & ~outer, to_right & ~outer, to_right & outer]
        g_left, g_silent, g_fired, g_right = (
            torch.where(either & touch, upstream, 0) for touch in touches
        )
        place = torch.where(outer, torch.where(to_right, high, low), at + zero)
        of_line = torch.where(either, of_line - upstream * place, of_line)
        g_low, g_at, g_high = -line * g_left, -line * (g_silent + g_fired), -line * g_right
        of_constant = torch.where(surely, upstream, 0)
        of_fired_slope = torch.where(surely, of_line, 0)
        of_on_state = torch.where(maybe, 0, of_line)
        of_line = torch.where(either, of_line, 0)
        below, above = at - low, high - at
        rising, falling = (torch.where(either & (side > 0), side, 1) for side in (below, above))
        if slope in (EDGE, MIXED):
            lower = fired < silent
            middle = torch.where(lower, fired, silent)
            wide = torch.where(either, high - low, 1)
            chord = (right - left) / wide
            hull = middle - left < chord * below
            one, other = (middle - left) / rising, (right - middle) / falling
            if slope == EDGE:
                share = (below < above).double()
            else:
                assert slopes is not None
                share = slopes[:, t].double()
                inner = hull & (below > 0) & (above > 0)
                of_slopes.append(torch.where(inner, of_line * (other - one), 0))
            share = torch.where(below > 0, torch.where(above > 0, share, 0), 1)
            g_one = torch.where(hull, of_line * (1 - share), 0) / rising
            g_other = torch.where(hull, of_line * share, 0) / falling
            g_chord = torch.where(hull, 0, of_line) / wide
            g_left = g_left - g_one - g_chord
            g_right = g_right + g_other + g_chord
            g_silent = g_silent + torch.where(lower, 0, g_one - g_other)
            g_fired = g_fired + torch.where(lower, g_one - g_other, 0)
            g_low = g_low + g_one * one + g_chord * chord
            g_at = g_at - g_one * one + g_other * other
            g_high = g_high - g_other * other - g_chord * chord
        elif slope == PAPER:
            wide = above >= below
            jump, past = constant, torch.where(on_state > 0, low, at)
            if reset == HARD:
                jump = constant - on_state * past
            steep = ((jump > 0) & wide) | ((jump < 0) & ~wide)
            span = torch.where(wide, falling, rising)
            g_jump = torch.where(steep, of_line, 0) / span
            g_span = -g_jump * jump / span
            g_high = g_high + torch.where(wide, g_span, 0)
            g_low = g_low - torch.where(wide, 0, g_span)
            g_at = g_at + torch.where(wide, -g_span, g_span)
            of_constant = of_constant + g_jump
            of_fired_slope = of_fired_slope + of_line
            if reset == HARD:
                of_on_state = of_on_state - g_jump * past
                g_low = g_low - torch.where(on_state > 0, g_jump * on_state, 0)
                g_at = g_at - torch.where(on_state > 0, 0, g_jump * on_state)
        else:
            of_slopes.append(of_line)
        of_on_state = of_on_state + g_left * low + g_silent * at
        of_constant = of_constant + g_fired + g_right
        of_fired_slope = of_fired_slope + g_fired * at + g_right * high
        of_lower.append((g_low + g_left * on_state).sum(0))
        of_upper.append((g_high + g_right * fired_slope).sum(0))
        of_threshold = of_threshold + (g_at + g_silent * on_state + g_fired * fired_slope)
        of_next = zero
        if reset == HARD:
            of_on_state = of_on_state + of_constant * v_reset
        elif reset == SOFT:
            of_on_state = of_on_state + (of_fired_slope - of_constant * at)
            of_threshold = of_threshold - of_constant * on_state
        else:
            of_on_state = of_on_state + of_fired_slope
            if reset == DELAYED_SOFT:
                of_next = -of_constant * at
                of_threshold = of_threshold - of_constant * on_next
        of_decay = of_decay + of_on_state * on_next
        of_rows.append(of_constant)
        started = of_next + of_on_state * leak
    grads = empty_rows(rows, v_lower, rows.dtype).copy_(torch.stack(of_rows, 1))
    ends_of_membranes = (
        empty_steps(v_lower, v_lower.dtype, timesteps).copy_(torch.stack(steps))
        for steps in (of_lower, of_upper)
    )
    empty = v_lower.new_empty(0)
    of_parameters = (
        _sum_to(parameter, grad.sum(0)) if parameter_gradients else empty.clone()
        for parameter, grad in ((decay, of_decay), (threshold, of_threshold))
    )
    return (
        grads,
        *ends_of_membranes,
        *of_parameters,
        torch.empty_like(grads).copy_(torch.stack(of_slopes, 1)) if of_slopes else empty.clone(),
        empty if after is None else torch.empty_like(grads[:, 0]).copy_(started),
    )
