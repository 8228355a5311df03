"""Whole runs of FedNAS and DDC in the real loop; stopped after any round they go on as if they had not been."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.fleets import Around, Stopping

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import RunError
from fednas_core.base.settings import read
from fednas_core.base.values import Arch
from fednas_core.engine.cohort import Crew
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct, settle
from fednas_core.engine.starts import trained
from fednas_core.exchange.orders import Failure, Fleet
from fednas_core.runs.folder import RunFolder
from fednas_core.tasks.bench import space_of

TOML = """
kind = "chain"
image_size = 8
in_channels = 1
classes = 10
units = [
    { kind = "conv", filters = 16 },
    { kind = "conv", filters = 24, pool = true },
    { kind = "conv", filters = 24 },
    { kind = "conv", filters = 16 },
]
"""
FEDNAS: dict[str, Any] = {
    "method": "fednas",
    "fednas.rounds-min": 1,
    "fednas.rounds-max": 2,
    "fednas.drop-every": 1,
    "fednas.step": 0.15,
}
METHODS: Mapping[str, dict[str, Any]] = {
    "fednas": FEDNAS,
    "evolution": {**FEDNAS, "fednas.search": "evolution", "contest.candidates": 3},
    "all clients": {**FEDNAS, "contest.clients": "all", "contest.candidates": 2},
    "ddc": {"method": "ddc", "contest.candidates": 2, "ddc.rounds": 2},
}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where devices keep what is private, apart for each test."""
    monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "chain.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def pairs(chain: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "output": str(tmp_path / "runs"), "space.name": str(chain), "rounds": 2, "budgets": "phone=60%,server=max",
        "device": "cpu", "workers": 1, "evaluate-every": 2, "install": False, "data.examples": 150, "data.clients": 6,
        "data.partition": "iid", "train.epochs": 1, "train.precision": "fp32", "sample.budgets": 3,
        "sample.fitness-lambda": 0.0, "contest.iterations": 2, "contest.finish": 1,
    }  # fmt: skip


def run(
    pairs: dict[str, Any], fleet: Fleet | None = None, announce: Callable[[str], None] = lambda text: None
) -> RunFolder:
    config = settle(read(pairs))
    return conduct(config, fleet or LocalFleet(config), announce)


def history(run: RunFolder) -> list[dict[str, Any]]:
    """The events without what a clock decided."""
    events = run.events()
    for event in events:
        del event["seconds"]
        for row in event["clients"]:
            del row["seconds"]
    return events


def outcome(run: RunFolder) -> tuple[Any, ...]:
    result = run.read_json("result.json")
    models = [{key: value for key, value in row.items() if key != "latency_ms"} for row in result["models"]]
    return models, result["bytes_down"], result["client_macs"], run.read_json("frontier.json")


def same_run(one: RunFolder, two: RunFolder) -> None:
    assert history(one) == history(two)
    assert outcome(one) == outcome(two)
    (a, first), (b, second) = one.load_checkpoint(), two.load_checkpoint()
    assert a == b and first.data == second.data and set(first.tensors) == set(second.tensors)
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())


class Copies:
    """Copies the run's folder after each of its rounds, as a run that was stopped then would have left it."""

    def __init__(self, output: Path, to: Path) -> None:
        self.output, self.to, self.outputs = output, to, list[Path]()

    def __call__(self, text: str) -> None:
        folder = (self.output / "latest").resolve()
        done = len(RunFolder(folder).events())
        if done == len(self.outputs) + 1 and (folder / "checkpoint").is_dir():
            self.outputs.append(self.to / f"stopped-{done}")
            shutil.copytree(folder, self.outputs[-1] / folder.name)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_may_be_stopped_after_any_round(pairs: dict[str, Any], tmp_path: Path, light: None, name: str) -> None:
    pairs = {**pairs, **METHODS[name]}
    copies = Copies(tmp_path / "runs", tmp_path)
    whole = run(pairs, announce=copies)
    events = whole.events()
    stages = [event["search"]["stage"] for event in events]
    assert stages[:2] == ["start"] * 2 and set(stages) == {"start", "compete", "finish"}
    assert len(copies.outputs) == len(events) and any(
        0 < event["search"]["round"] < event["search"]["of"]
        for event in events
        if event["search"]["stage"] == "compete"
    )
    for output in copies.outputs:
        resumed = run({"output": str(output), "resume": whole.id})
        assert resumed.path != whole.path
        same_run(whole, resumed)


@pytest.mark.parametrize("name", ["fednas", "ddc"])
def test_a_run_may_be_stopped_in_the_middle_of_a_round_again_and_again(
    pairs: dict[str, Any], tmp_path: Path, light: None, name: str
) -> None:
    pairs = {**pairs, **METHODS[name]}
    whole = run({**pairs, "output": str(tmp_path / "whole")})
    for number, stopped in enumerate((2, 4, 5)):
        again = {"output": pairs["output"], "resume": "latest"} if number else pairs
        with pytest.raises(KeyboardInterrupt):
            run(again, Stopping(LocalFleet(settle(read(again))), stopped, answers=1))
    same_run(whole, run({"output": pairs["output"], "resume": "latest"}))


@pytest.mark.parametrize("name", METHODS)
def test_the_same_settings_give_the_same_history(pairs: dict[str, Any], light: None, name: str) -> None:
    """Nothing is measured unless a setting asks for milliseconds."""
    one, two = (run({**pairs, **METHODS[name]}) for _ in range(2))
    same_run(one, two)
    assert "timed" not in one.read_json("devices.json")


def test_what_devices_measured_is_noted_and_holds_after_a_resume(
    pairs: dict[str, Any], tmp_path: Path, light: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = {**pairs, **METHODS["ddc"], "ddc.resource": "ms"}
    copies = Copies(tmp_path / "runs", tmp_path)
    whole = run(pairs, announce=copies)
    assert whole.read_json("devices.json")["timed"]
    monkeypatch.setattr(Crew, "here", lambda crew: pytest.fail("measured again"))
    measured = [
        output for output in copies.outputs if "timed" in RunFolder(output / whole.id).read_json("devices.json")
    ]
    assert 1 < len(measured) < len(copies.outputs)
    same_run(whole, run({"output": str(measured[0]), "resume": whole.id}))


class Untested(Around):
    """Nobody tests in one round."""

    def __init__(self, inner: Fleet, round: int) -> None:
        super().__init__(inner)
        self.round = round

    def train(self, orders: Any, more: Any = None) -> Any:
        for answer, order in zip(super().train(orders, more), orders.values(), strict=False):
            away = order.task == "trial" and order.round == self.round
            yield Failure(answer.client, "away") if away else answer


@pytest.mark.parametrize("round", [1, 2])
def test_a_round_that_nobody_tests_ends_the_run_and_loses_nothing(
    pairs: dict[str, Any], tmp_path: Path, light: None, round: int
) -> None:
    pairs = {**pairs, **FEDNAS}
    whole = run({**pairs, "output": str(tmp_path / "whole")})
    with pytest.raises(RunError, match=r"none of \d+ requests was met \(away.*mend the cause, then resume the run"):
        run(pairs, Untested(LocalFleet(read(pairs)), round))
    left = RunFolder((tmp_path / "runs" / "latest").resolve())
    assert len(left.events()) == round == left.load_checkpoint()[0]
    same_run(whole, run({"output": pairs["output"], "resume": "latest"}))


def test_devices_that_lost_their_teacher_are_reminded_when_a_run_is_resumed(
    pairs: dict[str, Any], tmp_path: Path, state: Path, light: None
) -> None:
    pairs = {**pairs, **METHODS["ddc"]}
    whole = run({**pairs, "output": str(tmp_path / "whole")})
    with pytest.raises(KeyboardInterrupt):
        run(pairs, Stopping(LocalFleet(read(pairs)), 4, answers=1))
    shutil.rmtree(state)
    same_run(whole, run({"output": pairs["output"], "resume": "latest"}))


def test_devices_forget_their_teacher_when_the_run_is_over(pairs: dict[str, Any], state: Path, light: None) -> None:
    pairs = {**pairs, **METHODS["ddc"], "contest.iterations": 1}
    run(pairs)
    assert [path.name.split(".")[0] for path in state.rglob("*.safetensors")] != []
    run({**pairs, "install": True, "contest.own": True, "data.holdout": 0.2})
    assert len(list(state.glob("*"))) == 1, "only the run that handed out no models has left its teacher"


def test_a_cohort_is_drawn_from_the_clients_that_train(pairs: dict[str, Any], light: None) -> None:
    found = run({**pairs, **FEDNAS, "cohort": 2, "data.clients": 10})
    drawn = [{row["client"] for row in event["clients"]} for event in found.events()]
    assert all(len(clients) == 2 for clients in drawn[:2]) and all(1 <= len(clients) <= 2 for clients in drawn)
    assert len(set().union(*drawn)) > 4 and not {"client-04", "client-09"} & set().union(*drawn)


# -- a whole run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunConfig, list[str]]:
    """A run of FedNAS with everything that follows: models, report, a model for each client."""
    output = tmp_path_factory.mktemp("whole") / "runs"
    config = read({
        **FEDNAS, "output": str(output), "space.name": str(chain), "rounds": 4, "budgets": "phone=60%,server=max",
        "device": "cpu", "workers": 1, "evaluate-every": 1, "data.examples": 300, "data.clients": 6,
        "train.epochs": 2, "train.precision": "fp32", "sample.budgets": 3, "sample.fitness-lambda": 0.0,
        "contest.iterations": 3, "contest.finish": 1, "data.disclose": True,
    })  # fmt: skip
    said: list[str] = []
    return conduct(config, LocalFleet(config), said.append), config, said


def test_a_family_of_networks_comes_out(finished: tuple[RunFolder, RunConfig, list[str]]) -> None:
    run, config, _ = finished
    space, done, method = space_of(config), *trained(run)
    assert done == len(run.events()) and method.catalogue.these is not None
    costs = [space.cost(arch).macs for arch in method.catalogue.these]
    assert len(costs) == 3 and costs == sorted(costs) and costs[-1] == space.cost(space.largest).macs
    rows = run.read_json("frontier.json")
    assert {str(space.arch(row["arch"])) for row in rows} == {str(arch) for arch in method.catalogue.these}
    models = run.read_json("result.json")["models"]
    assert [model["device"] for model in models] == ["phone", "server"]
    for model in models:
        assert model["macs"] <= model["budget_macs"] and space.arch(model["arch"]) in method.catalogue.these
        assert 0 <= model["export_max_abs_error"] < 1e-3
    assert (run.path / "report.html").is_file()


def test_the_leader_is_followed_and_the_search_is_told(finished: tuple[RunFolder, RunConfig, list[str]]) -> None:
    run, config, said = finished
    space, events = space_of(config), run.events()
    for event in events:
        assert [row["name"] for row in event["evaluation"]] == ["leader"]
        testing = {"client-04"}
        assert not testing & {row["client"] for row in event["clients"]}
    assert events[3]["evaluation"][0]["macs"] == space.cost(space.largest).macs
    assert events[-1]["evaluation"][0]["macs"] < space.cost(space.largest).macs
    assert [event["search"]["over"] for event in events] == [False] * (len(events) - 1) + [True]
    tested = [event for event in events if event["search"].get("tests")]
    for event in tested:
        trained = sum(row["client_macs"] for row in event["clients"])
        assert event["client_macs"] > trained and event["bytes_down"] > sum(r["bytes_down"] for r in event["clients"])
    assert said and run.id in "\n".join(said)


def test_finishing_again_changes_nothing(finished: tuple[RunFolder, RunConfig, list[str]], light: None) -> None:
    first, config, _ = finished
    before = history(first), first.load_checkpoint()[1].data
    again = run({"output": config.output, "resume": first.id})
    assert (history(again), again.load_checkpoint()[1].data) == before


def arch_of(run: RunFolder, label: str) -> Arch:
    """The architecture of a candidate, as the events tell it."""
    space = space_of(run.config())
    told = [one for event in run.events() for one in event["search"].get("candidates", [])]
    return space.arch(next(one["arch"] for one in told if one["network"] == label))


def test_winners_are_networks_of_the_run(finished: tuple[RunFolder, RunConfig, list[str]]) -> None:
    run, _, _ = finished
    _, method = trained(run)
    winners = [event["search"]["winner"] for event in run.events() if "winner" in event["search"]]
    assert method.catalogue.these == (*(arch_of(run, label) for label in reversed(winners)), method.space.largest)


# -- a start that is there already ---------------------------------------------------------------------------------


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("name", ["fednas", "ddc"])
def test_a_start_of_another_run_is_tested_as_it_is_and_the_search_begins(
    pairs: dict[str, Any], light: None, name: str, limited: bool
) -> None:
    donor = run({**pairs, **FEDNAS, "contest.iterations": 1})
    more = {"client-budgets": "max,phone", "budgets": "phone=95%,server=max"} if limited else {}
    done = run({**pairs, **METHODS[name], **more, "contest.start": donor.id})
    events = done.events()
    assert [event["search"]["stage"] for event in events[:2]] == ["start", "compete"]
    assert events[0]["clients"] == [] == events[0]["failures"] and events[0]["search"]["tests"]
    start = dict(trained(donor)[1].weights())
    found = dict(trained(done)[1].weights())
    assert set(start) == set(found)
    if name == "ddc":
        assert all(torch.equal(tensor, found[label]) for label, tensor in start.items())
