"""Certificates: what no perturbation can change."""

from snnkern.certify.bounds import Certificate, bounds, verify

__all__ = ["Certificate", "bounds", "verify"]
