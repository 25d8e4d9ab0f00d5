"""snnkern: layers of spiking neurons as one fused kernel over all time steps."""

from snnkern import _ops as _ops
from snnkern import attacks, certify, data, functional, interop, models, nn, surrogate, training
from snnkern._info import backends, info
from snnkern._version import __version__
from snnkern.attacks import evaluate
from snnkern.convert import convert
from snnkern.inference import CompiledNetwork, compile_inference
from snnkern.memory import keep_pages
from snnkern.nn import IF, LIF, NormLIF, gradient

__all__ = [
    "IF",
    "LIF",
    "CompiledNetwork",
    "NormLIF",
    "__version__",
    "attacks",
    "backends",
    "certify",
    "compile_inference",
    "convert",
    "data",
    "evaluate",
    "functional",
    "gradient",
    "info",
    "interop",
    "keep_pages",
    "models",
    "nn",
    "surrogate",
    "training",
]
