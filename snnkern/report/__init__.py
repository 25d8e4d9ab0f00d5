"""Reports: what a study measured, as one page, as Markdown and as a table for the terminal."""

from snnkern.report.page import table_text, write_report
from snnkern.report.results import (
    Curve,
    Energy,
    Epoch,
    Layer,
    Membrane,
    NetworkResult,
    Sample,
    Score,
)
from snnkern.report.study import Study

__all__ = [
    "Curve",
    "Energy",
    "Epoch",
    "Layer",
    "Membrane",
    "NetworkResult",
    "Sample",
    "Score",
    "Study",
    "table_text",
    "write_report",
]
