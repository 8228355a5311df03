from __future__ import annotations

import os
from pathlib import Path

import pytest

from fednas_core.base import files


def test_a_failed_write_names_the_file_and_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    files.write(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, step, full)
            with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
                files.write(path, b"new")
        assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    files.write(path, b"new")
    assert path.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_an_error_that_names_two_files_comes_to_name_the_one_in_question(tmp_path: Path) -> None:
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(IsADirectoryError) as failed:
        files.write(tmp_path / "file.txt", b"")
    assert str(failed.value).endswith(f": '{tmp_path / 'file.txt'}'")


def test_every_name_is_on_the_disk_when_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename and a new file are safe from a power failure only once their folder is synced, after them."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        there = Path(os.readlink(f"/proc/self/fd/{handle}"))
        steps.append("folder" if there.is_dir() else "file")
        fsync(handle)

    def renamed(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", renamed)
    files.write(tmp_path / "a", b"1")
    files.append(tmp_path / "b", b"1")
    files.append(tmp_path / "b", b"2")
    files.cut(tmp_path / "b", 1)
    assert steps == ["file", "rename", "folder", "file", "folder", "file", "file"]
    assert (tmp_path / "b").read_bytes() == b"1"


def test_a_new_file_has_the_usual_permissions_unless_it_is_private(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files.write(tmp_path / "open", b"")
        files.write(tmp_path / "private", b"", 0o600)
    finally:
        os.umask(before)
    assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("open", "private")] == ["0o644", "0o600"]
