from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pytest
from contracts.method import CLIENTS, plan, replies, tell
from contracts.samples import supernet_of, toy_space

from fednas_core.base.values import Arch
from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.devices.info import ClientInfo
from fednas_core.methods.fedavg import Schedule, SupernetAveraging
from fednas_core.methods.method import Assignment
from fednas_core.methods.superfednas import TrackingSandwich
from fednas_core.search.within import within
from fednas_core.subnets.weightings import MaxNet
from fednas_core.training.settings import TrainSettings

SPACE = toy_space()
NAMES = [client.name for client in CLIENTS]
MIDDLE = SPACE.arch({"d": [1, 0], "e": [0.5] * 4, "w": [1, 0, 1]})


def sandwich(between: Arch = MIDDLE) -> TrackingSandwich:
    return TrackingSandwich(SPACE.largest, lambda rng: SPACE.smallest, lambda rng: between, partial(within, SPACE))


def uniform() -> TrackingSandwich:
    return TrackingSandwich(SPACE.largest, lambda rng: SPACE.smallest, SPACE.sample, partial(within, SPACE))


def counts(sampler: TrackingSandwich, key: str) -> list[int]:
    state = sampler.state()[key]
    return [state.get(name, 0) for name in NAMES]


def test_every_round_has_one_largest_and_one_smallest() -> None:
    sampler, rng = sandwich(), np.random.default_rng(1)
    for _ in range(12):
        chosen = sampler.assign(0, CLIENTS, rng)
        assert list(sorted(chosen)) == NAMES
        assert Counter(a.role for a in chosen.values()) == {"largest": 1, "smallest": 1, "between": 3}
        for assignment in chosen.values():
            wanted = {"largest": SPACE.largest, "smallest": SPACE.smallest, "between": MIDDLE}[assignment.role]
            assert assignment.arch == wanted
        for name, assignment in chosen.items():
            sampler.trained(name, assignment)


@pytest.mark.parametrize("rounds", [1, 4, 5, 17, 40])
def test_trackers_are_fair_under_full_participation(rounds: int) -> None:
    sampler, rng = sandwich(), np.random.default_rng(1)
    for _ in range(rounds):
        for name, assignment in sampler.assign(0, CLIENTS, rng).items():
            sampler.trained(name, assignment)
    for key, spread in (("largest_rounds", 1), ("smallest_rounds", 2)):  # whoever has the largest cannot catch up
        found = counts(sampler, key)
        assert max(found) - min(found) <= spread and sum(found) == rounds


def test_trackers_are_fair_under_changing_cohorts() -> None:
    sampler, rng = sandwich(), np.random.default_rng(2)
    for _ in range(200):
        cohort = sorted(rng.choice(NAMES, 3, replace=False).tolist())
        chosen = sampler.assign(0, [client for client in CLIENTS if client.name in cohort], rng)
        top = next(name for name, assignment in chosen.items() if assignment.role == "largest")
        before = sampler.state()["largest_rounds"]
        assert all(before.get(top, 0) <= before.get(name, 0) for name in cohort)
        for name, assignment in chosen.items():
            sampler.trained(name, assignment)
    found = counts(sampler, "largest_rounds")
    assert max(found) - min(found) <= 2


def test_whoever_fails_with_the_largest_gets_it_again() -> None:
    method = SupernetAveraging(
        SPACE, supernet_of(SPACE), sandwich(), MaxNet(0.9, 0, 4), Schedule(9, lambda round: TrainSettings(), 1)
    )
    orders = plan(method, 0)
    failed = next(name for name, order in orders.items() if order.arch == SPACE.largest)
    tell(method, 0, [reply for reply in replies(orders) if reply.client != failed])
    assert counts(method.sampler, "largest_rounds") == [0] * 5  # type: ignore[arg-type]
    assert sum(counts(method.sampler, "smallest_rounds")) == 1  # type: ignore[arg-type]
    again = plan(method, 1)
    assert next(name for name, order in again.items() if order.arch == SPACE.largest) == failed


def test_a_draw_that_happens_to_be_the_largest_counts() -> None:
    sampler, rng = sandwich(between=SPACE.largest), np.random.default_rng(1)
    chosen = sampler.assign(0, CLIENTS, rng)
    assert Counter(a.role for a in chosen.values()) == {"largest": 4, "smallest": 1}
    for name, assignment in chosen.items():
        sampler.trained(name, assignment)
    assert sum(counts(sampler, "largest_rounds")) == 4
    sampler = sandwich(between=SPACE.smallest)
    chosen = sampler.assign(0, CLIENTS, rng)
    assert Counter(a.role for a in chosen.values()) == {"largest": 1, "smallest": 4}


def test_only_the_tracked_largest_has_the_weight_of_max_net() -> None:
    sampler = sandwich(between=SPACE.largest)
    method = SupernetAveraging(
        SPACE, supernet_of(SPACE), sampler, MaxNet(0.8, 0.8, 1), Schedule(9, lambda round: TrainSettings(), 1)
    )
    orders = plan(method, 0)
    answers = replies(orders)
    tell(method, 0, answers)
    region = (0, slice(16, 24))  # the smallest network does not cover it
    shares = {name: 0.05 for name in orders} | {"client-00": 0.8}
    owners = [reply for reply in answers if reply.arch == SPACE.largest]
    total = sum(shares[reply.client] for reply in owners)
    wanted = sum(shares[r.client] * r.weights["head.weight"][region].double() for r in owners) / total
    np.testing.assert_allclose(method.weights()["head.weight"][region].numpy(), wanted.numpy(), rtol=1e-5)


def test_two_clients_train_the_largest_and_the_smallest_and_one_the_largest() -> None:
    chosen = sandwich().assign(0, [ClientInfo("a", 1), ClientInfo("b", 1)], np.random.default_rng(1))
    assert sorted(a.role for a in chosen.values()) == ["largest", "smallest"]
    (alone,) = sandwich().assign(0, [ClientInfo("a", 1)], np.random.default_rng(1)).values()
    assert alone.role == "largest"


def test_draws_are_uniform_over_genes() -> None:
    sampler, rng = uniform(), np.random.default_rng(5)
    archs = [a.arch for _ in range(300) for a in sampler.assign(0, CLIENTS, rng).values() if a.role == "between"]
    for gene, choices in (("d", 2), ("w", 2)):
        for i in range(len(SPACE.largest[gene])):
            share = sum(arch[gene][i] == choices - 1 for arch in archs) / len(archs)
            assert 0.42 < share < 0.58


def test_the_sampler_continues_from_its_state() -> None:
    one, two = uniform(), uniform()
    rng = np.random.default_rng(3)
    for _ in range(7):
        for name, assignment in one.assign(0, CLIENTS, rng).items():
            one.trained(name, assignment)
    two.restore(one.state())
    for seed in range(5):
        rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
        assert one.assign(0, CLIENTS, rng) == two.assign(0, CLIENTS, again)
    assert one.state() == two.state()


# -- budgets ---------------------------------------------------------------------------------------------------------


def limited(name: str, **limits: float) -> ClientInfo:
    return ClientInfo(name, 10, limit=Allowance(Budget("d", **limits), SPACE))


def test_the_largest_goes_to_a_client_that_can_hold_it() -> None:
    largest, smallest = SPACE.cost(SPACE.largest), SPACE.cost(SPACE.smallest)
    clients = [
        limited("a", macs=smallest.macs),
        limited("b", bytes=largest.bytes),
        limited("c", params=smallest.params),
    ]
    sampler, rng = uniform(), np.random.default_rng(0)
    for _ in range(20):
        chosen = sampler.assign(0, clients, rng)
        assert chosen["b"] == Assignment(SPACE.largest, "largest")
        assert SPACE.cost(chosen["a"].arch).macs == smallest.macs
        assert SPACE.cost(chosen["c"].arch).params == smallest.params
        for name, assignment in chosen.items():
            sampler.trained(name, assignment)


def test_if_nobody_can_hold_the_largest_they_take_turns_at_what_they_can() -> None:
    middle = (SPACE.cost(SPACE.largest).macs + SPACE.cost(SPACE.smallest).macs) // 2
    clients = [limited(name, macs=middle) for name in "abcd"]
    sampler, rng, turns = uniform(), np.random.default_rng(0), []
    for _ in range(8):
        chosen = sampler.assign(0, clients, rng)
        top = next(name for name, assignment in chosen.items() if assignment.role == "largest")
        assert SPACE.cost(SPACE.smallest).macs < SPACE.cost(chosen[top].arch).macs <= middle
        turns.append(top)
        for name, assignment in chosen.items():
            sampler.trained(name, assignment)
    assert sorted(turns) == sorted("abcd" * 2)


def test_a_client_for_which_nothing_is_small_enough_has_no_order() -> None:
    clients = [limited("a", macs=10), ClientInfo("b", 10)]
    assert set(uniform().assign(0, clients, np.random.default_rng(0))) == {"b"}
    assert uniform().assign(0, clients[:1], np.random.default_rng(0)) == {}


def test_without_limits_the_draws_are_those_without_budgets() -> None:
    free = [limited(client.name) for client in CLIENTS]
    for seed in range(5):
        one, two = (np.random.default_rng(seed) for _ in range(2))
        assert uniform().assign(0, free, one) == uniform().assign(0, CLIENTS, two)
        assert one.random() == two.random()
