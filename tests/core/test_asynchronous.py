"""The asynchronous loop, with a fleet that answers as a script says and with one that trains."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.fleets import Around
from contracts.samples import answer

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.settings import read
from fednas_core.base.values import Arch
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.asynchronous import rounds
from fednas_core.engine.collect import NO_ANSWER
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct, settle
from fednas_core.exchange.orders import Answer, Failure, Order
from fednas_core.methods.fedavg import SupernetAveraging
from fednas_core.methods.method import NO_ROOM
from fednas_core.methods.registry import make, path_of
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.tasks.bench import space_of

STEP = 0.01
Pick = Callable[[Sequence[Order]], int]
React = Callable[[Order], Sequence[Answer]]


def stepped(order: Order) -> list[Answer]:
    """The answer of a client whose training adds a constant."""
    return [answer(order, {name: tensor + STEP for name, tensor in order.weights.items()}, examples=5)]


class Script:
    """A fleet of clients that all work at once; `pick` says whose order is answered next, `react` how."""

    def __init__(self, names: Sequence[str], pick: Pick = lambda out: 0, react: React = stepped) -> None:
        self.names, self.pick, self.react = list(names), pick, react
        self.given: list[Order] = []
        self.most, self.closed = 0, 0

    def clients(self) -> list[ClientInfo]:
        return [ClientInfo(name, 5) for name in self.names]

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Answer]:
        out, more = list(orders.values()), deque[Order]() if more is None else more
        self.given += out
        try:
            while out:
                assert len({order.client for order in out}) == len(out), "a client has two orders at a time"
                self.most = max(self.most, len(out))
                yield from self.react(out.pop(self.pick(out)))
                self.given += more
                out += more
                more.clear()
        finally:
            self.closed += 1

    def close(self) -> None:
        pass


def waves(fleet: Script) -> list[int]:
    """How many orders were given together, one wave after the other."""
    return list(Counter(order.weights["head.bias"].untyped_storage().data_ptr() for order in fleet.given).values())


@pytest.fixture
def pairs(tiny_pairs: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_pairs, "loop": "async", "method": "fedavg", "rounds": 3}


def method_of(config: RunConfig) -> SupernetAveraging:
    space = space_of(config)
    path = path_of(config, space, space.cost(space.smallest).macs)
    return make(Setup(config, space, path, initial_weights(space, 1)))


def moved(config: RunConfig, method: SupernetAveraging) -> float:
    """How far the weights have come from where they began, the same for every coordinate."""
    before = initial_weights(space_of(config), 1)
    steps = {name: tensor - before[name] for name, tensor in method.weights().items()}
    value = float(steps["head.bias"][0])
    assert all(torch.allclose(step, torch.full_like(step, value), atol=1e-6) for step in steps.values())
    return value


# -- staleness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_every_reply_moves_the_weights_by_its_share(pairs: dict[str, Any], power: float) -> None:
    config = read({**pairs, "stale.power": power, "stale.rate": 0.4, "rounds": 5})
    fleet, method = Script("abcd", pick=lambda out: len(out) // 2), method_of(config)
    events = list(rounds(config, method, fleet, 0))
    rows = [row for event in events for row in event["clients"]]
    assert len(rows) == 20
    shares = [0.4 * (1 + row["staleness"]) ** -power for row in rows]
    assert moved(config, method) == pytest.approx(STEP * sum(shares), rel=1e-3)
    assert max(row["staleness"] for row in rows) > 1


def test_staleness_counts_the_replies_that_were_merged_meanwhile(pairs: dict[str, Any]) -> None:
    config = read({**pairs, "rounds": 2, "stale.batch": 1})
    slow = Script("abcd", pick=lambda out: next((i for i, order in enumerate(out) if order.client != "a"), 0))
    (first, second) = rounds(config, method_of(config), slow, 0)
    found = [(row["client"], row["staleness"]) for row in [*first["clients"], *second["clients"]]]
    assert found[:4] == [("b", 0), ("c", 1), ("d", 2), ("b", 0)]  # three were sent together, and the fourth after them
    assert found[-1] == ("a", 7)
    assert first["staleness"] == {"mean": 0.75, "max": 2} and second["staleness"]["max"] == 7


def test_replies_too_old_are_dropped_and_told_of(pairs: dict[str, Any]) -> None:
    config = read({**pairs, "stale.limit": 2, "stale.batch": 1, "rounds": 4})
    fleet = Script("abcd", pick=lambda out: 0 if len(fleet.given) % 7 == 0 else len(out) - 1)
    events = list(rounds(config, method_of(config), fleet, 0))
    reasons = [failure["reason"] for event in events for failure in event["failures"]]
    assert reasons and all("other replies overtook it, allowed are 2 (stale.limit)" in reason for reason in reasons)
    assert all(row["staleness"] <= 2 for event in events for row in event["clients"])


def test_what_was_sent_does_not_change_while_others_are_merged(pairs: dict[str, Any]) -> None:
    config, sent = read({**pairs, "rounds": 2}), dict[int, torch.Tensor]()

    def react(order: Order) -> list[Answer]:
        assert torch.equal(order.weights["head.weight"], sent[id(order)])
        return stepped(order)

    class Noting(Script):
        def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Answer]:
            for found in super().train(orders, more):
                yield found
                sent.update({id(order): order.weights["head.weight"].clone() for order in more or ()})

        def clients(self) -> list[ClientInfo]:
            return super().clients()

    fleet = Noting("abcd", pick=lambda out: len(out) - 1, react=react)
    first = iter(rounds(config, method_of(config), fleet, 0))
    fleet.react = lambda order: stepped(order)
    next(first)
    fleet.react = react
    sent.update({id(order): order.weights["head.weight"].clone() for order in fleet.given})
    next(first)


# -- who is asked --------------------------------------------------------------------------------------------------


def test_events_are_of_as_many_answers_as_the_cohort_has_clients(pairs: dict[str, Any]) -> None:
    config = read({**pairs, "cohort": 3})
    fleet = Script("abcdefgh")
    events = list(rounds(config, method_of(config), fleet, 0))
    assert [event["round"] for event in events] == [1, 2, 3]
    assert all(len(event["clients"]) == 3 and event["failures"] == [] for event in events)
    assert fleet.most == 3
    assert len({order.client for order in fleet.given}) > 3
    for event in events:
        for key in ("bytes_up", "bytes_down", "client_macs"):
            assert event[key] == sum(row[key] for row in event["clients"]) > 0
        assert event["loss"] == pytest.approx(1.5) and event["accuracy"] == pytest.approx(0.5)
        assert event["update_norm"] == pytest.approx(STEP, rel=1e-3)


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (3, 3), (4, 4), (0, 2)])
def test_orders_are_given_in_waves(pairs: dict[str, Any], batch: int, size: int) -> None:
    config = read({**pairs, "stale.batch": batch, "rounds": 4})
    fleet = Script("abcd")
    list(rounds(config, method_of(config), fleet, 0))
    first, second, *others = waves(fleet)
    assert first == 4 and second == max(3, size)  # the first three replies are judged together
    assert set(others) == {size}


def test_the_last_round_asks_for_no_more_than_it_needs_and_drops_the_rest(pairs: dict[str, Any]) -> None:
    config = read({**pairs, "rounds": 2, "stale.batch": 1})
    fleet = Script("abcd")
    list(rounds(config, method_of(config), fleet, 0))
    assert len(fleet.given) == 8 and fleet.closed == 1


def test_seeds_differ_whenever_a_client_trains_again(pairs: dict[str, Any]) -> None:
    config = read({**pairs, "rounds": 3, "stale.batch": 1})
    fleet = Script("abcd", pick=lambda out: len(out) - 1)
    list(rounds(config, method_of(config), fleet, 0))
    assert len({order.seed for order in fleet.given}) == len(fleet.given)
    again = Script("abcd", pick=lambda out: len(out) - 1)
    list(rounds(config, method_of(config), again, 0))
    assert [order.seed for order in fleet.given] == [order.seed for order in again.given]


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_who_fails_is_not_asked_again_before_the_next_round(pairs: dict[str, Any]) -> None:
    def react(order: Order) -> Sequence[Answer]:
        return [Failure("a", "out of memory")] if order.client == "a" else stepped(order)

    config = read({**pairs, "rounds": 4, "stale.batch": 1})
    events = list(rounds(config, method_of(config), Script("abcd", react=react), 0))
    for event in events:
        assert [f for f in event["failures"] if f["client"] == "a"] in (
            [{"client": "a", "reason": "out of memory"}],
            [],
        )
        assert len(event["clients"]) + len(event["failures"]) == 4
    assert sum(len(event["failures"]) for event in events) == 4


def test_nobody_usable_ends_the_run_with_the_reasons(pairs: dict[str, Any]) -> None:
    fleet = Script("abcd", react=lambda order: [Failure(order.client, "out of memory")])
    config = read(pairs)
    with pytest.raises(RunError, match=r"round 1: none of the 4 clients gave a usable answer \(out of memory\)"):
        list(rounds(config, method_of(config), fleet, 0))
    with pytest.raises(RunError, match="no client can be reached"):
        list(rounds(config, method_of(config), Script([]), 0))


def test_clients_that_never_answer_are_told_of_when_the_fleet_gives_up(pairs: dict[str, Any]) -> None:
    config = read({**pairs, "rounds": 2, "stale.batch": 4})
    fleet = Script("abcd", react=lambda order: [] if order.client == "b" else stepped(order))
    events = list(rounds(config, method_of(config), fleet, 0))
    assert [event["failures"] for event in events] == [[{"client": "b", "reason": NO_ANSWER}]] * 2
    assert all(len(event["clients"]) == 3 for event in events)


def test_a_client_without_room_is_told_of_and_waits_for_the_next_round(pairs: dict[str, Any]) -> None:
    class Nothing:
        def allows(self, arch: Arch) -> bool:
            return False

    class Small(Script):
        def clients(self) -> list[ClientInfo]:
            return [replace(c, limit=Nothing() if c.name == "c" else None) for c in super().clients()]

    config = read({**pairs, "rounds": 2})
    for event in rounds(config, method_of(config), Small("abcd"), 0):
        assert event["failures"] == [{"client": "c", "reason": NO_ROOM}]
        assert {row["client"] for row in event["clients"]} == {"a", "b", "d"}


def far(order: Order) -> list[Answer]:
    return [answer(order, {n: t + 1000 * STEP for n, t in order.weights.items()}, examples=5)]


def spoiled(order: Order) -> list[Answer]:
    return [answer(order, {**order.weights, "head.bias": torch.zeros(1)}, examples=5)]


def boasting(order: Order) -> list[Answer]:
    return [answer(order, examples=10**12)]


def old(order: Order) -> list[Answer]:
    return [answer(order, round=order.round - 1)]


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (far, "its update is 1000 times the cohort's median"),
        (spoiled, "tensor 'head.bias': found shape"),
        (boasting, "examples: found 1000000000000"),
        (old, "another architecture or round"),
    ],
)
@pytest.mark.parametrize("liar", ["a", "c"])
def test_a_hostile_reply_leaves_no_trace(pairs: dict[str, Any], lie: React, reason: str, liar: str) -> None:
    config = read({**pairs, "stale.batch": 4})

    def run(react: React) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        method = method_of(config)
        fleet = Script("abcd", react=lambda order: react(order) if order.client == liar else stepped(order))
        return list(rounds(config, method, fleet, 0)), dict(method.weights())

    events, weights = run(lie)
    others, wanted = run(lambda order: [Failure(order.client, "absent")])
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    for event, other in zip(events, others, strict=True):
        assert [(f["client"], reason in f["reason"]) for f in event["failures"]] == [(liar, True)]
        assert event["update_norm"] == other["update_norm"]


def test_answers_that_nobody_asked_for_are_lost(pairs: dict[str, Any]) -> None:
    config, (one, two) = read(pairs), (method_of(read(pairs)), method_of(read(pairs)))
    list(rounds(config, one, Script("abcd"), 0))
    doubled = Script("abcd", react=lambda order: [*stepped(order), *far(order), Failure("stranger", "hello")])
    events = list(rounds(config, two, doubled, 0))
    assert all(event["failures"] == [] for event in events)
    assert all(torch.equal(two.weights()[name], tensor) for name, tensor in one.weights().items())


def test_clipping_holds_here_too(pairs: dict[str, Any]) -> None:
    def react(order: Order) -> list[Answer]:
        step = 50 * STEP if order.client == "b" else STEP
        return [answer(order, {name: tensor + step for name, tensor in order.weights.items()}, examples=5)]

    config = read({**pairs, "merge.clip": 1.0, "stale.power": 0.0, "stale.rate": 1.0, "stale.batch": 4})
    method = method_of(config)
    list(rounds(config, method, Script("abcd", react=react), 0))
    assert moved(config, method) == pytest.approx(12 * STEP, rel=1e-2)


@pytest.mark.parametrize("setting", [{"merge.rule": "trimmed"}, {"merge.opposed": 0.1}])
def test_a_merge_that_needs_replies_side_by_side_is_refused(pairs: dict[str, Any], setting: dict[str, Any]) -> None:
    config = read({**pairs, **setting})
    with pytest.raises(ConfigError, match="compare the replies of a round.* allowed there are rule overlap"):
        list(rounds(config, method_of(config), Script("abcd"), 0))


# -- whole runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedavg", "superfednas", "deepfednas"])
def test_every_method_runs_unchanged(pairs: dict[str, Any], light: None, method: str) -> None:
    config = settle(read({**pairs, "method": method}))
    events = conduct(config, LocalFleet(config), lambda text: None).events()
    assert [event["round"] for event in events] == [1, 2, 3]
    assert all(len(event["clients"]) == 4 and event["evaluation"] for event in events)


def test_worker_processes_carry_it_out(pairs: dict[str, Any], pool: LocalFleet, light: None) -> None:
    config = settle(read(pairs))
    events = conduct(config, pool, lambda text: None).events()
    assert len(events) == 3 and all(len(event["clients"]) == 4 for event in events)


def test_a_run_that_was_stopped_goes_on(pairs: dict[str, Any], light: None) -> None:
    class Stopped(Around):
        def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Answer]:
            for count, found in enumerate(super().train(orders, more)):
                if count == 6:
                    raise KeyboardInterrupt
                yield found

    config = settle(read(pairs))
    with pytest.raises(KeyboardInterrupt):
        conduct(config, Stopped(LocalFleet(config)), lambda text: None)
    again = settle(read({"output": pairs["output"], "resume": "latest"}))
    run = conduct(again, LocalFleet(again), lambda text: None)
    assert [event["round"] for event in run.events()] == [1, 2, 3]
    assert Path(run.path / "result.json").is_file()
