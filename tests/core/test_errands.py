"""Errands: one after the other for each client, credible answers in order, and why others are missing."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.arena import contest_of, judged
from contracts.fleets import Answer
from contracts.records import event as made
from contracts.samples import answer

from fednas_core.base.config import RunConfig
from fednas_core.base.settings import read
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.cohort import Crew
from fednas_core.engine.errands import order_of, run_errands
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import NO_ANSWER
from fednas_core.engine.run import after
from fednas_core.exchange.orders import Errand, Failure, TrainOrder, TrainReport
from fednas_core.spaces.modules import initial_weights
from fednas_core.subnets.packing import subnets_of
from fednas_core.tasks.bench import examples_of, space_of
from fednas_core.training.settings import train_settings

Spoil = Callable[[TrainReport], list[Answer]]


class Busy:
    """Three clients that answer at once, each busy with one order at a time; `spoil` changes answers by client."""

    def __init__(self, spoil: Mapping[str, Spoil] | None = None) -> None:
        self.spoil, self.orders, self.calls = dict(spoil or {}), list[TrainOrder](), 0

    def clients(self) -> list[ClientInfo]:
        return [ClientInfo(f"client-{i:02d}", 60, budget="2M" if i == 1 else "") for i in range(3)]

    def train(self, orders: Mapping[str, TrainOrder], more: deque[TrainOrder] | None = None) -> Iterator[Answer]:
        self.calls += 1
        assert len({order.client for order in orders.values()}) == len(orders)
        waiting, more = list(orders.values()), deque() if more is None else more
        while waiting:
            order = waiting.pop()  # the last one is the first to answer
            self.orders.append(order)
            figures = {"tested": 5.0, "held_out": 1.0}
            report = answer(order, {}, accuracy=0.25, figures=figures, bytes_up=0)
            yield from self.spoil.get(order.client, lambda found: [found])(report)
            while more:
                waiting.append(more.popleft())

    def close(self) -> None: ...


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read({**tiny_pairs, "space.norm": "group"})


def sent(config: RunConfig, fleet: Busy, errands: list[Errand]) -> tuple[list[TrainReport], list[Failure]]:
    space = space_of(config)
    crew = Crew(fleet, config, [space.smallest], lambda text: None)
    return run_errands(config, crew, Judge(config, subnets_of(space, initial_weights(space, 1))), errands, 4, "run-9")


def errands_of(config: RunConfig, *names: str) -> list[Errand]:
    space = space_of(config)
    return [Errand(name, "trial", arch) for arch in (space.largest, space.smallest) for name in names]


def test_a_client_with_several_does_one_after_the_other(config: RunConfig) -> None:
    fleet, errands = Busy(), errands_of(config, "client-00", "client-01", "client-02")
    reports, failures = sent(config, fleet, errands)
    assert [(report.client, report.arch) for report in reports] == [(e.client, e.arch) for e in errands]
    assert failures == [] and fleet.calls == 1 and len(fleet.orders) == 6
    for name in ("client-00", "client-01", "client-02"):
        assert [o.arch for o in fleet.orders if o.client == name] == [e.arch for e in errands if e.client == name]


def test_an_order_is_that_of_its_errand(config: RunConfig) -> None:
    fleet, space = Busy(), space_of(config)
    errands = [Errand("client-01", "trial", space.smallest), Errand("client-01", "teach", space.largest)]
    sent(config, fleet, errands)
    assert [order.task for order in fleet.orders] == ["trial", "teach"]
    weights = initial_weights(space, 1)
    for order, errand in zip(fleet.orders, errands, strict=True):
        assert (order.round, order.run, order.returns, order.arch) == (4, "run-9", "figures", errand.arch)
        assert order.budget == "2M" and order.settings == train_settings(config.train)
        for name, region in space.plan(errand.arch).items():
            assert torch.equal(order.tensors[name], weights[name][region])
    info = fleet.clients()[0]
    kinds = {order_of(config, info, replace(errands[0], task=task), {}, 4, "r").seed for task in ("trial", "teach")}
    assert len(kinds) == 2 and order_of(config, info, errands[0], {}, 4, "r", "moments").returns == "moments"


def test_clients_that_are_not_there_are_skipped(config: RunConfig) -> None:
    fleet = Busy()
    reports, failures = sent(config, fleet, errands_of(config, "stranger", "client-02"))
    assert [report.client for report in reports] == ["client-02"] * 2
    assert failures == [Failure("stranger", NO_ANSWER)] * 2
    assert {order.client for order in fleet.orders} == {"client-02"}


def test_nobody_is_called_for_nothing(config: RunConfig) -> None:
    for errands in ([], errands_of(config, "stranger")):
        fleet = Busy()
        assert sent(config, fleet, errands)[0] == [] and fleet.calls == 0


BAD: dict[str, tuple[Spoil, str]] = {
    "failure": (lambda r: [Failure(r.client, "out of memory")], "out of memory"),
    "accuracy": (lambda r: [replace(r, accuracy=2.0)], "accuracy: found 2.0, allowed a number from 0 to 1"),
    "no number": (lambda r: [replace(r, accuracy=math.nan)], "accuracy: found nan, allowed a number from 0 to 1"),
    "loss": (lambda r: [replace(r, loss=math.nan)], "loss: found nan, allowed a finite number from 0"),
    "below zero": (lambda r: [replace(r, macs=-1)], "macs: found -1, allowed a finite number from 0"),
    "examples": (lambda r: [replace(r, examples=61)], "examples: found 61, allowed up to the 60 that it said it has"),
    "images": (lambda r: [replace(r, figures={"tested": -1.0})], "tested: found -1 images, allowed a number from 0"),
    "round": (lambda r: [replace(r, round=3)], "answered for another architecture or round"),
}


@pytest.mark.parametrize("what", BAD)
def test_failures_and_implausible_answers_are_told_and_left_out(config: RunConfig, what: str) -> None:
    spoil, reason = BAD[what]
    reports, failures = sent(config, Busy({"client-01": spoil}), errands_of(config, "client-00", "client-01"))
    assert [report.client for report in reports] == ["client-00"] * 2
    assert failures == [Failure("client-01", reason)] * 2


def test_an_answer_about_another_network_is_refused(config: RunConfig) -> None:
    space = space_of(config)
    fleet = Busy({"client-01": lambda r: [replace(r, arch=space.smallest)]})
    reports, failures = sent(config, fleet, errands_of(config, "client-01"))
    assert [report.arch for report in reports] == [space.smallest]
    assert failures == [Failure("client-01", "answered for another architecture or round")]


def test_who_is_silent_is_not_waited_for_and_strangers_are_not_heard(config: RunConfig) -> None:
    def louder(report: TrainReport) -> list[Answer]:
        return [replace(report, client="stranger"), report, report]

    errands = [*errands_of(config, "client-00"), Errand("client-01", "trial", space_of(config).largest)]
    reports, failures = sent(config, Busy({"client-00": lambda r: [], "client-01": louder}), errands)
    assert [report.client for report in reports] == ["client-01"]
    assert failures == [Failure("client-00", NO_ANSWER)] * 2


# -- what a round tells of them ------------------------------------------------------------------------------------


def test_bytes_macs_and_failures_are_added_to_the_rounds_event(config: RunConfig) -> None:
    space, fleet = space_of(config), Busy({"client-02": lambda r: [Failure(r.client, "away")]})
    weights = initial_weights(space, 1)
    method, judge = contest_of(space, weights, [[space.smallest]]), Judge(config, subnets_of(space, weights))
    method.ask = lambda round, clients: errands_of(config, "client-00", "client-02")  # type: ignore[method-assign]
    heard: list[Any] = []
    story = made({"search": {"stage": "finish"}}).search
    method.hear = lambda round, reports: heard.extend(reports) or story  # type: ignore[method-assign,func-returns-value]
    before = made({"round": 5, "bytes_down": 10, "client_macs": 100, "failures": [{"client": "x", "reason": "y"}]})
    crew = Crew(fleet, config, [space.smallest], lambda text: None)
    event = after(config, method, crew, judge, before, "run-9")
    assert (event.bytes_down, event.client_macs, event.search) == (10 + 2 * 400, 100 + 2 * 1000, story)
    assert [failure.client for failure in event.failures] == ["x", "client-02", "client-02"]
    assert [report.client for report in heard] == ["client-00"] * 2 and fleet.orders[0].round == 4


def test_clients_really_test_and_keep_networks(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "state"))
    space = space_of(config)
    crew = Crew(LocalFleet(config), config, [space.smallest], lambda text: None)
    judge = Judge(config, subnets_of(space, initial_weights(space, 1)))
    errands = [Errand("client-01", task, space.smallest) for task in ("trial", "teach")]
    reports, failures = run_errands(config, crew, judge, errands, 4, "run-9")
    assert failures == [] and [set(report.figures) & {"tested", "kept"} for report in reports] == [{"tested"}, {"kept"}]
    assert reports[0].macs > 0 == reports[1].macs and reports[0].bytes_down == 4 * space.cost(space.smallest).params
    assert reports[0].examples == examples_of(config, 1) and judged(errands[0], 4, 0.0).client == "client-01"
    assert list((tmp_path / "state").rglob("*"))
