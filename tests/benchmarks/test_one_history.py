"""The benchmark of repeatability: what it makes of several digests."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROW = {"method": "fedavg", "space": "small", "size": 1}


@pytest.fixture(scope="module")
def history() -> Any:
    sys.path.append(str(BENCHMARKS))
    return importlib.import_module("one_history")


def test_several_digests_and_missing_halves_are_faults(history: Any, capsys: pytest.CaptureFixture[str]) -> None:
    both = [ROW | {"fill": fill, "digests": ["a", "a"]} for fill in history.FILLS]
    assert history.show(both) == 0 and "a × 4" in capsys.readouterr().out
    assert history.show(both[:1]) == 1 and "HALF" in capsys.readouterr().out
    assert history.show([both[0], both[1] | {"digests": ["a", "b"]}]) == 1 and "SEVERAL" in capsys.readouterr().out
