"""The examples run as they stand, and the line that is new in them changes nothing but time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from python_tests.helpers import need

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NEW = "# the line that is new\n"


@pytest.mark.parametrize("library", ["spikingjelly", "snntorch"])
def test_one_line_changes_nothing_but_time(
    library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    need(library)
    path = EXAMPLES / f"{library}_digits.py"
    source = path.read_text(encoding="utf-8")
    assert source.count(NEW) == 1
    without = "".join(line for line in source.splitlines(True) if not line.endswith(NEW))
    accuracies = []
    for code in (source, without):
        names: dict[str, Any] = {"__name__": path.stem}
        exec(compile(code, str(path), "exec"), names)
        out = capsys.readouterr().out
        accuracies.append([float(share) for share in re.findall(r"([\d.]+)% right", out)])
    ours, theirs = accuracies
    assert len(ours) == len(theirs) == 3
    # Convolutions of another batch size may round another way, after which training parts.
    assert ours[0] == pytest.approx(theirs[0], abs=5)
    assert ours[-1] > 80
    assert theirs[-1] > 80
