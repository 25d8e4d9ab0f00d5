"""The figures of a sample, an image and its adversarial twin: pixels, spikes and membranes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from snnkern._table import Cell, Table
from snnkern.report.drawing import (
    DASHES,
    PLACEHOLDER,
    Drawing,
    add_legend,
    as_svg,
    blank,
    panels_of,
    styled,
)
from snnkern.report.results import Sample

_NO_PNG_METADATA: dict[str, Any] = {"Software": None}
_RASTER_COLUMNS = 4
_RASTER_NEURONS = 64


def raster(sample: Sample, prefix: str) -> Drawing | None:
    """Spikes in time, clean above adversarial, one column for each layer.

    Args:
        sample: the sample, with `rasters` of bool [T, neurons].
        prefix: makes the ids in the SVG unique on the page.
    """
    if not sample.rasters:
        return None
    layers = list(sample.rasters.items())
    columns = min(_RASTER_COLUMNS, len(layers))
    bands = math.ceil(len(layers) / columns)
    with styled():
        figure = blank(0.3 + 4.2 * bands)
        grid = figure.subplots(2 * bands, columns, squeeze=False)
        for number in range(bands * columns):
            band, column = divmod(number, columns)
            pair = (grid[2 * band, column], grid[2 * band + 1, column])
            if number < len(layers):
                _draw_layer(pair, *layers[number], label_rows=column == 0)
            else:
                for axes in pair:
                    axes.set_axis_off()
        add_legend(
            figure,
            [
                (Patch(facecolor=PLACEHOLDER[colour], linewidth=0), label)
                for colour, label in (
                    ("both", "spike in both"),
                    ("certificate", "only in clean"),
                    ("attack", "only in adversarial"),
                )
            ],
        )
        table = _raster_table(sample)
        alt = "Spikes of each layer, clean above adversarial. " + " ".join(
            f"{row[0].text}: {row[2].text} spikes clean, {row[3].text} adversarial, "
            f"{row[4].text} moved."
            for row in table.rows
        )
        svg = as_svg(figure, prefix, alt)
    return Drawing(svg, alt, "", (table,))


def membranes(sample: Sample, prefix: str) -> Drawing | None:
    """The membrane of one neuron of each layer in time, clean and attacked.

    Args:
        sample: the sample, with `membranes` of float32 [T].
        prefix: makes the ids in the SVG unique on the page.
    """
    if not sample.membranes:
        return None
    columns = min(_RASTER_COLUMNS, len(sample.membranes))
    rows = math.ceil(len(sample.membranes) / columns)
    with styled():
        figure = blank(0.3 + 2.1 * rows)
        panels = panels_of(figure, rows, columns, len(sample.membranes))
        for axes, (layer, membrane) in zip(panels, sample.membranes.items(), strict=True):
            steps = np.arange(1, len(membrane.clean) + 1)
            axes.axhline(
                membrane.threshold, color=PLACEHOLDER["muted"], linewidth=0.9, dashes=(3, 2)
            )
            traces = (membrane.clean, membrane.adversarial)
            low = min(0.0, *(float(trace.min()) for trace in traces))
            high = max(membrane.threshold, *(float(trace.max()) for trace in traces))
            tick = 0.09 * (high - low)
            spikes = sample.rasters[layer]
            for place, (trace, train, colour, dash) in enumerate(
                zip(traces, spikes, ("certificate", "attack"), DASHES[:2], strict=True)
            ):
                axes.plot(steps, trace, color=PLACEHOLDER[colour], linestyle=dash)
                bottom = high + tick * (0.6 + 1.3 * place)
                axes.vlines(
                    steps[train[:, membrane.neuron]], bottom, bottom + tick,
                    color=PLACEHOLDER[colour], linewidth=1.6,
                )  # fmt: skip
            axes.set_ylim(low - tick, high + 3.4 * tick)
            axes.set_title(layer)
            axes.set_xlabel(f"time step, neuron {membrane.neuron:,}")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        add_legend(
            figure,
            [
                (Line2D([], [], color=PLACEHOLDER["certificate"]), "clean"),
                (Line2D([], [], color=PLACEHOLDER["attack"], linestyle=DASHES[1]), "adversarial"),
                (
                    Line2D([], [], color=PLACEHOLDER["muted"], linewidth=0.9, dashes=(3, 2)),
                    "threshold",
                ),
            ],
        )
        alt = "Membranes. " + " ".join(
            f"{layer}, neuron {m.neuron}: {m.clean[-1]:.3g} at the last step clean, "
            f"{m.adversarial[-1]:.3g} adversarial."
            for layer, m in sample.membranes.items()
        )
        svg = as_svg(figure, prefix, alt)
    return Drawing(svg, alt, "", (_membrane_table(sample),))


def picture(image: NDArray[np.float32]) -> str:
    """An image [1 or 3, H, W] in [0, 1] as a PNG data URI."""
    rgb = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
    return _png(np.round(rgb * 255).astype(np.uint8))


def amplification(samples: Iterable[Sample]) -> int:
    """The whole factor at which the largest difference of all samples fills the colour range."""
    largest = max(float(np.abs(_difference(sample)).max()) for sample in samples)
    return max(1, round(1 / largest)) if largest > 0 else 1


def difference_picture(sample: Sample, factor: int) -> str:
    """The amplified difference, `factor * (adversarial - clean)`, as a PNG data URI.

    Grey images: orange where brighter, blue where darker, transparent where equal.
    Coloured images: each channel around middle grey.
    """
    scaled = np.clip(_difference(sample) * factor, -1, 1)
    if scaled.shape[0] == 3:
        return _png(np.round((scaled.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8))
    brighter, darker = (213, 94, 0), (0, 114, 178)
    rgba = np.empty((*scaled.shape[1:], 4), dtype=np.uint8)
    rgba[..., :3] = np.where(scaled[0, ..., None] > 0, brighter, darker)
    rgba[..., 3] = np.round(np.abs(scaled[0]) * 255)
    return _png(rgba)


def _draw_layer(
    pair: tuple[Axes, Axes],
    layer: str,
    spikes: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    *,
    label_rows: bool,
) -> None:
    timesteps, neurons = spikes[0].shape
    # Evenly spaced, not chosen by what they show.
    shown = np.unique(np.linspace(0, neurons - 1, min(neurons, _RASTER_NEURONS)).round())
    clean, adversarial = (s[:, shown.astype(np.int64)] for s in spikes)
    for axes, own, other, colour, row in (
        (pair[0], clean, adversarial, "certificate", "clean"),
        (pair[1], adversarial, clean, "attack", "adversarial"),
    ):
        for marks, fill in ((own & other, "both"), (own & ~other, colour)):
            axes.add_patch(PathPatch(_cells(marks), facecolor=PLACEHOLDER[fill], linewidth=0))
        axes.set_xlim(0.4, timesteps + 0.6)
        axes.set_ylim(shown.size - 0.4, -0.6)
        axes.set_yticks([0, shown.size - 1], ["0", f"{neurons - 1:,}"])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
        axes.tick_params(length=0)
        if label_rows:
            axes.set_ylabel(f"{row}\nneuron")
    part = f"{neurons:,} neurons"
    if shown.size < neurons:
        part += f", {shown.size} shown"
    pair[0].set_title(f"{layer}\n", linespacing=1.2)
    pair[0].text(
        0, 1.02, part, transform=pair[0].transAxes, color=PLACEHOLDER["muted"], va="bottom",
        fontsize=7.5,
    )  # fmt: skip
    pair[0].tick_params(labelbottom=False)
    pair[1].set_xlabel("time step")


def _cells(spikes: NDArray[np.bool_]) -> Outline:
    """One outline with a rectangle for every spike of [T, neurons]."""
    step, neuron = np.nonzero(spikes)
    corners = np.array([(-0.42, -0.4), (0.42, -0.4), (0.42, 0.4), (-0.42, 0.4), (-0.42, -0.4)])
    centres = np.stack((step + 1, neuron), axis=1)
    vertices = (centres[:, None, :] + corners).reshape(-1, 2)
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY]
    return Outline(vertices, np.tile(np.array(codes, dtype=np.uint8), len(step)))


def _raster_table(sample: Sample) -> Table:
    return Table(
        "Spikes of the whole layer; moved: neuron-steps where clean and adversarial differ",
        tuple(map(Cell, ("layer", "neurons", "clean", "adversarial", "moved"))),
        tuple(
            (
                Cell(layer),
                Cell(f"{clean.shape[1]:,}"),
                Cell(f"{int(clean.sum()):,}"),
                Cell(f"{int(adversarial.sum()):,}"),
                Cell(f"{int((clean ^ adversarial).sum()):,}"),
            )
            for layer, (clean, adversarial) in sample.rasters.items()
        ),
    )


def _membrane_table(sample: Sample) -> Table:
    heads, traces = [Cell("time step")], []
    for layer, membrane in sample.membranes.items():
        for kind in ("clean", "adversarial"):
            heads.append(Cell(layer, f"{kind}, neuron {membrane.neuron}"))
            traces.append(getattr(membrane, kind))
    steps = len(traces[0])
    return Table(
        "Membrane at every step, before reset",
        tuple(heads),
        tuple(
            (Cell(str(t + 1)), *(Cell(f"{trace[t]:.4g}") for trace in traces)) for t in range(steps)
        ),
    )


def _difference(sample: Sample) -> NDArray[np.float32]:
    return sample.adversarial - sample.clean


def _png(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(pixels), format="png", metadata=_NO_PNG_METADATA)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
