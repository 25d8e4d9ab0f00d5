"""How blocks of neurons come from memory and go back to it, in Triton."""

import triton
import triton.language as tl

from snnkern._triton.neuron import multiply


@triton.jit
def load_steps(pointers, step, mask, STEPS: tl.constexpr, CONSTANT: tl.constexpr):
    """A tuple of ``STEPS`` rows that lie ``step`` apart, or of one row again and again.

    All are asked for before the first is used, which is what keeps the memory busy.
    """
    row = tl.load(pointers, mask=mask, other=0.0)
    rows = (row,)
    for _ in tl.static_range(STEPS - 1):
        if not CONSTANT:
            pointers += step
            row = tl.load(pointers, mask=mask, other=0.0)
        rows = rows + (row,)
    return rows


@triton.jit
def load_or_zero(pointer, lanes, mask, like):
    """A value per neuron; 0 where there is no tensor."""
    if pointer is None:
        values = tl.zeros(lanes.shape, like)
    else:
        values = tl.load(pointer + lanes, mask=mask, other=0.0)
    return values


@triton.jit
def channels_of(first, channels, repeat, BLOCK: tl.constexpr):
    """The channels of the ``BLOCK`` neurons from ``first`` on, ``repeat`` neighbours in each.

    Only two divisions are of 64 bits, and those are of one number.
    """
    run = first // repeat
    within = (first - run * repeat).to(tl.uint32) + tl.arange(0, BLOCK).to(tl.uint32)
    past = (run % channels).to(tl.uint32) + within // tl.cast(repeat, tl.uint32)
    return past % tl.cast(channels, tl.uint32)


@triton.jit
def load_parameter(pointer, lanes, channel, mask, OF: tl.constexpr):
    """A parameter ``OF`` one value, a value per channel, or one per neuron; 1 past the end."""
    if OF == "one":
        values = tl.load(pointer)
    elif OF == "channel":
        values = tl.load(pointer + channel, mask=mask, other=1.0)
    else:
        values = tl.load(pointer + lanes, mask=mask, other=1.0)
    return values


@triton.jit
def seen_by_neurons(row, scale, shift, AFFINE: tl.constexpr, like):
    """A row of the input in the dtype of the state, normalised where it is to be."""
    x = row.to(like)
    if AFFINE:
        x = multiply(scale, x) + shift
    return x


@triton.jit
def store_spikes(pointer, spikes, program, lanes, count, FORMAT: tl.constexpr, BLOCK: tl.constexpr):
    """A row of spikes: one number each, or eight to a byte with the first neuron lowest.

    ``count`` is the number of neurons, or of bytes.
    """
    if FORMAT == "bits":
        weights = tl.full([], 1, tl.int32) << tl.arange(0, 8)
        eights = tl.reshape(spikes.to(tl.int32), [BLOCK // 8, 8])
        packed = tl.sum(eights * weights[None, :], axis=1)
        at = program * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        tl.store(pointer + at, packed.to(tl.uint8), mask=at < count)
    else:
        numbers = tl.where(spikes, 1.0, 0.0).to(pointer.dtype.element_ty)
        tl.store(pointer + lanes, numbers, mask=lanes < count)


@triton.jit
def store_sums(pointer, values, program, mask, neurons, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of every ``GROUP`` neighbouring neurons, in an order that depends on nothing else."""
    values = tl.where(mask, values, 0.0)
    if GROUP > 1:
        values = tl.sum(tl.reshape(values, [BLOCK // GROUP, GROUP]), axis=1)
    at = program * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    tl.store(pointer + at, values, mask=at * GROUP < neurons)
