"""The benchmark of repeatability: a digest tells runs apart by all that they are, and not by clocks."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fednas_core.runs.clock import FILE
from fednas_core.runs.folder import RunFolder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROW = {"method": "fedavg", "space": "small", "size": 1}


@pytest.fixture(scope="module")
def history() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module("one_history")


def run_of(path: Path, loss: float = 1.0, seconds: float = 2.0) -> RunFolder:
    path.mkdir()
    event = {"round": 1, "loss": loss, "seconds": seconds, "clients": [{"client": "client-00", "seconds": seconds}]}
    (path / "events.jsonl").write_text(json.dumps(event) + "\n")
    (path / FILE).write_text(json.dumps({"start": seconds}))
    (path / "result.json").write_text(json.dumps({"run": path.name, "latency_ms": seconds, "rounds": 1}))
    return RunFolder(path)


def test_runs_that_differ_by_clocks_and_names_have_one_digest(history: Any, tmp_path: Path) -> None:
    one, same = run_of(tmp_path / "one"), run_of(tmp_path / "same", seconds=9.0)
    other = run_of(tmp_path / "other", loss=1.0 + 1e-12)
    assert history.digest(one) == history.digest(same) != history.digest(other)


def test_several_digests_and_missing_halves_are_faults(history: Any, capsys: pytest.CaptureFixture[str]) -> None:
    both = [ROW | {"fill": fill, "digests": ["a", "a"]} for fill in history.FILLS]
    assert history.show(both) == 0 and "a × 4" in capsys.readouterr().out
    assert history.show(both[:1]) == 1 and "HALF" in capsys.readouterr().out
    assert history.show([both[0], both[1] | {"digests": ["a", "b"]}]) == 1 and "SEVERAL" in capsys.readouterr().out
