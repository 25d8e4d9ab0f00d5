"""Spiking neurons as functions. Every argument error is raised here, alike for every device."""

from snnkern.functional.backends import (
    BACKENDS,
    Backend,
    why_not,
)
from snnkern.functional.checks import (
    FLOAT_DTYPES,
    RANGES,
    SPIKE_DTYPES,
    check_parameter,
    check_values,
    waits_for_device,
)
from snnkern.functional.encode import (
    CODINGS,
    Coding,
    encode,
)
from snnkern.functional.interval_lif import (
    interval_lif,
)
from snnkern.functional.lif import (
    LIF_DEFAULTS,
    lif,
)
from snnkern.functional.membranes import (
    membranes,
)
from snnkern.functional.neurons import (
    DECAYS,
    Charge,
    Reset,
    SpikeFormat,
    Synapse,
    check_options,
    decay_of,
)
from snnkern.functional.norm_lif import (
    norm_lif,
)
from snnkern.functional.relax_lif import (
    Slope,
    relax_lif,
)
from snnkern.functional.spike_conv import (
    ROW,
    as_kernel,
    convolve_packed,
    features_as_maps,
    maps_as_features,
    maps_in_order,
    spike_block,
    spike_conv2d,
    spike_linear,
    spike_rows,
)
from snnkern.functional.spikes import (
    pack_if_spikes,
    pack_nonzero,
    pack_spikes,
    unpack_spikes,
)

__all__ = [
    "BACKENDS",
    "CODINGS",
    "DECAYS",
    "FLOAT_DTYPES",
    "LIF_DEFAULTS",
    "RANGES",
    "ROW",
    "SPIKE_DTYPES",
    "Backend",
    "Charge",
    "Coding",
    "Reset",
    "Slope",
    "SpikeFormat",
    "Synapse",
    "as_kernel",
    "check_options",
    "check_parameter",
    "check_values",
    "convolve_packed",
    "decay_of",
    "encode",
    "features_as_maps",
    "interval_lif",
    "lif",
    "maps_as_features",
    "maps_in_order",
    "membranes",
    "norm_lif",
    "pack_if_spikes",
    "pack_nonzero",
    "pack_spikes",
    "relax_lif",
    "spike_block",
    "spike_conv2d",
    "spike_linear",
    "spike_rows",
    "unpack_spikes",
    "waits_for_device",
    "why_not",
]
