"""The documentation builds without a warning, its code runs, its links and names lead somewhere."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from python_tests.helpers import need

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
ALL = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", [path for path in ALL if BLOCK.search(path.read_text())], ids=name)
def test_the_code_on_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        line = page.read_text(encoding="utf-8")[: block.start(1)].count("\n")
        code = compile("\n" * line + block[1], str(page), "exec")
        exec(code, names)


def prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL, ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith("http"):
            path, _, heading = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not heading or heading in anchors(file), target


def references(text: str) -> list[str]:
    return re.findall(r"`((?:snnkern|csrc)[./][^`<]*)`", text)


def resolve(reference: str) -> None:
    """Raises, or fails, where there is no such thing."""
    file, _, symbol = reference.partition(": ")
    if symbol:
        assert re.search(rf"\b{symbol}\b", (ROOT / file).read_text(encoding="utf-8")), reference
    elif "/" in file:
        assert (ROOT / file).exists(), reference
    else:
        importlib.import_module("snnkern")
        parts = re.match(r"[\w.]+", file)
        assert parts is not None
        first, *rest = parts[0].split(".")
        thing: Any = importlib.import_module(first)
        for part in rest:
            if not hasattr(thing, part):
                importlib.import_module(f"{thing.__name__}.{part}")
            thing = getattr(thing, part)


@pytest.mark.parametrize("page", ALL, ids=name)
def test_what_pages_name_is_there(page: Path) -> None:
    found = references(page.read_text(encoding="utf-8"))
    for reference in found:
        resolve(reference)
    if page.name == "papers.md":
        assert len(found) > 40


@pytest.mark.parametrize(
    "reference", ["snnkern.training.rat.retraction", "csrc/neuron.h: discharge", "csrc/nothing.h"]
)
def test_what_is_not_there_is_found_out(reference: str) -> None:
    assert references(f"see `{reference}`") == [reference]
    with pytest.raises((AssertionError, ImportError)):
        resolve(reference)


def test_the_commands_on_the_pages_are_accepted() -> None:
    from snnkern.cli import parser

    lines = [
        line.partition("#")[0].split()[1:]
        for page in ALL
        for language, block in FENCED.findall(page.read_text(encoding="utf-8"))
        for line in block.splitlines()
        if not language and line.startswith("snnkern ")
    ]
    assert len(lines) > 8
    for line in lines:
        parser().parse_args(line)


def test_every_result_stands_on_the_page_of_performance() -> None:
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    for path in ROOT.glob("benchmarks/results/*.md"):
        assert f"{{include}} ../benchmarks/results/{path.name}\n" in page


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    need("sphinx")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        str(tmp_path / "d"),
    ]
    built = subprocess.run(
        [*command, "docs", str(tmp_path / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (built.returncode, built.stderr) == (0, "")
    for page in PAGES:
        assert (tmp_path / "html" / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file()
