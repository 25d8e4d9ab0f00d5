"""Fused neurons inside models of other libraries."""

from snnkern.interop.accelerate import Report, accelerate, restore
from snnkern.interop.layerwise import Layerwise, layerwise
from snnkern.interop.unroll import unroll

__all__ = ["Layerwise", "Report", "accelerate", "layerwise", "restore", "unroll"]
