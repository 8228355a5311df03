"""Clients that keep state from round to round: a run that was killed goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.fleets import Around, Stopping
from contracts.records import recorded

from fednas_core.base.errors import RunError
from fednas_core.base.settings import read
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct, settle
from fednas_core.exchange.orders import Fleet
from fednas_core.runs.folder import RunFolder

Run = Callable[..., RunFolder]


@pytest.fixture
def pairs(tiny_pairs: dict[str, Any]) -> dict[str, Any]:
    wire = {"wire.down": "int8", "wire.up": "topk", "wire.keep": 0.05, "install": False}
    return {**tiny_pairs, "rounds": 4, "cohort": 3, "evaluate-every": 4, **wire}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, light: None) -> Run:
    def start(pairs: dict[str, Any], state: str, around: Callable[[Fleet], Fleet] = Around) -> RunFolder:
        monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / state))
        config = settle(read(pairs))
        return conduct(config, around(LocalFleet(config)), lambda text: None)

    return start


def history(run: RunFolder) -> list[dict[str, Any]]:
    """The events without what a clock decided."""
    events = recorded(run.events())
    for event in events:
        del event["seconds"]
        for row in event["clients"]:
            del row["seconds"]
    return events


def supernet(run: RunFolder) -> dict[str, torch.Tensor]:
    return dict(run.load_checkpoint()[1].tensors)


def equal(one: RunFolder, two: RunFolder) -> bool:
    a, b = supernet(one), supernet(two)
    return history(one) == history(two) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("stopped", "answers"), [(1, 0), (2, 2), (3, 1)])
def test_residuals_survive_a_kill(pairs: dict[str, Any], run: Run, tmp_path: Path, stopped: int, answers: int) -> None:
    """Clients that had done the round already repeat it from the residual before it."""
    whole = run({**pairs, "output": str(tmp_path / "whole")}, "one")
    with pytest.raises(KeyboardInterrupt):
        run(pairs, "two", lambda fleet: Stopping(fleet, stopped, answers))
    resumed = run({"output": pairs["output"], "resume": "latest"}, "two")
    assert equal(whole, resumed)


def test_a_run_does_not_go_on_without_its_clients_residuals(pairs: dict[str, Any], run: Run, tmp_path: Path) -> None:
    """Without them (another folder after the kill) the rest of the run would be another one."""
    whole = run({**pairs, "output": str(tmp_path / "whole")}, "one")
    with pytest.raises(KeyboardInterrupt):
        run(pairs, "two", lambda fleet: Stopping(fleet, 2))
    again = {"output": pairs["output"], "resume": "latest"}
    with pytest.raises(
        RunError, match=r"private state that client-.. had before round 3 .* is not in .*three.*Nothing"
    ):
        run(again, "three")
    assert not (tmp_path / "three").exists()
    assert equal(whole, run(again, "two"))
