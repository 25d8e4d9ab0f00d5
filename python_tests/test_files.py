"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from snnkern._files import write_atomically


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"old")
    assert path.read_bytes() == b"old"
    seen = []

    def fail(file: Path) -> None:
        file.write_text("ne")
        seen.append((file.parent, path.read_text()))
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, fail)
    assert seen == [(path.parent, "old")]  # in the same folder: renaming is one step
    assert path.read_text() == "old"

    def write(file: Path) -> None:
        file.write_text("new")

    write_atomically(path, write)
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_failed_write_of_bytes_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(content[:1])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
