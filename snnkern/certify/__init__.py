"""Certificates: what no perturbation can change."""

from snnkern.certify.bounds import Certificate, bounds, spike_bounds, verify
from snnkern.certify.smoothing import Smoothed, smooth

__all__ = ["Certificate", "Smoothed", "bounds", "smooth", "spike_bounds", "verify"]
