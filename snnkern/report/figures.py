"""The figures of a whole study, each with its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from textwrap import wrap
from typing import Any, get_args

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from snnkern._table import MISSING, Cell, Table, eps_text, percent, share_cell
from snnkern.report.drawing import (
    DASHES,
    PLACEHOLDER,
    SERIES,
    Drawing,
    add_legend,
    as_svg,
    blank,
    panels_of,
    styled,
)
from snnkern.report.results import Curve, CurveKind, Layer, NetworkResult, Score
from snnkern.report.study import Study

_MARKERS = ("o", "s", "^", "D", "v", "P")
# How opaque the cell of a member is that breaks all: the number in it stays readable.
_HEAT = 0.55
_HEAT_COLUMNS = 6
# What fits above a cell.
_HEAT_LETTERS = 15
# From this ratio of largest to smallest positive eps on, a linear axis would squeeze the small
# sizes, where certificates live, against its edge.
_WIDE_EPS = 25.0


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
    with styled():
        figure = blank(0.35 + 2.9 * rows)
        panels = panels_of(figure, rows, columns, len(networks))
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
            patch = Patch(facecolor=PLACEHOLDER["both"], alpha=0.16, linewidth=0)
            legend.append((patch, "the truth lies between"))
        add_legend(figure, legend)
        alt = "Accuracy against ε. " + " ".join(
            f"{network.name}, {curve.name}: {percent(curve.value[0])} % at ε = "
            f"{eps_text(curve.eps[0])}, {percent(curve.value[-1])} % at {eps_text(curve.eps[-1])}."
            for network in networks
            for curve in network.curves
        )
        svg = as_svg(figure, "robustness", alt)
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
    with styled():
        figure = blank(2.7)
        tested = [network for network in networks if _tested(network)]
        left, right, *rest = panels_of(figure, 1, 2 + bool(tested), 2 + bool(tested))
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
        add_legend(figure, legend)
        alt = "Loss and training accuracy for each epoch. " + " ".join(
            f"{network.name} ends at loss {network.history[-1].loss:.4g}, "
            f"accuracy {percent(network.history[-1].accuracy)} %."
            for network in networks
        )
        svg = as_svg(figure, "training", alt)
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
    with styled():
        lines = 1 + max(len(wrap(network.name, _HEAT_LETTERS)) for network in networks)
        height = 0.4 + 0.15 * lines + 0.26 * rows
        figure = blank(height)
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
                            facecolor=PLACEHOLDER["attack"], alpha=_HEAT * broken,
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
        svg = as_svg(figure, "members", alt)
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
    with styled():
        figure = blank(2.7)
        legend: list[tuple[Artist, str]] = []
        axes_of = panels_of(figure, 1, len(panels), len(panels))
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
        add_legend(figure, legend)
        alt = "Activity and distances per layer. " + " ".join(
            f"{network.name}: {network.layers[0].clean:.3g} spikes per neuron and step in its "
            f"first layer, {network.layers[-1].clean:.3g} in its last."
            for network in networks
        )
        svg = as_svg(figure, "layers", alt)
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
    with styled():
        figure = blank(0.9 + 0.62 * len(networks))
        axes = figure.subplots()
        for place, (kind, colour, _) in enumerate(kinds):
            axes.barh(
                [number + 0.25 * (place - 1) for number in range(len(networks))],
                [getattr(network.energy, kind) / 1000 for network in networks],
                height=0.22, color=PLACEHOLDER[colour], linewidth=0,
            )  # fmt: skip
        axes.set_yticks(range(len(networks)), [network.name for network in networks])
        axes.set_ylim(len(networks) - 0.5, -0.5)
        axes.set_xlabel("nanojoules per image")
        axes.tick_params(length=0)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        add_legend(
            figure,
            [(Patch(facecolor=PLACEHOLDER[c], linewidth=0), label) for _, c, label in kinds],
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
        svg = as_svg(figure, "energy", alt)
    caption = (
        "Of the 32-bit arithmetic alone, in 45 nm CMOS, memory and wires left out (Kundu et al. "
        "2021, section 5.4): a spike costs an addition, an image or an activation a multiplication."
    )
    return Drawing(svg, alt, caption, (table,))


def _curve_style(kind: CurveKind, number: int) -> dict[str, Any]:
    # Orange discs against blue squares; within a kind dash and filling tell curves apart.
    return {
        "color": PLACEHOLDER[kind],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": "o" if kind == "attack" else "s",
        "fillstyle": ("full", "none")[number % 2],
        "clip_on": False,
    }


def _series_style(number: int, points: int) -> dict[str, Any]:
    return {
        "color": PLACEHOLDER[f"series{number % SERIES}"],
        "linestyle": DASHES[number % len(DASHES)],
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
        eps, below, above, where=(above >= below).tolist(), color=PLACEHOLDER["both"],
        alpha=0.16, linewidth=0,
    )  # fmt: skip
    return True


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


def _sizes(scores: Sequence[Score]) -> str:
    return ", ".join(_ordered(eps_text(score.eps) for score in scores))


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
