"""The benchmarks that disturb runs: where they kill, what a torn write is, and what they take for a good end."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def killed() -> Any:
    sys.path.append(str(BENCHMARKS))
    return importlib.import_module("killed")


@pytest.fixture(scope="module")
def writes(killed: Any) -> Any:
    return importlib.import_module("writes")


@pytest.fixture(scope="module")
def memory() -> Any:
    sys.path.append(str(BENCHMARKS))
    return importlib.import_module("device_memory")


def calls(killed: Any, *lines: str) -> Sequence[Any]:
    return list(importlib.import_module("watched").calls_of(f"7  {line}" for line in lines))


def trace(killed: Any, root: Path) -> Sequence[Any]:
    state = f"{root}/home/.cache/fednas/state"
    return calls(
        killed,
        f'mkdir("{root}/runs/r", 0777) = 0',
        f'mkdir("{root}/runs", 0777) = -1 EEXIST (File exists)',
        'write(2</tmp/said>, "training  3 rounds", 18) = 18',
        f'mkdir("{state}/r", 0700) = 0',
        f'write(4<{root}/runs/r/events.jsonl>, "{{", 40) = 40',
        f"fsync(4<{root}/runs/r/events.jsonl>) = 0",
        'write(2</tmp/said>, "report: writing it", 18) = 18',
        f'rename("{root}/runs/r/.report.md.0123abcd.part", "{root}/runs/r/report.md") = 0',
    )


def test_moments_are_real_changes_by_phase_also_within_writes(killed: Any, tmp_path: Path) -> None:
    moments = killed.moments_of(trace(killed, tmp_path), tmp_path)
    told = {phase: [(one.call.name, one.call.number, one.torn) for one in found] for phase, found in moments.items()}
    assert told["start"] == [("mkdir", 1, False)]
    assert told["private state"] == [("mkdir", 3, False)]
    assert told["training"] == [("write", 1, False), ("write", 2, False), ("fsync", 1, False), ("fsync", 1, True)]
    assert told["report"] == [("write", 3, False), ("rename", 1, False)] and not told["search"]


@pytest.mark.parametrize("made_large", [False, True])
def test_a_torn_write_leaves_its_first_bytes(killed: Any, tmp_path: Path, made_large: bool) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text("before" + "x" * 100)
    end = calls(
        killed,
        *([f"ftruncate(4<{file}>, 106) = 0"] if made_large else []),
        f'write(4<{file}>, "x", 100) = 100',
        f"fsync(4<{file}>) = ?",
    )
    moment = killed.Moment("training", end[-1], torn=True)
    told = killed.tear(SimpleNamespace(calls=end), moment, tmp_path, 0.25)
    assert told == "within write events.jsonl"
    assert file.read_bytes() == b"before" + b"x" * 25 + b"\0" * (75 if made_large else 0)


def test_places_are_all_changes_each_twice_at_most(writes: Any, killed: Any, tmp_path: Path) -> None:
    disk = f"{tmp_path}/runs"
    lines = [f'unlink("{disk}/{name}") = 0' for name in "aaaab"] + [f"fsync(3<{disk}/a>) = 0", f'rmdir("{disk}/d") = 0']
    found = writes.places_of(SimpleNamespace(calls=calls(killed, *lines)), tmp_path, resuming=False)
    names = [place.name for place in found]
    assert names == ["unlink runs/a", "unlink runs/a", "unlink runs/b", "fsync runs/a", "rmdir runs/d"]
    assert found[3].ways() == ("EIO",) and found[0].ways() == ("read-only",)


@pytest.mark.parametrize(
    ("code", "said", "wrong"),
    [
        (2, "error: /r/runs/job/x.json cannot be written (full): make room", ""),
        (2, "error: run 'x' cannot be written to /r/runs/job: make room", ""),
        (2, "error: /r/runs/job/x.json cannot be written (full)", "what to do"),
        (2, "error: /r/runs/other cannot be written: make room", "does not name"),
        (2, "error: the disk is full: make room", "does not name"),
        (1, "Traceback (most recent call last): /r/runs/job/x.json", "code 1"),
        (-9, "", "code -9"),
        (0, "", ""),
    ],
)
def test_a_message_names_what_failed_and_says_what_to_do(writes: Any, code: int, said: str, wrong: str) -> None:
    watched = importlib.import_module("watched")
    found = writes.judged(watched.Ended(code, said, (), 1.0), Path("/r/runs"), ["/r/runs/job/.x.json.0123abcd.part"])
    assert wrong in found and bool(found) == bool(wrong)


def test_only_caches_and_temporary_files_can_be_done_without(writes: Any) -> None:
    for path in ("tmp/x", "home/.cache/matplotlib/f.json", "home/.config/matplotlib", "runs/job/latest"):
        assert writes.DISPENSABLE.match(path)
    for path in ("runs/job/run/latest", "home/.cache/fednas/state/x"):
        assert not writes.DISPENSABLE.match(path)


def test_a_measurement_of_memory_fails_for_each_of_its_reasons(memory: Any) -> None:
    good = {"peak": 300e6, "own": 200e6, "mapped": 95e6, "resident": 100e6, "ended": "well", "kept": True}
    good |= {"seconds": 1.0, "files": frozenset()}
    assert memory.wrong(memory.Taken(**good), 400) == []
    for other in ({"peak": 401e6}, {"mapped": 20e6}, {"ended": "SIGKILL"}, {"kept": False}):
        assert len(memory.wrong(memory.Taken(**good | other), 400)) == 1


def test_large_files_of_packages_are_copied_if_a_device_maps_them(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, target = tmp_path / "packages", tmp_path / "copy"
    (packages / "torch").mkdir(parents=True)
    for name, size in (("small.py", 10), ("mapped.so", 2_000_000), ("other.so", 2_000_000)):
        (packages / "torch" / name).write_bytes(b"0" * size)
    monkeypatch.setattr(memory, "PACKAGES", packages)
    memory.copied({packages / "torch" / "mapped.so"}, target)
    assert sorted(path.name for path in (target / "torch").iterdir()) == ["mapped.so", "small.py"]
