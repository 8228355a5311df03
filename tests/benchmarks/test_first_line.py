"""The benchmark of own images: what it takes for learning, and for the accuracy that is told."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Any:
    sys.path.append(str(BENCHMARKS))
    return importlib.import_module("first_line")


def test_guessing_is_told_from_learning_where_the_images_can_show_it(bench: Any) -> None:
    assert bench.learnt(1.0, 6, 2) is None  # six right of six happen to one guess in 64
    assert bench.learnt(0.6, 100, 2) is False and bench.learnt(0.7, 100, 2) is True
    assert bench.learnt(0.015, 200, 100) is False and bench.learnt(0.06, 200, 100) is True


def test_an_accuracy_that_is_told_is_that_of_the_file(bench: Any) -> None:
    assert bench.alike(0.5, 0.505, 200, 200, own=True) and not bench.alike(0.5, 0.55, 200, 200, own=True)
    assert bench.alike(0.5, 0.55, 200, 500, own=False) and not bench.alike(0.9, 0.5, 200, 500, own=False)


def test_a_set_that_there_is_not_is_refused() -> None:
    command = [sys.executable, str(BENCHMARKS / "first_line.py"), "--only", "photoes"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "no set ['photoes']" in ended.stderr
