"""The process that numbers its writes: what it sees of them, and that it is killed at the one it is told."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import watched
root, number, action = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
watched.watch(os.open(root / "log-1", os.O_WRONLY | os.O_CREAT), str(root), number, action)
(root / "a").mkdir()
(root / "a" / "b").write_text("1")
(root / "a" / "b").read_text()
os.replace(root / "a" / "b", root / "c")
(root / "c").unlink()
"""


@pytest.fixture(scope="module")
def watched() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module("watched")


def lived(root: Path, number: int, action: str = "kill") -> tuple[int, list[str]]:
    """Run the writer; return its exit code and its writes without their seconds."""
    command = [sys.executable, "-c", WRITER, str(BENCHMARKS), str(root), str(number), action]
    code = subprocess.run(command, check=False).returncode
    return code, [line.split(" ", 1)[1] for line in (root / "log-1").read_text().splitlines()]


def test_writes_are_numbered_and_reads_are_not(tmp_path: Path) -> None:
    code, writes = lived(tmp_path, 0)
    assert code == 0
    assert writes == [
        f"os.mkdir {tmp_path}/a", f"open {tmp_path}/a/b", f"os.rename {tmp_path}/c", f"os.remove {tmp_path}/c",
    ]  # fmt: skip


def test_it_is_killed_before_the_write_that_is_named(tmp_path: Path) -> None:
    code, writes = lived(tmp_path, 3)
    assert code == -signal.SIGKILL and len(writes) == 3
    assert (tmp_path / "a" / "b").read_text() == "1" and not (tmp_path / "c").exists()


def test_a_command_is_done_before_the_write_that_is_named(tmp_path: Path) -> None:
    code, writes = lived(tmp_path, 2, f"ls {tmp_path} > {tmp_path}/seen")
    assert code == 0 and len(writes) == 4
    assert (tmp_path / "seen").read_text().split() == ["a", "log-1", "seen"]


def test_places_do_not_tell_runs_apart(watched: Any) -> None:
    root = Path("/r")
    for path, wanted in {
        "/r/runs/20260101-120000-0123abcd-fedper/.result.json.89abcdef.part": "runs/RUN/.result.json..part",
        "/r/runs/20260101-120000-0123abcd-fedper/checkpoint/.tmpAb3Xyz": "runs/RUN/checkpoint/.",
        "/r/state/20260101-120000-0123abcd-fedper-0123456789abcdef/x.1.safetensors": "state/RUN/x.1.safetensors",
        "/r/runs/20260101-120000-0123abcd-ddc/models/.export-ab_c/phone": "runs/RUN/models/.export-/phone",
    }.items():
        assert watched.place(path, root) == wanted
