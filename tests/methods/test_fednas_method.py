"""FedNAS: what is proposed, what it inherits, what becomes of the winner, and when the search is over."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from contracts.arena import Round, crowd, played
from contracts.samples import random_tensors, toy_space

from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.settings import read
from fednas_core.base.values import Arch, State
from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.exchange.orders import Order
from fednas_core.methods.contest import Contest
from fednas_core.methods.fednas import NetAdapt
from fednas_core.methods.host import Entrant
from fednas_core.methods.method import request
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup, resource_of
from fednas_core.search.dropping import Standing
from fednas_core.search.mnas import score
from fednas_core.search.netadapt import proposals
from fednas_core.spaces.chain import ChainSpace
from fednas_core.spaces.chainspec import Unit
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.networks import subnet

UNITS = (Unit("conv", 32), Unit("conv", 40, pool=True), Unit("conv", 48), Unit("conv", 64))
SPACE = ChainSpace("five", UNITS, image_size=8, classes=4)
CLIENTS = crowd(20)
TINY = {"method": "fednas", "rounds": 1, "contest.finish": 0, "contest.iterations": 3, "fednas.step": 0.1}


def setup_of(space: Elastic = SPACE, seed: int = 1, **pairs: Any) -> Setup:
    given = {key.replace("__", ".").replace("_", "-"): value for key, value in pairs.items()}
    weights = random_tensors(space.plan(space.largest), seed)
    timed = lambda arch: 3.0 + 1e-4 * space.cost(arch).macs  # noqa: E731
    return Setup(read({**TINY, **given}), space, (), weights, latency_ms=timed)


def method_of(space: Elastic = SPACE, seed: int = 1, **pairs: Any) -> Contest:
    method = make(setup_of(space, seed, **pairs))
    assert isinstance(method, Contest)
    return method


def host_of(method: Contest) -> Any:
    return method._host


def macs(arch: Arch) -> float:
    return float(SPACE.cost(arch).macs)


def dearest(asked: Order) -> float:
    return macs(asked.arch) / macs(SPACE.largest)


# -- proposals -----------------------------------------------------------------------------------------------------


def test_a_proposal_differs_from_its_parent_in_one_layer_group_and_meets_its_step() -> None:
    method = method_of(contest__iterations=4, fednas__step=0.08, fednas__decay=0.9)
    full, proposed = macs(SPACE.largest), 0
    for round in played(method, CLIENTS, dearest):
        for told in round.told.get("candidates", []):
            iteration = int(told["network"].partition(".")[0])
            base = host_of(method).family[iteration - 1]
            row, parent = SPACE.encode(SPACE.arch(told["arch"])), SPACE.encode(base.arch)
            changed = [place for place in range(len(row)) if row[place] != parent[place]]
            assert told["parent"] == base.label and len(changed) == 1 and changed[0] < len(SPACE.groups)
            wanted = macs(base.arch) - 0.08 * full * 0.9 ** (iteration - 1)
            assert told["macs"] <= wanted
            row[changed[0]] += 1
            assert macs(SPACE.decode(row)) > wanted, "less than the step would do"
            proposed += 1
    assert proposed >= 12


def of_the_strongest(
    parent: Mapping[str, torch.Tensor], counts: Sequence[int], together: int
) -> dict[str, torch.Tensor]:
    """By hand: the tensors that are left if each layer keeps its filters of largest norm, the strongest first.

    Group normalisation keeps or drops as many `together` as it normalises.
    """
    before, kept = torch.arange(3), {}
    for place, count in enumerate(counts):
        weight = parent[f"units.{place}.conv.weight"]
        norms = weight.flatten(1).norm(dim=1).view(-1, together).sum(1)
        firsts = norms.argsort(descending=True)[: count // together] * together
        strongest = (firsts[:, None] + torch.arange(together)).flatten()
        kept[f"units.{place}.conv.weight"] = weight[strongest][:, before]
        for name in ("weight", "bias") if f"units.{place}.norm.weight" in parent else ():
            kept[f"units.{place}.norm.{name}"] = parent[f"units.{place}.norm.{name}"][strongest]
        before = strongest
    return kept | {"head.weight": parent["head.weight"][:, before], "head.bias": parent["head.bias"]}


@pytest.mark.parametrize(("norm", "together"), [("group", 8), ("batch", 1), ("none", 1)])
def test_a_candidate_keeps_the_filters_of_largest_norm(norm: Any, together: int) -> None:
    space = replace(SPACE, norm=norm)
    setup = setup_of(space)
    host, parent = NetAdapt(setup, macs, 3), Entrant("start", space.largest, setup.weights)
    host.begin(parent, 0.5)
    for iteration in range(3):
        trained = copy.deepcopy(host.family[-1].tensors)
        candidates = host.propose()
        assert len(candidates) >= 3
        for entrant in candidates:
            counts = [SPACE.widths[place][gene] for place, gene in enumerate(SPACE.encode(entrant.arch)[:4])]
            wanted = of_the_strongest(trained, counts, together)
            assert set(wanted) == set(entrant.tensors)
            assert all(torch.equal(tensor, entrant.tensors[name]) for name, tensor in wanted.items())
        winner = candidates[iteration]
        for tensor in winner.tensors.values():
            tensor.add_(0.5 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(iteration)))
        host.conclude({entrant.label: entrant for entrant in candidates}, [Standing(winner.label, 0.9, 0.0, 0.0, 10)])


def test_ranking_leaves_the_start_the_function_that_it_was() -> None:
    setup = setup_of()
    start = copy.deepcopy(setup.weights)
    host = NetAdapt(setup, macs, 3)
    method = make(setup)
    assert isinstance(method, Contest)
    method._host = host
    host.begin(method._start, 0.5)
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = subnet(SPACE, SPACE.largest, start).eval()(x)
        candidates = host.propose()
        found = subnet(SPACE, SPACE.largest, dict(method.weights())).eval()(x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(start[name], tensor) for name, tensor in method.weights().items())
    assert len(candidates) == len(SPACE.groups) and {entrant.parent for entrant in candidates} == {"start"}


def test_candidates_are_no_more_than_asked_for_and_those_nearest_the_step() -> None:
    whole, few = (Round(method_of(contest__candidates=n), 0, CLIENTS).told["candidates"] for n in (0, 2))
    costs = sorted((told["macs"] for told in whole), reverse=True)
    assert len(whole) == len(SPACE.groups) == 4 and sorted((t["macs"] for t in few), reverse=True) == costs[:2]


def test_every_space_has_proposals() -> None:
    space = toy_space()
    method = method_of(space, fednas__step=0.2)
    rounds = played(method, CLIENTS)
    assert rounds[0].told["candidates"] and len(host_of(method).family) > 1
    costs = [space.cost(entrant.arch).macs for entrant in host_of(method).family]
    assert costs == sorted(costs, reverse=True)
    assert space.shrinkable == tuple(range(len(space.gene_choices)))


# -- the family ----------------------------------------------------------------------------------------------------


def test_the_winner_is_the_next_start_and_the_family_falls_in_cost() -> None:
    method = method_of(contest__iterations=4, fednas__drop=0.5, fednas__drop_every=1, fednas__rounds_max=3)
    rounds = played(method, CLIENTS, dearest)
    winners = [round.told["winner"] for round in rounds if "winner" in round.told]
    family = host_of(method).family
    assert [entrant.label for entrant in family] == ["start", *winners] and len(winners) == 4
    assert [entrant.parent for entrant in family] == ["", "start", *winners[:-1]]
    costs = [macs(entrant.arch) for entrant in family]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 5
    tests = {t["network"]: t["accuracy"] for round in rounds for t in round.told.get("tests", [])}
    for iteration, winner in enumerate(winners, start=1):
        best = max(accuracy for label, accuracy in tests.items() if label.startswith(f"{iteration}."))
        assert tests[winner] == best


@pytest.mark.parametrize("target", [0.85, 0.6, 0.45])
def test_the_search_is_over_at_its_target(target: float) -> None:
    method = method_of(contest__iterations=40, fednas__target=target, fednas__step=0.1)
    played(method, CLIENTS, dearest)
    shares = [macs(entrant.arch) / macs(SPACE.largest) for entrant in host_of(method).family]
    assert shares[-1] <= target < shares[-2] and len(shares) < 40


def test_nothing_is_left_to_propose_where_all_is_as_small_as_can_be() -> None:
    method = method_of(contest__iterations=400, fednas__step=0.2, fednas__decay=1.0)
    rounds = played(method, CLIENTS)
    assert rounds[-1].told["over"] and len(host_of(method).family) < 20


@pytest.mark.parametrize("resource", ["params", "bytes", "ms", "macs"])
def test_what_falls_is_the_resource(resource: str) -> None:
    method = method_of(fednas__resource=resource)
    measure = resource_of(setup_of(), resource)
    costs = {
        "macs": macs,
        "params": lambda arch: SPACE.cost(arch).params,
        "bytes": lambda arch: SPACE.cost(arch).bytes,
        "ms": lambda arch: 3.0 + 1e-4 * macs(arch),
    }
    told = [round.told for round in played(method, CLIENTS)]
    family = [entrant.arch for entrant in host_of(method).family]
    assert [measure(arch) for arch in family] == pytest.approx([costs[resource](arch) for arch in family])
    for number, (arch, smaller) in enumerate(zip(family, family[1:], strict=False)):
        assert measure(smaller) <= measure(arch) - 0.1 * measure(SPACE.largest) * 0.96**number + 1e-6
    assert [t["resource"] for t in told if "takes" in t] == [resource] * 4
    assert [t["takes"] for t in told if "takes" in t] == [measure(arch) for arch in family]


def test_milliseconds_need_somebody_who_measures() -> None:
    method = make(Setup(read({**TINY, "fednas.resource": "ms"}), SPACE, (), initial_weights(SPACE, 1)))
    with pytest.raises(RunError, match="nobody measured the latency"):
        Round(method, 0, CLIENTS)


class UpTo:
    def __init__(self, share: float) -> None:
        self.most = share * macs(SPACE.largest)

    def allows(self, arch: Arch) -> bool:
        return macs(arch) <= self.most


def test_what_finishes_is_the_dearest_within_each_limit_and_the_leader() -> None:
    limits = [UpTo(1.0), UpTo(0.85), UpTo(0.01)]
    setup = setup_of(contest__finish=2, contest__iterations=4)
    method = make(Setup(setup.config, SPACE, (), setup.weights, limits))
    rounds = played(method, CLIENTS, dearest)
    family = host_of(method).family  # type: ignore[arg-type]
    within = next(entrant for entrant in family if macs(entrant.arch) <= 0.85 * macs(SPACE.largest))
    wanted = [within.label, family[-1].label]  # the start is dearest of all, and has been trained
    finishing = [r.told["finishing"] for r in rounds if r.told["stage"] == "finish"]
    assert finishing == [label for label in wanted for _ in range(2)]
    assert all(len(r.orders) == 16 for r in rounds if r.told["stage"] == "finish")


def test_rates_are_low_for_candidates_and_fall_in_the_end() -> None:
    method = method_of(contest__finish=2, contest__iterations=1, rounds=2, train__lr=0.1, fednas__lr=0.5)
    rates = [next(iter(round.orders.values())).params.lr for round in played(method, CLIENTS)]
    assert rates[:2] == pytest.approx([0.1, 0.05]) and set(rates[2:-2]) == {0.05}
    assert rates[-2:] == pytest.approx([0.1, 0.05])


def test_settings_become_rules() -> None:
    rules = method_of(
        contest__testers=0.25, contest__clients="all", fednas__margin=1.5, fednas__freed="join", fednas__drop=0.25,
        fednas__drop_every=3, fednas__rounds_min=2, fednas__rounds_max=10, contest__iterations=5,
    )._rules  # fmt: skip
    assert (rules.testers, rules.everyone, rules.margin, rules.join, rules.drop, rules.every) == (
        4, True, 1.5, True, 0.25, 3,
    )  # fmt: skip
    assert [rules.contest(i) for i in range(6)] == [2, 4, 6, 8, 10, 10]
    assert not rules.teaches and rules.task == "subnet"
    assert not method_of()._rules.everyone and not method_of()._rules.join
    assert [method_of(fednas__rounds_min=5, fednas__rounds_max=2)._rules.contest(i) for i in range(3)] == [5, 5, 5]


def test_a_margin_keeps_candidates_that_are_within_chance() -> None:
    def noisy(asked: Order) -> float:
        return 0.5 + (0.1 if asked.client.endswith(("04", "14")) else -0.1) * (0.2 + dearest(asked))

    alive = {}
    for margin in (0.0, 3.0):
        rounds = played(method_of(fednas__margin=margin, fednas__rounds_max=6, contest__iterations=1), CLIENTS, noisy)
        alive[margin] = [len(round.told["alive"]) for round in rounds if round.told["stage"] == "compete"]
    assert alive[0.0] == [4, 2, 1, 1, 1, 1] and alive[3.0] == [4] * 6


def searched(setup: Setup) -> list[float]:
    """MACs of the family if the first candidate always wins."""
    host = NetAdapt(setup, macs, setup.config.contest.iterations)
    host.begin(Entrant("start", SPACE.largest, setup.weights), 0.5)
    while entrants := host.propose():
        host.conclude({e.label: e for e in entrants}, [Standing(e.label, 0.9, 0.0, 0.0, 10) for e in entrants])
    return [macs(entrant.arch) for entrant in host.family]


def test_the_search_is_over_once_every_budget_is_met() -> None:
    setup, full = setup_of(contest__iterations=40), macs(SPACE.largest)
    budgets = [Allowance(Budget(str(share), macs=share * full), SPACE) for share in (1.0, 0.7, 0.4)]
    costs = searched(replace(setup, limits=budgets))
    assert costs == sorted(costs, reverse=True) and costs[-1] <= 0.4 * full < costs[-2]
    everything = searched(replace(setup, limits=budgets[:1]))
    assert everything[-1] < costs[-1], "a budget that the start keeps is no reason to stop"


def test_where_no_single_group_can_save_the_step_half_of_it_will_do() -> None:
    full = macs(SPACE.largest)
    assert not proposals(SPACE, SPACE.largest, macs, 0.1 * full, SPACE.shrinkable)
    costs = searched(setup_of(contest__iterations=2, fednas__step=0.9))
    assert len(costs) == 3 and costs[1] < 0.8 * full and costs[2] < costs[1]


# -- evolution -----------------------------------------------------------------------------------------------------


def scored(asked: Order) -> float:
    """Small networks are nearly as good as large ones."""
    return 0.5 + 0.3 * dearest(asked) ** 0.05


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_evolution_never_falls_in_score(drop: float) -> None:
    method = method_of(
        fednas__search="evolution", contest__iterations=6, contest__candidates=6, fednas__drop=drop,
        fednas__drop_every=1, fednas__rounds_max=3, fednas__target=0.3,
    )  # fmt: skip
    rounds = played(method, CLIENTS, scored)
    scores = [round.told["score"] for round in rounds if "score" in round.told]
    assert len(scores) == 7 and scores == sorted(scores) and scores[-1] > scores[0]
    family, host = host_of(method).family, host_of(method)
    values = [host._judged[entrant.arch] for entrant in family]
    assert values == sorted(values) and family[0].label == "start" and values[-1] == scores[-1]
    proposed = [SPACE.arch(t["arch"]) for round in rounds for t in round.told.get("candidates", [])]
    assert len(proposed) == len(set(proposed)) == 36 and SPACE.largest not in proposed
    assert set(host._judged) == {SPACE.largest, *proposed}, "dropped ones are known as well"
    for arch, value in host._judged.items():
        wanted = score(scored(request(1, "x", "trial", arch)), macs(arch), 0.3 * macs(SPACE.largest), -0.07)
        assert value == pytest.approx(wanted)


def test_evolution_inherits_from_the_start_and_aims_at_half_of_it() -> None:
    method = method_of(fednas__search="evolution", contest__iterations=1, contest__candidates=3)
    told = Round(method, 0, CLIENTS).told
    assert [t["parent"] for t in told["candidates"]] == ["start"] * 3
    assert told["score"] == pytest.approx(score(0.5, 1.0, 0.5, -0.07))
    for entrant in method._field.values():
        for name, region in SPACE.plan(entrant.arch).items():
            assert torch.equal(entrant.tensors[name], method.weights()[name][region])


@pytest.mark.parametrize("search", ["netadapt", "evolution"])
def test_a_search_goes_on_identically_from_any_state(search: str) -> None:
    def fresh(seed: int) -> Contest:
        return method_of(
            seed=seed, fednas__search=search, contest__iterations=2, contest__candidates=4, fednas__drop_every=1,
            contest__finish=1,
        )  # fmt: skip

    def through_json(state: State) -> State:
        return State({n: t.clone() for n, t in state.tensors.items()}, json.loads(json.dumps(state.data)))

    method, states, whole = fresh(1), [], list[Round]()
    while not method.done(len(whole)):
        whole.append(Round(method, len(whole), CLIENTS, scored))
        states.append(through_json(method.state()))
    for stopped, state in enumerate(states, start=1):
        again = fresh(2)
        again.restore(through_json(state))
        for number in range(stopped, len(whole)):
            found = Round(again, number, CLIENTS, scored)
            assert (found.told, found.rows) == (whole[number].told, whole[number].rows)
        last = again.state()
        assert last.data == states[-1].data and set(last.tensors) == set(states[-1].tensors)
        assert all(torch.equal(tensor, last.tensors[name]) for name, tensor in states[-1].tensors.items())


# -- settings that do not go with it -------------------------------------------------------------------------------

FOREIGN: Mapping[str, tuple[dict[str, Any], str]] = {
    "async": ({"loop": "async"}, r"setting loop = 'async' does not go with method 'fednas': .*; allowed is sync"),
    "topk": ({"wire.up": "topk"}, r"setting wire.up = 'topk' does not go .*; allowed is int8 or bf16"),
    "arch": ({"personal.arch": True}, r"setting personal.arch does not go .*; allowed is false"),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("method", ["fednas", "ddc"])
def test_settings_that_do_not_go_with_a_contest_are_refused(what: str, method: str) -> None:
    pairs, reason = FOREIGN[what]
    with pytest.raises(ConfigError, match=reason.replace("fednas", method)):
        make(Setup(read({"method": method, **pairs}), SPACE, (), {}))


def test_personal_layers_do_not_go_with_a_contest() -> None:
    space = toy_space().with_personal(("head",))
    with pytest.raises(ConfigError, match="setting personal.layers does not go with method 'fednas'"):
        make(Setup(read({"method": "fednas", "personal.layers": "head"}), space, (), {}))


class Not:
    """Room for every network but one."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch

    def allows(self, arch: Arch) -> bool:
        return arch != self.arch


@pytest.mark.parametrize("testing", [False, True])
@pytest.mark.parametrize("search", ["netadapt", "evolution"])
def test_of_a_candidate_that_nobody_trained_or_tested_nothing_is_known(search: str, testing: bool) -> None:
    """It would be tested best."""
    method = method_of(fednas__search=search, fednas__rounds_min=1, fednas__rounds_max=1, contest__iterations=2)
    Round(method, 0, CLIENTS)
    unknown = next(iter(method._field.values()))
    sides = [i % 5 == 4 for i in range(len(CLIENTS))]
    clients = [
        replace(c, limit=Not(unknown.arch) if s == testing else None) for c, s in zip(CLIENTS, sides, strict=True)
    ]
    told = Round(method, 1, clients, lambda asked: 0.9 if asked.arch == unknown.arch else 0.6).told
    assert told["winner"] not in (None, unknown.label) and unknown.arch not in (method.catalogue.these or ())
    assert unknown.label not in {test["network"] for test in told["tests"]}
    if search == "evolution":
        assert unknown.arch not in host_of(method)._judged and unknown.label not in told["scores"]
