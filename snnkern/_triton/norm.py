"""What batch norm needs around the neurons in Triton: moments per channel, and its own gradient."""

import triton
import triton.language as tl

from snnkern._triton.memory import channels_of, load_parameter, load_steps, store_sums
from snnkern._triton.neuron import multiply


@triton.jit(do_not_specialize=["blocks", "channels"])
def channel_moments_kernel(
    sums,
    squares,
    x,
    centre,
    neurons,
    blocks,
    x_step,
    channels,
    repeat,
    GROUP: tl.constexpr,
    CONSTANT: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over time of ``x - centre`` and its square, of every ``GROUP`` neurons."""
    STATE: tl.constexpr = centre.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    lanes = program * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < neurons
    channel = channels_of(program * BLOCK, channels, repeat, BLOCK)
    middle = load_parameter(centre, lanes, channel, mask, "channel")
    total = tl.zeros([BLOCK], STATE)
    square = tl.zeros([BLOCK], STATE)
    for _ in range(blocks):
        rows = load_steps(x + lanes, x_step, mask, STEPS, CONSTANT)
        for k in tl.static_range(STEPS):
            deviation = rows[k].to(STATE) - middle
            total += deviation
            square += deviation * deviation
        x += STEPS * tl.cast(x_step, tl.int64)
    store_sums(sums, total, program, mask, neurons, GROUP, BLOCK)
    store_sums(squares, square, program, mask, neurons, GROUP, BLOCK)


@triton.jit(do_not_specialize=["channels", "programs"])
def norm_backward_kernel(
    g,
    x,
    mean,
    from_g,
    from_x,
    constant,
    neurons,
    programs,
    x_step,
    channels,
    repeat,
    BLOCK: tl.constexpr,
):
    """In place of g ``from_g g + from_x (x - mean) + constant``, ``programs`` to every step."""
    STATE: tl.constexpr = mean.dtype.element_ty
    number = tl.program_id(0).to(tl.int64)
    step = number // programs
    program = number - step * programs
    lanes = program * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < neurons
    channel = channels_of(program * BLOCK, channels, repeat, BLOCK)
    place = g + step * neurons + lanes
    gradient = tl.load(place, mask=mask, other=0.0).to(STATE)
    row = tl.load(x + step * x_step + lanes, mask=mask, other=0.0).to(STATE)
    middle = load_parameter(mean, lanes, channel, mask, "channel")
    gradient = multiply(load_parameter(from_g, lanes, channel, mask, "channel"), gradient)
    through_x = load_parameter(from_x, lanes, channel, mask, "channel")
    gradient = gradient + multiply(through_x, row - middle)
    gradient = gradient + load_parameter(constant, lanes, channel, mask, "channel")
    tl.store(place, gradient.to(g.dtype.element_ty), mask=mask)
