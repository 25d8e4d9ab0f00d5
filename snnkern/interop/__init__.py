"""Fused neurons inside models of other libraries."""

from snnkern.interop.accelerate import Report, accelerate, restore

__all__ = ["Report", "accelerate", "restore"]
