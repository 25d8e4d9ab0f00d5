"""The figures of a report: inline SVG in the colours of the page, each with its numbers.

Matplotlib draws with placeholder colours, which become the page's CSS variables afterwards, so a
figure follows the page into dark mode and onto paper.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, get_args

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from snnkern._table import MISSING, Cell, Table, eps_text, percent, share_cell
from snnkern.report.study import Curve, CurveKind, Layer, NetworkResult, Sample, Score, Study

_SERIES = 6
_COLOURS = (
    *("ink", "muted", "rule", "attack", "certificate", "both"),
    *(f"series{number}" for number in range(_SERIES)),
)
_PLACEHOLDER = {name: f"#0000{number + 1:02x}" for number, name in enumerate(_COLOURS)}
_VARIABLE = {placeholder: name for name, placeholder in _PLACEHOLDER.items()}
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "snnkern",
    "text.parse_math": False,
    "text.color": _PLACEHOLDER["ink"],
    "font.size": 8.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "axes.edgecolor": _PLACEHOLDER["rule"],
    "axes.labelcolor": _PLACEHOLDER["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": _PLACEHOLDER["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": _PLACEHOLDER["rule"],
    "ytick.color": _PLACEHOLDER["rule"],
    "xtick.labelcolor": _PLACEHOLDER["muted"],
    "ytick.labelcolor": _PLACEHOLDER["muted"],
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
}
_NO_SVG_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_NO_PNG_METADATA: dict[str, Any] = {"Software": None}
_WIDTH = 9.0
_RASTER_COLUMNS = 4
_RASTER_NEURONS = 64
# How opaque the cell of a member is that breaks all: the number in it stays readable.
_HEAT = 0.55
_HEAT_COLUMNS = 6
# What fits above a cell, and in a line of a legend.
_HEAT_LETTERS, _LEGEND_LETTERS, _HANDLE_LETTERS = 15, 125, 8
# From this ratio of largest to smallest positive eps on, a linear axis would squeeze the small
# sizes, where certificates live, against its edge.
_WIDE_EPS = 25.0


@dataclass(frozen=True)
class Drawing:
    """A figure ready for the page: its SVG, a text in its place, and the numbers behind it."""

    svg: str
    alt: str
    caption: str
    tables: tuple[Table, ...]


def robustness(study: Study) -> Drawing | None:
    """Accuracy under attack and certified share against eps, one panel for each network.

    Between the strongest attack and the best certificate lies the truth: that band is shaded.
    """
    networks = [network for network in study.networks if network.curves]
    if not networks:
        return None
    names = {
        kind: _ordered(c.name for n in networks for c in n.curves if c.kind == kind)
        for kind in get_args(CurveKind)
    }
    positive = [eps for n in networks for c in n.curves for eps in c.eps if eps > 0]
    wide = bool(positive) and max(positive) > _WIDE_EPS * min(positive)
    columns = min(2, len(networks))
    rows = math.ceil(len(networks) / columns)
    with _style():
        figure = Figure(figsize=(_WIDTH, 0.35 + 2.9 * rows), dpi=72, layout=_layout())
        panels = _panels(figure, rows, columns, len(networks))
        shaded = False
        for axes, network in zip(panels, networks, strict=True):
            shaded |= _shade_gap(axes, network)
            for curve in network.curves:
                number = names[curve.kind].index(curve.name)
                axes.plot(curve.eps, curve.value, **_curve_style(curve.kind, number))
            axes.set_title(network.name)
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
            axes.set_xlabel("size of the perturbation ε")
            axes.grid(axis="y")
            axes.set_axisbelow(True)
            axes.margins(x=0.02)
            if wide:
                axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
                axes.xaxis.set_minor_locator(NullLocator())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        legend: list[tuple[Artist, str]] = [
            (Line2D([], [], **_curve_style(kind, number)), name)
            for kind in names
            for number, name in enumerate(names[kind])
        ]
        if shaded:
            patch = Patch(facecolor=_PLACEHOLDER["both"], alpha=0.16, linewidth=0)
            legend.append((patch, "the truth lies between"))
        _legend(figure, legend)
        alt = "Accuracy against ε. " + " ".join(
            f"{network.name}, {curve.name}: {percent(curve.value[0])} % at ε = "
            f"{eps_text(curve.eps[0])}, {percent(curve.value[-1])} % at {eps_text(curve.eps[-1])}."
            for network in networks
            for curve in network.curves
        )
        svg = _svg(figure, "robustness", alt)
    caption = (
        "Share of test images still classified correctly when each may be perturbed by up to ε. "
        "An attack that fails proves nothing, so attacks bound the truth from above; "
        "a certificate is proof, so it bounds the truth from below."
    )
    if wide:
        caption += " The ε axis is logarithmic beyond its first mark."
    return Drawing(svg, alt, caption, tuple(_curve_table(network) for network in networks))


def training(study: Study) -> Drawing | None:
    """Loss and accuracy for each epoch, one line for each network."""
    networks = [network for network in study.networks if network.history]
    if not networks:
        return None
    with _style():
        figure = Figure(figsize=(_WIDTH, 2.7), dpi=72, layout=_layout())
        tested = [network for network in networks if _tested(network)]
        left, right, *rest = _panels(figure, 1, 2 + bool(tested), 2 + bool(tested))
        legend: list[tuple[Artist, str]] = []
        for number, network in enumerate(networks):
            style = _series_style(number, len(network.history))
            epochs = [epoch.epoch for epoch in network.history]
            left.plot(epochs, [epoch.loss for epoch in network.history], **style)
            right.plot(epochs, [epoch.accuracy for epoch in network.history], **style)
            legend.append((Line2D([], [], **style), network.name))
            if network in tested:
                rest[0].plot(*zip(*_tested(network), strict=True), **style)
        left.set_title("Loss")
        right.set_title("Training accuracy")
        for axes in rest:
            axes.set_title("Test accuracy")
        for axes in (right, *rest):
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g} %"))
        for axes in (left, right, *rest):
            axes.set_xlabel("epoch")
            axes.grid(axis="y")
            axes.set_axisbelow(True)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure, legend)
        alt = "Loss and training accuracy for each epoch. " + " ".join(
            f"{network.name} ends at loss {network.history[-1].loss:.4g}, "
            f"accuracy {percent(network.history[-1].accuracy)} %."
            for network in networks
        )
        svg = _svg(figure, "training", alt)
    caption = (
        "Loss and training accuracy are those on the images the network was trained on, as its "
        "method presents them. Losses of different methods are different functions and do not "
        "compare."
    )
    return Drawing(svg, alt, caption, tuple(_history_table(network) for network in networks))


def members(study: Study) -> Drawing | None:
    """Accuracy under one attack through one gradient after the other, member against network."""
    networks = [network for network in study.networks if network.members]
    if not networks:
        return None
    names = _ordered(score.name for network in networks for score in network.members)
    grid = [{score.name: score for score in network.members} for network in networks]
    rows, columns = len(names), len(networks)
    with _style():
        lines = 1 + max(len(wrap(network.name, _HEAT_LETTERS)) for network in networks)
        height = 0.4 + 0.15 * lines + 0.26 * rows
        figure = Figure(figsize=(_WIDTH, height), dpi=72, layout=_layout())
        axes = figure.subplots()
        for column, scores in enumerate(grid):
            for row, name in enumerate(names):
                if name not in scores:
                    text = MISSING
                else:
                    broken = 1 - scores[name].value
                    text = percent(scores[name].value)
                    axes.add_patch(
                        Rectangle(
                            (column + 0.02, row + 0.04), 0.96, 0.92, linewidth=0,
                            facecolor=_PLACEHOLDER["attack"], alpha=_HEAT * broken,
                        )
                    )  # fmt: skip
                axes.text(column + 0.5, row + 0.53, text, ha="center", va="center")
        axes.set_xlim(0, max(columns, _HEAT_COLUMNS))
        axes.set_ylim(rows, 0)
        axes.set_xticks(
            [column + 0.5 for column in range(columns)],
            [
                "\n".join([*wrap(network.name, _HEAT_LETTERS), f"ε = {_sizes(network.members)}"])
                for network in networks
            ],
        )
        axes.set_yticks([row + 0.5 for row in range(rows)], names)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        alt = "Accuracy under each member of the ensemble. " + " ".join(
            f"{network.name}: from {percent(min(shares))} % to {percent(max(shares))} %."
            for network in networks
            for shares in [[score.value for score in network.members]]
        )
        svg = _svg(figure, "members", alt)
    table = Table(
        "Share of images that stay right under each member alone, in %, 95 % Wilson interval",
        (Cell("member"), *(Cell(n.name, f"ε = {_sizes(n.members)}") for n in networks)),
        tuple((Cell(name), *(_member_cell(scores.get(name)) for scores in grid)) for name in names),
    )
    caption = (
        "Share of test images, in %, that stay right when the attack differentiates the neurons by "
        "this gradient alone. The deeper the colour, the more it breaks. No single gradient breaks "
        "every network best: that is why an ensemble attacks."
    )
    return Drawing(svg, alt, caption, (table,))


def layers(study: Study) -> Drawing | None:
    """Activity of every layer, and how far an attack moves its spikes."""
    networks = [network for network in study.networks if network.layers]
    if not networks:
        return None
    panels: tuple[tuple[str, Callable[[Layer], float]], ...] = (
        ("Spikes per neuron and step", lambda layer: layer.clean),
        ("Distance of firing rates", lambda layer: layer.rate_distance),
        ("Distance of spike trains", lambda layer: layer.train_distance),
    )
    with _style():
        figure = Figure(figsize=(_WIDTH, 2.7), dpi=72, layout=_layout())
        legend: list[tuple[Artist, str]] = []
        axes_of = _panels(figure, 1, len(panels), len(panels))
        for number, network in enumerate(networks):
            style = _series_style(number, len(network.layers))
            at = range(1, len(network.layers) + 1)
            legend.append((Line2D([], [], **style), network.name))
            for axes, (_, value) in zip(axes_of, panels, strict=True):
                axes.plot(at, [value(layer) for layer in network.layers], **style)
        for axes, (title, _) in zip(axes_of, panels, strict=True):
            axes.set_title(title)
            axes.set_xlabel("layer of neurons")
            axes.set_ylim(bottom=0)
            axes.grid(axis="y")
            axes.set_axisbelow(True)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _legend(figure, legend)
        alt = "Activity and distances per layer. " + " ".join(
            f"{network.name}: {network.layers[0].clean:.3g} spikes per neuron and step in its "
            f"first layer, {network.layers[-1].clean:.3g} in its last."
            for network in networks
        )
        svg = _svg(figure, "layers", alt)
    caption = (
        "Left: how often neurons fire on clean images. Middle and right: the l2 distance of firing "
        "rates (Kundu et al. 2021, definition 2) and of spike trains (Ding et al. 2022, eq. 12) "
        "between images and their adversarial twins, the mean over images"
    )
    shown = [sample for network in networks for sample in network.samples]
    attacks = _ordered(f"{sample.attack}, ε = {eps_text(sample.eps)}" for sample in shown)
    caption += f"; the attack is {' or '.join(attacks)}." if attacks else "."
    return Drawing(svg, alt, caption, tuple(_layer_table(network) for network in networks))


def energy(study: Study) -> Drawing | None:
    """Energy of one inference of every network, clean, attacked, and as a ReLU network."""
    networks = [network for network in study.networks if network.energy]
    if not networks:
        return None
    kinds = (
        ("clean", "certificate", "spiking, clean image"),
        ("adversarial", "attack", "spiking, adversarial image"),
        ("dense", "both", "the same layers as a ReLU network"),
    )
    with _style():
        figure = Figure(figsize=(_WIDTH, 0.9 + 0.62 * len(networks)), dpi=72, layout=_layout())
        axes = figure.subplots()
        for place, (kind, colour, _) in enumerate(kinds):
            axes.barh(
                [number + 0.25 * (place - 1) for number in range(len(networks))],
                [getattr(network.energy, kind) / 1000 for network in networks],
                height=0.22, color=_PLACEHOLDER[colour], linewidth=0,
            )  # fmt: skip
        axes.set_yticks(range(len(networks)), [network.name for network in networks])
        axes.set_ylim(len(networks) - 0.5, -0.5)
        axes.set_xlabel("nanojoules per image")
        axes.tick_params(length=0)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        _legend(
            figure,
            [(Patch(facecolor=_PLACEHOLDER[c], linewidth=0), label) for _, c, label in kinds],
        )
        table = Table(
            "Nanojoules per image",
            (Cell("network"), *(Cell(label) for _, _, label in kinds)),
            tuple(
                (
                    Cell(network.name),
                    *(Cell(f"{getattr(network.energy, kind) / 1000:,.4g}") for kind, _, _ in kinds),
                )
                for network in networks
            ),
        )
        alt = "Energy per image. " + " ".join(
            f"{row[0].text}: {row[1].text} nJ spiking, {row[3].text} nJ as a ReLU network."
            for row in table.rows
        )
        svg = _svg(figure, "energy", alt)
    caption = (
        "Of the 32-bit arithmetic alone, in 45 nm CMOS, memory and wires left out (Kundu et al. "
        "2021, section 5.4): a spike costs an addition, an image or an activation a multiplication."
    )
    return Drawing(svg, alt, caption, (table,))


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
    with _style():
        figure = Figure(figsize=(_WIDTH, 0.3 + 2.1 * rows), dpi=72, layout=_layout())
        panels = _panels(figure, rows, columns, len(sample.membranes))
        for axes, (layer, membrane) in zip(panels, sample.membranes.items(), strict=True):
            steps = np.arange(1, len(membrane.clean) + 1)
            axes.axhline(
                membrane.threshold, color=_PLACEHOLDER["muted"], linewidth=0.9, dashes=(3, 2)
            )
            traces = (membrane.clean, membrane.adversarial)
            low = min(0.0, *(float(trace.min()) for trace in traces))
            high = max(membrane.threshold, *(float(trace.max()) for trace in traces))
            tick = 0.09 * (high - low)
            spikes = sample.rasters[layer]
            for place, (trace, train, colour, dash) in enumerate(
                zip(traces, spikes, ("certificate", "attack"), _DASHES[:2], strict=True)
            ):
                axes.plot(steps, trace, color=_PLACEHOLDER[colour], linestyle=dash)
                bottom = high + tick * (0.6 + 1.3 * place)
                axes.vlines(
                    steps[train[:, membrane.neuron]], bottom, bottom + tick,
                    color=_PLACEHOLDER[colour], linewidth=1.6,
                )  # fmt: skip
            axes.set_ylim(low - tick, high + 3.4 * tick)
            axes.set_title(layer)
            axes.set_xlabel(f"time step, neuron {membrane.neuron:,}")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        _legend(
            figure,
            [
                (Line2D([], [], color=_PLACEHOLDER["certificate"]), "clean"),
                (Line2D([], [], color=_PLACEHOLDER["attack"], linestyle=_DASHES[1]), "adversarial"),
                (
                    Line2D([], [], color=_PLACEHOLDER["muted"], linewidth=0.9, dashes=(3, 2)),
                    "threshold",
                ),
            ],
        )
        alt = "Membranes. " + " ".join(
            f"{layer}, neuron {m.neuron}: {m.clean[-1]:.3g} after the last step clean, "
            f"{m.adversarial[-1]:.3g} adversarial."
            for layer, m in sample.membranes.items()
        )
        svg = _svg(figure, prefix, alt)
    return Drawing(svg, alt, "", (_membrane_table(sample),))


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
    with _style():
        figure = Figure(figsize=(_WIDTH, 0.3 + 4.2 * bands), dpi=72, layout=_layout())
        grid = figure.subplots(2 * bands, columns, squeeze=False)
        for number in range(bands * columns):
            band, column = divmod(number, columns)
            pair = (grid[2 * band, column], grid[2 * band + 1, column])
            if number < len(layers):
                _draw_layer(pair, *layers[number], label_rows=column == 0)
            else:
                for axes in pair:
                    axes.set_axis_off()
        _legend(
            figure,
            [
                (Patch(facecolor=_PLACEHOLDER[colour], linewidth=0), label)
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
        svg = _svg(figure, prefix, alt)
    return Drawing(svg, alt, "", (table,))


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


def _difference(sample: Sample) -> NDArray[np.float32]:
    return sample.adversarial - sample.clean


def _png(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(pixels), format="png", metadata=_NO_PNG_METADATA)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@contextmanager
def _style() -> Iterator[None]:
    # Matplotlib reads the SVG settings from rcParams alone, so they are set while drawing and put
    # back. Starting from "default" keeps a user's matplotlibrc out of the report.
    with matplotlib.style.context(["default", _STYLE]):
        yield


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(wspace=0.06, hspace=0.06)


def _panels(figure: Figure, rows: int, columns: int, count: int) -> list[Axes]:
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels:
        axes.tick_params(length=3)
    return panels[:count]


def _legend(figure: Figure, entries: Sequence[tuple[Artist, str]]) -> None:
    handles, labels = zip(*entries, strict=True)
    fitting = _LEGEND_LETTERS // (_HANDLE_LETTERS + max(map(len, labels)))
    columns = max(1, min(5, len(labels), fitting))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def _curve_style(kind: CurveKind, number: int) -> dict[str, Any]:
    # Orange discs against blue squares; within a kind dash and filling tell curves apart.
    return {
        "color": _PLACEHOLDER[kind],
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": "o" if kind == "attack" else "s",
        "fillstyle": ("full", "none")[number % 2],
        "clip_on": False,
    }


def _series_style(number: int, points: int) -> dict[str, Any]:
    return {
        "color": _PLACEHOLDER[f"series{number % _SERIES}"],
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markevery": max(1, points // 10),
    }


def _shade_gap(axes: Axes, network: NetworkResult) -> bool:
    attacks = [curve for curve in network.curves if curve.kind == "attack"]
    certificates = [curve for curve in network.curves if curve.kind == "certificate"]
    if not attacks or not certificates:
        return False
    low = max(curve.eps[0] for curve in network.curves)
    high = min(curve.eps[-1] for curve in network.curves)
    eps = np.unique([e for curve in network.curves for e in curve.eps if low <= e <= high])
    if eps.size < 2:
        return False
    above = np.min([np.interp(eps, curve.eps, curve.value) for curve in attacks], axis=0)
    below = np.max([np.interp(eps, curve.eps, curve.value) for curve in certificates], axis=0)
    axes.fill_between(
        eps, below, above, where=(above >= below).tolist(), color=_PLACEHOLDER["both"],
        alpha=0.16, linewidth=0,
    )  # fmt: skip
    return True


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
            axes.add_patch(PathPatch(_cells(marks), facecolor=_PLACEHOLDER[fill], linewidth=0))
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
        0, 1.02, part, transform=pair[0].transAxes, color=_PLACEHOLDER["muted"], va="bottom",
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


def _curve_table(network: NetworkResult) -> Table:
    sizes = sorted({eps for curve in network.curves for eps in curve.eps})
    counts = sorted({curve.count for curve in network.curves})
    images = " or ".join(f"{count:,}" for count in counts)
    return Table(
        f"{network.name}: share of correct images in %, 95 % Wilson interval, n = {images}",
        (Cell("ε"), *(Cell(curve.name, curve.kind) for curve in network.curves)),
        tuple(
            (Cell(eps_text(eps)), *(_curve_cell(curve, eps) for curve in network.curves))
            for eps in sizes
        ),
    )


def _curve_cell(curve: Curve, eps: float) -> Cell:
    if eps not in curve.eps:
        return Cell(MISSING)
    value = curve.value[curve.eps.index(eps)]
    return share_cell(value, curve.count)


def _member_cell(score: Score | None) -> Cell:
    return Cell(MISSING) if score is None else share_cell(score.value, score.count)


def _tested(network: NetworkResult) -> list[tuple[int, float]]:
    return [(e.epoch, e.val_accuracy) for e in network.history if e.val_accuracy is not None]


def _history_table(network: NetworkResult) -> Table:
    tested = dict(_tested(network))
    return Table(
        f"{network.name}: training",
        (Cell("epoch"), Cell("loss"), Cell("accuracy %"), *([Cell("test %")] if tested else [])),
        tuple(
            (
                Cell(str(epoch.epoch)),
                Cell(f"{epoch.loss:.4f}"),
                Cell(percent(epoch.accuracy)),
                *([Cell(percent(tested[epoch.epoch]))] if epoch.epoch in tested else []),
                *([Cell(MISSING)] if tested and epoch.epoch not in tested else []),
            )
            for epoch in network.history
        ),
    )


def _layer_table(network: NetworkResult) -> Table:
    return Table(
        f"{network.name}: layers of neurons",
        (
            Cell("layer"),
            Cell("neurons"),
            Cell("clean", "spikes per neuron and step"),
            Cell("adversarial", "spikes per neuron and step"),
            Cell("rates", "distance"),
            Cell("trains", "distance"),
        ),
        tuple(
            (
                Cell(layer.name),
                Cell(f"{layer.neurons:,}"),
                *(Cell(f"{share:.4f}") for share in (layer.clean, layer.adversarial)),
                *(Cell(f"{d:.4g}") for d in (layer.rate_distance, layer.train_distance)),
            )
            for layer in network.layers
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
        "Membrane after every step",
        tuple(heads),
        tuple(
            (Cell(str(t + 1)), *(Cell(f"{trace[t]:.4g}") for trace in traces)) for t in range(steps)
        ),
    )


def _sizes(scores: Sequence[Score]) -> str:
    return ", ".join(_ordered(eps_text(score.eps) for score in scores))


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


def _svg(figure: Figure, prefix: str, alt: str) -> str:
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


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
