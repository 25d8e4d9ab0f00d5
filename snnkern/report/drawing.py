"""What every figure of a report is drawn with: inline SVG in the colours of the page.

Matplotlib draws with placeholder colours, which become the page's CSS variables afterwards, so a
figure follows the page into dark mode and onto paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from snnkern._table import Table

SERIES = 6
_COLOURS = (
    *("ink", "muted", "rule", "attack", "certificate", "both"),
    *(f"series{number}" for number in range(SERIES)),
)
PLACEHOLDER = {name: f"#0000{number + 1:02x}" for number, name in enumerate(_COLOURS)}
_VARIABLE = {placeholder: name for name, placeholder in PLACEHOLDER.items()}
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "snnkern",
    "text.parse_math": False,
    "text.color": PLACEHOLDER["ink"],
    "font.size": 8.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "axes.edgecolor": PLACEHOLDER["rule"],
    "axes.labelcolor": PLACEHOLDER["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": PLACEHOLDER["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": PLACEHOLDER["rule"],
    "ytick.color": PLACEHOLDER["rule"],
    "xtick.labelcolor": PLACEHOLDER["muted"],
    "ytick.labelcolor": PLACEHOLDER["muted"],
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
}
_NO_SVG_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_WIDTH = 9.0
# What fits in a line of a legend.
_LEGEND_LETTERS, _HANDLE_LETTERS = 125, 8


@dataclass(frozen=True)
class Drawing:
    """A figure ready for the page: its SVG, a text in its place, and the numbers behind it."""

    svg: str
    alt: str
    caption: str
    tables: tuple[Table, ...]


@contextmanager
def styled() -> Iterator[None]:
    """Figures made and written within the block have the style of the report."""
    # Matplotlib reads the SVG settings from rcParams alone, so they are set while drawing and put
    # back. Starting from "default" keeps a user's matplotlibrc out of the report.
    with matplotlib.style.context(["default", _STYLE]):
        yield


def blank(height: float) -> Figure:
    """A figure as wide as the page, in inches."""
    layout = ConstrainedLayoutEngine(wspace=0.06, hspace=0.06)
    return Figure(figsize=(_WIDTH, height), dpi=72, layout=layout)


def panels_of(figure: Figure, rows: int, columns: int, count: int) -> list[Axes]:
    """So many panels, in a grid whose other places stay empty."""
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels:
        axes.tick_params(length=3)
    return panels[:count]


def add_legend(figure: Figure, entries: Sequence[tuple[Artist, str]]) -> None:
    """A legend above the panels, in as many columns as fit."""
    handles, labels = zip(*entries, strict=True)
    fitting = _LEGEND_LETTERS // (_HANDLE_LETTERS + max(map(len, labels)))
    columns = max(1, min(5, len(labels), fitting))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def as_svg(figure: Figure, prefix: str, alt: str) -> str:
    """The figure for the page, its ids told apart by ``prefix``, and ``alt`` what it says aloud."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_SVG_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    # Only tags are rewritten: in them "<" and ">" are escaped, and texts stay as they are.
    svg = re.sub(r"<[^>]*>", lambda tag: _restyle(tag.group(), prefix), svg)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def _restyle(tag: str, prefix: str) -> str:
    tag = re.sub(r' xmlns(:xlink)?="[^"]*"', "", tag)
    tag = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", tag)
    tag = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--sans)", tag)
    return re.sub(
        r"#[0-9a-f]{6}",
        lambda colour: (
            f"var(--{_VARIABLE[colour.group()]})" if colour.group() in _VARIABLE else colour.group()
        ),
        tag,
    )
