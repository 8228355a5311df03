"""The federated loop of candidates that compete: who trains what, who tests, who is dropped, and that it is FedAvg."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts.arena import Round, Told, contest_of, crowd, played
from contracts.chains import toy_chain
from contracts.fleets import Around
from contracts.method import by_name, plan, tell
from contracts.samples import answer, random_tensors

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.seeding import derive
from fednas_core.base.settings import read
from fednas_core.base.values import Arch, State
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import run_round
from fednas_core.exchange.orders import Order
from fednas_core.methods.contest import HOST, Contest
from fednas_core.methods.fedavg import Everyone, Schedule, SupernetAveraging
from fednas_core.methods.host import START, Entrant, Rules
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.spaces.chain import ChainSpace
from fednas_core.spaces.chainspec import Unit
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.merge import Merge
from fednas_core.subnets.packing import extract
from fednas_core.subnets.weightings import ByExamples
from fednas_core.tasks.bench import space_of
from fednas_core.training.settings import train_settings

SPACE = ChainSpace("even", (Unit("conv", 32, 1, pool=True),) + (Unit("conv", 32, 1),) * 5, image_size=4, classes=3)


def start(seed: int = 1) -> dict[str, torch.Tensor]:
    return random_tensors(SPACE.plan(SPACE.largest), seed)


def archs(count: int, smaller: int = 1) -> list[Arch]:
    """Different architectures: each lowers another width group of the largest."""
    found, row = [], SPACE.encode(SPACE.largest)
    for number in range(count):
        lower = row.copy()
        lower[number % len(SPACE.groups)] -= smaller + number // len(SPACE.groups)
        found.append(SPACE.decode(lower))
    assert len(set(found)) == count
    return found


def contest(count: int = 3, rounds: int = 2, iterations: int = 1, **rules: Any) -> Contest:
    return contest_of(SPACE, start(), [archs(count, i + 1) for i in range(iterations)], rounds, **rules)


def best_last(asked: Order) -> float:
    """Fewer filters in a later group are better: the last candidate wins."""
    return 0.1 + 0.01 * int(np.argmin(SPACE.encode(asked.arch)[: len(SPACE.groups)]))


# -- federated averaging -------------------------------------------------------------------------------------------


class Training(Around):
    """Without the clients that only test."""

    def clients(self) -> list[ClientInfo]:
        return [client for client in self.inner.clients() if not client.name.endswith(("4", "9"))]


def digits(pairs: dict[str, Any], **more: Any) -> RunConfig:
    mine = {"data.clients": 5, "data.examples": 150, "train.epochs": 1, "train.lr": 0.05, "rounds": 4}
    return read({**pairs, **mine, **{key.replace("__", "."): value for key, value in more.items()}})


def same(one: Any, two: Any) -> bool:
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


class Copy:
    """Proposes the start network itself, once."""

    iteration = 0

    def __init__(self) -> None:
        self.family: list[Entrant] = []

    def begin(self, start: Entrant, accuracy: float) -> None:
        self.family = [start]

    def propose(self) -> list[Entrant]:
        if self.iteration:
            return []
        copied = {name: tensor.clone() for name, tensor in self.family[0].tensors.items()}
        return [Entrant("1.1", self.family[0].arch, copied, START)]

    def conclude(self, entrants: Any, standings: Any) -> None:
        self.family.append(entrants["1.1"])
        self.iteration = 1

    def finalists(self, limits: Any) -> list[Entrant]:
        return self.family[1:]

    def story(self) -> dict[str, Any]:
        return {}

    def state(self) -> State:
        return State({}, {"iteration": self.iteration})

    def restore(self, state: State, family: list[Entrant]) -> None:
        self.iteration, self.family = state.data["iteration"], family


@pytest.mark.parametrize("everyone", [False, True])
def test_one_group_and_no_dropping_is_federated_averaging_bit_for_bit(
    tiny_pairs: dict[str, Any], everyone: bool
) -> None:
    """One round of the start, two of one candidate trained by everybody, one of finishing: four rounds of FedAvg."""
    config = digits(tiny_pairs)
    space, settings = space_of(config), train_settings(config.train)
    weights = [initial_weights(space, 5) for _ in range(2)]
    averaging = SupernetAveraging(
        space, weights[0], Everyone(space.largest), ByExamples(), Schedule(4, lambda round: settings, config.seed)
    )
    rules = Rules(
        rounds=1,
        contest=lambda iteration: 2,
        finish=1,
        settings=lambda *_: settings,
        seed=config.seed,
        everyone=everyone,
    )
    competing = Contest(space, weights[1], Copy(), rules, (), Merge)
    fleet = LocalFleet(config)
    for round in range(4):
        wanted = run_round(config, averaging, Training(fleet), round)
        found = run_round(config, competing, fleet, round)
        assert found.pop("search")["stage"] == ("start" if round == 0 else "compete" if round < 3 else "finish")
        found["bytes_down"] = sum(row["bytes_down"] for row in found["clients"])  # without those of the tests
        found["client_macs"] = sum(row["client_macs"] for row in found["clients"])
        for event in (wanted, found):
            event.pop("seconds")
            for row in event["clients"]:
                for key in ("seconds", "role"):
                    row.pop(key)
        labels = {row.pop("network") for row in found["clients"]}
        assert labels == {START if round == 0 else "1.1"}
        assert found == wanted
    assert competing.done(4)
    trained = competing.network(space.largest)
    assert same(trained, averaging.weights()) and not same(trained, competing.weights())


def test_the_start_is_trained_as_by_method_fedavg(tiny_pairs: dict[str, Any]) -> None:
    found = {}
    for method in ("fedavg", "fednas"):
        config = digits(tiny_pairs, method=method, rounds=4, train__schedule="cosine", train__warmup=1)
        space = space_of(config)
        made = make(Setup(config, space, (), initial_weights(space, derive(config.seed, "weights"))))
        for round in range(3):
            run_round(config, made, Training(LocalFleet(config)) if method == "fedavg" else LocalFleet(config), round)
        found[method] = made.weights()
    assert same(found["fedavg"], found["fednas"])
    assert not same(found["fedavg"], initial_weights(space, derive(config.seed, "weights")))


# -- groups --------------------------------------------------------------------------------------------------------


def test_groups_are_disjoint_covering_and_balanced_and_drawn_anew() -> None:
    clients = tuple(replace(c, examples=20 + 3 * (i % 7)) for i, c in enumerate(crowd(40)))
    testing = {c.name for i, c in enumerate(clients) if i % 5 == 4}
    training = {c.name for c in clients} - testing
    rounds = played(contest(4, rounds=5), clients)
    competing = [round for round in rounds if round.told["stage"] == "compete"]
    assert len(rounds) == 6 and len(competing) == 5 and rounds[0].parts == {START: training}
    examples = {c.name: c.examples for c in clients}
    for round in competing:
        assert set(round.orders) == training and set(round.parts) == {"1.1", "1.2", "1.3", "1.4"}
        assert sum(len(part) for part in round.parts.values()) == len(training)
        sizes = [sum(examples[name] for name in part) for part in round.parts.values()]
        assert max(sizes) / min(sizes) <= 1.2
    parts = [frozenset(round.parts["1.1"]) for round in competing]
    assert len(set(parts)) == 5
    assert [round.testers for round in rounds] == [testing, set(), set(), set(), set(), testing]


def test_disclosed_labels_make_groups_alike() -> None:
    kinds = [(50, 0, 0), (0, 50, 0), (0, 0, 50)]
    told = tuple(replace(c, labels=kinds[(i // 5) % 3]) for i, c in enumerate(crowd(60)))

    def lacking(clients: Sequence[ClientInfo]) -> int:
        """Groups that lack a class."""
        labels = {c.name: kinds[(i // 5) % 3] for i, c in enumerate(clients)}
        rounds = [round for round in played(contest(4, rounds=6), clients) if round.told["stage"] == "compete"]
        parts = [part for round in rounds for part in round.parts.values()]
        spread = [np.sum([labels[name] for name in part], axis=0) for part in parts]
        return sum(bool(np.max(mix) > 1.7 * np.min(mix)) for mix in spread)

    assert lacking(told) == 0 < lacking(tuple(replace(c, labels=()) for c in told))


def test_each_client_trains_its_candidate_with_seed_budget_and_settings_of_its_own() -> None:
    clients = tuple(replace(c, budget="2M") for c in crowd(10))
    method = contest(2, task="sandwich")
    played_ = [Round(method, 0, clients), Round(method, 1, clients)]
    assert [order.task for order in played_[0].orders.values()] == ["subnet"] * 8
    for name, order in played_[1].orders.items():
        assert (order.client, order.round, order.task, order.budget) == (name, 1, "sandwich", "2M")
        assert order.seed == derive(7, 1, name, "train")
    shapes = {label: {n: tuple(t.shape) for n, t in e.tensors.items()} for label, e in method._field.items()}
    for label, members in played_[1].parts.items():
        for name in members:
            assert {n: tuple(t.shape) for n, t in played_[1].orders[name].weights.items()} == shapes[label]


def test_each_candidate_becomes_the_mean_of_its_own_group() -> None:
    method, clients = contest(3), crowd(20)
    Round(method, 0, clients)
    orders = plan(method, 1, clients)
    before = {label: {n: t.clone() for n, t in e.tensors.items()} for label, e in method._field.items()}
    shift = {name: 0.1 * number for number, name in enumerate(sorted(orders))}
    tell(method, 1, [answer(o, {n: t + shift[name] for n, t in o.weights.items()}) for name, o in orders.items()])
    for label, entrant in method._field.items():
        mine = [shift[name] for name, order in orders.items() if order.arch == entrant.arch]
        for name, tensor in entrant.tensors.items():
            torch.testing.assert_close(tensor, before[label][name] + sum(mine) / len(mine))
    assert same(method.weights(), method.network(SPACE.largest))


def test_the_order_of_replies_and_late_strange_and_second_ones_change_nothing() -> None:
    clients, states = crowd(15), []
    for spoil in (False, True):
        method = contest(3)
        Round(method, 0, clients)
        orders = plan(method, 1, clients)
        replies = [answer(order) for order in orders.values()]
        if spoil:
            stranger = answer(replace(replies and next(iter(orders.values())), client="stranger"), loss=1e6)
            late = answer(replace(next(iter(orders.values())), round=0), loss=1e6)
            replies = [stranger, late, *reversed(replies), *replies]
        rows = by_name(tell(method, 1, replies))
        states.append((rows, {n: t.clone() for n, t in method.state().tensors.items()}))
    assert states[0][0] == states[1][0]
    for name, tensor in states[0][1].items():
        torch.testing.assert_close(tensor, states[1][1][name])


# -- limits --------------------------------------------------------------------------------------------------------


class UpTo:
    """Allows networks of at most so many MACs."""

    def __init__(self, macs: float) -> None:
        self.macs = macs

    def allows(self, arch: Arch) -> bool:
        return SPACE.cost(arch).macs <= self.macs


def test_nobody_gets_a_network_beyond_its_limit() -> None:
    found = sorted(archs(4), key=lambda arch: SPACE.cost(arch).macs)
    costs = [SPACE.cost(arch).macs for arch in found]
    limits = [None, UpTo(costs[0]), UpTo(costs[1]), UpTo(costs[3]), UpTo(1), UpTo(costs[2]), UpTo(1)]
    clients = tuple(replace(c, limit=limits[i % 7]) for i, c in enumerate(crowd(70)))
    by_name, given = {c.name: c for c in clients}, 0
    rounds = played(contest_of(SPACE, start(), [found], 6, drop=0.5, every=2, join=True), clients)
    for round in rounds:
        for name, arch in [(o.client, o.arch) for o in round.orders.values()] + [
            (e.client, e.arch) for e in round.requests
        ]:
            limit = by_name[name].limit
            assert limit is None or limit.allows(arch)
            given += 1
        assert all(set(round.told["alive"]) == set(round.parts) for _ in [0] if round.told["stage"] == "compete")
    small = {c.name for i, c in enumerate(clients) if i % 7 in (4, 6)}
    assert given > 200 and not any(small & set(round.orders) for round in rounds)


def test_a_candidate_for_which_nobody_has_room_holds_nobody_up() -> None:
    found = sorted(archs(2), key=lambda arch: SPACE.cost(arch).macs)
    clients = tuple(
        replace(c, limit=None if i % 5 == 4 else UpTo(SPACE.cost(found[0]).macs)) for i, c in enumerate(crowd(10))
    )
    method = contest_of(SPACE, start(), [found])
    able = tuple(replace(c, limit=None) for c in clients)
    rounds = [Round(method, 0, able), *[Round(method, i, clients) for i in (1, 2)]]
    assert [set(round.parts) for round in rounds] == [{START}, {"1.1"}, {"1.1"}]
    assert len(rounds[1].parts["1.1"]) == 8 and method.done(3)


class Not:
    """Allows every network but one."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch

    def allows(self, arch: Arch) -> bool:
        return arch != self.arch


def without(arch: Arch, side: str) -> tuple[ClientInfo, ...]:
    """Clients of which none of one side has room for a network."""
    return tuple(
        replace(c, limit=Not(arch) if (i % 5 == 4) == (side == "test") else None) for i, c in enumerate(crowd(20))
    )


@pytest.mark.parametrize("side", ["train", "test"])
@pytest.mark.parametrize("rules", [{}, {"drop": 0.5, "every": 1}])
def test_a_candidate_that_nobody_trained_or_tested_never_wins(side: str, rules: dict[str, Any]) -> None:
    """It would be tested best; what is found of it says nothing."""
    last = archs(3)[2]
    method = contest(3, rounds=2, **rules)
    rounds = [Round(method, 0, crowd(20), best_last)]
    rounds += [Round(method, number, without(last, side), best_last) for number in (1, 2)]
    assert rounds[-1].told["winner"] == "1.2" and method._host.concluded == [["1.2", "1.1"]]  # type: ignore[attr-defined]
    assert [test["network"] for test in rounds[-1].told["tests"]] == (["1.2"] if rules else ["1.2", "1.1"])
    if rules:
        dropped = {one["network"]: one["reason"] for one in rounds[1].told["dropped"]}
        assert dropped["1.3"] == "no client trained and tested it"


def test_an_iteration_of_which_nothing_is_known_has_no_winner_and_the_next_goes_on() -> None:
    first, second = archs(2)
    method = contest_of(SPACE, start(), [[first, second], archs(2, 2)], 1)
    Round(method, 0, crowd(20))
    clients = [
        replace(old, limit=Not(second if i % 5 == 4 else first)) for i, old in enumerate(crowd(20))
    ]  # who trains has no room for the first, who tests none for the second
    told = Round(method, 1, clients, best_last).told
    assert told["winner"] is None and told["tests"] == [] and told["family"] == [START]
    assert Round(method, 2, crowd(20), best_last).told["winner"] == "2.2"


# -- turns, dropping, freed clients --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 5, 8])
def test_more_candidates_than_clients_take_turns(count: int) -> None:
    clients = crowd(3)  # the last one tests
    rounds = [r for r in played(contest(count, rounds=3), clients) if r.told["stage"] == "compete"]
    each = -(-count // 2)
    assert len(rounds) == 3 * each
    for turn in range(3):
        mine = rounds[turn * each : (turn + 1) * each]
        trained = [label for round in mine for label in round.parts]
        assert sorted(trained) == sorted(f"1.{i + 1}" for i in range(count))
        assert [round.told["round"] for round in mine] == [turn] * (each - 1) + [turn + 1]
    assert all(not round.testers for round in rounds[:-1]) and rounds[-1].testers == {"client-002"}


@pytest.mark.parametrize("join", [False, True])
def test_losers_are_dropped_and_their_clients_idle_or_join(join: bool) -> None:
    clients = crowd(50)
    method = contest(4, rounds=5, drop=0.5, every=2, join=join)
    rounds = [round for round in played(method, clients, best_last) if round.told["stage"] == "compete"]
    assert [len(round.told["alive"]) for round in rounds] == [4, 4, 2, 2, 1]
    assert [len(round.orders) for round in rounds] == ([40] * 5 if join else [40, 40, 20, 20, 10])
    assert [len(round.parts) for round in rounds] == [4, 4, 2, 2, 1]
    assert [bool(round.testers) for round in rounds] == [False, True, False, True, True]
    assert [{d["network"] for d in round.told.get("dropped", [])} for round in rounds] == [
        set(), {"1.1", "1.2"}, set(), {"1.3"}, set(),
    ]  # fmt: skip
    reason = rounds[1].told["dropped"][0]["reason"]
    assert "points behind 1.4 (SE" in reason
    assert rounds[-1].told["winner"] == "1.4"
    assert method._host.concluded == [["1.4", "1.3", "1.2", "1.1"]]  # type: ignore[attr-defined]


def test_without_a_share_nothing_is_dropped_and_only_the_end_is_tested() -> None:
    rounds = played(contest(3, rounds=4, drop=0.0, every=1), crowd(20))
    assert [bool(round.testers) for round in rounds] == [True, False, False, False, True]
    assert all(not round.told.get("dropped") for round in rounds)


def test_a_margin_spares_candidates_that_chance_may_have_put_behind() -> None:
    """Testing clients disagree: the gap is within its standard error."""

    def noisy(asked: Any) -> float:
        sign = 1 if int(asked.client[-3:]) % 10 == 4 else -1
        first = asked.arch == archs(2)[0]
        return 0.5 + (0.2 * sign + 0.01 if first else 0.0)

    for margin, alive in ((0.0, 1), (2.0, 2)):
        rounds = played(contest(2, rounds=3, drop=0.5, every=1, margin=margin), crowd(20), noisy)
        assert len(rounds[2].told["alive"]) == alive


def test_all_clients_train_candidate_after_candidate() -> None:
    rounds = played(contest(3, rounds=2, everyone=True), crowd(20))
    competing = [round for round in rounds if round.told["stage"] == "compete"]
    assert [list(round.parts) for round in competing] == [["1.1"], ["1.2"], ["1.3"]] * 2
    assert all(len(round.orders) == 16 for round in competing)
    assert [round.told["round"] for round in competing] == [0, 0, 1, 1, 1, 2]


def test_iterations_may_have_rounds_of_their_own() -> None:
    method = contest(2, iterations=3, contest=lambda iteration: iteration + 1, finish=2)
    told = [round.told for round in played(method, crowd(10))]
    assert [one["stage"] for one in told] == ["start"] + ["compete"] * 6 + ["finish"] * 6
    assert [one["iteration"] for one in told[1:7]] == [1, 2, 2, 3, 3, 3]
    assert [one["of"] for one in told[1:7]] == [1, 2, 2, 3, 3, 3]
    assert [one["finishing"] for one in told[7:]] == ["1.2", "1.2", "2.2", "2.2", "3.2", "3.2"]
    assert [one["over"] for one in told] == [False] * 12 + [True]
    assert [len(one.get("candidates", [])) for one in told[:7]] == [2, 2, 0, 2, 0, 0, 0]


def test_settings_are_those_of_the_stage_and_its_round() -> None:
    asked: list[tuple[str, int, int]] = []

    def settings(stage: str, index: int, of: int) -> Any:
        asked.append((stage, index, of))
        return train_settings(read({}).train)

    played(contest(2, rounds=2, finish=2, settings=settings), crowd(10))
    assert asked == [("start", 0, 1), ("compete", 0, 2), ("compete", 1, 2), ("finish", 0, 2), ("finish", 1, 2)]


# -- who is there --------------------------------------------------------------------------------------------------


def test_clients_that_are_missing_leave_their_share_to_the_group() -> None:
    method, clients = contest(2), crowd(10)
    Round(method, 0, clients)
    found = Round(method, 1, clients, missing=["client-000", "client-001"])
    assert len(found.orders) == 8 and sum(len(part) for part in found.parts.values()) == 6
    assert len(Round(method, 2, clients).orders) == 8


def test_a_client_alone_trains_and_tests() -> None:
    rounds = played(contest(2, rounds=1), crowd(1))
    assert [list(round.orders) for round in rounds] == [["client-000"]] * 3
    assert [round.testers for round in rounds] == [{"client-000"}, set(), {"client-000"}]


def test_nobody_who_tests_ends_the_run_with_the_reason() -> None:
    method, clients = contest(2), crowd(10)
    with pytest.raises(
        RunError, match="no testing client gave a usable answer.*start clients that test .* then resume"
    ):
        Round(method, 0, clients, missing=["client-004", "client-009"])


def test_nobody_who_trains_ends_the_run_with_the_reason() -> None:
    method, clients = contest(2), crowd(10)
    Round(method, 0, clients)
    with pytest.raises(RunError, match="no client that trains can be reached: start clients, then resume"):
        plan(method, 1, tuple(c for c in clients if c.name in ("client-004", "client-009")))


def test_nobody_with_room_for_any_candidate_ends_the_run_with_the_reason() -> None:
    clients = tuple(replace(c, limit=None if i % 5 == 4 else UpTo(1)) for i, c in enumerate(crowd(10)))
    for everyone in (False, True):
        method = contest(2, everyone=everyone)
        with pytest.raises(RunError, match="no client that trains has room for network start: raise the devices'"):
            plan(method, 0, clients)
        Round(method, 0, crowd(10))
        with pytest.raises(RunError, match="no client that trains has room for network 1.1: raise the devices'"):
            plan(method, 1, clients)


def test_a_start_that_needs_no_training_is_tested_at_once() -> None:
    rules = replace(contest(2)._rules, rounds=0)
    method = Contest(SPACE, start(), Told(SPACE, [archs(2)]), rules, (), Merge)
    rounds = played(method, crowd(10))
    assert [round.told["stage"] for round in rounds] == ["start", "compete", "compete"]
    assert rounds[0].orders == {} and rounds[0].testers == {"client-004", "client-009"}
    assert same(method.weights(), start()) and rounds[0].told["tests"][0]["network"] == START


# -- networks and state --------------------------------------------------------------------------------------------


def test_the_networks_are_the_family_and_the_leader_is_first() -> None:
    method = contest(2, rounds=1, iterations=2)
    assert method.catalogue.these == (SPACE.largest,)
    played(method, crowd(10), best_last)
    family = [entrant.arch for entrant in method._host.family]
    assert method.catalogue.these == tuple(reversed(family)) and len(family) == 3
    for entrant in method._host.family:
        assert method.network(entrant.arch) is entrant.tensors
    with pytest.raises(RunError, match=r"is none of this run's: start, .* are"):
        method.network(SPACE.smallest)


def copied(state: State) -> State:
    """As a checkpoint would keep it: copied, and through JSON."""
    return State({name: t.clone() for name, t in state.tensors.items()}, json.loads(json.dumps(state.data)))


@pytest.mark.parametrize("everyone", [False, True])
def test_a_state_goes_on_identically_wherever_it_was_taken(everyone: bool) -> None:
    def fresh(seed: int = 1) -> Contest:
        rules: dict[str, Any] = {"drop": 0.5, "every": 1, "finish": 1, "everyone": everyone}
        return contest_of(SPACE, start(seed), [archs(3), archs(2, 2)], 2, **rules)

    method, clients, states = fresh(), crowd(10), [copied(fresh().state())]
    whole = []
    while not method.done(len(whole)):
        whole.append(Round(method, len(whole), clients, best_last))
        states.append(copied(method.state()))
    for stopped, state in enumerate(states):
        again = fresh(seed=99)
        again.restore(copied(state))
        for number in range(stopped, len(whole)):
            found, wanted = Round(again, number, clients, best_last), whole[number]
            assert (found.told, found.requests, found.rows) == (wanted.told, wanted.requests, wanted.rows)
        assert again.done(len(whole))
        assert again.state().data == states[-1].data and same(again.state().tensors, states[-1].tensors)


def test_the_state_of_something_else_is_refused() -> None:
    method = contest(2)
    Round(method, 0, crowd(10))
    state = copied(method.state())
    averaging = SupernetAveraging(SPACE, start(), Everyone(SPACE.largest), ByExamples(), Schedule(1, None, 1))  # type: ignore[arg-type]
    for foreign in (
        averaging.state(),
        State(state.tensors, {**state.data, "stage": "lunch"}),
        State({name: t for name, t in state.tensors.items() if name != "1.1/head.weight"}, state.data),
        State({**state.tensors, "1.1/head.weight": torch.zeros(2, 2)}, state.data),
        State(state.tensors, {key: value for key, value in state.data.items() if key != "sides"}),
    ):
        with pytest.raises(RunError, match="the checkpoint does not fit the settings"):
            contest(2).restore(foreign)
    other = toy_chain("residual")
    with pytest.raises(RunError, match="the checkpoint does not fit the settings"):
        contest_of(other, random_tensors(other.plan(other.largest), 1), [[other.smallest]]).restore(state)


def test_tensors_of_the_host_are_kept_apart() -> None:
    class Minded(Copy):
        def state(self) -> State:
            return State({"mind": torch.ones(2)}, {"iteration": self.iteration})

        def restore(self, state: State, family: list[Entrant]) -> None:
            assert set(state.tensors) == {"mind"}
            super().restore(state, family)

    method = contest(1)
    method._host = Minded()
    Round(method, 0, crowd(5))
    state = copied(method.state())
    assert f"{HOST}/mind" in state.tensors
    method.restore(state)
    assert Round(method, 1, crowd(5)).parts == {"1.1": {f"client-00{i}" for i in range(4)}}


def test_candidates_have_tensors_of_their_own() -> None:
    method = contest(2)
    Round(method, 0, crowd(10))
    first, second = method._field.values()
    whole = extract(method.weights(), SPACE.plan(first.arch))
    assert same(first.tensors, whole)
    first.tensors["head.bias"].add_(1)
    assert same(extract(method.weights(), SPACE.plan(first.arch)), whole)
    assert not torch.equal(first.tensors["head.bias"], second.tensors["head.bias"])


def test_of_equally_accurate_candidates_the_dear_are_dropped_and_the_cheapest_wins() -> None:
    dear_first = sorted(archs(6)[:1] + archs(6)[4:], key=SPACE.cost, reverse=True)
    assert SPACE.cost(dear_first[0]) > SPACE.cost(dear_first[1]) > SPACE.cost(dear_first[2])
    method = contest_of(SPACE, start(), [dear_first], 2, drop=0.3, every=1)
    told = [Round(method, round, crowd(20)).told for round in range(3)]
    assert [one["network"] for one in told[1]["dropped"]] == ["1.1"] and told[2]["alive"] == ["1.2", "1.3"]
    assert told[2]["winner"] == "1.3"


@pytest.mark.parametrize("method", ["fednas", "ddc"])
def test_clients_that_choose_their_own_model_hold_images_out(method: str) -> None:
    pairs = {"method": method, "space.name": "cnn8", "contest.own": True}
    for holdout in (0.0, 0.1):
        config = read({**pairs, "data.holdout": holdout})
        setup = Setup(config, space_of(config), (), {}, latency_ms=lambda arch: 1.0)
        if holdout:
            assert isinstance(make(setup), Contest)
        else:
            with pytest.raises(ConfigError, match="contest.own does not go .* images that they trained on; allowed is"):
                make(setup)
