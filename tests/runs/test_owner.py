from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from fednas_core.base.errors import RunError
from fednas_core.base.settings import read
from fednas_core.runs import owner
from fednas_core.runs.creation import create

HOLDER = """
import sys, time
from pathlib import Path
from fednas_core.runs.owner import owned
with owned(Path(sys.argv[1])):
    print("owned", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return create(read({"output": str(tmp_path)})).path


def test_a_run_has_one_owner_who_is_named(folder: Path) -> None:
    words = rf"run '{folder.name}' .*is going on: process {os.getpid()} on '.+' has owned it since \d{{4}}-"
    with owner.owned(folder), pytest.raises(RunError, match=words), owner.owned(folder):
        pass
    with owner.owned(folder):
        pass


def test_a_new_run_is_owned_from_its_first_moment(tmp_path: Path) -> None:
    with ExitStack() as held:
        run = create(read({"output": str(tmp_path)}), held)
        with pytest.raises(RunError, match="is going on"), owner.owned(run.path):
            pass
    with owner.owned(run.path):
        pass


def test_what_another_process_owns_is_free_when_it_is_killed(folder: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"owned\n"
        with pytest.raises(RunError, match=f"process {process.pid} on"), owner.owned(folder):
            pass
        process.kill()
        process.wait()
        with owner.owned(folder):
            pass


def test_a_folder_that_cannot_be_written_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(owner.os, "open", refused)
        with pytest.raises(RunError, match=f"cannot be written to {folder} .*Read-only file system.*resume the run"):
            owner.owned(folder).__enter__()


def test_a_file_system_without_locks_is_no_obstacle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(owner.fcntl, "flock", unknown)
    with owner.owned(folder):
        pass


def test_a_copy_is_known_as_long_as_both_are_there(folder: Path, tmp_path: Path) -> None:
    assert owner.original(folder) is None, "nobody worked on it"
    with owner.owned(folder):
        pass
    assert owner.original(folder) is None
    copy = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, copy)
    assert owner.original(copy) == folder
    shutil.rmtree(folder)
    assert owner.original(copy) is None, "it was moved"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"folder": 5}'])
def test_a_file_that_was_being_written_when_its_owner_was_killed_says_nothing(folder: Path, text: str) -> None:
    (folder / "owner.lock").write_text(text)
    assert owner.original(folder) is None
    with owner.owned(folder):
        pass
