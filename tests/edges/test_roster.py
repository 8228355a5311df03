from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from edges.grid import InProcessGrid, simulated
from flwr.app import Message

import client_app.app as client_module
from client_app.app import app as client
from client_app.settings import home_of, serves
from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError, ReplyError, RunError
from fednas_core.base.fingerprint import Fingerprint
from fednas_core.tasks.bench import client_images
from fednas_core.tasks.registry import clients_of
from server_app.roster import Roster, read_members

PROFILE = {
    "cores": 2,
    "memory_mb": 100,
    "precision": "fp32",
    "macs_per_second": 1e9,
    "latency_ms": 2.0,
    "threads": 1,
    "device": "cpu",
    "probes": [],
}


def roster(grid: InProcessGrid, config: RunConfig, said: list[str] | None = None, nodes_s: float = 0.0) -> Roster:
    return Roster(grid, config, (said if said is not None else []).append, nodes_s=nodes_s, profile_s=0.1)


def test_each_node_is_asked_once(config: RunConfig) -> None:
    grid = InProcessGrid(client, simulated(3))
    people = roster(grid, config)
    assert list(people.members()) == ["client-00", "client-01", "client-02", "client-03"] == list(people.members())
    assert [message.metadata.message_type for message in grid.pushed] == ["query.profile"] * 3


def test_examples_are_those_of_the_clients_own_part(config: RunConfig) -> None:
    from fednas_core.tasks.bench import split_of

    members = roster(InProcessGrid(client, simulated(2)), config).members()
    assert [m.info.examples for m in members.values()] == [len(part) for part in split_of(config).clients]
    assert [m.index for m in members.values()] == [0, 1, 2, 3]


def test_what_is_held_out_is_told_apart(config: RunConfig) -> None:
    held = replace(config, data=replace(config.data, holdout=0.25))
    members, local = roster(InProcessGrid(client, simulated(2)), held).members(), clients_of(held)
    told = [(m.info.name, m.info.examples, m.info.held_out) for m in members.values()]
    assert told == [(info.name, info.examples, info.held_out) for info in local] and all(held for *_, held in told)


def test_clients_without_any_of_the_classes_are_not_waited_for(config: RunConfig) -> None:
    few = replace(config, data=replace(config.data, partition="classes", clients=10, only="0,1"))
    said: list[str] = []
    members = roster(InProcessGrid(client, simulated(3)), few, said).members()
    there = [info.name for info in clients_of(few)]
    assert list(members) == there and 0 < len(there) < 10 and said == []


def test_devices_may_have_names(config: RunConfig) -> None:
    nodes: dict[int, dict[str, Any]] = {5: {"partition-id": 1, "name": "edge-b"}, 6: {"partition-id": 3}}
    said: list[str] = []
    members = roster(InProcessGrid(client, nodes), config, said).members()
    assert [(name, m.node, m.index) for name, m in members.items()] == [("client-03", 6, 3), ("edge-b", 5, 1)]
    assert said == ["2 of 4 clients are there: going on with them"]


def test_nodes_that_come_one_by_one_are_waited_for(config: RunConfig) -> None:
    """Each starts the wait anew: on a slow machine they take longer together than one may take alone."""

    class Slow(InProcessGrid):
        def get_node_ids(self) -> list[int]:
            return list(self.nodes)[: int((time.monotonic() - start) / 0.5)]

    grid, said, start = Slow(client, simulated(4)), list[str](), time.monotonic()
    assert len(roster(grid, config, said, nodes_s=1.5).members()) == 4 and said == []


def test_newcomers_join_and_leavers_are_missed(config: RunConfig) -> None:
    grid = InProcessGrid(client, {5: {"partition-id": 0}})
    people = roster(grid, config)
    assert list(people.members()) == ["client-00"]
    grid.nodes[6] = {"partition-id": 2}
    assert list(people.members()) == ["client-00", "client-02"]
    del grid.nodes[5]
    assert list(people.members()) == ["client-02"]


def test_nobody_there_says_what_to_do(config: RunConfig) -> None:
    with pytest.raises(RunError, match="no node came within 0 seconds: start SuperNodes .* num-supernodes"):
        roster(InProcessGrid(client, {}), config).members()


def test_other_code_is_refused_with_its_folder(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "fingerprint", lambda: Fingerprint("0" * 64, "/home/me/old"))
    said: list[str] = []
    with pytest.raises(RunError, match="none of the 2 nodes can take part: this client runs the code in /home/me/old"):
        roster(InProcessGrid(client, simulated(2)), config, said).members()
    assert len(said) == 1 and said[0].startswith("nodes 397, 550 take no part: this client runs the code in")


def test_a_silent_node_does_not_stop_the_others(config: RunConfig) -> None:
    grid = InProcessGrid(client, simulated(2))

    def mute(message: Message, reply: Message) -> list[Message]:
        return [] if message.metadata.dst_node_id == min(grid.nodes) else [reply]

    grid.spoil = mute
    said: list[str] = []
    assert len(roster(grid, config, said).members()) == 2
    assert "no answer within" in said[0]


def test_two_nodes_with_one_partition_are_told_apart(config: RunConfig) -> None:
    nodes = {5: {"partition-id": 1}, 6: {"partition-id": 1}}
    with pytest.raises(RunError, match="nodes 5 and 6 both serve client 'client-01'.*partition-id"):
        roster(InProcessGrid(client, nodes), config).members()


def test_a_node_without_a_partition_is_refused_with_an_example(config: RunConfig) -> None:
    with pytest.raises(RunError, match="--node-config partition-id: found nothing, allowed .* 'partition-id=0'"):
        roster(InProcessGrid(client, {5: {}}), config).members()


def members_text(**changes: object) -> str:
    return json.dumps({"clients": [["a", 0, 3, 1, []]], "profile": PROFILE, "budget": ""} | changes)


def test_a_good_profile_is_read(config: RunConfig) -> None:
    (member,) = read_members(members_text(budget="20ms"), 9, config)
    assert member.info.budget == "20ms"
    assert (member.node, member.index, member.info.name, member.info.examples) == (9, 0, "a", 3)
    assert member.info.profile is not None and member.info.profile.latency_ms == 2.0
    assert member.info.labels == () and member.info.held_out == 1


@pytest.mark.parametrize(
    "row", [["a", 0, 10**400, 0, []], ["a", 10**13, 3, 0, []], ["a", 0, 3, 10**13, []], ["a", 0, 3, 0, [10**400] * 10]]
)
def test_numbers_that_no_sum_can_take_are_refused(config: RunConfig, row: list[object]) -> None:
    with pytest.raises(ReplyError, match="its profile cannot be used"):
        read_members(members_text(clients=[row]), 9, config)


def test_disclosed_labels_are_read(config: RunConfig) -> None:
    labels = [0, 1, 2, 0, 0, 0, 0, 0, 0, 0]
    (member,) = read_members(members_text(clients=[["a", 0, 3, 1, labels]]), 9, config)
    assert member.info.labels == tuple(labels)


@pytest.mark.parametrize("asked", [True, False])
def test_labels_are_disclosed_if_the_run_asks_and_the_device_agrees(config: RunConfig, asked: bool) -> None:
    asking = replace(config, data=replace(config.data, disclose=asked))
    nodes: dict[int, dict[str, Any]] = {5: {"partition-id": 1}, 6: {"partition-id": 3, "disclose": False}}
    members = roster(InProcessGrid(client, nodes), asking).members()
    told = tuple(torch.bincount(client_images(config, 1).y, minlength=10).tolist())
    assert members["client-01"].info.labels == (told if asked else ())
    assert members["client-03"].info.labels == () and sum(told) == members["client-01"].info.examples


def test_disclose_is_true_or_false() -> None:
    assert home_of({}).disclose and home_of({"disclose": True}).disclose and not home_of({"disclose": False}).disclose
    for value in ("false", 0, 1.0):
        with pytest.raises(ConfigError, match="--node-config disclose: found .*, allowed true or false"):
            home_of({"disclose": value})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 5000,
        members_text(clients=[["a", -1, 3, 0, []]]),
        members_text(clients=[["a", 0, 0, 0, []]]),
        members_text(clients=[["", 0, 1, 0, []]]),
        members_text(clients=[["a", 0, float("inf"), 0, []]]),
        members_text(clients=[["a", 0, 3, 0]]),
        members_text(clients=[["a", 0, 3, -1, []]]),
        members_text(clients=[["a", 0, 3, None, []]]),
        members_text(clients=[["a", 0, 3, 0, [1, 2]]]),
        members_text(clients=[["a", 0, 3, 0, [3, -1, 1, 0, 0, 0, 0, 0, 0, 0]]]),
        members_text(clients=[["a", 0, 3, 0, ["many"] * 10]]),
        members_text(clients=[["a", 0, 3, 0, None]]),
        members_text(clients=7),
        members_text(profile={}),
        members_text(profile=PROFILE | {"macs_per_second": float("nan")}),
        members_text(profile=PROFILE | {"latency_ms": -1}),
        members_text(profile=PROFILE | {"cores": "many"}),
        members_text(budget="as much as possible"),
        members_text(budget=7),
    ],
)
def test_a_bad_profile_is_refused(text: str, config: RunConfig) -> None:
    with pytest.raises(ReplyError, match="its profile cannot be used"):
        read_members(text, 9, config)


NAMES = [f"client-{i:02d}" for i in range(7)]


@pytest.mark.parametrize("nodes", range(1, 12))
def test_every_client_is_served_exactly_once(nodes: int) -> None:
    served = [pair for i in range(nodes) for pair in serves({"partition-id": i, "num-partitions": nodes}, NAMES)]
    assert sorted(served) == [(name, index) for index, name in enumerate(NAMES)]


@pytest.mark.parametrize("value", ["one", -1, 1.5, True, None])
def test_a_partition_id_is_a_number(value: object) -> None:
    with pytest.raises(ConfigError, match="--node-config partition-id: found"):
        serves({"partition-id": value}, NAMES)  # type: ignore[dict-item]
