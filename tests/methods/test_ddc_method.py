"""DDC: which layers may go, who is taught when, what students are rewarded for, and that the policy learns from it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from contracts.arena import Round, crowd, played
from contracts.samples import random_tensors, toy_space

from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.settings import read
from fednas_core.base.values import Arch, State
from fednas_core.devices.info import ClientInfo, Limit
from fednas_core.exchange.orders import Order
from fednas_core.methods.contest import HOST, Contest
from fednas_core.methods.ddc import Removal
from fednas_core.methods.method import request
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.search.rewards import INFEASIBLE, Thresholds, ddc_reward, n2n_reward
from fednas_core.spaces.chain import ChainSpace
from fednas_core.spaces.chainspec import Unit
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.registry import load
from fednas_core.spaces.space import Elastic
from fednas_core.training.settings import DistilSettings

SPACE = ChainSpace("five", (Unit("conv", 16), *[Unit("conv", 16)] * 4), image_size=4, in_channels=1, classes=3)
CLIENTS = crowd(20)
TRAINING = {client.name for i, client in enumerate(CLIENTS) if i % 5 != 4}
TINY = {
    "method": "ddc",
    "rounds": 1,
    "contest.finish": 0,
    "contest.iterations": 4,
    "ddc.rounds": 1,
    "budgets": "any=max",
}


def timed(arch: Arch) -> float:
    return 1.0 + 1e-4 * SPACE.cost(arch).macs


def method_of(
    space: Elastic = SPACE, limits: Sequence[Limit] = (), policy: State | None = None, **pairs: Any
) -> Contest:
    config = read({**TINY, **{key.replace("__", "."): value for key, value in pairs.items()}})
    weights = random_tensors(space.plan(space.largest), 1)
    method = make(Setup(config, space, (), weights, limits, timed, policy))
    assert isinstance(method, Contest)
    return method


def host_of(method: Contest) -> Removal:
    assert isinstance(method._host, Removal)
    return method._host


def layers(arch: Arch) -> int:
    return sum(map(int, arch["k"]))


def thin(asked: Order) -> float:
    """The teacher finds 0.9; each layer that is gone costs two points."""
    return 0.9 - 0.02 * (4 - layers(asked.arch))


# -- what may go ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [SPACE, load("cnn8"), load("resnet18"), load("vgg11")], ids=lambda space: space.name)
def test_the_first_layer_and_the_classifier_are_never_removed(space: ChainSpace) -> None:
    host = host_of(method_of(space))
    masks = itertools.islice(itertools.product((0, 1), repeat=len(space.removable)), 300)
    for mask in [*masks, (0,) * len(space.removable)]:
        names = set(space.plan(host._space.masked(mask)))
        assert {"head.weight", "head.bias", "units.0.conv.weight"} <= names
        fresh = host._space.plan(host._space.masked(mask))["head.weight"][0]
        assert fresh.stop == space.classes
    assert not {layer.keep for layer in (space.descriptors[0], space.descriptors[-1])} - {None}


@pytest.mark.parametrize("sampler", ["policy", "random"])
def test_students_are_the_teacher_without_some_layers(sampler: str) -> None:
    method, seen = method_of(ddc__sampler=sampler, contest__candidates=6), set()
    for round in played(method, CLIENTS, thin):
        for told in round.told.get("candidates", []):
            arch = SPACE.arch(told["arch"])
            assert told["parent"] == "start" and arch["w"] == SPACE.largest["w"] and arch != SPACE.largest
            seen.add(arch["k"])
    assert len(seen) > 3


def test_a_student_starts_afresh_or_inherits_from_the_teacher() -> None:
    for inherit in (False, True):
        method = method_of(ddc__inherit=inherit)
        Round(method, 0, CLIENTS, thin)
        for entrant in method._field.values():
            taken = [
                torch.equal(tensor, method.weights()[name][SPACE.plan(entrant.arch)[name]])
                for name, tensor in entrant.tensors.items()
                if name.endswith(("conv.weight", "head.weight"))
            ]
            assert all(taken) if inherit else not any(taken)
    first, second = (list(method_of(contest__candidates=8).state().tensors) for _ in range(2))
    assert first == second


# -- rewards and learning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ddc", "n2n"])
def test_students_are_rewarded_as_in_the_paper(kind: str) -> None:
    method = method_of(ddc__reward=kind, ddc__resource="ms", ddc__accuracy=0.95, ddc__latency=0.7, ddc__params=0.8)
    rounds = played(method, CLIENTS, thin)
    host, largest = host_of(method), SPACE.largest
    told = [row for round in rounds for row in round.told.get("rewards", [])]
    assert [row["iteration"] for row in told] == [1, 2, 3, 4] and len(host._judged) > 3
    first = {SPACE.arch(t["arch"]) for t in rounds[0].told["candidates"]}
    for arch, (accuracy, reward) in host._judged.items():
        assert accuracy == pytest.approx(thin(request(1, "x", "trial", arch)))
        share = SPACE.cost(arch).params / SPACE.cost(largest).params
        if kind == "ddc":
            time = timed(arch) / timed(largest)
            assert reward == ddc_reward(accuracy / 0.9, time, share, Thresholds(0.95, 0.7, 0.8)).total
        elif arch in first:
            assert reward == n2n_reward(accuracy / 0.9, 1 - share, accuracy / 0.9 < 0.95, 0)
    best = max(reward for _, reward in host._judged.values())
    assert rounds[-1].told["reward"] == best == host._judged[method.catalogue.these[0]][1]  # type: ignore[index]


def test_the_mean_and_the_best_are_those_of_the_masks() -> None:
    method = method_of(contest__iterations=3, contest__candidates=5)
    host, means, masks = host_of(method), [], []
    learn = host._learn

    def noted(new: int) -> None:
        masks.append(host._masks)
        rewards = [host._judged.get(host._space.masked(mask), (0, INFEASIBLE))[1] for mask in host._masks]
        means.append((sum(rewards) / len(rewards), max(rewards)))
        learn(new)

    host._learn = noted  # type: ignore[method-assign]
    told = [row for round in played(method, CLIENTS, thin) for row in round.told.get("rewards", [])]
    assert [(row["mean"], row["best"]) for row in told] == means and {len(one) for one in masks} == {5}


def test_a_mask_that_removes_nothing_is_infeasible_and_never_trained() -> None:
    method = method_of(contest__iterations=40, contest__candidates=8, ddc__sampler="random")
    host, rounds = host_of(method), played(method, CLIENTS, thin)
    assert SPACE.largest not in host._judged
    rows = [row for round in rounds for row in round.told.get("rewards", [])]
    assert len(rows) == 40 and all(INFEASIBLE <= row["mean"] <= row["best"] <= 1 for row in rows)


def test_known_students_are_not_trained_again_and_the_policy_still_learns() -> None:
    method = method_of(contest__iterations=30, contest__candidates=8)
    host = host_of(method)
    steps: list[int] = []
    step = host._learner.step
    host._learner.step = lambda masks, rewards: steps.append(len(masks)) or step(masks, rewards)  # type: ignore
    rounds = played(method, CLIENTS, thin)
    trained = [SPACE.arch(t["arch"]) for round in rounds for t in round.told.get("candidates", [])]
    assert len(trained) == len(set(trained)) <= 15
    rows = [row for round in rounds for row in round.told.get("rewards", [])]
    assert [row["iteration"] for row in rows] == list(range(1, 31)) and steps == [8] * 30
    assert sum(row["new"] for row in rows) == len(trained) and rows[-1]["new"] == 0
    assert len(rounds) < 1 + 30, "iterations of known students take no round"


def test_the_policy_learns_what_is_rewarded() -> None:
    """All that counts is parameters: fewer layers are better, and later students have fewer."""
    method = method_of(
        contest__iterations=60,
        contest__candidates=6,
        ddc__lr=0.03,
        ddc__accuracy=0.0,
        ddc__latency=2.0,
        ddc__params=0.5,
    )
    rounds = played(method, CLIENTS, thin)
    rows = [row for round in rounds for row in round.told.get("rewards", [])]
    early, late = (sum(row["mean"] for row in part) / 10 for part in (rows[:10], rows[-10:]))
    assert late > early + 0.1
    with torch.no_grad():
        keeps = host_of(method)._learner.policy(SPACE.descriptors)[:, 1].exp()
    assert float(keeps.mean()) < 0.3


def test_the_random_sampler_learns_nothing() -> None:
    method = method_of(ddc__sampler="random", contest__iterations=6)
    before = host_of(method)._learner.state()
    rounds = played(method, CLIENTS, thin)
    after = host_of(method)._learner.state()
    assert after.data == before.data
    assert all(torch.equal(tensor, after.tensors[name]) for name, tensor in before.tensors.items())
    assert len([row for round in rounds for row in round.told.get("rewards", [])]) == 6
    other = method_of(ddc__sampler="random", contest__iterations=6, seed=2)
    assert host_of(other)._sampled() != host_of(method_of(ddc__sampler="random"))._sampled()


def test_a_teacher_that_knows_nothing_makes_nobody_worth_anything() -> None:
    rounds = played(method_of(), CLIENTS, lambda asked: 0.0)
    assert all(row["best"] < 0.01 for round in rounds for row in round.told.get("rewards", []))


class Not:
    """Room for every network but one."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch

    def allows(self, arch: Arch) -> bool:
        return arch != self.arch


@pytest.mark.parametrize("testing", [False, True])
def test_a_student_that_nobody_trained_or_tested_is_proposed_again(testing: bool) -> None:
    """Also after a resume; until it is known, the policy learns from the others alone."""
    method = method_of(contest__candidates=6, contest__iterations=3)
    host = host_of(method)
    Round(method, 0, CLIENTS, thin)
    student, *others = [entrant.arch for entrant in method._field.values()]
    clients = tuple(replace(c, limit=Not(student) if (c.name not in TRAINING) == testing else None) for c in CLIENTS)
    steps: list[Any] = []
    step = host._learner.step
    host._learner.step = lambda masks, rewards: steps.append((masks, rewards)) or step(masks, rewards)  # type: ignore
    again = tuple(host._masks)
    host._sampled = lambda: again  # type: ignore[method-assign]
    row = Round(method, 1, clients, thin).told["rewards"][0]
    assert student not in host._judged and set(others) == set(host._judged) and row["new"] == len(others)
    ((masks, rewards),) = steps
    assert student not in {host._space.masked(mask) for mask in masks} and len(masks) == len(rewards) < 6
    assert [entrant.arch for entrant in method._field.values()] == [student]
    resumed = method_of(contest__candidates=6, contest__iterations=3)
    resumed.restore(State(method.state().tensors, json.loads(json.dumps(method.state().data))))
    Round(resumed, 2, CLIENTS, thin)
    assert host_of(resumed)._judged[student][0] == pytest.approx(thin(request(1, "x", "trial", student)))


@pytest.mark.parametrize("resource", ["macs", "ms"])
def test_rewards_go_by_the_resource_that_is_named(resource: str) -> None:
    method = method_of(ddc__resource=resource, ddc__latency=0.7)
    played(method, CLIENTS, thin)
    host, largest = host_of(method), SPACE.largest
    assert host._judged
    for arch, (accuracy, reward) in host._judged.items():
        share = SPACE.cost(arch).params / SPACE.cost(largest).params
        took = {"macs": lambda a: SPACE.cost(a).macs, "ms": timed}[resource]
        wanted = ddc_reward(accuracy / 0.9, took(arch) / took(largest), share, Thresholds(0.9, 0.7, 0.6))
        assert reward == wanted.total


class UpTo:
    def __init__(self, share: float) -> None:
        self.most = share * SPACE.cost(SPACE.largest).params

    def allows(self, arch: Arch) -> bool:
        return SPACE.cost(arch).params <= self.most


def test_the_family_holds_the_best_of_all_and_the_best_for_each_limit() -> None:
    limits = [UpTo(1.0), UpTo(0.6), UpTo(0.3), UpTo(0.0)]
    method = method_of(limits=limits, contest__iterations=25, contest__candidates=6, contest__finish=1)
    rounds = played(method, CLIENTS, thin)
    host = host_of(method)
    rewards = {arch: reward for arch, (_, reward) in host._judged.items()}
    teacher, *students = host.family
    assert teacher.label == "start" and method.catalogue.these is not None
    best = [max((a for a in rewards if limit.allows(a)), key=lambda a: rewards[a], default=None) for limit in limits]
    assert {rewards[entrant.arch] for entrant in students} == {rewards[arch] for arch in best if arch}
    assert rewards[students[-1].arch] == max(rewards.values()) and method.catalogue.these[0] == students[-1].arch
    finishing = [round.told["finishing"] for round in rounds if round.told["stage"] == "finish"]
    assert finishing == [entrant.label for entrant in students]


# -- teaching ------------------------------------------------------------------------------------------------------


def taught_in(round: Round) -> set[str]:
    return {asked.client for asked in round.requests if asked.task == "teach"}


def tasks(round: Round) -> dict[str, str]:
    return {name: order.task for name, order in round.orders.items()}


def test_clients_are_taught_after_the_start_and_distil_from_then_on() -> None:
    method = method_of(rounds=2, contest__finish=1, contest__iterations=2)
    rounds = played(method, CLIENTS, thin)
    assert [taught_in(round) for round in rounds[:2]] == [set(), TRAINING]
    assert {e.arch for e in rounds[1].requests if e.task == "teach"} == {SPACE.largest}
    assert not any(taught_in(round) for round in rounds[2:])
    assert set(tasks(rounds[0]).values()) == set(tasks(rounds[1]).values()) == {"subnet"}
    for round in rounds[2:]:
        assert set(round.orders) <= TRAINING and set(tasks(round).values()) == {"distil"}
    assert rounds[-1].told["stage"] == "finish"


def test_without_soft_answers_there_is_no_teacher() -> None:
    rounds = played(method_of(ddc__soft=0.0, contest__finish=1), CLIENTS, thin)
    assert not any(taught_in(round) for round in rounds)
    assert {task for round in rounds for task in tasks(round).values()} == {"subnet"}
    assert all(set(round.orders) == TRAINING for round in rounds)


@pytest.mark.parametrize("pairs", [{}, {"contest__clients": "all"}])
def test_a_late_client_is_taught_before_it_trains(pairs: dict[str, Any]) -> None:
    method, late = (
        method_of(ddc__rounds=4, contest__iterations=1, contest__finish=2, **pairs),
        ClientInfo("client-100", 50),
    )
    rounds, number = [Round(method, 0, CLIENTS, thin)], 1
    while not method.done(number):
        everyone = (*CLIENTS, late) if number >= 2 else CLIENTS
        rounds.append(Round(method, number, everyone, thin))
        number += 1
    assert "client-100" not in rounds[2].orders and taught_in(rounds[2]) == {"client-100"}
    assert tasks(rounds[3])["client-100"] == "distil" and not taught_in(rounds[3])


def test_a_client_that_comes_when_students_finish_is_taught_as_well() -> None:
    method, late = method_of(contest__iterations=1, contest__finish=3), ClientInfo("client-100", 50)
    rounds = [Round(method, number, CLIENTS, thin) for number in range(2)]
    rounds += [Round(method, number, (*CLIENTS, late), thin) for number in (2, 3)]
    assert rounds[2].told["stage"] == "finish"
    assert "client-100" not in rounds[2].orders and taught_in(rounds[2]) == {"client-100"}
    assert tasks(rounds[3])["client-100"] == "distil"


def test_who_gives_no_answer_is_taught_again() -> None:
    method = method_of(ddc__rounds=4, contest__iterations=1)
    rounds = [Round(method, 0, CLIENTS, thin), Round(method, 1, CLIENTS, thin, missing=["client-003"])]
    assert taught_in(rounds[1]) == {"client-003"}  # it is missing still
    rounds += [Round(method, number, CLIENTS, thin) for number in (2, 3)]
    assert "client-003" not in rounds[2].orders and taught_in(rounds[2]) == {"client-003"}
    assert tasks(rounds[3])["client-003"] == "distil" and not taught_in(rounds[3])


class Small:
    """Room for anything but the teacher."""

    def allows(self, arch: Arch) -> bool:
        return arch != SPACE.largest


def test_who_has_no_room_for_the_teacher_learns_from_labels() -> None:
    clients = tuple(replace(c, limit=Small() if c.name == "client-003" else None) for c in CLIENTS)
    rounds = played(method_of(contest__finish=1, contest__clients="all"), clients, thin)
    assert "client-003" not in rounds[0].orders and not any("client-003" in taught_in(round) for round in rounds)
    for round in rounds[1:]:
        assert tasks(round)["client-003"] == "subnet"
        assert {task for name, task in tasks(round).items() if name != "client-003"} == {"distil"}


def test_nobody_who_keeps_the_teacher_ends_the_run_with_the_reason() -> None:
    with pytest.raises(RunError, match="no client could keep the teacher.*resume the run"):
        Round(method_of(), 0, CLIENTS, thin, missing=sorted(TRAINING))
    small = tuple(replace(c, limit=Small() if c.name in TRAINING and c.name > "client-003" else None) for c in CLIENTS)
    assert taught_in(Round(method_of(), 0, small)) == {f"client-00{i}" for i in range(4)}


# -- state and transfer --------------------------------------------------------------------------------------------


def through_json(state: State) -> State:
    return State({n: t.clone() for n, t in state.tensors.items()}, json.loads(json.dumps(state.data)))


def test_a_search_goes_on_identically_from_any_state() -> None:
    def fresh() -> Contest:
        return method_of(contest__iterations=5, contest__candidates=3, ddc__rounds=2, contest__finish=1, ddc__lr=0.1)

    method, states, whole = fresh(), [], list[Round]()
    while not method.done(len(whole)):
        whole.append(Round(method, len(whole), CLIENTS, thin))
        states.append(through_json(method.state()))
    for stopped, state in enumerate(states, start=1):
        again = fresh()
        again.restore(through_json(state))
        for number in range(stopped, len(whole)):
            found = Round(again, number, CLIENTS, thin)
            assert (found.told, found.requests, found.rows) == (
                whole[number].told, whole[number].requests, whole[number].rows,
            )  # fmt: skip
        last = again.state()
        assert last.data == states[-1].data and set(last.tensors) == set(states[-1].tensors)
        assert all(torch.equal(tensor, last.tensors[name]) for name, tensor in states[-1].tensors.items())


def test_a_transferred_policy_is_where_learning_goes_on() -> None:
    donor = method_of(contest__iterations=5, ddc__lr=0.1, seed=8)
    played(donor, CLIENTS, thin)
    learnt = host_of(donor)._learner.state()
    other = ChainSpace("seven", (Unit("conv", 16), *[Unit("conv", 24)] * 6), image_size=4, in_channels=1, classes=3)
    for space in (SPACE, other):
        learner = host_of(method_of(space, policy=learnt))._learner
        assert all(torch.equal(t, learnt.tensors[f"policy.{n}"]) for n, t in learner.policy.state_dict().items())
        assert (learner.baseline, learner.state().data["steps"]) == (None, 0)
        assert not any(bool(t.any()) for n, t in learner.state().tensors.items() if not n.startswith("policy."))
    with pytest.raises(RunError, match="the saved policy does not fit"):
        method_of(policy=State({}, {}))
    fresh = host_of(method_of())._learner.policy.state_dict()
    assert any(not torch.equal(tensor, learnt.tensors[f"policy.{name}"]) for name, tensor in fresh.items())
    assert any(name.startswith(f"{HOST}/policy.") for name in donor.state().tensors)


@pytest.mark.parametrize("space", [toy_space(), ChainSpace("one", (Unit("conv", 8),), image_size=4)])
def test_a_space_whose_layers_cannot_be_removed_is_refused(space: Elastic) -> None:
    with pytest.raises(ConfigError, match="method 'ddc' removes layers, and space .* choose one of kind 'chain', e.g."):
        make(Setup(read({"method": "ddc"}), space, (), initial_weights(space, 1)))


def test_settings_become_rules() -> None:
    rules = method_of(ddc__rounds=3, contest__testers=0.5, contest__finish=4)._rules
    assert (rules.contest(0), rules.contest(9), rules.testers, rules.finish) == (3, 3, 2, 4)
    assert (rules.drop, rules.join, rules.everyone, rules.task, rules.teaches) == (0.0, False, False, "distil", True)
    assert method_of(contest__clients="all")._rules.everyone


def test_teacher_and_students_train_from_the_full_rate_down() -> None:
    method = method_of(rounds=2, ddc__rounds=2, contest__iterations=1, contest__finish=2, train__lr=0.1)
    params = [next(iter(round.orders.values())).params for round in played(method, CLIENTS, thin)]
    rates = [given.train.lr if isinstance(given, DistilSettings) else given.lr for given in params]
    assert [isinstance(given, DistilSettings) for given in params] == [False] * 2 + [True] * 4
    assert rates == pytest.approx([0.1, 0.05] * 3)
