"""Memory that stays."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

import snnkern

FAULTS = """
import resource, sys, torch, snnkern
if sys.argv[1] == "kept":
    print(snnkern.keep_pages(), file=sys.stderr)
for _ in range(3):
    torch.ones(1 << 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(1 << 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(setting: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FAULTS, setting]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_kept_pages_are_not_faulted_in_again() -> None:
    kept, default = faults("kept"), faults("default")
    assert "freed memory is kept" in kept.stderr
    pages = 4 * (1 << 25) // 4096
    assert int(kept.stdout) < pages / 100 < int(default.stdout)


def test_what_is_not_possible_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert "not kept" in snnkern.keep_pages()
