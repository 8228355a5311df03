"""Collecting: each client one order at a time, first answers that are credible, and why others are missing."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.arena import contest_of
from contracts.records import recorded
from contracts.samples import answer, found, with_result

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ReplyError
from fednas_core.base.settings import read
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.cohort import Crew
from fednas_core.engine.collect import NO_ANSWER, answered, collect, completed
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import run_round
from fednas_core.exchange import results
from fednas_core.exchange.orders import WEIGHTS, Answer, Failure, Order
from fednas_core.methods.fedavg import row_of
from fednas_core.methods.method import Ask, Assignment, Told, request
from fednas_core.methods.story import Story
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import subnets_of, views
from fednas_core.tasks.bench import examples_of, space_of
from fednas_core.tasks.personal import Adaptation
from fednas_core.tasks.task import NoParams
from fednas_core.training.settings import train_settings

Outcome = Answer | Failure
Spoil = Callable[[Answer], Sequence[Outcome]]
RESULTS: dict[str, results.Tested | results.Kept] = {
    "trial": results.Tested(1.5, 0.25, 5, True),
    "teach": results.Kept(),
}


class Busy:
    """Three clients that answer at once, each busy with one order at a time; `spoil` changes answers by client."""

    def __init__(self, spoil: Mapping[str, Spoil] | None = None) -> None:
        self.spoil, self.orders, self.calls = dict(spoil or {}), list[Order](), 0

    def clients(self) -> list[ClientInfo]:
        return [ClientInfo(f"client-{i:02d}", 60, budget="2M" if i == 1 else "") for i in range(3)]

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Outcome]:
        self.calls += 1
        waiting, more = list(orders.values()), deque() if more is None else more
        assert all(order.client == name for name, order in orders.items())
        while waiting:
            assert len({order.client for order in waiting}) == len(waiting), "a client has two orders at a time"
            order = waiting.pop()  # the last one is the first to answer
            self.orders.append(order)
            report = answer(order) if order.task == "subnet" else found(order, RESULTS[order.task], bytes_up=0)
            yield from self.spoil.get(order.client, lambda found: [found])(report)
            while more:
                waiting.append(more.popleft())

    def close(self) -> None: ...


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read({**tiny_pairs, "space.norm": "group"})


def judge_of(config: RunConfig) -> Judge:
    return Judge(config, subnets_of(space_of(config), initial_weights(space_of(config), 1)))


def sent(config: RunConfig, fleet: Busy, requests: Sequence[Order]) -> tuple[list[Answer], list[Failure]]:
    crew = Crew(fleet, config, [space_of(config).smallest], lambda text: None)
    return answered(config, crew, requests, judge_of(config).model, "run-9")


def requests_of(config: RunConfig, *names: str) -> list[Order]:
    space = space_of(config)
    return [request(4, name, "trial", arch) for arch in (space.largest, space.smallest) for name in names]


def training(config: RunConfig, name: str, round: int = 0) -> Order:
    """An order to train the smallest network."""
    space = space_of(config)
    tensors = views(initial_weights(space, 1), space.plan(space.smallest))
    return Order(name, round, "subnet", space.smallest, {WEIGHTS: tensors}, train_settings(config.train), 5)


def told(
    fleet: Busy, orders: Sequence[Order], more: deque[Order] | None = None, **how: Any
) -> list[tuple[str, int, str]]:
    """Client, round and reason ('' for an answer) of everything that is collected."""
    clients = {client.name: client for client in fleet.clients()}
    rows = []
    for order, outcome in collect(fleet, orders, clients, more=more, **how):
        assert outcome.client == order.client
        rows.append((order.client, order.round, outcome.reason if isinstance(outcome, Failure) else ""))
    return rows


# -- collecting ----------------------------------------------------------------------------------------------------


def test_orders_of_one_client_go_out_one_after_the_other(config: RunConfig) -> None:
    fleet = Busy()
    orders = [training(config, name, round) for round in (0, 1, 2) for name in ("client-01", "client-00")]
    rows = told(fleet, orders)
    assert sorted(rows) == sorted((order.client, order.round, "") for order in orders) and fleet.calls == 1
    for name in ("client-00", "client-01"):
        assert [round for client, round, _ in rows if client == name] == [0, 1, 2]


def test_a_client_that_fails_gets_its_next_order_all_the_same(config: RunConfig) -> None:
    def fails_first(report: Answer) -> list[Outcome]:
        return [Failure(report.client, "away")] if report.round == 0 else [report]

    fleet = Busy({"client-00": fails_first})
    assert told(fleet, [training(config, "client-00", round) for round in (0, 1)]) == [
        ("client-00", 0, "away"),
        ("client-00", 1, ""),
    ]


def test_the_first_answer_counts_and_strangers_and_late_ones_are_lost(config: RunConfig) -> None:
    """Nobody is asked twice about one order: what comes after its answer is nobody's."""
    seen: list[Answer] = []

    def louder(report: Answer) -> list[Outcome]:
        seen.append(report)
        return [replace(report, client="stranger"), Failure("stranger", "x"), report, with_result(report, loss=9.0)]

    fleet = Busy({"client-00": louder, "client-02": lambda report: [Failure("client-02", "away"), report]})
    clients = {client.name: client for client in fleet.clients()}
    found = [(o.client, what) for o, what in collect(fleet, [training(config, name) for name in clients], clients)]
    outcomes = dict(found)
    assert len(found) == len(outcomes) == 3
    assert outcomes["client-00"] is seen[0] and outcomes["client-02"] == Failure("client-02", "away")
    assert isinstance(outcomes["client-01"], Answer)


def test_an_answer_to_an_earlier_order_is_none_to_the_next(config: RunConfig) -> None:
    fleet = Busy({"client-00": lambda report: [replace(report, round=0)]})
    rows = told(fleet, [training(config, "client-00", round) for round in (0, 1)])
    assert rows == [("client-00", 0, ""), ("client-00", 1, "answered for another architecture or round")]


def test_who_is_missing_at_the_end_is_named_for_each_order(config: RunConfig) -> None:
    fleet = Busy({"client-01": lambda report: []})
    orders = [training(config, name, round) for round in (0, 1) for name in ("client-01", "client-02")]
    rows = told(fleet, orders)
    assert rows[:2] == [("client-02", 0, ""), ("client-02", 1, "")]
    assert rows[2:] == [("client-01", 0, NO_ANSWER), ("client-01", 1, NO_ANSWER)]


def test_orders_that_come_on_the_way_are_carried_out_each_in_its_turn(config: RunConfig) -> None:
    fleet, more = Busy(), deque[Order]()
    clients, rows = {client.name: client for client in fleet.clients()}, list[tuple[str, int]]()
    for order, outcome in collect(fleet, [training(config, "client-00")], clients, more=more):
        assert isinstance(outcome, Answer)
        rows.append((order.client, order.round))
        if order == fleet.orders[0]:  # two for the one that is free now, one for another
            more.extend(training(config, name, round) for name, round in [("client-00", 1), ("client-00", 2)])
            more.append(training(config, "client-01", 1))
    assert sorted(rows) == [("client-00", 0), ("client-00", 1), ("client-00", 2), ("client-01", 1)]
    assert [round for name, round in rows if name == "client-00"] == [0, 1, 2]
    assert fleet.calls == 1 and not more


def test_an_order_that_comes_when_all_seems_over_is_carried_out_too(config: RunConfig) -> None:
    """Whoever hears at the end that a client is missing may ask another."""
    fleet, more = Busy({"client-00": lambda report: []}), deque[Order]()
    clients, rows = {client.name: client for client in fleet.clients()}, list[tuple[str, bool]]()
    for order, outcome in collect(fleet, [training(config, "client-00")], clients, more=more):
        rows.append((order.client, isinstance(outcome, Answer)))
        if isinstance(outcome, Failure):
            more.append(training(config, "client-01"))
    assert rows == [("client-00", False), ("client-01", True)] and fleet.calls == 2


def test_what_the_caller_does_not_accept_is_that_clients_failure(config: RunConfig) -> None:
    def accept(answer: Answer, order: Order) -> None:
        if answer.client == "client-01":
            raise ReplyError("client client-01: update norm: found 9, allowed 3")

    orders = [training(config, f"client-{i:02d}") for i in range(3)]
    rows = sorted(told(Busy(), orders, accept=accept))
    assert [reason for *_, reason in rows] == ["", "update norm: found 9, allowed 3", ""]
    limits = iter([math.inf, 1e-9, math.inf])  # what is allowed may change on the way
    _, (_, _, reason), _ = rows = told(Busy(), orders, limit=limits.__next__)
    assert [client for client, *_ in rows] == ["client-02", "client-01", "client-00"]
    assert "allowed" in reason and [reason for *_, reason in rows].count("") == 2


def test_nothing_holds_an_answer_when_the_next_comes(config: RunConfig) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    class Watchful(Busy):
        def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Outcome]:
            for order in orders.values():
                assert not [ref for ref in alive if ref() is not None], "an answer of before is still held"
                report = answer(order)
                alive.append(weakref.ref(report.weights["head.weight"]))
                yield report
                del report

    fleet = Watchful()
    orders = [training(config, f"client-{i:02d}") for i in range(3)]
    clients = {client.name: client for client in fleet.clients()}
    crew = Crew(fleet, config, [space_of(config).smallest], lambda text: None)
    for order, outcome in collect(crew, orders, clients):
        assert isinstance(outcome, Answer) and outcome.client == order.client
        del outcome
    assert len(alive) == 3


# -- requests ------------------------------------------------------------------------------------------------------


def test_a_client_with_several_does_one_after_the_other(config: RunConfig) -> None:
    fleet, requests = Busy(), requests_of(config, "client-00", "client-01", "client-02")
    reports, failures = sent(config, fleet, requests)
    assert [(report.client, report.arch) for report in reports] == [(r.client, r.arch) for r in requests]
    assert failures == [] and fleet.calls == 1 and len(fleet.orders) == 6
    for name in ("client-00", "client-01", "client-02"):
        assert [o.arch for o in fleet.orders if o.client == name] == [r.arch for r in requests if r.client == name]


def test_an_order_is_that_of_its_request(config: RunConfig) -> None:
    fleet, space = Busy(), space_of(config)
    requests = [request(4, "client-01", "trial", space.smallest), request(4, "client-01", "teach", space.largest)]
    sent(config, fleet, requests)
    assert [order.task for order in fleet.orders] == ["trial", "teach"]
    weights = initial_weights(space, 1)
    for order, asked in zip(fleet.orders, requests, strict=True):
        assert (order.round, order.run, order.arch, order.budget) == (4, "run-9", asked.arch, "2M")
        for name, region in space.plan(asked.arch).items():
            assert torch.equal(order.weights[name], weights[name][region])
    fit = replace(train_settings(config.train), epochs=config.personal.epochs)
    assert [order.params for order in fleet.orders] == [Adaptation(fit, config.calibrate == "client"), NoParams()]
    info = fleet.clients()[0]
    asked = [replace(requests[0], task=task) for task in ("trial", "teach")]
    assert len({completed(one, config, info, {}, "r").seed for one in asked}) == 2


def test_clients_that_are_not_there_are_skipped(config: RunConfig) -> None:
    fleet = Busy()
    reports, failures = sent(config, fleet, requests_of(config, "stranger", "client-02"))
    assert [report.client for report in reports] == ["client-02"] * 2
    assert failures == [Failure("stranger", NO_ANSWER)] * 2
    assert {order.client for order in fleet.orders} == {"client-02"}


def test_nobody_is_called_for_nothing(config: RunConfig) -> None:
    for requests in ([], requests_of(config, "stranger")):
        fleet = Busy()
        assert sent(config, fleet, requests)[0] == [] and fleet.calls == 0


BAD: dict[str, tuple[Spoil, str]] = {
    "failure": (lambda r: [Failure(r.client, "out of memory")], "out of memory"),
    "accuracy": (lambda r: [with_result(r, accuracy=2.0)], "accuracy: found 2.0, allowed a number from 0 to 1"),
    "huge": (lambda r: [with_result(r, accuracy=9e18)], "accuracy: found 9e+18, allowed a number from 0 to 1"),
    "no number": (lambda r: [with_result(r, accuracy=math.nan)], "accuracy: found nan, allowed a number from 0 to 1"),
    "loss": (lambda r: [with_result(r, loss=math.nan)], "loss: found nan, allowed a finite number from 0"),
    "below zero": (lambda r: [replace(r, macs=-1)], "macs: found -1, allowed a finite number from 0"),
    "examples": (lambda r: [replace(r, examples=61)], "examples: found 61, allowed 0 to the 60 that it said it has"),
    "images": (lambda r: [with_result(r, tested=-1)], "tested: found -1, allowed 0 to the 60 that it said it has"),
    "more images": (lambda r: [with_result(r, tested=61)], "tested: found 61, allowed 0 to the 60 that it said it has"),
    "round": (lambda r: [replace(r, round=3)], "answered for another architecture or round"),
    "result": (lambda r: [replace(r, result=results.Kept())], "found a result of Kept, allowed Tested"),
    "channel": (
        lambda r: [replace(r, channels={WEIGHTS: {"head.bias": torch.zeros(10)}})],
        "channels: found weights, allowed none",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_failures_and_implausible_answers_are_told_and_left_out(config: RunConfig, what: str) -> None:
    spoil, reason = BAD[what]
    reports, failures = sent(config, Busy({"client-01": spoil}), requests_of(config, "client-00", "client-01"))
    assert [report.client for report in reports] == ["client-00"] * 2
    assert failures == [Failure("client-01", reason)] * 2


def test_an_answer_about_another_network_is_refused(config: RunConfig) -> None:
    space = space_of(config)
    fleet = Busy({"client-01": lambda r: [replace(r, arch=space.smallest)]})
    reports, failures = sent(config, fleet, requests_of(config, "client-01"))
    assert [report.arch for report in reports] == [space.smallest]
    assert failures == [Failure("client-01", "answered for another architecture or round")]


def test_who_is_silent_is_not_waited_for_and_strangers_are_not_heard(config: RunConfig) -> None:
    def louder(report: Answer) -> list[Outcome]:
        return [replace(report, client="stranger"), report, report]

    requests = [*requests_of(config, "client-00"), request(4, "client-01", "trial", space_of(config).largest)]
    reports, failures = sent(config, Busy({"client-00": lambda r: [], "client-01": louder}), requests)
    assert [report.client for report in reports] == ["client-01"]
    assert failures == [Failure("client-00", NO_ANSWER)] * 2


# -- what a round tells of them ------------------------------------------------------------------------------------


def test_bytes_macs_and_failures_are_added_to_the_rounds_event(config: RunConfig) -> None:
    space, fleet = space_of(config), Busy({"client-02": lambda r: [Failure(r.client, "away")]})
    weights = initial_weights(space, 1)
    method, heard = contest_of(space, weights, [[space.smallest]]), list[str]()
    asks = [
        Ask(4, (training(config, "client-00", 4), training(config, "client-02", 4))),
        Ask(4, tuple(requests_of(config, "client-00", "client-02")), requests=True),
        None,
    ]

    def tell(ask: Ask, answers: Any) -> Told:
        reports = list(answers)
        if ask.requests:
            heard.extend(report.client for report in reports)
            story = Story(stage="start", iteration=0, round=ask.round, of=9, alive=(), over=False)
            return Told(story=story)
        (report,) = reports
        row = row_of(report, Assignment(report.arch, "candidate"), space)
        return Told((replace(row, bytes_down=10, client_macs=100),))

    method.ask = lambda round, turn, clients, rng: asks[turn]  # type: ignore[method-assign]
    method.tell = tell  # type: ignore[method-assign]
    crew = Crew(fleet, config, [space.smallest], lambda text: None)
    event = recorded(run_round(config, method, crew, 4, run="run-9", model=judge_of(config).model))
    assert (event["bytes_down"], event["client_macs"], event["search"]["round"]) == (10 + 2 * 400, 100 + 2 * 1000, 4)
    assert [failure["client"] for failure in event["failures"]] == ["client-02"] * 3
    assert heard == ["client-00"] * 2 and {order.round for order in fleet.orders} == {4}
    assert {order.run for order in fleet.orders} == {"run-9"} and fleet.calls == 2


def test_clients_really_test_and_keep_networks(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "state"))
    space = space_of(config)
    crew = Crew(LocalFleet(config), config, [space.smallest], lambda text: None)
    requests = [request(4, "client-01", task, space.smallest) for task in ("trial", "teach")]
    reports, failures = answered(config, crew, requests, judge_of(config).model, "run-9")
    assert failures == [] and [type(report.result) for report in reports] == [results.Tested, results.Kept]
    assert reports[0].macs > 0 == reports[1].macs and reports[0].bytes_down == 4 * space.cost(space.smallest).params
    assert reports[0].examples == examples_of(config, 1) and {report.client for report in reports} == {"client-01"}
    assert list((tmp_path / "state").rglob("*"))
