"""Datasets."""

from snnkern.data.digits import Split, digits, loader

__all__ = ["Split", "digits", "loader"]
