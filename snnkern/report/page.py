"""A study as one self-contained page, as Markdown and as a table for the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from snnkern._files import write_atomically
from snnkern.report.study import NetworkResult, Score, Study
from snnkern.report.table import Cell, Table, eps_text, markdown_text, score_cell


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
    write_atomically(path, _page(study).encode())
    write_atomically(path.with_suffix(".md"), _markdown(study).encode())
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
    head += [Cell("Spikes", "per image"), Cell("Training", "seconds")]
    rows = []
    for network in study.networks:
        attacked = {(score.name, score.eps): score for score in network.attacked}
        certified = {(s.name, s.eps): s for s in (network.certified,) if s is not None}
        shares = [network.clean, *map(attacked.get, attacks), *map(certified.get, certificates)]
        rows.append(
            (
                Cell(network.name, network.method),
                *(score_cell(score, show_count=show_count) for score in shares),
                Cell(f"{network.spikes_per_image:,.0f}"),
                Cell(f"{network.seconds:,.1f}"),
            )
        )
    images = "" if show_count else f" over n = {counts[0]:,} test images"
    caption = f"Shares in %, each with its 95 % Wilson interval{images}."
    return Table(caption, tuple(head), tuple(rows))


def _scores(network: NetworkResult) -> list[Score]:
    certified = [] if network.certified is None else [network.certified]
    return [network.clean, *network.attacked, *certified]


def _columns(groups: Iterable[Iterable[Score]]) -> list[tuple[str, float]]:
    return list(dict.fromkeys((score.name, score.eps) for group in groups for score in group))


def _page(study: Study) -> str:
    from snnkern.report import figures

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    twins: list[dict[str, Any]] = []
    for n, network in enumerate(study.networks):
        if not network.samples:
            continue
        factor = figures.amplification(network.samples)
        cards = [
            {
                "sample": sample,
                "eps": eps_text(sample.eps),
                "clean": figures.picture(sample.clean),
                "adversarial": figures.picture(sample.adversarial),
                "difference": figures.difference_picture(sample, factor),
                "raster": figures.raster(sample, f"raster-{n}-{s}"),
            }
            for s, sample in enumerate(network.samples)
        ]
        twins.append({"network": network, "factor": factor, "cards": cards})
    return environment.get_template("page.html.jinja").render(
        study=study,
        summary=summary(study),
        robustness=figures.robustness(study),
        training=figures.training(study),
        twins=twins,
        has_rasters=any(card["raster"] for twin in twins for card in twin["cards"]),
    )


def _markdown(study: Study) -> str:
    from snnkern.report import figures

    facts = {"dataset": study.dataset, "time steps": str(study.timesteps), **study.provenance}
    parts = [f"# {markdown_text(study.title)}"]
    if study.description:
        parts.append(markdown_text(study.description))
    parts.append(
        "\n".join(f"- {markdown_text(key)}: {markdown_text(value)}" for key, value in facts.items())
    )
    parts += ["## Results", summary(study).markdown()]
    for heading, drawing in (
        ("Accuracy against ε", figures.robustness(study)),
        ("Training", figures.training(study)),
    ):
        if drawing:
            tables = (table.markdown() for table in drawing.tables)
            parts += [f"## {heading}", markdown_text(drawing.caption), *tables]
    return "\n\n".join(parts) + "\n"
