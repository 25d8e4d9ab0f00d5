"""Spikes as bits and back in Triton. The format is that of ``store_spikes``."""

import triton
import triton.language as tl

from snnkern._triton.memory import store_spikes


@triton.jit(do_not_specialize=["programs"])
def pack_spikes_kernel(
    packed,
    strays,
    spikes,
    neurons,
    row_bytes,
    programs,
    step,
    BLOCK: tl.constexpr,
):
    """``BLOCK`` neurons of one step, and the place of the first that is neither 0 nor 1.

    That is row times neurons plus neuron; the largest int64 where there is none.
    """
    NONE: tl.constexpr = 2**63 - 1
    place = tl.program_id(0).to(tl.int64)
    row = place // programs
    program = place - row * programs
    lanes = program * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(spikes + row * step + lanes, mask=lanes < neurons, other=0.0)
    is_stray = (values != 0) & (values != 1)
    tl.store(strays + place, tl.min(tl.where(is_stray, row * neurons + lanes, NONE), axis=0))
    store_spikes(packed + row * row_bytes, values != 0, program, lanes, row_bytes, "bits", BLOCK)


@triton.jit(do_not_specialize=["programs"])
def unpack_spikes_kernel(
    spikes,
    packed,
    neurons,
    row_bytes,
    programs,
    BLOCK: tl.constexpr,
):
    """``BLOCK`` neurons of one step."""
    place = tl.program_id(0).to(tl.int64)
    row = place // programs
    lanes = (place - row * programs) * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < neurons
    eight = tl.load(packed + row * row_bytes + lanes // 8, mask=mask, other=0)
    spike = (eight.to(tl.int32) >> (lanes % 8).to(tl.int32)) & 1
    number = tl.where(spike != 0, 1.0, 0.0).to(spikes.dtype.element_ty)
    tl.store(spikes + row * neurons + lanes, number, mask=mask)
