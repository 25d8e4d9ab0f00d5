"""The report shows the study's numbers, all of them and no others, on a page of its own."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from snnkern._intervals import wilson
from snnkern._table import eps_text, interval, percent
from snnkern.report import (
    Curve,
    Energy,
    Epoch,
    Layer,
    Membrane,
    NetworkResult,
    Sample,
    Score,
    Study,
    table_text,
    write_report,
)
from snnkern.report.figures import energy, layers, members, robustness, training
from snnkern.report.page import summary
from snnkern.report.samples import amplification, difference_picture, membranes, picture, raster

DIGITS = {
    3: "00ffff00 0f0000f0 000000f0 000fff00 000000f0 000000f0 0f0000f0 00ffff00",
    5: "0ffffff0 0f000000 0f000000 0fffff00 000000f0 000000f0 0f0000f0 00ffff00",
    0: "000ff000 00f00f00 0f0000f0 0f0000f0 0f0000f0 0f0000f0 00f00f00 000ff000",
    7: "0ffffff0 000000f0 00000f00 0000f000 000f0000 000f0000 00f00000 00f00000",
}
TIMESTEPS = 8
FIGURES = ("robustness", "members", "training", "layers", "energy")
EPS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)


def digit(label: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """An 8x8 digit, its strokes uneven as in handwriting, [1, 8, 8]."""
    rows = DIGITS[label].split()
    strokes = np.array([[int(pixel, 16) / 15 for pixel in row] for row in rows])
    blurred = strokes + 0.25 * (np.roll(strokes, 1, 0) + np.roll(strokes, 1, 1))
    uneven = blurred * generator.uniform(0.6, 1.0, blurred.shape)
    clipped: NDArray[np.float32] = np.clip(uneven, 0, 1)[None].astype(np.float32)
    return clipped


def example_sample(label: int, wrong: int, generator: np.random.Generator, moved: float) -> Sample:
    """A digit under PGD, with the spikes of two convolutions and a readout."""
    clean = digit(label, generator)
    step = 0.1 * np.sign(generator.normal(size=clean.shape))
    rasters = {}
    membranes = {}
    for layer, neurons, rate in (("conv1", 1024, 0.22), ("conv2", 512, 0.12), ("hidden", 64, 0.3)):
        rates = rate * 2 * generator.beta(0.6, 1.2, neurons)
        before = generator.random((TIMESTEPS, neurons)) < rates
        after = before ^ (generator.random(before.shape) < moved * rates)
        rasters[layer] = (before, after)
        membranes[layer] = Membrane(
            neurons // 3, 0.25, *generator.normal(size=(2, TIMESTEPS)).astype(np.float32)
        )
    return Sample(
        label=label,
        clean=clean,
        adversarial=np.clip(clean + step, 0, 1).astype(np.float32),
        predicted_clean=label,
        predicted_adversarial=wrong,
        eps=0.1,
        attack="PGD-20",
        rasters=rasters,
        membranes=membranes,
    )


def example_network(
    name: str, method: str, seed: int, falls: tuple[float, float], certified: float
) -> NetworkResult:
    """A network whose shares fall with eps as fast as `falls` (FGSM, PGD) and `certified` say."""
    generator = np.random.default_rng(seed)
    count = 360

    def share(eps: float, fall: float) -> float:
        return round(0.97 * count * float(np.exp(-((fall * eps) ** 1.5)))) / count

    def curve(name: str, kind: Any, fall: float) -> Curve:
        return Curve(name, kind, EPS, tuple(share(eps, fall) for eps in EPS), count)

    history = tuple(
        Epoch(
            epoch,
            2.3 * float(np.exp(-epoch / (3 + 2 * seed))) + 0.05 * float(generator.random()),
            1 - 0.8 * float(np.exp(-epoch / (2 + 2 * seed))) - 0.02 * float(generator.random()),
            None if seed == 2 and epoch % 2 else 0.5 + 0.4 * float(generator.random()),
        )
        for epoch in range(1, 21)
    )
    moved = 1.2 if falls[1] > 8 else 0.4
    return NetworkResult(
        name=name,
        method=method,
        timesteps=TIMESTEPS,
        clean=Score("clean", 0.0, share(0.0, 0.0), count),
        attacked=(
            Score("FGSM", 0.1, share(0.1, falls[0]), count),
            Score("PGD-20", 0.1, share(0.1, falls[1]), count),
        ),
        certified=Score("S-IBP", 0.02, share(0.02, certified), count),
        spikes_per_image=1834.4 + 10 * seed,
        seconds=21.53 + 20 * seed,
        curves=(
            curve("FGSM", "attack", falls[0]),
            curve("PGD-20", "attack", falls[1]),
            curve("S-IBP", "certificate", certified),
        ),
        members=tuple(
            Score(gradient, 0.1, share(0.1, fall), count)
            for gradient, fall in (("Triangle(1)", 4.0), ("rate", 2.0), ("relu", 3.0 + seed))
        ),
        history=history,
        layers=tuple(
            Layer(f"{number} (layers.{number})", 2**number, *generator.random(2).tolist(), *more)
            for number, more in enumerate(generator.uniform(0, 9, (3, 2)).tolist(), start=1)
        ),
        energy=Energy(51.2 * seed, 48.1 * seed, 140.0 + seed),
        samples=tuple(
            example_sample(label, wrong if moved > 1 else label, generator, moved)
            for label, wrong in ((3, 5), (5, 3), (0, 6), (7, 9))
        ),
    )


def example_study() -> Study:
    """Two networks on 8x8 digits, one trained naturally and one robustly."""
    return Study(
        title="Natural and robust training of a spiking network",
        description="A small convolutional LIF network learns handwritten digits twice; both are "
        "attacked and certified on the same test images.",
        provenance={
            "date": "2026-08-01 12:00",
            "machine": "x86-64, 2 cores",
            "python": "3.11.9",
            "torch": "2.13.0",
            "snnkern": "0.1.0",
            "backend": "cpu",
            "seed": "0",
            "command": "snnkern demo --seed 0",
        },
        dataset="digits, 1,437 train and 360 test images of 8x8",
        networks=(
            example_network("Natural", "cross-entropy", 1, (7.0, 12.0), 60.0),
            example_network("RAT", "single-step attacks", 2, (3.0, 4.0), 15.0),
        ),
    )


def with_networks(study: Study, **changes: Any) -> Study:
    networks = tuple(dataclasses.replace(network, **changes) for network in study.networks)
    return dataclasses.replace(study, networks=networks)


class Page(HTMLParser):
    """What a reader finds on the page: tables by section, ids, links to resources, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: set[str] = set()
        self.tables: list[list[list[list[str]]]] = []
        self.captions: list[str] = []
        self.ids: list[str] = []
        self.resources: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.labels: list[str] = []
        self._target: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            text = value or ""
            if name == "id":
                self.ids.append(text)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.resources.append(text)
            if name == "aria-label":
                self.labels.append(text)
            self.resources += re.findall(r"url\(([^)]*)\)", text)
        if tag == "section":
            self.sections.add(dict(attrs)["id"] or "")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self._target = []
            self.tables[-1][-1].append(self._target)
        if tag == "caption":
            self.captions.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._target = None

    def handle_data(self, data: str) -> None:
        if text := data.strip():
            self.texts.append(text)
            if self._target is not None:
                self._target.append(text)
            if self.captions and not self.captions[-1]:
                self.captions[-1] = text


def page_of(study: Study, folder: Path) -> Page:
    return Page(write_report(study, folder).read_text(encoding="utf-8"))


def alone(study: Study) -> Study:
    """Its first network alone: half as much to draw."""
    return dataclasses.replace(study, networks=study.networks[:1])


def small_study() -> Study:
    study = example_study()
    networks = tuple(dataclasses.replace(n, samples=n.samples[:1]) for n in study.networks)
    return dataclasses.replace(study, networks=networks)


@pytest.fixture(scope="module")
def study() -> Study:
    return small_study()


@pytest.fixture(scope="module")
def html(study: Study, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(study, tmp_path_factory.mktemp("report")).read_text(encoding="utf-8")


def test_the_table_of_results_holds_the_numbers_of_the_study(study: Study, html: str) -> None:
    head, *rows = Page(html).tables[0]
    assert [cell[0] for cell in head] == [
        "Network",
        "Clean",
        "FGSM",
        "PGD-20",
        "Certified S-IBP",
        "Spikes",
        "Training",
    ]
    assert [cell[1] for cell in head[2:5]] == ["%, ε = 0.1", "%, ε = 0.1", "%, ε = 0.02"]
    for network, row in zip(study.networks, rows, strict=True):
        assert network.certified is not None
        scores = (network.clean, *network.attacked, network.certified)
        assert row == [
            [network.name, network.method],
            *([percent(s.value), interval(s.value, s.count)] for s in scores if s is not None),
            [f"{network.spikes_per_image:,.0f}"],
            [f"{network.seconds:,.1f}"],
        ]


def test_the_facts_stand_on_the_page_and_in_the_markdown(study: Study, tmp_path: Path) -> None:
    page = page_of(study, tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for fact in (study.title, study.description, study.dataset, *study.provenance.values()):
        assert fact in page.texts
        assert fact in markdown


def test_the_numbers_behind_the_curves_are_the_curves(study: Study, html: str) -> None:
    page = Page(html)
    for network in study.networks:
        found = [
            table
            for table, caption in zip(page.tables, page.captions, strict=True)
            if caption.startswith(f"{network.name}: share")
        ]
        (head, *rows), *others = found
        assert not others
        assert head[1:] == [[curve.name, curve.kind] for curve in network.curves]
        for eps, row in zip(EPS, rows, strict=True):
            expected = [[percent(c.value[c.eps.index(eps)])] for c in network.curves]
            assert row[0] == [eps_text(eps)]
            assert [cell[:1] for cell in row[1:]] == expected


def test_the_numbers_behind_the_training_are_the_history(study: Study, html: str) -> None:
    page = Page(html)
    for network in study.networks:
        (_, *rows) = page.tables[page.captions.index(f"{network.name}: training")]
        assert rows == [
            [[str(e.epoch)], [f"{e.loss:.4f}"], [percent(e.accuracy)], [validated(e)]]
            for e in network.history
        ]


def validated(epoch: Epoch) -> str:
    return "\N{EN DASH}" if epoch.val_accuracy is None else percent(epoch.val_accuracy)


def test_the_numbers_behind_a_raster_count_the_spikes(study: Study) -> None:
    sample = study.networks[0].samples[0]
    drawing = raster(sample, "r")
    assert drawing is not None
    for row, (layer, (clean, adversarial)) in zip(
        drawing.tables[0].rows, sample.rasters.items(), strict=True
    ):
        assert [cell.text.replace(",", "") for cell in row] == [
            layer,
            str(clean.shape[1]),
            str(clean.sum()),
            str(adversarial.sum()),
            str((clean != adversarial).sum()),
        ]


def test_a_raster_draws_each_spike_once_where_it_belongs() -> None:
    clean = np.zeros((4, 3), dtype=bool)
    adversarial = clean.copy()
    clean[0, 0] = clean[1, 1] = adversarial[1, 1] = adversarial[3, 2] = adversarial[2, 2] = True
    sample = dataclasses.replace(
        small_study().networks[0].samples[0],
        rasters={"layer": (clean, adversarial)},
        membranes={},
    )
    drawing = raster(sample, "r")
    assert drawing is not None

    def marks(colour: str) -> list[int]:
        paths = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: var\(--{colour}\)"', drawing.svg)
        return [path.count("M") for path in paths]

    # Each colour also has its patch in the legend, which comes last.
    assert marks("both") == [1, 1, 1]
    assert marks("certificate") == [1, 1]
    assert marks("attack") == [2, 1]


def paths(svg: str, colour: str) -> list[NDArray[np.float64]]:
    """The points of every line of a colour, in the order in which they are drawn."""
    style = rf'style="fill: none;[^"]*stroke: var\(--{colour}\)'
    found = re.findall(rf'<path d="([^"]*)"[^>]*{style}', svg)
    return [np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path), dtype=float) for path in found]


def assert_drawn(path: NDArray[np.float64], x: Any, y: Any) -> None:
    """The path has these points, up to where the axes stand and how large they are."""
    assert len(path) == len(x)
    for drawn, values, sign in ((path[:, 0], x, 1), (path[:, 1], y, -1)):
        slope, start = np.polyfit(np.asarray(values, dtype=float), drawn, 1)
        np.testing.assert_allclose(slope * np.asarray(values) + start, drawn, atol=2e-3)
        assert slope * sign > 0


def test_the_lines_of_robustness_are_the_curves(study: Study) -> None:
    drawing = robustness(study)
    assert drawing is not None
    drawn = {kind: paths(drawing.svg, kind) for kind in ("attack", "certificate")}
    for network in study.networks:
        for curve in network.curves:
            assert_drawn(drawn[curve.kind].pop(0), curve.eps, curve.value)


def test_the_lines_of_training_are_the_history(study: Study) -> None:
    drawing = training(study)
    assert drawing is not None
    for number, network in enumerate(study.networks):
        drawn = paths(drawing.svg, f"series{number}")
        epochs = [epoch.epoch for epoch in network.history]
        assert_drawn(drawn[0], epochs, [epoch.loss for epoch in network.history])
        assert_drawn(drawn[1], epochs, [epoch.accuracy for epoch in network.history])
        measured = [e for e in network.history if e.val_accuracy is not None]
        assert len(measured) == (20, 10)[number]
        assert_drawn(drawn[2], [e.epoch for e in measured], [e.val_accuracy for e in measured])


def test_the_lines_of_layers_are_their_measures(study: Study) -> None:
    drawing = layers(study)
    assert drawing is not None
    for number, (network, table) in enumerate(zip(study.networks, drawing.tables, strict=True)):
        drawn = paths(drawing.svg, f"series{number}")
        for path, part in zip(drawn, ("clean", "rate_distance", "train_distance"), strict=False):
            assert_drawn(path, (1, 2, 3), [getattr(layer, part) for layer in network.layers])
        for row, layer in zip(table.rows, network.layers, strict=True):
            assert [cell.text for cell in row] == [
                layer.name,
                str(layer.neurons),
                f"{layer.clean:.4f}",
                f"{layer.adversarial:.4f}",
                f"{layer.rate_distance:.4g}",
                f"{layer.train_distance:.4g}",
            ]


def test_the_bars_of_energy_are_as_long_as_it_is_large(study: Study) -> None:
    drawing = energy(study)
    assert drawing is not None
    lengths = []
    for colour in ("certificate", "attack", "both"):
        found = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: var\(--{colour}\)"', drawing.svg)
        for path in found[:2]:
            across = [float(x) for x in re.findall(r"[ML] ([-\d.]+)", path)]
            lengths.append(max(across) - min(across))
    expected = [
        getattr(network.energy, part)
        for part in ("clean", "adversarial", "dense")
        for network in study.networks
    ]
    np.testing.assert_allclose(
        np.array(lengths) / lengths[0], np.array(expected) / expected[0], atol=1e-3
    )
    numbers = [[cell.text for cell in row[1:]] for row in drawing.tables[0].rows]
    assert numbers[1] == ["0.1024", "0.0962", "0.142"]


def test_the_heat_of_members_is_what_they_break(study: Study) -> None:
    first, second = study.networks
    fewer = dataclasses.replace(second, members=second.members[1:])
    drawing = members(dataclasses.replace(study, networks=(first, fewer)))
    assert drawing is not None
    heat = re.findall(
        r'<path d="M ([-\d.]+) ([-\d.]+)[^"]*"[^>]*style="fill: var\(--attack\); opacity: ([\d.]+)',
        drawing.svg,
    )
    cells = [score for network in (first, fewer) for score in network.members]
    assert len(heat) == len(cells) == 5
    shares = [1 - float(opacity) / 0.55 for *_, opacity in heat]
    np.testing.assert_allclose(shares, [score.value for score in cells], atol=1e-5)
    assert heat[1][1] == heat[3][1]  # one row, two columns
    assert float(heat[1][0]) < float(heat[3][0])
    rows = [[cell.text for cell in row] for row in drawing.tables[0].rows]
    values = [percent(score.value) for score in cells]
    assert rows == [
        ["Triangle(1)", values[0], "\N{EN DASH}"],
        ["rate", values[1], values[3]],
        ["relu", values[2], values[4]],
    ]


def test_the_membranes_are_the_traces_and_their_strokes_the_spikes(study: Study) -> None:
    sample = study.networks[0].samples[0]
    drawing = membranes(sample, "m")
    assert drawing is not None
    drawn = {kind: paths(drawing.svg, kind) for kind in ("certificate", "attack")}
    steps = range(1, TIMESTEPS + 1)
    for layer, membrane in sample.membranes.items():
        kinds = (("certificate", membrane.clean), ("attack", membrane.adversarial))
        for (kind, trace), train in zip(kinds, sample.rasters[layer], strict=True):
            line = drawn[kind].pop(0)
            assert_drawn(line, steps, trace)
            fired = np.flatnonzero(train[:, membrane.neuron])
            strokes = [drawn[kind].pop(0) for _ in fired]
            assert [stroke[0, 0] for stroke in strokes] == [line[step, 0] for step in fired]
            assert all(len(stroke) == 2 for stroke in strokes)
    for step, row in enumerate(drawing.tables[0].rows):
        traces = [t for m in sample.membranes.values() for t in (m.clean, m.adversarial)]
        assert [cell.text for cell in row] == [
            str(step + 1),
            *(f"{trace[step]:.4g}" for trace in traces),
        ]


def test_what_is_missing_is_said(study: Study, tmp_path: Path) -> None:
    line = "Certified share: snnkern certify RUN"
    lacking = with_networks(study, missing=(line,), samples=(), history=(), layers=())
    page = page_of(lacking, tmp_path)
    assert "missing" in page.sections
    assert page.texts.count(line) == 2
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.count(f"- {line}") == 2


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"samples": ()}, {"samples", "rasters"}),
        ({"history": ()}, {"training"}),
        ({"curves": ()}, {"robustness"}),
        ({"attacked": ()}, set()),
        ({"members": ()}, {"members"}),
        ({"layers": ()}, {"layers"}),
        ({"energy": None}, {"energy"}),
        ({"clean": None, "spikes_per_image": None, "seconds": None}, set()),
        ({"certified": None}, set()),
        (
            {"samples": (), "history": (), "curves": (), "attacked": (), "certified": None},
            {"samples", "rasters", "training", "robustness"},
        ),
    ],
)
def test_what_is_missing_is_left_out(
    study: Study, tmp_path: Path, changes: dict[str, Any], missing: set[str]
) -> None:
    page = page_of(with_networks(alone(study), **changes), tmp_path)
    everything = {"results", *FIGURES, "samples", "rasters"}
    assert page.sections == everything - missing
    names = [cell[0] for cell in page.tables[0][0]]
    assert ("FGSM" in names) == ("attacked" not in changes)
    assert ("Certified S-IBP" in names) == ("certified" not in changes)


@pytest.mark.parametrize(("reads", "opened"), [((0, 0), 0), ((0, 9), 1), ((9, 9), 0)])
def test_the_first_sample_that_is_broken_stands_open(
    study: Study, tmp_path: Path, reads: tuple[int, int], opened: int
) -> None:
    """Right and then wrong; else the first one."""
    sample = dataclasses.replace(study.networks[0].samples[0], label=0)
    samples = [
        dataclasses.replace(sample, predicted_clean=clean, predicted_adversarial=attacked)
        for clean, attacked in ((0, 0), reads)
    ]
    write_report(with_networks(alone(study), samples=tuple(samples)), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    details = re.findall(r'<details class="raster"( open)?>', page)
    assert details == [" open" if number == opened else "" for number in range(2)]


def test_the_markdown_has_the_numbers_of_the_spikes(study: Study, tmp_path: Path) -> None:
    write_report(study, tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for network in study.networks:
        for number, sample in enumerate(network.samples):
            assert f"## Spikes in time: {network.name}, label {sample.label}\n" in markdown
            for drawing in (raster(sample, f"r{number}"), membranes(sample, f"m{number}")):
                assert drawing is not None
                for table in drawing.tables:
                    assert table.markdown() in markdown


def test_the_caption_of_distances_names_the_attack(study: Study) -> None:
    drawn = layers(study)
    assert drawn is not None
    assert drawn.caption.endswith("the mean over images; the attack is PGD-20, ε = 0.1.")
    without = [dataclasses.replace(network, samples=()) for network in study.networks]
    drawn = layers(dataclasses.replace(study, networks=tuple(without)))
    assert drawn is not None
    assert drawn.caption.endswith("the mean over images.")


def test_samples_without_spikes_have_no_rasters(study: Study, tmp_path: Path) -> None:
    bare = [
        dataclasses.replace(sample, rasters={}, membranes={})
        for sample in study.networks[0].samples
    ]
    page = page_of(with_networks(alone(study), samples=tuple(bare)), tmp_path)
    assert page.sections == {"results", *FIGURES, "samples"}


def test_networks_measured_differently_share_a_table(study: Study, tmp_path: Path) -> None:
    first, second = study.networks
    other = dataclasses.replace(
        second, attacked=(Score("APGD", 8 / 255, 0.5, 100),), certified=None, curves=()
    )
    head, one, two = page_of(dataclasses.replace(study, networks=(first, other)), tmp_path).tables[
        0
    ]
    assert [cell[0] for cell in head[1:6]] == ["Clean", "FGSM", "PGD-20", "APGD", "Certified S-IBP"]
    assert head[4][1] == "%, ε = 8/255"
    dash = ["\N{EN DASH}"]
    assert (one[4], two[2], two[3], two[5]) == (dash, dash, dash, dash)
    assert two[4] == ["50.0", f"{interval(0.5, 100)}, n=100"]
    assert one[1][1].endswith(", n=360")


def test_names_are_shown_as_they_are_and_never_run(study: Study, tmp_path: Path) -> None:
    evil = '<script>alert("1")</script> & $x$ | _y_ <!-- fill: #000001'
    first, second = study.networks
    renamed = dataclasses.replace(
        first,
        name=evil,
        method=evil,
        attacked=(dataclasses.replace(first.attacked[0], name=evil),),
        curves=(dataclasses.replace(first.curves[0], name=evil), first.curves[2]),
        samples=(
            dataclasses.replace(
                first.samples[0],
                attack=evil,
                rasters={evil: next(iter(first.samples[0].rasters.values()))},
                membranes={evil: next(iter(first.samples[0].membranes.values()))},
            ),
        ),
    )
    changed = dataclasses.replace(
        study,
        title=evil,
        description=evil,
        dataset=evil,
        provenance={evil: evil},
        networks=(renamed, dataclasses.replace(second, name="_second")),
    )
    page = page_of(changed, tmp_path)
    assert "script" not in page.tags
    assert page.texts.count(evil) >= 8
    assert "_second" in page.texts
    assert any(evil in label for label in page.labels)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown
    for block in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1


def test_the_page_refers_to_nothing_outside(html: str) -> None:
    page = Page(html)
    assert page.resources
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.resources)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "http" not in html.replace("http-equiv", "")
    assert "@import" not in html


def test_ids_are_unique_and_every_reference_finds_one(html: str) -> None:
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    used = {link.removeprefix("#") for link in page.resources if link.startswith("#")}
    assert used <= set(page.ids)


def test_figures_take_their_colours_from_the_page(html: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(drawings) == len(FIGURES) + 2 * 2
    for svg in drawings:
        ElementTree.fromstring(svg.replace("xlink:href", "href"))
        assert re.findall(r"#[0-9a-f]{6}", svg) == []
    used = set(re.findall(r"var\(--(\w+)\)", html))
    light, dark = re.findall(r":root \{(.*?)\}", html, flags=re.DOTALL)
    assert used <= set(re.findall(r"--(\w+):", light))
    assert set(re.findall(r"--(\w+): #", light)) == set(re.findall(r"--(\w+): #", dark))


def test_the_same_study_gives_the_same_bytes(study: Study, html: str, tmp_path: Path) -> None:
    again = write_report(small_study(), tmp_path).read_text(encoding="utf-8")
    assert again == html


def test_drawing_leaves_matplotlib_as_it_was(study: Study) -> None:
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30.0, "text.usetex": False}):
        drawing = robustness(study)
    assert drawing == robustness(study)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("networks", [1, 3])
def test_any_number_of_networks_is_drawn(study: Study, networks: int) -> None:
    many = tuple(
        dataclasses.replace(study.networks[0], name=f"network {n}") for n in range(networks)
    )
    changed = dataclasses.replace(study, networks=many)
    for draw in (robustness, training, layers):
        drawing = draw(changed)
        assert drawing is not None
        assert len(drawing.tables) == networks
        assert f"network {networks - 1}" in drawing.svg


def test_curves_on_different_eps_leave_gaps_in_the_numbers(study: Study) -> None:
    network = dataclasses.replace(
        study.networks[0],
        curves=(
            Curve("PGD", "attack", (0.0, 0.1), (0.9, 0.2), 50),
            Curve("S-IBP", "certificate", (0.0, 0.001), (0.9, 0.4), 20),
        ),
    )
    drawing = robustness(dataclasses.replace(study, networks=(network,)))
    assert drawing is not None
    texts = [[cell.text for cell in row] for row in drawing.tables[0].rows]
    dash = "\N{EN DASH}"
    assert texts == [["0", "90.0", "90.0"], ["0.001", dash, "40.0"], ["0.1", "20.0", dash]]
    assert "logarithmic" in drawing.caption


def decode(uri: str, folder: Path) -> NDArray[Any]:
    file = folder / "image.png"
    file.write_bytes(base64.b64decode(uri.removeprefix("data:image/png;base64,")))
    return np.round(imread(file) * 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_hold_the_pixels(channels: int, tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((channels, 5, 7), dtype=np.float32)
    shown = decode(picture(image), tmp_path)[..., :3]
    expected = np.broadcast_to(np.round(image * 255), (3, 5, 7)).transpose(1, 2, 0)
    np.testing.assert_array_equal(shown, expected)


def test_the_difference_is_amplified_to_fill_the_range(study: Study, tmp_path: Path) -> None:
    sample = study.networks[0].samples[0]
    assert amplification(study.networks[0].samples) == 10
    shown = decode(difference_picture(sample, 10), tmp_path)
    difference = (sample.adversarial - sample.clean)[0]
    opacity = np.clip(np.abs(difference) * 10, 0, 1) * 255
    np.testing.assert_allclose(shown[..., 3], opacity, atol=0.51)
    # Red above blue where brighter, blue above red where darker.
    visible = shown[..., 3] > 0
    brighter = shown[..., 0] > shown[..., 2]
    np.testing.assert_array_equal(brighter[visible], difference[visible] > 0)
    same = dataclasses.replace(sample, adversarial=sample.clean)
    assert amplification([same]) == 1
    assert not decode(difference_picture(same, 1), tmp_path)[..., 3].any()


def test_coloured_images_are_drawn(study: Study, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    clean = generator.random((3, 4, 4), dtype=np.float32)
    sample = dataclasses.replace(study.networks[0].samples[0], clean=clean, adversarial=clean)
    assert "samples" in page_of(with_networks(alone(study), samples=(sample,)), tmp_path).sections
    grey = decode(difference_picture(sample, 1), tmp_path)[..., :3]
    assert set(np.unique(grey)) == {128}


def test_json_round_trip_is_exact(study: Study, tmp_path: Path) -> None:
    value = 1 / 3 + 1e-16
    exact = with_networks(study, clean=Score("clean", 0.0, value, 7), seconds=0.1 + 0.2)
    exact.save(tmp_path)
    loaded = Study.load(tmp_path)
    assert loaded == exact
    assert loaded.networks[0].clean == Score("clean", 0.0, value, 7)
    for before, after in zip(study.networks[0].samples, loaded.networks[0].samples, strict=True):
        assert list(before.rasters) == list(after.rasters)
        assert after.clean.dtype == np.float32
        np.testing.assert_array_equal(before.clean, after.clean)


def test_studies_that_differ_in_one_pixel_or_spike_are_not_equal(study: Study) -> None:
    sample = study.networks[0].samples[0]
    pixel = sample.clean.copy()
    pixel[0, 0, 0] = 0.123
    assert sample != dataclasses.replace(sample, clean=pixel)
    spikes = {layer: (~pair[0], pair[1]) for layer, pair in sample.rasters.items()}
    assert sample != dataclasses.replace(sample, rasters=spikes)
    assert sample == dataclasses.replace(sample, clean=sample.clean.copy())


def test_a_study_of_another_kind_is_refused(study: Study, tmp_path: Path) -> None:
    study.save(tmp_path / "one")
    numbers = json.loads((tmp_path / "one" / "study.json").read_text())
    with_networks(study, samples=()).save(tmp_path / "two")
    (tmp_path / "two" / "study.npz").replace(tmp_path / "one" / "study.npz")
    with pytest.raises(ValueError, match=r"study\.npz must be the file written with"):
        Study.load(tmp_path / "one")
    (tmp_path / "one" / "study.json").write_text(json.dumps({**numbers, "format": 99}))
    with pytest.raises(ValueError, match="must have format 2, got 99"):
        Study.load(tmp_path / "one")


def test_writing_leaves_no_other_files(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    for _ in range(2):
        write_report(with_networks(alone(study), samples=()), folder)
        study.save(folder)
    assert {path.name for path in folder.iterdir()} == {
        "report.html",
        "report.md",
        "study.json",
        "study.npz",
    }


def image(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    return np.zeros(shape, dtype=dtype)


def spikes(*shape: int) -> NDArray[np.bool_]:
    return np.zeros(shape, dtype=np.bool_)


def trace() -> NDArray[np.float32]:
    return np.zeros(2, dtype=np.float32)


def sample_with(**changes: Any) -> Sample:
    options: dict[str, Any] = {
        "label": 1,
        "clean": image(1, 2, 2),
        "adversarial": image(1, 2, 2),
        "predicted_clean": 1,
        "predicted_adversarial": 2,
        "eps": 0.1,
        "attack": "PGD",
    }
    return Sample(**{**options, **changes})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Score("a", 0.1, 1.2, 5), ValueError, r"value must .*\[0, 1\], got 1.2"),
        (lambda: Score("a", 0.1, -0.1, 5), ValueError, "value must .* got -0.1"),
        (lambda: Score("a", 0.1, float("nan"), 5), ValueError, "value must .* got nan"),
        (lambda: Score("a", float("inf"), 0.5, 5), ValueError, "eps must be finite .* got inf"),
        (lambda: Score("a", -0.1, 0.5, 5), ValueError, "eps must .* got -0.1"),
        (lambda: Score("a", 0.1, 0.5, 0), ValueError, "count must be at least 1, got 0"),
        (lambda: Score("a", 0.1, 0.5, 5.0), TypeError, "count must be an int, got 5.0"),  # type: ignore[arg-type]
        (lambda: Score("a", 0.1, True, 5), TypeError, "value must be a float, got True"),
        (lambda: Score("a", 0.1, np.float32(0.5), 5), TypeError, "value must be a float"),  # type: ignore[arg-type]
        (lambda: Score(3, 0.1, 0.5, 5), TypeError, "name must be a str, got 3"),  # type: ignore[arg-type]
        (lambda: Curve("a", "guess", (0.0,), (1.0,), 5), ValueError, "kind must .* got 'guess'"),  # type: ignore[arg-type]
        (lambda: Curve("a", "attack", (), (), 5), ValueError, "eps and value must .* 0 and 0"),
        (lambda: Curve("a", "attack", (0.0,), (1.0, 1.0), 5), ValueError, "got 1 and 2"),
        (lambda: Curve("a", "attack", (0.1, 0.1), (1.0, 1.0), 5), ValueError, "increasing"),
        (lambda: Curve("a", "attack", (0.1,), (float("nan"),), 5), ValueError, "value .* nan"),
        (lambda: Epoch(-1, 0.1, 0.5), ValueError, "epoch must be at least 0, got -1"),
        (lambda: Epoch(1, float("nan"), 0.5), ValueError, "loss must be finite .* got nan"),
        (lambda: Epoch(1, 0.1, 50.0), ValueError, "accuracy must .* got 50.0"),
        (lambda: sample_with(clean=image(1, 2, 2, dtype=np.float64)), TypeError, "clean .*float64"),
        (lambda: sample_with(clean=[[0.0]]), TypeError, "clean must be a float32 array, got list"),
        (lambda: sample_with(clean=image(2, 2)), ValueError, r"clean must have shape .*\[2, 2\]"),
        (lambda: sample_with(clean=image(2, 2, 2)), ValueError, r"clean .* got \[2, 2, 2\]"),
        (lambda: sample_with(adversarial=image(1, 2, 3)), ValueError, r"adversarial .*\[1, 2, 3\]"),
        (lambda: sample_with(adversarial=image(1, 2, 2) + 2), ValueError, r"adversarial .* 2\.0"),
        (lambda: sample_with(clean=image(1, 2, 2) + np.nan), ValueError, "clean .* nan"),
        (lambda: sample_with(label="3"), TypeError, "label must be an int, got '3'"),
        (lambda: sample_with(predicted_clean=-1), ValueError, "predicted_clean .* got -1"),
        (lambda: sample_with(rasters={"a": (image(2, 2),) * 2}), TypeError, r"rasters\['a'\]"),
        (lambda: sample_with(rasters={"a": (spikes(2),) * 2}), ValueError, r"rasters.*\[2\]"),
        (
            lambda: sample_with(membranes={"a": Membrane(0, 1.0, *[trace()] * 2)}),
            ValueError,
            r"membranes\['a'\] must be of a neuron in rasters, got neuron 0 with 2 steps",
        ),
        (
            lambda: sample_with(
                rasters={"a": (spikes(2, 3),) * 2},
                membranes={"a": Membrane(3, 1.0, *[trace()] * 2)},
            ),
            ValueError,
            r"membranes\['a'\] must be .* got neuron 3",
        ),
        (lambda: Layer("a", 0, 0.1, 0.1, 1.0, 1.0), ValueError, "neurons must be at least 1"),
        (lambda: Layer("a", 3, 1.5, 0.1, 1.0, 1.0), ValueError, "clean must .* got 1.5"),
        (lambda: Energy(1.0, -1.0, 1.0), ValueError, "adversarial must .* got -1.0"),
        (
            lambda: sample_with(rasters={"a": (spikes(2, 3), spikes(2, 4))}),
            ValueError,
            r"rasters\['a'\] must have one shape .* \[2, 3\] and \[2, 4\]",
        ),
        (lambda: wilson(0.5, 0), ValueError, "count is 0, expected an int of at least 1"),
    ],
)
def test_bad_values_are_refused_by_name(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_studies_that_contradict_themselves_are_refused(study: Study) -> None:
    with pytest.raises(ValueError, match="networks must not be empty"):
        dataclasses.replace(study, networks=())
    with pytest.raises(ValueError, match="names must differ from one another, got 'Natural' twice"):
        dataclasses.replace(study, networks=(study.networks[0],) * 2)
    with pytest.raises(ValueError, match=r"rasters\['conv1'\] of 'Natural' must have 4 .* got 8"):
        with_networks(study, timesteps=4)
    with pytest.raises(ValueError, match="attacked must differ"):
        with_networks(study, attacked=(Score("a", 0.1, 0.5, 5), Score("a", 0.1, 0.4, 5)))
    with pytest.raises(TypeError, match=r"provenance\['seed'\] must be a str, got 0"):
        dataclasses.replace(study, provenance={"seed": 0})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    # Reference values of the score interval without continuity correction.
    [(0, 10, 0.0, 0.2775328), (5, 10, 0.2365931, 0.7634069), (10, 10, 0.7224672, 1.0),
     (81, 263, 0.2553, 0.3662)],
)  # fmt: skip
def test_wilson_interval(correct: int, count: int, low: float, high: float) -> None:
    score = Score("a", 0.0, correct / count, count)
    assert score.interval == pytest.approx((low, high), abs=1e-4)
    assert score.interval[0] <= score.value <= score.interval[1]


def test_eps_is_written_short() -> None:
    assert [eps_text(eps) for eps in (0.0, 0.1, 0.2, 8 / 255, 0.3, 1 / 3, 85 / 255)] == [
        "0", "0.1", "0.2", "8/255", "0.3", "85/255", "85/255",
    ]  # fmt: skip


def test_the_terminal_table_is_aligned(study: Study) -> None:
    lines = table_text(study).split("\n")
    table, caption = lines[: lines.index("")], lines[-1]
    rule = table[2]
    assert set(rule) == {"-", " "}
    ends = [match.end() for match in re.finditer(r"-+", rule)]
    assert len(ends) == len(summary(study).head)
    for line in (*table[:2], *table[3:]):
        assert line[0] != " "
        assert len(line) <= len(rule)
        # Between columns there is nothing, and each number ends where its column does.
        for end in ends[:-1]:
            assert line[end : end + 2].strip() == ""
        for start, end in pairwise(ends):
            cell = line[start:end].rstrip("\n")
            assert cell.strip() == "" or not cell.endswith(" ")
    assert "95 % Wilson" in caption
    assert "n = 360" in caption
    assert max(map(len, table)) <= 100


def test_the_markdown_table_holds_the_same_cells(study: Study, tmp_path: Path) -> None:
    write_report(study, tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    table = summary(study)
    assert len(set(map(len, (row.split(" | ") for row in rows[: 2 + len(table.rows)])))) == 1
    for row, cells in zip(rows[2:], table.rows, strict=False):
        for cell in cells:
            assert cell.text in row
            assert cell.note in row
    assert "<img" not in markdown
    assert "![" not in markdown
