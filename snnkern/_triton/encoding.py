"""Rate coding in Triton, with the draws made in the kernel."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["timesteps"])
def rate_code_kernel(
    spikes,
    x,
    seed,
    values,
    timesteps,
    CODING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Spikes of ``BLOCK`` values over time.

    The draws are those of Philox at the counter ``value + values * (step // 4)``, of whose four
    numbers a step takes number ``step % 4``: they depend on the seed and the place alone.
    """
    lanes = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = lanes < values
    rate = tl.load(x + lanes, mask=mask, other=0.0)
    rate = rate.to(tl.float64 if rate.dtype == tl.float64 else tl.float32)
    height = tl.full([], 1.0, rate.dtype)
    if CODING == "signed_poisson":
        height = tl.where(rate > 0.0, 1.0, tl.where(rate < 0.0, -1.0, 0.0))
        rate = tl.abs(rate)
    key = tl.load(seed)
    counter = lanes
    for first in range(0, timesteps, 4):
        draws = tl.rand4x(key, counter)
        for k in tl.static_range(4):
            if CODING == "bernoulli":
                fired = draws[k] < rate
            else:
                fired = draws[k] <= rate
            code = tl.where(fired, height, 0.0).to(spikes.dtype.element_ty)
            tl.store(spikes + lanes, code, mask=mask & (first + k < timesteps))
            spikes += values
        counter += values
