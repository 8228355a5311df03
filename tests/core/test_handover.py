from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from contracts.records import model, recorded, result
from contracts.samples import found, with_result

from fednas_core.base.config import RunConfig
from fednas_core.base.metrics import ACCURACY
from fednas_core.base.settings import read
from fednas_core.base.typed import from_json
from fednas_core.engine.cohort import Crew
from fednas_core.engine.evaluation import Judge, Judged
from fednas_core.engine.handover import ATTEMPTS, hand_over, smallest_without_loss
from fednas_core.engine.local import LocalFleet
from fednas_core.exchange.orders import WEIGHTS, Answer, Failure, Order
from fednas_core.exchange.results import Installed, Kept, Tested
from fednas_core.runs.record import HandedOver
from fednas_core.show.ending import clients_table, lacking, table
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import subnets_of
from fednas_core.tasks.bench import space_of
from fednas_core.tasks.install import Handover

Reply = Answer | Failure
Answering = Callable[[Order], list[Reply]]


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read(tiny_pairs)


class Scripted(LocalFleet):
    """Clients that answer the offer of a model as told."""

    def __init__(self, config: RunConfig, answering: Answering) -> None:
        super().__init__(config)
        self.answering, self.orders = answering, list[Order]()

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Reply]:
        self.orders += orders.values()
        for order in orders.values():
            yield from self.answering(order)


def says(order: Order, **changes: Any) -> Answer:
    result = Installed(1.5, 0.75, tested=9, held_out=True, latency_ms=2.0, fits=True, stored=True)
    return found(order, replace(result, **changes), examples=9)


def typed(rows: list[dict[str, Any]]) -> list[HandedOver]:
    return [from_json(HandedOver, row, (ACCURACY.name,)) for row in rows]


def offered(config: RunConfig, answering: Answering, gain: float = 0.1) -> tuple[list[dict[str, Any]], Scripted]:
    """Hand over one of three networks, of which larger ones are better by this much; their losses do not matter."""
    space = space_of(config)
    archs = [space.smallest, space.decode(space.encode(space.largest) // 2), space.largest]
    judged = [
        Judged(arch, cost.macs, cost.params, cost.bytes, 0.0, 0.5 + gain * i, 1.0 - 0.1 * i)
        for i, (arch, cost) in enumerate((arch, space.cost(arch)) for arch in archs)
    ]
    fleet = Scripted(config, answering)
    crew = Crew(fleet, config, archs, lambda text: None)
    rows = hand_over(config, crew, Judge(config, subnets_of(space, initial_weights(space, 1))), judged, "run-7")
    return recorded(rows), fleet


def test_everybody_is_offered_the_best_that_fits(config: RunConfig) -> None:
    rows, fleet = offered(replace(config, client_budgets="30%,max"), lambda order: [says(order)])
    space = space_of(config)
    most = space.cost(space.largest).macs
    assert [row["macs"] == most for row in rows] == [False, True, False, True]
    assert all(row["macs"] <= 0.3 * most for row in rows[::2])
    assert {row["accuracy"] for row in rows} == {0.75} and all(row["stored"] and row["held_out"] for row in rows)
    for order in fleet.orders:
        assert (order.task, order.run) == ("install", "run-7") and isinstance(order.params, Handover)
        assert order.budget == ("30%" if order.client in ("client-00", "client-02") else "max")


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"accuracy": 7.0}, "accuracy: found 7.0"),
        ({"accuracy": math.nan}, "accuracy: found nan"),
        ({"accuracy": 9e18}, "accuracy: found 9e+18"),
        ({"loss": -1.0}, "loss: found -1.0"),
        ({"latency_ms": math.nan}, "latency_ms: found nan"),
        ({"latency_ms": -2.0}, "latency_ms: found -2.0"),
        ({"tested": 10**9}, "tested: found 1000000000"),
        ({"tested": -1}, "tested: found -1"),
        ({"result": Kept()}, "found a result of Kept, allowed Installed"),
        ({"channels": {WEIGHTS: {}}}, "channels: found weights, allowed none"),
        ({"seconds": math.nan}, "seconds: found nan"),
        ({"macs": -1}, "macs: found -1"),
        ({"examples": 10**9}, "examples: found 1000000000"),
        ({"round": 77}, "answered for another architecture or round"),
    ],
)
def test_an_answer_that_no_client_can_have_found_is_a_reason(
    config: RunConfig, lie: dict[str, Any], reason: str
) -> None:
    def answering(order: Order) -> list[Reply]:
        told = says(order)
        if order.client != "client-01":
            return [told]
        fields = lie.keys() & {item.name for item in dataclasses.fields(Installed)}
        return [with_result(told, **lie) if fields else replace(told, **lie)]

    liar, *others = sorted(offered(config, answering)[0], key=lambda row: row["client"] != "client-01")
    assert reason in liar["reason"] and "arch" not in liar
    assert all(row["reason"] == "" and row["accuracy"] == 0.75 for row in others)


def test_of_equally_accurate_networks_everybody_is_offered_the_cheapest(config: RunConfig) -> None:
    rows, _ = offered(config, lambda order: [says(order)], gain=0.0)
    assert {row["macs"] for row in rows} == {space_of(config).cost(space_of(config).smallest).macs}
    assert "; larger ones are as accurate on the validation images" in clients_table(typed(rows), ACCURACY)


def test_the_accuracy_of_a_client_without_test_images_is_unknown(config: RunConfig) -> None:
    rows, _ = offered(config, lambda order: [says(order, tested=0)])
    assert {(row["accuracy"], row["tested"], row["reason"]) for row in rows} == {(None, 0, "")}


def test_a_device_on_which_it_is_too_slow_is_offered_a_smaller_one(config: RunConfig) -> None:
    space = space_of(config)

    def slow(order: Order) -> list[Reply]:
        fits = order.arch != space.largest
        return [says(order, fits=fits, stored=fits)]

    rows, fleet = offered(config, slow)
    assert all(row["reason"] == "" and row["macs"] < space.cost(space.largest).macs for row in rows)
    assert len(fleet.orders) == 2 * len(rows)


def test_a_device_on_which_everything_is_too_slow_keeps_nothing(config: RunConfig) -> None:
    rows, fleet = offered(config, lambda order: [says(order, fits=False, latency_ms=70.0, stored=False)])
    assert len(fleet.orders) == ATTEMPTS * len(rows)
    assert all("macs" not in row and row["reason"].endswith("takes 70.00 ms there") for row in rows)
    assert lacking(result(clients=typed(rows))) == "", "nothing failed"


def test_what_goes_wrong_is_that_clients_reason_and_strangers_are_passed_over(config: RunConfig) -> None:
    def odd(order: Order) -> list[Reply]:
        if order.client == "client-00":
            return [Failure("client-00", "disk full"), says(order)]
        if order.client == "client-01":
            return [Failure("stranger", "hello"), replace(says(order), client="nobody")]
        return [says(order), says(order, fits=False, stored=False)]

    rows, _ = offered(config, odd)
    assert [row["reason"] for row in rows] == ["disk full", "gave no answer", "", ""]
    assert [row["failed"] for row in rows] == [True, True, False, False]
    told = lacking(result(clients=typed(rows)))
    assert told == "without the model that it should have: client-00 (disk full), client-01 (gave no answer)"


def test_the_tables_say_who_has_what(config: RunConfig) -> None:
    rows, _ = offered(
        config, lambda order: [Failure(order.client, "away")] if order.client < "client-02" else [says(order)]
    )
    text = clients_table(typed(rows), ACCURACY, most=3)
    assert "client-00" in text and "away" in text and "75.0%" in text and "stored" in text
    assert "client-03" not in text and "… and 1 more in result.json" in text
    lines = table([model()], ACCURACY).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1 and "1 M MACs" in lines[-1]


def test_what_a_client_sees_decides_how_small_its_network_may_be(config: RunConfig) -> None:
    space = space_of(config)
    small, middle, large = space.smallest, space.decode(space.encode(space.largest) // 2), space.largest
    accuracies = {
        "client-00": {small: 0.9, middle: 0.9, large: 0.9},
        "client-01": {small: 0.7, middle: 0.895, large: 0.9},
        "client-02": {small: 0.7, middle: 0.88, large: 0.9},
    }

    def answering(order: Order) -> list[Reply]:
        assert order.task == "trial"
        if order.client not in accuracies:
            return [Failure(order.client, "away")]
        return [found(order, Tested(1.5, accuracies[order.client][order.arch], 5, True), examples=5)]

    class Asked(Scripted):
        def train(self, orders: Any, more: deque[Order] | None = None) -> Iterator[Reply]:
            waiting = deque(orders.values())
            while waiting or more:
                yield from self.answering(waiting.popleft() if waiting else (more or deque()).popleft())

    crew = Crew(Asked(config, answering), replace(config, client_budgets="max,max,max,30%"), [small], lambda text: None)
    judge = Judge(config, subnets_of(space, initial_weights(space, 1)))
    chosen = smallest_without_loss(config, crew, judge, [small, middle, large], "run-7")
    assert chosen == {"client-00": small, "client-01": middle, "client-02": large}
    exact = replace(config, contest=replace(config.contest, loss=0.0))
    assert smallest_without_loss(exact, crew, judge, [small, middle, large], "run-7")["client-01"] == large
