from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contracts.records import recorded
from edges.grid import error_reply
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

import client_app.app as client_module
from fednas_core.base.config import RunConfig, WireConfig
from fednas_core.base.errors import RunError, TaskError
from fednas_core.engine.cohort import Crew
from fednas_core.engine.evaluation import Judge, Judged
from fednas_core.engine.handover import hand_over
from fednas_core.exchange.orders import Answer, Failure, Order
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import subnets_of
from fednas_core.tasks.bench import space_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.registry import FORMS, perform
from server_app.rounds import GridFleet, open_fleet

Orders = dict[str, Order]
Fleets = Callable[..., GridFleet]


def outcome(fleet: GridFleet, orders: Orders) -> tuple[dict[str, Answer], dict[str, str]]:
    answers = list(fleet.train(orders))
    assert sorted(answer.client for answer in answers) == sorted(orders)  # one answer for each order, always
    reports = {answer.client: answer for answer in answers if isinstance(answer, Answer)}
    return reports, {answer.client: answer.reason for answer in answers if isinstance(answer, Failure)}


@pytest.mark.parametrize("nodes", [1, 2, 4, 9])
def test_any_number_of_nodes_serves_all_clients(fleet_of: Fleets, orders: Orders, nodes: int) -> None:
    fleet = fleet_of(nodes=nodes)
    assert [info.name for info in fleet.clients()] == ["client-00", "client-01", "client-02", "client-03"]
    assert all(info.profile is not None and info.profile.macs_per_second > 0 for info in fleet.clients())
    reports, failures = outcome(fleet, orders)
    assert len(reports) == 4 and not failures


def test_a_report_through_flower_equals_that_of_the_task(fleet_of: Fleets, orders: Orders, config: RunConfig) -> None:
    reports, _ = outcome(fleet_of(), orders)
    for index, (name, order) in enumerate(orders.items()):
        direct = perform(order, config, index)
        assert replace(reports[name], channels={}, seconds=0.0) == replace(direct, channels={}, seconds=0.0)
        for key, tensor in direct.weights.items():
            assert torch.equal(reports[name].weights[key], tensor)


def test_orders_start_in_the_mappings_order_each_to_its_own_node(fleet_of: Fleets, orders: Orders) -> None:
    fleet = fleet_of()
    turned = dict(reversed(orders.items()))
    list(fleet.train(turned))
    pushed = [message for message in fleet.grid.pushed if message.metadata.message_type == "train"]  # type: ignore[attr-defined]
    heads = [json.loads(str(message.content["fednas"]["head"])) for message in pushed]
    assert [head["client"] for head in heads] == list(turned)
    assert all(len(message.content.array_records["tensors"]) == 1 for message in pushed)
    assert all(message.metadata.ttl < 43_200 for message in pushed)


def only(
    client: str, change: Callable[[Message, Message], list[Message]]
) -> Callable[[Message, Message], list[Message]]:
    """Spoil the reply to one client."""

    def spoil(message: Message, reply: Message) -> list[Message]:
        head = json.loads(str(message.content["fednas"]["head"]))
        return change(message, reply) if head.get("client") == client else [reply]

    return spoil


def with_array(array: Array) -> Callable[[Message, Message], list[Message]]:
    def change(message: Message, reply: Message) -> list[Message]:
        head = reply.content.config_records["fednas"]
        content = RecordDict({"fednas": head, "tensors": ArrayRecord({"weights.float32": array})})
        return [Message(content, reply_to=message)]

    return change


def with_head(head: object) -> Callable[[Message, Message], list[Message]]:
    return lambda message, _: [Message(RecordDict({"fednas": ConfigRecord({"head": head})}), reply_to=message)]  # type: ignore[dict-item]


TRACEBACK = "Traceback (most recent call last):\n  File 'x.py', line 3\nRuntimeError: out of luck\n"

HOSTILE = {
    "nothing": (lambda message, _: [Message(RecordDict(), reply_to=message)], "no fednas record"),
    "number for a head": (with_head(3), "no fednas record"),
    "no json": (with_head("}"), "not JSON"),
    "claims nothing": (with_head("{}"), "found None"),
    "long head": (with_head("[" + "1," * 400_000 + "1]"), "characters, allowed"),
    "claims terabytes": (with_array(Array("float32", (10**12,), "numpy.ndarray", b"\0" * 4)), "found 4 bytes"),
    "pickle": (with_array(Array("object", (1,), "pickle", b"cos\nsystem\n(S'false'\ntR.")), "bytes, allowed"),
    "error": (lambda message, _: [error_reply(message, TRACEBACK)], "RuntimeError: out of luck"),
    "error in a simulation": (
        lambda message, _: [
            error_reply(
                message, "<class 'X'>:<'\nException ClientAppException occurred. Message: can't open 'file.npz''>"
            )
        ],
        "can't open 'file.npz'",
    ),
    "error without a reason": (lambda message, _: [error_reply(message, "", 8)], "Flower error 8"),
    "node lost": (lambda message, _: [from_superlink(message, "Node is unavailable")], "Node is unavailable"),
}


def from_superlink(message: Message, reason: str) -> Message:
    """An error that the SuperLink makes in place of a node."""
    reply = error_reply(message, reason, 5)
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_a_bad_reply_is_that_clients_failure_and_the_round_goes_on(fleet_of: Fleets, orders: Orders, case: str) -> None:
    change, told = HOSTILE[case]
    reports, failures = outcome(fleet_of(only("client-02", change)), orders)
    assert sorted(reports) == ["client-00", "client-01", "client-03"]
    assert told in failures["client-02"]
    assert "\n" not in failures["client-02"] and len(failures["client-02"]) < 400


def test_second_replies_and_strangers_are_dropped(fleet_of: Fleets, orders: Orders) -> None:
    def twice_and_more(message: Message, reply: Message) -> list[Message]:
        stranger = error_reply(message, "who?")
        stranger.metadata.__dict__["_reply_to_message_id"] = "unknown"
        return [stranger, reply, reply]

    reports, failures = outcome(fleet_of(twice_and_more), orders)
    assert len(reports) == 4 and not failures


def test_a_client_that_never_answers_is_given_up_after_the_deadline(fleet_of: Fleets, orders: Orders) -> None:
    fleet = fleet_of(only("client-01", lambda message, reply: []), deadline=0.3)
    start = time.monotonic()
    reports, failures = outcome(fleet, orders)
    assert len(reports) == 3
    assert failures == {"client-01": "no answer within the deadline of 0.3 seconds"}
    assert 0.3 < time.monotonic() - start < 5


def test_a_node_that_went_away_before_its_order_fails(fleet_of: Fleets, orders: Orders) -> None:
    fleet = fleet_of()
    gone = fleet._members["client-03"].node
    del fleet.grid.nodes[gone]  # type: ignore[attr-defined]
    reports, failures = outcome(fleet, orders)
    assert sorted(failures) == ["client-01", "client-03"] and len(reports) == 2
    assert [info.name for info in fleet.clients()] == ["client-00", "client-02"]


def test_a_dead_process_of_the_simulation_ends_the_run(fleet_of: Fleets, orders: Orders) -> None:
    died = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly before finishing this task.'>"
    fleet = fleet_of(only("client-00", lambda message, reply: [error_reply(message, died, 0)]))
    with pytest.raises(RunError, match="a process of the simulation died .* start again with fewer"):
        list(fleet.train(orders))


def test_a_clients_own_error_reaches_the_server_in_its_words(
    fleet_of: Fleets, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_of()

    def clumsy(order: Order, config: RunConfig, index: int, home: Home) -> Answer:
        if order.client == "client-02":
            raise ZeroDivisionError("a bug")
        if order.client == "client-03":
            raise TaskError("OSError: the camera is gone")
        return perform(order, config, index, home)

    monkeypatch.setattr(client_module, "perform", clumsy)
    monkeypatch.setattr(client_module, "FORMS", {"trial": FORMS["trial"]})
    reports, failures = outcome(fleet, {"client-01": orders["client-01"]})
    assert not reports and failures["client-01"] == "task 'subnet' is not known here: allowed are trial"
    monkeypatch.setattr(client_module, "FORMS", FORMS)
    reports, failures = outcome(fleet, orders)
    assert sorted(reports) == ["client-00", "client-01"]
    assert "a bug" in failures["client-02"] and failures["client-03"] == "OSError: the camera is gone"


def test_what_cannot_be_sent_is_that_clients_failure_and_the_round_goes_on(fleet_of: Fleets, orders: Orders) -> None:
    fleet = fleet_of(wire=WireConfig(down="fp16"))
    orders["client-00"].weights["head.bias"][0] = 1e9
    orders["client-01"] = replace(orders["client-01"], task="juggle")
    more = deque([replace(orders["client-02"], task="whistle")])
    answers = list(fleet.train({name: orders[name] for name in ("client-00", "client-01", "client-03")}, more))
    told = {answer.client: answer.reason for answer in answers if isinstance(answer, Failure)}
    assert len(answers) == 4 and sorted(told) == ["client-00", "client-01", "client-02"]
    known = "is not known here: allowed are subnet, sandwich, moments, trial, teach, distil, install"
    assert (told["client-01"], told["client-02"]) == (f"task 'juggle' {known}", f"task 'whistle' {known}")
    assert told["client-00"].startswith("float16: found values too large or not finite")


LIES: dict[str, tuple[dict[str, object], str]] = {
    "no latency": ({"latency_ms": None}, "result: found no field 'latency_ms', allowed are loss, accuracy, tested,"),
    "a latency of nan": ({"latency_ms": math.nan}, "result.latency_ms: found nan, allowed a finite number"),
    "a latency below zero": ({"latency_ms": -1.0}, "latency_ms: found -1.0, allowed a finite number from 0"),
    "an accuracy beyond one": ({"accuracy": 9e18}, "accuracy: found 9e+18, allowed a number from 0 to 1"),
    "more images than it has": ({"tested": 10**9}, "tested: found 1000000000, allowed 0 to the"),
    "fits as a number": ({"fits": 1.0}, "result.fits: found 1.0, allowed true or false"),
    "kept though too slow": ({"fits": False, "stored": True}, "stored: found true, allowed false of a model"),
    "a field of its own": ({"bonus": 1.0}, "result: found the field 'bonus', allowed are loss, accuracy, tested,"),
}
"""What a client may say of the model that it was handed, and why it is not believed."""


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_a_model_is_that_clients_failure_and_the_others_get_theirs(
    fleet_of: Fleets, config: RunConfig, lie: str
) -> None:
    changes, told = LIES[lie]

    def lies(message: Message, reply: Message) -> list[Message]:
        content = reply.content
        head = json.loads(str(content["fednas"]["head"]))
        result = {**head["result"], **changes}
        head["result"] = {key: value for key, value in result.items() if value is not None}
        return [Message(RecordDict({"fednas": ConfigRecord({"head": json.dumps(head)})}), reply_to=message)]

    fleet, space = fleet_of(only("client-02", lies)), space_of(config)
    crew = Crew(fleet, config, [space.smallest], lambda text: None)
    judge = Judge(config, subnets_of(space, initial_weights(space, 1)))
    cost = space.cost(space.smallest)
    judged = Judged(space.smallest, cost.macs, cost.params, cost.bytes, 0.0, 0.5, 1.0)
    rows = {row["client"]: row for row in recorded(hand_over(config, crew, judge, [judged], "run-1"))}
    liar = rows.pop("client-02")
    assert told in liar["reason"] and liar["failed"] and "arch" not in liar
    assert len(rows) == 3
    for row in rows.values():
        assert row["reason"] == "" and row["latency_ms"] > 0 and 0 <= row["accuracy"] <= 1


def test_the_deadline_is_kept_in_the_client_even_by_a_step_that_hangs(
    fleet_of: Fleets, orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_of(deadline=0.2)

    def slow(order: Order, config: RunConfig, index: int, home: Home) -> Answer:
        if order.client == "client-02":
            time.sleep(1.0)
        return perform(order, config, index, home)

    monkeypatch.setattr(client_module, "perform", slow)
    monkeypatch.setattr(client_module.within, "__defaults__", (0.1,))
    start = time.monotonic()
    reports, failures = outcome(fleet, orders)
    assert time.monotonic() - start < 0.9 + sum(report.seconds for report in reports.values())
    assert len(reports) == 3 and "no end 0.1 seconds after the deadline of 0.2 seconds" in failures["client-02"]


def test_within_passes_results_and_errors_on() -> None:
    assert client_module.within(1.0, lambda: 3) == 3
    with pytest.raises(TimeoutError, match="my own"):
        client_module.within(1.0, lambda: (_ for _ in ()).throw(TimeoutError("my own")))


def test_open_fleet_waits_for_nobody_once_all_are_there(fleet_of: Fleets, config: RunConfig) -> None:
    fleet = open_fleet(fleet_of().grid, config, pytest.fail)  # type: ignore[attr-defined]
    assert len(fleet.clients()) == 4
    fleet.close()
