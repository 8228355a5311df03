"""What the tests of whole runs share: a fleet of two processes, and an end without export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts.samples import TINY

from fednas_core.base.config import RunConfig
from fednas_core.base.settings import read
from fednas_core.engine import run as experiment
from fednas_core.engine.local import LocalFleet
from fednas_core.runs.record import ModelRow


@pytest.fixture(scope="session")
def pool(tiny_space_file: Path) -> Iterator[LocalFleet]:
    """Two worker processes that serve every run with the data of the tiny one."""
    fleet = LocalFleet(read({**TINY, "space.name": str(tiny_space_file), "workers": 2}))
    yield fleet
    fleet.close()


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """End runs without measuring, export and report: what is chosen is noted with its accuracies."""

    def deliver(config: RunConfig, judge: Any, budget: Any, chosen: Any, folder: Path) -> ModelRow:
        return ModelRow(
            device=budget.device, budget=str(budget), budget_macs=int(budget.macs), arch=chosen.arch.to_json(),
            validation={"accuracy": chosen.validation_accuracy},
            test={"accuracy": judge.test(chosen.arch).accuracy}, macs=chosen.macs, params=chosen.params,
            bytes=chosen.bytes, latency_ms=0.0, export_max_abs_error=0.0,
        )  # fmt: skip

    monkeypatch.setattr(experiment, "deliver", deliver)
    monkeypatch.setattr(experiment, "write_report", lambda folder: folder)
