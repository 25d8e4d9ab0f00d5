"""Writes docs/demo.svg, the figure of the README, from the study of `make demo`.

Run `python docs/demo_figure.py` after `make demo`. Colours are those of the report's page.
"""

import re
from pathlib import Path

from snnkern.report import Study, figures

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Takes the page's colours, light and dark, into the figure itself."""
    drawing = figures.robustness(Study.load("runs/demo"))
    assert drawing is not None
    page = (Path(figures.__file__).parent / "page.html.jinja").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    style = (
        f"<style>svg {{{light} background: var(--page); }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{{dark} }} }}</style>"
    )
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = drawing.svg.replace("<svg", f"<svg {namespaces}", 1).replace(">", f">{style}", 1)
    (HERE / "demo.svg").write_text(svg + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
