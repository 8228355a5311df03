from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from contracts.fleets import Around, Stopping
from contracts.samples import found, with_result

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import RunError
from fednas_core.base.settings import read
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.cohort import Crew
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct, settle
from fednas_core.engine.trials import Finding, Jury, mean, spread
from fednas_core.exchange.orders import Answer, Failure, Fleet, Order
from fednas_core.exchange.results import Tested
from fednas_core.methods.fedavg import Assignment
from fednas_core.runs.folder import RunFolder
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import subnets_of
from fednas_core.tasks.bench import client_names, space_of
from fednas_core.tasks.personal import Adaptation
from fednas_core.tasks.registry import perform
from fednas_core.tasks.site import site_of
from fednas_core.tasks.trial import trial


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def pairs(tiny_pairs: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_pairs, "method": "superfednas", "evaluate-clients": 10, "data.holdout": 0.2}


class Scripted:
    """Clients with accuracies by name; those without one fail."""

    def __init__(self, accuracies: Mapping[str, float]) -> None:
        self.accuracies, self.orders = dict(accuracies), list[Order]()

    def clients(self) -> list[ClientInfo]:
        return [ClientInfo(f"client-{i:02d}", 50) for i in range(4)]

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Answer | Failure]:
        for name, order in reversed(orders.items()):
            self.orders.append(order)
            if name in self.accuracies:
                yield found(order, Tested(1.5, self.accuracies[name], 5, True))
            else:
                yield Failure(name, "away")

    def close(self) -> None: ...


def jury_of(config: RunConfig, fleet: Fleet, own: Mapping[str, Assignment] | None = None) -> Jury:
    space = space_of(config)
    crew = Crew(fleet, config, [space.smallest], lambda text: None)
    return Jury(config, crew, Judge(config, subnets_of(space, initial_weights(space, 1))), "run-1", own or {})


def test_clients_are_heard_in_order_and_who_fails_is_left_out(pairs: dict[str, Any]) -> None:
    config, fleet = read(pairs), Scripted({"client-00": 0.2, "client-02": 0.6, "client-03": 1.0})
    space = space_of(config)
    heard = jury_of(config, fleet).hear(space.smallest, 7)
    assert [one.client for one in heard] == ["client-00", "client-02", "client-03"]
    assert mean(heard).accuracy == pytest.approx(0.6) and mean(heard).images == 15
    for order in fleet.orders:
        assert (order.task, order.round, order.run) == ("trial", 7, "run-1")
        assert order.arch == space.smallest


def test_a_limit_holds_in_trials_too(pairs: dict[str, Any]) -> None:
    config = read({**pairs, "client-budgets": "30%,max"})
    fleet = Scripted(dict.fromkeys((f"client-{i:02d}" for i in range(4)), 0.5))
    heard = jury_of(config, fleet).hear(space_of(config).largest, 1)
    assert [one.client for one in heard] == ["client-01", "client-03"] and {one.tier for one in heard} == {"max"}


@pytest.mark.parametrize(
    ("deal", "budgets", "tiers"),
    [("fixed", "", {"min", "max"}), ("rotate", "", {""}), ("rotate", "30%,max", {"min", "max"})],
)
def test_a_client_has_a_tier_unless_tiers_go_round(
    pairs: dict[str, Any], deal: str, budgets: str, tiers: set[str]
) -> None:
    more = {"method": "efedsup", "sample.tiers": "min,max", "sample.deal": deal, "client-budgets": budgets, "rounds": 2}
    folder = run({**pairs, **more, "evaluate-every": 1})
    for event in folder.events():
        assert {row["tier"] for row in event["clients"]} == {"min", "max"}, "what each trained is told of in any case"
        tiers_found = {one["tier"] for row in event["evaluation"] for one in row["clients"]["each"]}
        assert tiers_found == tiers


def test_of_many_clients_some_are_asked_others_in_other_rounds(pairs: dict[str, Any]) -> None:
    config = read({**pairs, "evaluate-clients": 2})
    fleet = Scripted(dict.fromkeys((f"client-{i:02d}" for i in range(4)), 0.5))
    jury, arch = jury_of(config, fleet), space_of(config).smallest
    asked = [tuple(one.client for one in jury.hear(arch, round)) for round in range(12)]
    assert {len(names) for names in asked} == {2} and len(set(asked)) > 2
    assert asked[3] == tuple(one.client for one in jury_of(config, fleet).hear(arch, 3))


def test_who_has_an_architecture_of_its_own_is_asked_about_that_alone(pairs: dict[str, Any]) -> None:
    config = read(pairs)
    fleet = Scripted(dict.fromkeys((f"client-{i:02d}" for i in range(4)), 0.5))
    space = space_of(config)
    own = {"client-01": Assignment(space.largest, "largest"), "client-02": Assignment(space.smallest, "smallest")}
    jury = jury_of(config, fleet, own)
    assert [one.client for one in jury.hear(None, 1)] == ["client-01", "client-02"]
    assert {order.client: order.arch for order in fleet.orders} == {n: mine.arch for n, mine in own.items()}
    assert [one.client for one in jury.hear(space.smallest, 1)] == ["client-00", "client-02", "client-03"]


def test_nobody_there_is_an_error_that_says_what_to_do(pairs: dict[str, Any]) -> None:
    config = read(pairs)
    with pytest.raises(RunError, match="no client could test .* start clients, then resume"):
        jury_of(config, Scripted({})).validate(space_of(config).smallest)


def test_a_spread_by_tier() -> None:
    heard = [
        Finding("a", "phone", 0.2, 2.0, 10, True),
        Finding("b", "phone", 0.4, 1.0, 10, True),
        Finding("c", "server", 0.9, 0.5, 20, True),
    ]
    told = json.loads(json.dumps(spread(heard)))
    assert told["mean"] == pytest.approx(0.5) and told["worst_decile"] == told["worst"] == 0.2 and told["best"] == 0.9
    assert told["tested"] == 40 and told["held_out"] is True
    assert told["tiers"]["phone"]["mean"] == pytest.approx(0.3) and told["tiers"]["server"]["clients"] == 1
    assert told["tiers"]["phone"]["std"] == pytest.approx(0.1)
    assert [row["client"] for row in told["each"]] == ["a", "b", "c"]


def test_a_trial_is_on_the_images_that_networks_are_followed_by(pairs: dict[str, Any]) -> None:
    config = read(pairs)
    space, name = space_of(config), client_names(config)[1]
    fleet = Scripted({})
    jury_of(config, fleet).hear(space.smallest, 0)
    (order,) = [order for order in fleet.orders if order.client == name]
    ground = site_of(config, 1)
    assert 0 < len(ground.validation.y) < len(ground.train.y) and ground.validation is not ground.test
    assert isinstance(order.params, Adaptation)
    work = trial(order, order.params, ground, float("inf"))
    assert (work.result.tested, work.result.held_out) == (len(ground.validation.y), True) and work.channels == {}
    assert perform(order, config, 1).result == work.result


# -- whole runs ----------------------------------------------------------------------------------------------------


def run(pairs: dict[str, Any], around: type[Around] | None = None, **how: Any) -> RunFolder:
    config = settle(read(pairs))
    fleet: Fleet = LocalFleet(config)
    return conduct(config, around(fleet, **how) if around else fleet, lambda text: None)


def timeless(run: RunFolder) -> list[dict[str, Any]]:
    events = run.events()
    for event in events:
        for row in [event, *event["clients"]]:
            del row["seconds"]
    return events


def test_events_hold_the_clients_beside_the_server(pairs: dict[str, Any]) -> None:
    events = run({**pairs, "client-budgets": "phone,server"}).events()
    rows = events[-1]["evaluation"]
    assert [row["name"] for row in rows] == ["phone", "server"]
    for row, count in zip(rows, (4, 2), strict=True):
        assert 0 <= row["accuracy"] <= 1 and row["clients"]["clients"] == count and row["clients"]["held_out"]
        assert len(row["clients"]["each"]) == count
    assert set(rows[0]["clients"]["tiers"]) == {"30%", "max"}


class Lying(Around):
    """Of the clients that test, the second claims an accuracy that there is not."""

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Answer | Failure]:
        for told in super().train(orders, more):
            lies = isinstance(told, Answer) and told.client == "client-01" and isinstance(told.result, Tested)
            yield with_result(told, accuracy=7.0) if lies else told


def test_a_trial_that_is_refused_is_among_the_rounds_failures(pairs: dict[str, Any]) -> None:
    config = settle(read(pairs))
    events = conduct(config, Lying(LocalFleet(config)), lambda text: None).events()
    for event in events:
        assert {failure["client"] for failure in event["failures"]} == {"client-01"}
        assert "accuracy: found 7.0" in event["failures"][0]["reason"]
        assert event["evaluation"][0]["clients"]["clients"] == 3


@pytest.mark.parametrize(
    "more",
    [
        {"method": "fedper"},
        {"method": "deepfednas", "personal.layers": "head"},
        {"method": "superfednas", "personal.layers": "head", "personal.arch": True, "client-budgets": "30%,max"},
    ],
    ids=["fedper", "deepfednas", "own-arch"],
)
def test_a_personal_run_leaves_each_client_a_model_and_resumes_exactly(
    pairs: dict[str, Any], more: dict[str, Any], state: Path
) -> None:
    pairs = {**pairs, "rounds": 3, **more, "budgets": "phone=30%,server=max"}
    whole = run(pairs)
    result = whole.read_json("result.json")
    assert result["models"] == [] and len(result["clients"]) == 4
    assert all(row["held_out"] and not row["reason"] for row in result["clients"])
    evaluation = whole.events()[-1]["evaluation"][0]
    assert evaluation["accuracy"] == pytest.approx(evaluation["clients"]["mean"])
    with pytest.raises(KeyboardInterrupt):
        run({**pairs, "output": pairs["output"] + "2"}, Stopping, round=2)
    resumed = run({"resume": "latest", "output": pairs["output"] + "2"})
    assert timeless(resumed) == timeless(whole)
    again = resumed.read_json("result.json")["clients"]
    assert [row["accuracy"] for row in again] == [row["accuracy"] for row in result["clients"]]


def test_a_client_keeps_to_its_own_architecture(pairs: dict[str, Any]) -> None:
    folder = run({**pairs, "rounds": 4, "personal.arch": True})
    sizes: dict[str, set[int]] = {}
    for event in folder.events():
        for row in event["clients"]:
            sizes.setdefault(row["client"], set()).add(row["params"])
    assert {len(seen) for seen in sizes.values()} == {1} and len({min(seen) for seen in sizes.values()}) > 1
    handed = {row["client"]: row["params"] for row in folder.read_json("result.json")["clients"]}
    assert handed == {client: min(seen) for client, seen in sizes.items()}
    assert [row["name"] for row in folder.events()[-1]["evaluation"]] == ["own"]


def test_own_architectures_are_found_once_all_genes_are_elastic(pairs: dict[str, Any]) -> None:
    """Before that everybody trains the largest: nobody is to keep to that. Half of the rate is spent by then."""
    more = {"rounds": 6, "personal.arch": True, "sample.shrink": "w", "train.schedule": "constant"}
    folder = run({**pairs, **more})
    sizes: dict[str, list[int]] = {}
    for event in folder.events():
        for row in event["clients"]:
            sizes.setdefault(row["client"], []).append(row["params"])
    assert all(len(set(seen[3:])) == 1 for seen in sizes.values())
    assert len({seen[-1] for seen in sizes.values()}) > 1 and folder.events()[0]["evaluation"] == []


def test_a_newcomer_is_handed_a_model_that_it_finished_itself(pairs: dict[str, Any]) -> None:
    """A client that was in no cohort has no head yet: it fits one to its images, and is served like the others."""
    folder = run({**pairs, "method": "fedper", "cohort": 2, "rounds": 1, "personal.epochs": 20})
    trained = {row["client"] for event in folder.events() for row in event["clients"]}
    rows = {row["client"]: row for row in folder.read_json("result.json")["clients"]}
    assert len(trained) == 2 and len(rows) == 4 and not [row for row in rows.values() if row["reason"]]
