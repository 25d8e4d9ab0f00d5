"""The torch.autograd.Functions, one per op.

They are written in the style where ``forward`` takes ``ctx``: half the overhead of an autograd
formula registered with the op, and traced whole by torch.compile.
"""

from snnkern.autograd.bounded import (
    Bounded,
)
from snnkern.autograd.engine import (
    is_wanted,
)
from snnkern.autograd.interval_lif import (
    IntervalConfig,
    IntervalLIF,
)
from snnkern.autograd.lif import (
    LIFFunction,
)
from snnkern.autograd.lif_config import (
    LIFConfig,
)
from snnkern.autograd.norm_lif import (
    NormConfig,
    NormLIFFunction,
)
from snnkern.autograd.packed import (
    AvgPool2d,
    PackedConv2d,
    PackedLinear,
    PackedMaxPool2d,
    Steps,
)
from snnkern.autograd.rate import (
    RateDistributed,
)
from snnkern.autograd.rate_code import (
    KernelRateCode,
    RateCode,
)
from snnkern.autograd.relax_lif import (
    RelaxConfig,
    RelaxLIF,
)
from snnkern.autograd.spike_conv import (
    POINT,
    Geometry,
    SpikeConv2d,
    sums_gradients_of_weights,
)
from snnkern.autograd.time import (
    Forked,
    Held,
    Joined,
    is_constant,
)
from snnkern.autograd.transposed_conv import (
    CHANNELS_LAST,
    TransposedConv2d,
)

__all__ = [
    "CHANNELS_LAST",
    "POINT",
    "AvgPool2d",
    "Bounded",
    "Forked",
    "Geometry",
    "Held",
    "IntervalConfig",
    "IntervalLIF",
    "Joined",
    "KernelRateCode",
    "LIFConfig",
    "LIFFunction",
    "NormConfig",
    "NormLIFFunction",
    "PackedConv2d",
    "PackedLinear",
    "PackedMaxPool2d",
    "RateCode",
    "RateDistributed",
    "RelaxConfig",
    "RelaxLIF",
    "SpikeConv2d",
    "Steps",
    "TransposedConv2d",
    "is_constant",
    "is_wanted",
    "sums_gradients_of_weights",
]
