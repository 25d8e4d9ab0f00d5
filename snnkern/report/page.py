"""A study as one self-contained page, as Markdown and as a table for the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from snnkern._files import write_atomically
from snnkern._table import MISSING, Cell, Table, eps_text, markdown_text, share_cell
from snnkern.report.results import NetworkResult, Sample, Score
from snnkern.report.study import Study


def write_report(study: Study, folder: str | os.PathLike[str]) -> Path:
    """Write report.html and report.md into `folder`, making it if needed.

    The page is one file that refers to nothing outside itself. The same study gives the same
    bytes.

    Returns:
        The path of report.html.

    Raises:
        ImportError: matplotlib is not installed; the other functions do without it.
    """
    path = Path(folder) / "report.html"
    sections, twins = _sections(study), _looked_at(study)
    write_atomically(path, _page(study, sections, twins).encode())
    write_atomically(path.with_suffix(".md"), _markdown(study, sections, twins).encode())
    return path


def table_text(study: Study) -> str:
    """The table of results for a terminal: one network a row, intervals beneath the shares."""
    return summary(study).text()


def summary(study: Study) -> Table:
    """The table of results: one network a row, one column for each attack and certificate."""
    attacks = _columns(network.attacked for network in study.networks)
    certificates = _columns(
        (network.certified,) if network.certified else () for network in study.networks
    )
    counts = sorted({score.count for network in study.networks for score in _scores(network)})
    show_count = len(counts) > 1
    head = [Cell("Network", "training"), Cell("Clean", "%")]
    head += [Cell(name, f"%, ε = {eps_text(eps)}") for name, eps in attacks]
    head += [Cell(f"Certified {name}", f"%, ε = {eps_text(eps)}") for name, eps in certificates]
    lasts = [
        (Cell("Spikes", "per image"), [n.spikes_per_image for n in study.networks], "{:,.0f}"),
        (Cell("Training", "seconds"), [n.seconds for n in study.networks], "{:,.1f}"),
    ]
    lasts = [last for last in lasts if any(value is not None for value in last[1])]
    head += [cell for cell, _, _ in lasts]
    rows = []
    for number, network in enumerate(study.networks):
        attacked = {(score.name, score.eps): score for score in network.attacked}
        certified = {(s.name, s.eps): s for s in (network.certified,) if s is not None}
        shares = [network.clean, *map(attacked.get, attacks), *map(certified.get, certificates)]
        rows.append(
            (
                Cell(network.name, network.method),
                *(
                    share_cell(score.value, score.count, show_count=show_count)
                    if score is not None
                    else Cell(MISSING)
                    for score in shares
                ),
                *(
                    Cell(MISSING if (value := values[number]) is None else form.format(value))
                    for _, values, form in lasts
                ),
            )
        )
    images = f" over n = {counts[0]:,} test images" if len(counts) == 1 else ""
    caption = f"Shares in %, each with its 95 % Wilson interval{images}."
    return Table(caption, tuple(head), tuple(rows))


def _scores(network: NetworkResult) -> list[Score]:
    scores = (network.clean, *network.attacked, network.certified)
    return [score for score in scores if score is not None]


def _columns(groups: Iterable[Iterable[Score]]) -> list[tuple[str, float]]:
    return list(dict.fromkeys((score.name, score.eps) for group in groups for score in group))


def _sections(study: Study) -> list[dict[str, Any]]:
    """The figures on the whole study, each with an id and a heading."""
    from snnkern.report import figures

    drawn = (
        ("robustness", "Accuracy against ε", figures.robustness(study)),
        ("members", "Accuracy under each gradient", figures.members(study)),
        ("training", "Training", figures.training(study)),
        ("layers", "Activity and distance per layer", figures.layers(study)),
        ("energy", "Energy", figures.energy(study)),
    )
    return [
        {"id": name, "heading": heading, "drawing": drawing}
        for name, heading, drawing in drawn
        if drawing is not None
    ]


def _looked_at(study: Study) -> list[dict[str, Any]]:
    """By network, the figures on its samples, and which of them the page opens."""
    from snnkern.report import samples

    twins: list[dict[str, Any]] = []
    for n, network in enumerate(study.networks):
        if not network.samples:
            continue
        factor = samples.amplification(network.samples)
        cards = [
            {
                "sample": sample,
                "eps": eps_text(sample.eps),
                "clean": samples.picture(sample.clean),
                "adversarial": samples.picture(sample.adversarial),
                "difference": samples.difference_picture(sample, factor),
                "raster": samples.raster(sample, f"raster-{n}-{s}"),
                "membranes": samples.membranes(sample, f"membranes-{n}-{s}"),
            }
            for s, sample in enumerate(network.samples)
        ]
        broken = (s for s, sample in enumerate(network.samples) if _is_broken(sample))
        twins.append(
            {"network": network, "factor": factor, "cards": cards, "open": next(broken, 0)}
        )
    return twins


def _page(study: Study, sections: list[dict[str, Any]], twins: list[dict[str, Any]]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        study=study,
        facts=_facts(study),
        summary=summary(study),
        sections=sections,
        twins=twins,
        has_rasters=any(card["raster"] for twin in twins for card in twin["cards"]),
        has_membranes=any(card["membranes"] for twin in twins for card in twin["cards"]),
        missing=[network for network in study.networks if network.missing],
    )


def _is_broken(sample: Sample) -> bool:
    return sample.predicted_clean == sample.label != sample.predicted_adversarial


def _markdown(study: Study, sections: list[dict[str, Any]], twins: list[dict[str, Any]]) -> str:
    parts = [f"# {markdown_text(study.title)}"]
    if study.description:
        parts.append(markdown_text(study.description))
    facts = {"dataset": study.dataset, **_facts(study)}
    parts.append(_list(f"{key}: {value}" for key, value in facts.items()))
    parts += ["## Results", summary(study).markdown()]
    for section in sections:
        drawing = section["drawing"]
        tables = (table.markdown() for table in drawing.tables)
        parts += [f"## {section['heading']}", markdown_text(drawing.caption), *tables]
    if twins:
        parts += ["## Images and their adversarial twins", _twins(study).markdown()]
    for twin in twins:
        for card in twin["cards"]:
            drawings = [card[kind] for kind in ("raster", "membranes") if card[kind] is not None]
            if drawings:
                name = f"{twin['network'].name}, label {card['sample'].label}"
                parts.append(f"## Spikes in time: {markdown_text(name)}")
                parts += [table.markdown() for drawing in drawings for table in drawing.tables]
    for network in study.networks:
        if network.missing:
            parts += [f"## Not in this report: {markdown_text(network.name)}"]
            parts.append(_list(network.missing))
    return "\n\n".join(parts) + "\n"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)


def _facts(study: Study) -> dict[str, str]:
    steps = dict.fromkeys(network.timesteps for network in study.networks)
    words = {0: "none (ReLU)", None: "not known"}
    return {
        "time steps": ", ".join(words.get(t, str(t)) for t in steps),
        **study.provenance,
    }


def _twins(study: Study) -> Table:
    return Table(
        "What the networks read; spikes that differ in time or neuron",
        tuple(map(Cell, ("network", "label", "attack", "ε", "clean", "adversarial", "moved"))),
        tuple(
            (
                Cell(network.name),
                Cell(str(sample.label)),
                Cell(sample.attack),
                Cell(eps_text(sample.eps)),
                Cell(str(sample.predicted_clean)),
                Cell(str(sample.predicted_adversarial)),
                Cell(f"{sum(int((a ^ b).sum()) for a, b in sample.rasters.values()):,}"),
            )
            for network in study.networks
            for sample in network.samples
        ),
    )
