"""A command under strace: its calls, and what is left of it where it is killed, stopped, or a call fails."""

from __future__ import annotations

import importlib
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WRITER = """
import os, sys
root = sys.argv[1]
os.mkdir(f"{root}/a")
os.makedirs(f"{root}/a", exist_ok=True)
handle = os.open(f"{root}/a/.b.part", os.O_WRONLY | os.O_CREAT)
os.write(handle, b"0123456789")
os.fsync(handle)
os.close(handle)
os.rename(f"{root}/a/.b.part", f"{root}/a/b")
open(f"{root}/a/b").read()
os.unlink(f"{root}/a/b")
print("done")
"""
CHANGES = ["mkdir a", "openat a/.b.part", "write a/.b.part", "fsync a/.b.part", "rename a/b", "unlink a/b"]
TRACE = """
7  openat(AT_FDCWD</r>, "runs/x.toml", O_WRONLY|O_CREAT|O_CLOEXEC, 0666 <unfinished ...>
8  write(1<pipe:[12]>, "told"..., 4)      = 4
7  <... openat resumed>) = 3</r/runs/x.toml>
7  write(3</r/runs/x.toml>, "a \\"b\\", c"..., 9) = 9
8  mkdir("/r/runs", 0777)                 = -1 EEXIST (File exists)
8  --- SIGCHLD {si_signo=SIGCHLD} ---
7  renameat(AT_FDCWD</r>, "/r/a", 5</r/runs>, "b") = 0
7  unlinkat(5</r/runs>, "b", 0)           = 0
7  rename("/r/c", "/r/d")                 = ?
7  +++ killed by SIGKILL +++
""".strip()


@pytest.fixture(scope="module")
def watched() -> Any:
    sys.path.append(str(BENCHMARKS))
    return importlib.import_module("watched")


def test_a_trace_is_read_with_threads_that_take_turns_and_calls_that_fail(watched: Any) -> None:
    calls = list(watched.calls_of(TRACE.splitlines()))
    assert [(call.thread, call.name, call.number, call.path, call.error) for call in calls] == [
        (0, "openat", 1, "/r/runs/x.toml", ""), (1, "write", 1, "stdout", ""), (0, "write", 1, "/r/runs/x.toml", ""),
        (1, "mkdir", 1, "/r/runs", "EEXIST"), (0, "renameat", 1, "/r/runs/b", ""),
        (0, "unlinkat", 1, "/r/runs/b", ""), (0, "rename", 1, "/r/d", "KILLED"),
    ]  # fmt: skip
    assert calls[2].bytes == 9 and calls[1].text == "told"


def test_a_trace_of_something_else_is_not_read_in_silence(watched: Any) -> None:
    with pytest.raises(ValueError, match="no path in rename"):
        list(watched.calls_of(["7  rename(0x7ffd, 0x7ffe) = 0"]))


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_a_command_is_killed_before_a_call_stopped_after_it_or_the_call_fails(
    watched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "PROGRAM", WRITER)
    root = tmp_path.resolve()

    def lived(*how: Any, **more: Any) -> Any:
        shutil.rmtree(root / "a", ignore_errors=True)
        return watched.live([str(root)], root, *how, **more)

    whole = lived()
    changes = [call for call in whole.calls if call.below(root) and not call.error]
    assert whole.code == 0 and "done" in whole.said
    assert [call.place(root) for call in changes] == CHANGES

    rename = changes[CHANGES.index("rename a/b")]
    end = lived("signal=KILL", rename)
    assert end.code == -signal.SIGKILL and (root / "a" / ".b.part").read_text() == "0123456789"

    end = lived("error=ENOSPC", rename)
    assert [call.path for call in end.calls if call.error == "ENOSPC"] == [f"{root}/a/b"] and end.code == 1

    end = lived("signal=STOP", rename, stopped=lambda: (root / "a" / "b").unlink())
    assert end.code == 1 and "FileNotFoundError" in end.said


def test_places_do_not_tell_runs_apart(watched: Any) -> None:
    root = Path("/r")
    for path, wanted in {
        "/r/runs/20260101-120000-0123abcd-fedper/.result.json.89abcdef.part": "runs/RUN/.result.json..part",
        "/r/runs/20260101-120000-0123abcd01234567abc-fedper/checkpoint/.tmpAb3Xyz": "runs/RUN/checkpoint/.",
        "/r/state/20260101-120000-0123abcd-fedper-0123456789abcdef/x.1.safetensors": "state/RUN/x.1.safetensors",
        "/r/runs/20260101-120000-0123abcd-ddc/models/.export-ab_c/phone": "runs/RUN/models/.export-/phone",
    }.items():
        assert watched.place(path, root) == wanted
