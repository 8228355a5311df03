"""FedSup's benchmark: what it offers can be run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from fednas_core.methods.setup import growing
from fednas_core.tasks.bench import space_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROUNDS = 20
"""As many as the benchmark trains by default."""


@pytest.fixture(scope="module")
def fedsup() -> Any:
    sys.path.append(str(BENCHMARKS))
    return importlib.import_module("fedsup")


def test_every_arm_opens_all_genes_within_the_rounds_of_the_benchmark(fedsup: Any) -> None:
    for arm in fedsup.ARMS:
        config = fedsup.settings(1.0, arm, 0.025, 1, ROUNDS)
        assert growing(config, space_of(config)).closed < ROUNDS, arm
