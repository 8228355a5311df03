"""A thousand clients in one run, played by sixteen nodes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from contracts.records import recorded
from edges.conftest import make_order
from edges.grid import InProcessGrid, error_reply, simulated
from flwr.app import Message

from client_app.app import app as client
from fednas_core.base.config import RunConfig
from fednas_core.base.errors import RunError
from fednas_core.base.settings import read
from fednas_core.base.values import Arch
from fednas_core.devices.budgets import Allowance
from fednas_core.engine import run as experiment
from fednas_core.engine.run import conduct
from fednas_core.exchange.orders import Answer
from fednas_core.search.path import PathRow
from fednas_core.tasks import install
from server_app import roster
from server_app.roster import Roster
from server_app.rounds import open_fleet

CLIENTS, NODES, COHORT = 1000, 16, 20


class CountingGrid(InProcessGrid):
    """Notes for how many messages no reply has been pulled, at the most, and how many of one node."""

    def __init__(self) -> None:
        super().__init__(client, simulated(NODES))
        self._open: dict[str, int] = {}
        self.most = self.most_of_a_node = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = super().push_messages(messages)
        self._open |= {name: self.pushed[-1].metadata.dst_node_id for name in ids}
        self.most = max(self.most, len(self._open))
        self.most_of_a_node = max(self.most_of_a_node, *Counter(self._open.values()).values())
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        ready = super().pull_messages(message_ids)
        for reply in ready:
            del self._open[reply.metadata.reply_to_message_id]
        return ready


@pytest.fixture
def crowd(tiny_pairs: dict[str, Any], tmp_path: Path) -> RunConfig:
    """The settings of a tiny run of a thousand clients, one image or two each."""
    return read(
        tiny_pairs
        | {"data.examples": 0, "data.partition": "iid", "data.clients": CLIENTS, "cohort": COHORT, "rounds": 2}
        | {"budgets": "any=max", "client-budgets": "30%,any", "output": str(tmp_path)}
    )


def test_flowers_queue_holds_one_order_a_node_however_many_clients_are_called(crowd: RunConfig) -> None:
    grid, said = CountingGrid(), list[str]()
    fleet = open_fleet(grid, crowd, said.append)
    names = [info.name for info in fleet.clients()]
    assert len(names) == CLIENTS and not said
    answers = list(fleet.train({name: make_order(crowd, name) for name in names[:100]}))
    assert sorted(answer.client for answer in answers if isinstance(answer, Answer)) == names[:100]
    assert grid.most == NODES and grid.most_of_a_node == 1


@pytest.mark.slow
def test_a_thousand_clients_train_in_cohorts_and_each_is_handed_a_model(
    crowd: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def candidates(config: RunConfig, allowances: list[Allowance], path: list[PathRow]) -> tuple[Arch, ...]:
        asked.append(len(allowances))
        return found(config, allowances, path)

    timed: list[Arch] = []

    def measure(*arguments: Any, **named: Any) -> Any:
        timed.append(arguments[0])
        return latency(*arguments, **named)

    found, latency = experiment.candidates, install.measure
    monkeypatch.setattr(experiment, "candidates", candidates)
    monkeypatch.setattr(install, "measure", measure)
    said: list[str] = []
    grid = CountingGrid()
    run = conduct(crowd, open_fleet(grid, crowd, said.append), said.append)
    assert [len(event["clients"]) for event in recorded(run.events())] == [COHORT, COHORT]
    rows = run.read_json("result.json")["clients"]
    assert len(rows) == CLIENTS and not any(row["reason"] for row in rows)
    assert asked[-1] == 3  # searched for one device and two kinds of client, not for a thousand clients
    assert len(timed) == len({json.dumps(row["arch"]) for row in rows})  # a network is timed once on a machine
    assert sum(len(text.splitlines()) for text in said) < 60
    assert (run.path / "report.html").stat().st_size < 1_000_000
    assert "And 900 more in result.json." in (run.path / "report.md").read_text(encoding="utf-8")
    profiles = run.read_json("devices.json")
    assert len(profiles["devices"]) >= CLIENTS and len(profiles["profiles"]) <= 2


def test_what_keeps_a_thousand_clients_out_is_said_once(crowd: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "REFUSED_S", 0.0)
    grid = InProcessGrid(client, simulated(CLIENTS))
    grid.spoil = lambda message, reply: [error_reply(message, "no disk")]
    said: list[str] = []
    with pytest.raises(RunError, match="none of the 1000 nodes can take part: no disk"):
        Roster(grid, crowd, said.append, nodes_s=0.0).members()
    (line,) = said
    assert line.endswith("and 988 more take no part: no disk")
