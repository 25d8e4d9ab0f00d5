"""Tables that read the same on the page, in Markdown and in a terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass

from snnkern._intervals import wilson

MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, and the small print beneath it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A head and rows of equal length. The first column holds names, the others numbers."""

    caption: str
    head: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, caption: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
        """One without small print."""
        return cls(caption, tuple(map(Cell, head)), tuple(tuple(map(Cell, row)) for row in rows))

    def text(self) -> str:
        """The table for a terminal: names to the left, numbers to the right, notes below."""
        lines = (self.head, *self.rows)
        widths = [
            max(max(len(_one_line(cell.text)), len(_one_line(cell.note))) for cell in column)
            for column in zip(*lines, strict=True)
        ]

        def render(parts: list[str]) -> str:
            first = _one_line(parts[0]).ljust(widths[0])
            rest = (
                _one_line(part).rjust(width)
                for part, width in zip(parts[1:], widths[1:], strict=True)
            )
            return "  ".join((first, *rest)).rstrip()

        out: list[str] = []
        for number, line in enumerate(lines):
            out.append(render([cell.text for cell in line]))
            if any(cell.note for cell in line):
                out.append(render([cell.note for cell in line]))
            if number == 0:
                out.append("  ".join("-" * width for width in widths))
        return "\n".join([*out, "", self.caption])

    def markdown(self) -> str:
        """The table in GitHub's Markdown, its caption in italics beneath it."""

        def render(line: tuple[Cell, ...]) -> str:
            cells = (
                " ".join(filter(None, (markdown_text(cell.text), cell.note and _small(cell.note))))
                for cell in line
            )
            return "| " + " | ".join(cells) + " |"

        rule = "| :-- " + "| --: " * (len(self.head) - 1) + "|"
        rows = (render(row) for row in self.rows)
        return "\n".join((render(self.head), rule, *rows, "", f"*{markdown_text(self.caption)}*"))


def percent(share: float) -> str:
    """A share as a percentage with one decimal, without the sign."""
    return f"{100 * share:.1f}"


def interval(share: float, count: int) -> str:
    """The 95 % Wilson interval of a share, in percent."""
    low, high = wilson(share, count)
    return f"{percent(low)}\N{EN DASH}{percent(high)}"


def share_cell(share: float, count: int, *, show_count: bool = False) -> Cell:
    """A share with its interval beneath it, and the number of images where it is asked for."""
    note = interval(share, count)
    return Cell(percent(share), f"{note}, n={count:,}" if show_count else note)


def eps_text(eps: float) -> str:
    """A size eps as a short decimal, or as a fraction of 255 where that is the exact short form."""
    decimal = f"{eps:.4g}"
    levels = round(eps * 255)
    if float(decimal) != eps and levels > 0 and abs(eps * 255 - levels) < 1e-6:
        return f"{levels}/255"
    return decimal


def markdown_text(text: str) -> str:
    """Any text as one line of Markdown that shows it literally."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(_one_line(text), quote=False))


def _small(text: str) -> str:
    return f"<small>{markdown_text(text)}</small>"


def _one_line(text: str) -> str:
    return " ".join(text.split())
