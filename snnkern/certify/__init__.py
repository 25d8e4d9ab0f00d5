"""Certificates: what no perturbation can change."""

from snnkern.certify.bounds import Certificate, bounds, spike_bounds, verify

__all__ = ["Certificate", "bounds", "spike_bounds", "verify"]
