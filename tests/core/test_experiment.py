from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from contracts import fleets
from contracts.fleets import Around, Hostile, Shuffled, Stopping
from contracts.records import recorded

from fednas_core.base.config import DataConfig, RunConfig
from fednas_core.base.errors import FednasError, InfeasibleError, RunError
from fednas_core.base.metrics import ACCURACY
from fednas_core.base.settings import read
from fednas_core.data.sources import load
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct, settle
from fednas_core.exchange.orders import Fleet
from fednas_core.runs import creation
from fednas_core.runs.folder import RunFolder, find
from fednas_core.show.ending import table
from fednas_core.spaces.registry import from_table
from fednas_core.subnets.networks import subnet
from fednas_core.tasks.bench import dataset_of, device_of, precision_of, space_of
from fednas_core.training.evaluate import evaluate

MODEL_KEYS = {
    "device", "budget", "arch", "validation_accuracy", "test_accuracy", "macs", "params", "bytes", "latency_ms",
    "export_max_abs_error",
}  # fmt: skip
RESULT_KEYS = {"models", "method", "rounds", "bytes_up", "bytes_down", "client_macs", "seconds", "versions"}


def quiet(text: str) -> None:
    """Announce nothing."""


@pytest.fixture
def pairs(tiny_pairs: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_pairs, "rounds": 4}


def run(pairs: dict[str, Any], fleet: Fleet | None = None) -> RunFolder:
    config = settle(read(pairs))
    return conduct(config, fleet or LocalFleet(config), quiet)


def history(run: RunFolder) -> list[dict[str, Any]]:
    """The events without what a clock decided."""
    events = recorded(run.events())
    for event in events:
        del event["seconds"]
        for row in event["clients"]:
            del row["seconds"]
    return events


def outcome(run: RunFolder) -> dict[str, Any]:
    """The result without names, clocks and versions."""
    result = run.read_json("result.json")
    for row in [*result["models"], *result["clients"]]:
        row.pop("latency_ms", None)
    return {key: value for key, value in result.items() if key not in ("run", "seconds", "versions")}


def supernet(run: RunFolder) -> dict[str, torch.Tensor]:
    return dict(run.load_checkpoint()[1].tensors)


def same_run(one: RunFolder, two: RunFolder) -> None:
    assert history(one) == history(two)
    assert outcome(one) == outcome(two)
    assert one.read_json("frontier.json") == two.read_json("frontier.json")
    a, b = supernet(one), supernet(two)
    assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_accuracy_on_images_that_nobody_has_is_unknown(tiny_pairs: dict[str, Any], tmp_path: Path) -> None:
    """Data without test images of the run's classes, and clients with one image, which they train on, or two."""
    digits = load(DataConfig())
    arrays = {f"x_{name}": part.x.squeeze(1).numpy() for name, part in (("train", digits.train), ("test", digits.test))}
    arrays |= {"y_train": digits.train.y.numpy(), "y_test": digits.test.y.numpy() % 8}
    np.savez(tmp_path / "digits.npz", **arrays)
    few = {
        "data.source": "npz",
        "data.path": str(tmp_path / "digits.npz"),
        "data.only": "8,9",
        "data.examples": 100,
        "data.validation": 0.2,
        "data.partition": "iid",
        "data.clients": 18,
        "data.holdout": 0.1,
        "rounds": 1,
        "evaluate-clients": 18,
    }
    said: list[str] = []
    config = settle(read({**tiny_pairs, **few}))
    found = conduct(config, LocalFleet(config), said.append)
    result = found.read_json("result.json")
    assert [model["test_accuracy"] for model in result["models"]] == [None, None]
    rows = {row["tested"]: row["accuracy"] for row in result["clients"]}
    assert set(rows) == {0, 1} and rows[0] is None and rows[1] in (0.0, 1.0)
    assert recorded(found.events())[0]["evaluation"][0].get("clients") is None, "nobody had one more to choose by"
    assert "| Accuracy on the test set | – |" in (found.path / "models" / "server" / "card.md").read_text()
    report = (found.path / "report.md").read_text()
    assert "| phone | – |" in report and "Accuracies are those on the validation set" in report
    assert "none to test" in said[0] and "no image to spare for a test" in "".join(said)


# -- a whole run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, list[str], RunConfig]:
    from contracts.samples import TINY

    output = tmp_path_factory.mktemp("whole") / "runs"
    more = {"rounds": 3, "train.epochs": 3, "train.momentum": 0.9, "train.lr": 0.05, "data.examples": 600}
    config = settle(read({**TINY, "output": str(output), "space.name": str(tiny_space_file), **more}))
    said: list[str] = []
    return conduct(config, LocalFleet(config), said.append), said, config


def test_the_folder_of_a_run(finished: tuple[RunFolder, list[str], RunConfig]) -> None:
    run, _, config = finished
    there = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    models = {f"models/{device}/{name}" for device in ("phone", "server")
              for name in ("arch.json", "weights.safetensors", "model.onnx", "card.md")}  # fmt: skip
    wanted = {"config.toml", "events.jsonl", "checkpoint/state.json", "frontier.json", "report.html", "report.md",
              "result.json", "checkpoint/supernet-000003.safetensors", *models}  # fmt: skip
    assert wanted <= there
    assert not [name for name in there if name.endswith(".part")]
    assert run.config() == config and (run.path.parent / "latest").resolve() == run.path


def test_the_result_of_a_run(finished: tuple[RunFolder, list[str], RunConfig]) -> None:
    run, _, config = finished
    result, events, space = run.read_json("result.json"), recorded(run.events()), space_of(config)
    assert set(result) >= RESULT_KEYS
    assert (result["method"], result["rounds"]) == ("deepfednas", 3)
    for key in ("bytes_up", "bytes_down", "client_macs"):
        assert result[key] == sum(event[key] for event in events) > 0
    assert {"fednas", "flwr", "torch"} <= set(result["versions"])
    parts = {phase: seconds for phase, seconds in result["seconds"].items() if phase != "total"}
    assert parts == run.read_json("seconds.json") and result["seconds"]["total"] == pytest.approx(sum(parts.values()))
    assert all(parts.values()) and parts["training"] >= sum(event["seconds"] for event in events)
    largest = space.cost(space.largest).macs
    assert [(m["device"], m["budget_macs"]) for m in result["models"]] == [
        ("phone", round(0.3 * largest)),
        ("server", largest),
    ]
    for model in result["models"]:
        assert set(model) >= MODEL_KEYS
        cost = space.cost(space.arch(model["arch"]))
        assert (model["macs"], model["params"], model["bytes"]) == (cost.macs, cost.params, cost.bytes)
        assert model["macs"] <= model["budget_macs"]
        assert model["latency_ms"] > 0 and 0 <= model["export_max_abs_error"] < 1e-3
        assert 0 < model["test_accuracy"] <= 1 and 0 < model["validation_accuracy"] <= 1


def test_the_frontier_of_a_run(finished: tuple[RunFolder, list[str], RunConfig]) -> None:
    run, _, config = finished
    rows, best = run.read_json("frontier.json"), -1.0
    assert [row["macs"] for row in rows] == sorted(row["macs"] for row in rows)
    for row in rows:
        assert row["on_frontier"] == (row["validation_accuracy"] > best)
        best = max(best, row["validation_accuracy"])
    for model in run.read_json("result.json")["models"]:
        fitting = [row["validation_accuracy"] for row in rows if row["macs"] <= model["budget_macs"]]
        assert model["validation_accuracy"] == max(fitting)


def test_an_exported_model_is_the_one_of_the_supernet(finished: tuple[RunFolder, list[str], RunConfig]) -> None:
    run, _, config = finished
    data = dataset_of(config)
    pixels = data.test.x.float() / 255  # the exported graph normalises by itself
    x = (pixels - data.mean[0]) / data.std[0]
    for model in run.read_json("result.json")["models"]:
        session = onnxruntime.InferenceSession(str(run.path / "models" / model["device"] / "model.onnx"))
        logits = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0]
        accuracy = float((logits.argmax(1) == data.test.y.numpy()).mean())
        network = subnet(space_of(config), space_of(config).arch(model["arch"]), supernet(run))
        assert evaluate(network, [(x, data.test.y)]).accuracy == pytest.approx(accuracy, abs=0.006)
        assert model["test_accuracy"] == pytest.approx(accuracy, abs=0.006)


def test_the_events_of_a_run(finished: tuple[RunFolder, list[str], RunConfig]) -> None:
    run, _, config = finished
    events = recorded(run.events())
    assert [event["round"] for event in events] == [1, 2, 3]
    for event in events:
        assert event["failures"] == [] and len(event["clients"]) == 4
        assert {row["name"] for row in event["evaluation"]} == {"phone", "server"}
        assert {"largest", "smallest"} <= {row["role"] for row in event["clients"]}
        assert event["bytes_up"] == sum(row["bytes_up"] for row in event["clients"]) > 0
        assert event["client_macs"] == sum(row["client_macs"] for row in event["clients"])
    assert events[-1]["loss"] < events[0]["loss"]


def test_what_the_terminal_shows(finished: tuple[RunFolder, list[str], RunConfig]) -> None:
    run, said, _ = finished
    text = "\n".join(said)
    for words in (
        "normalisation 'group'",
        "Dirichlet α = 1",
        "round   3/3",
        "validation",
        "export error",
        str(run.path),
    ):
        assert words in text
    assert "report.html" in text


def test_the_page_shows_every_device(finished: tuple[RunFolder, list[str], RunConfig]) -> None:
    run, _, _ = finished
    page = (run.path / "report.html").read_text()
    assert "phone" in page and "server" in page and run.id in page


def test_finishing_again_changes_no_number(finished: tuple[RunFolder, list[str], RunConfig], light: None) -> None:
    run_, _, config = finished
    before, events = outcome(run_), history(run_)
    again = run({"output": config.output, "resume": "latest"})
    assert again == run_ and history(again) == events
    result = outcome(again)
    for one, two in zip(before.pop("models"), result.pop("models"), strict=True):
        same = set(one) - {"latency_ms", "export_max_abs_error"}
        assert {key: one[key] for key in same} == {key: two[key] for key in same}
    assert before == result


# -- same numbers --------------------------------------------------------------------------------------------------


@pytest.fixture
def reference(pairs: dict[str, Any], tmp_path: Path, light: None) -> RunFolder:
    return run({**pairs, "output": str(tmp_path / "reference")})


def test_the_seed_decides_everything(pairs: dict[str, Any], reference: RunFolder) -> None:
    same_run(reference, run(pairs))
    assert history(run({**pairs, "seed": 2})) != history(reference)


def test_worker_processes_give_the_same_history(pairs: dict[str, Any], reference: RunFolder, pool: LocalFleet) -> None:
    same_run(reference, run(pairs, pool))


@pytest.mark.parametrize(
    "key", [str, lambda name: name[::-1], lambda name: -int(name[-2:])], ids=["up", "back", "down"]
)
def test_the_order_of_arrival_changes_no_bit(
    pairs: dict[str, Any], reference: RunFolder, key: Callable[[str], object]
) -> None:
    same_run(reference, run(pairs, Shuffled(LocalFleet(read(pairs)), key)))


def test_the_largest_job_is_first(pairs: dict[str, Any], light: None) -> None:
    fleet = Around(LocalFleet(read(pairs)))
    run(pairs, fleet)
    space = space_of(read(pairs))
    for orders in fleet.seen:
        macs = [space.cost(order.arch).macs for order in orders.values()]
        assert macs == sorted(macs, reverse=True)


def test_a_cohort_is_part_of_the_clients_and_changes(pairs: dict[str, Any], light: None) -> None:
    fleet = Around(LocalFleet(read(pairs)))
    run({**pairs, "cohort": 2, "rounds": 6}, fleet)
    cohorts = [tuple(sorted(orders)) for orders in fleet.seen[:-1]]  # at the end everybody is handed a model
    assert len(fleet.seen[-1]) == 4 and all(len(cohort) == 2 for cohort in cohorts) and len(set(cohorts)) > 2
    assert {name for cohort in cohorts for name in cohort} == {f"client-{i:02d}" for i in range(4)}
    fleet = Around(LocalFleet(read(pairs)))
    run({**pairs, "cohort": 99, "rounds": 1}, fleet)
    assert len(fleet.seen[0]) == 4


# -- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "stopped"), [("deepfednas", 0), ("deepfednas", 1), ("deepfednas", 3), ("superfednas", 2), ("fedavg", 2)]
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    pairs: dict[str, Any], tmp_path: Path, light: None, method: str, stopped: int
) -> None:
    pairs = {**pairs, "method": method, "cohort": 3, "sample.range-share": 0.5}
    whole = run({**pairs, "output": str(tmp_path / "whole")})
    with pytest.raises(KeyboardInterrupt):
        run(pairs, Stopping(LocalFleet(read(pairs)), stopped))
    if stopped == 0:
        with pytest.raises(RunError, match="has no checkpoint to continue from"):
            run({"output": pairs["output"], "resume": "latest"})
        return
    resumed = run({"output": pairs["output"], "resume": "latest"})
    same_run(whole, resumed)


def test_a_run_may_be_stopped_again_and_again(pairs: dict[str, Any], reference: RunFolder) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pairs, Stopping(LocalFleet(read(pairs)), 1))
    for stopped in (1, 2, 3):
        again = {"output": pairs["output"], "resume": "latest"}
        with pytest.raises(KeyboardInterrupt):
            run(again, Stopping(LocalFleet(settle(read(again))), stopped, answers=1))
    same_run(reference, run({"output": pairs["output"], "resume": "latest"}))


@pytest.mark.parametrize("when", ["before the checkpoint", "after the checkpoint", "in the event"])
def test_a_kill_between_the_writes_loses_nothing(
    pairs: dict[str, Any], reference: RunFolder, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    save = RunFolder.save_checkpoint

    def killed(self: RunFolder, round: int, state: Any) -> None:
        if round == 3 and when == "in the event":
            path = self.path / "events.jsonl"
            path.write_bytes(path.read_bytes()[:-40])
        if round == 3 and when != "after the checkpoint":
            raise KeyboardInterrupt
        save(self, round, state)
        if round == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            run(pairs)
    same_run(reference, run({"output": pairs["output"], "resume": "latest"}))


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run 'x1' in .*; the latest there: none"):
        settle(read({"output": str(tmp_path), "resume": "x1"}))
    settled = settle(read({"rounds": 3}))
    assert settled.rounds == 3 and settle(settled) == settled


def test_a_checkpoint_of_another_space_is_refused(pairs: dict[str, Any], light: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pairs, Stopping(LocalFleet(read(pairs)), 2))
    folder = (Path(pairs["output"]) / "latest").resolve()
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace(pairs["space.name"], "small"))
    events = (folder / "events.jsonl").read_bytes()
    with pytest.raises(RunError, match="the checkpoint does not fit the settings"):
        run({"output": pairs["output"], "resume": "latest"})
    assert (folder / "events.jsonl").read_bytes() == events


# -- clients that fail ---------------------------------------------------------------------------------------------


def test_the_round_goes_on_without_those_who_fail(pairs: dict[str, Any], light: None) -> None:
    pairs = {**pairs, "data.clients": 8, "data.examples": 400, "rounds": 3}
    spoil = {
        "client-01": fleets.fails,
        "client-02": fleets.silent,
        "client-03": fleets.not_finite,
        "client-04": fleets.enormous,
        "client-05": fleets.reshaped,
        "client-06": fleets.incomplete,
        "client-07": fleets.of_the_last_round,
    }
    done = run(pairs, Hostile(LocalFleet(read(pairs)), spoil))
    events = recorded(done.events())
    assert len(events) == 3
    for event in events:
        assert [row["client"] for row in event["clients"]] == ["client-00"]
        reasons = {failure["client"]: failure["reason"] for failure in event["failures"]}
        assert sorted(reasons) == sorted(spoil)
        assert reasons["client-01"] == "out of memory"
        assert reasons["client-02"] == "gave no answer"
        assert "tensor 'head.weight': found values that are not finite" in reasons["client-03"]
        assert "tensor 'head.weight': found values up to 1e+09, allowed values up to" in reasons["client-04"]
        assert "tensor 'head.weight': found shape (1, " in reasons["client-05"]
        assert "tensor 'head.weight': found no such tensor" in reasons["client-06"]
        assert "another architecture or round" in reasons["client-07"]
    assert all(torch.isfinite(tensor).all() for tensor in supernet(done).values())
    assert done.read_json("result.json")["failures"] == 21


def test_bad_replies_leave_no_trace_in_the_weights(pairs: dict[str, Any], tmp_path: Path, light: None) -> None:
    def spoiled(how: Callable[..., Any], folder: str) -> RunFolder:
        fleet = Hostile(LocalFleet(read(pairs)), {"client-02": how})
        return run({**pairs, "output": str(tmp_path / folder)}, fleet)

    silent = supernet(spoiled(fleets.silent, "silent"))
    for how in (fleets.not_finite, fleets.reshaped):
        found = supernet(spoiled(how, how.__name__))
        assert all(torch.equal(found[name], silent[name]) for name in silent)


def test_a_second_answer_is_lost(pairs: dict[str, Any], reference: RunFolder) -> None:
    same_run(reference, run(pairs, Hostile(LocalFleet(read(pairs)), {"client-01": fleets.twice})))


def test_an_answer_for_another_architecture_is_refused(pairs: dict[str, Any], light: None) -> None:
    space = space_of(read(pairs))

    def swapped(report: Any) -> list[Any]:
        other = space.largest if report.arch != space.largest else space.smallest
        return [replace(report, arch=other)]

    done = run({**pairs, "rounds": 1}, Hostile(LocalFleet(read(pairs)), {"client-00": swapped}))
    (failure,) = recorded(done.events())[0]["failures"]
    assert failure["client"] == "client-00" and "another architecture or round" in failure["reason"]


def test_a_round_in_which_nobody_answers_ends_the_run_and_can_be_resumed(
    pairs: dict[str, Any], reference: RunFolder
) -> None:
    class Gone(Hostile):
        def train(self, orders: Any, more: Any = None) -> Any:
            if next(iter(orders.values())).round < 2:
                return self.inner.train(orders, more)
            return super().train(orders, more)

    everybody = {f"client-{i:02d}": fleets.fails for i in range(4)}
    with pytest.raises(RunError, match=r"round 3: none of the 4 clients .*\(out of memory\).*resume the run"):
        run(pairs, Gone(LocalFleet(read(pairs)), everybody))
    same_run(reference, run({"output": pairs["output"], "resume": "latest"}))


def test_training_that_diverges_ends_with_the_reason(pairs: dict[str, Any], light: None) -> None:
    wild = {**pairs, "train.lr": 100.0, "train.clip": 0.0, "train.weight-decay": 10.0, "train.epochs": 5}
    with pytest.raises(RunError, match=r"round 1: none of the 4 clients .*found (nan|values)"):
        run(wild)


def test_nobody_there(pairs: dict[str, Any]) -> None:
    class Empty(Around):
        def clients(self) -> list[ClientInfo]:
            return []

    with pytest.raises(RunError, match="no client can be reached: start clients, then resume"):
        run(pairs, Empty(LocalFleet(read(pairs))))


def test_a_client_too_slow_is_a_failure_of_its_own(pairs: dict[str, Any], light: None) -> None:
    with pytest.raises(RunError, match="training was not done by its deadline"):
        run({**pairs, "deadline": 0.1, "train.epochs": 100_000, "data.clients": 2})


# -- other settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "superfednas"},
        {"sample.between": "mac-matched", "space.norm": "none"},
        {"sample.between": "range-matched", "sample.weigh": "examples"},
        {"sample.stratify": True, "space.norm": "batch", "evaluate-every": 2},
        {"data.partition": "iid", "data.clients": 1},
        {"data.partition": "classes", "data.clients": 5, "data.classes-per-client": 6, "train.augment": "crop"},
        {"train.precision": "bf16", "train.schedule": "cosine", "tensorboard": True},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_runs_of_other_settings(pairs: dict[str, Any], light: None, changes: dict[str, Any]) -> None:
    done = run({**pairs, "rounds": 3, **changes})
    events = recorded(done.events())
    assert len(events) == 3 and len(done.read_json("result.json")["models"]) == 2
    assert all(np.isfinite(event["loss"]) for event in events)
    assert (done.path / "tensorboard").exists() == changes.get("tensorboard", False)
    every = changes.get("evaluate-every", 1)
    assert [event["evaluation"] is not None for event in events] == [(i % every == 0) or i == 3 for i in (1, 2, 3)]


def test_superfednas_is_searched_by_measured_accuracy(pairs: dict[str, Any], light: None) -> None:
    asked = {"method": "superfednas", "search.population": 4, "search.generations": 1, "install": False}
    results = []
    for by in ("auto", "auto", "fitness"):
        said: list[str] = []
        config = read({**pairs, **asked, "search.by": by})
        done = conduct(config, LocalFleet(config), said.append)
        result = done.read_json("result.json")
        assert result["search"] == ("accuracy" if by == "auto" else "fitness")
        told = [line for line in said if line.startswith("searching")]
        assert len(told) == 1 and ("measured accuracy: 4 networks and 1 generation" in told[0]) == (by == "auto")
        results.append([(m["arch"], m["validation_accuracy"]) for m in result["models"]])
    assert results[0] == results[1] and len(results[0]) == 2
    frontier = [row["arch"] for row in done.read_json("frontier.json")]
    assert not {str(arch) for arch, _ in results[0]} <= set(map(str, frontier))


def test_fedavg_delivers_the_one_network_it_trained(pairs: dict[str, Any], light: None) -> None:
    said: list[str] = []
    space = space_of(read(pairs))
    config = read(
        {**pairs, "method": "fedavg", "rounds": 1, "sample.arch": str(space.largest), "budgets": "phone=30%,server=max"}
    )
    done = conduct(config, LocalFleet(config), said.append)
    result = done.read_json("result.json")
    assert [(m["device"], m["arch"]) for m in result["models"]] == [("server", space.largest.to_json())]
    assert any("phone: no trained network keeps" in line for line in said)
    assert [row["name"] for row in recorded(done.events())[0]["evaluation"]] == ["network"]
    assert len(done.read_json("frontier.json")) == 1


def test_a_tier_that_few_clients_train_is_announced_before_training(pairs: dict[str, Any], light: None) -> None:
    def said(deal: str) -> list[str]:
        told: list[str] = []
        config = read({**pairs, "method": "efedsup", "rounds": 1, "sample.tiers": "min,max", "sample.deal": deal})
        conduct(config, LocalFleet(config), told.append)
        start = next(i for i, text in enumerate(told) if text.startswith("round"))
        return [text for text in told[:start] if text.startswith("tier")]

    assert [text.partition(":")[0] for text in said("fixed")] == ["tier 'min'", "tier 'max'"]
    assert said("rotate") == []


def test_the_settings_of_a_run_say_what_its_server_came_to(finished: tuple[RunFolder, list[str], RunConfig]) -> None:
    """In a table of its own: what each device decides for itself is no setting that others would follow."""
    run, _, config = finished
    told = tomllib.loads((run.path / "config.toml").read_text(encoding="utf-8"))
    device = device_of(config)
    assert told["server"] == {"device": device.type, "train.precision": precision_of(config.train.precision, device)}
    assert "auto" not in told["server"].values()


def test_a_budget_that_nothing_meets_ends_before_any_training(pairs: dict[str, Any]) -> None:
    with pytest.raises(
        InfeasibleError, match=r"device 'watch' is to take 10 MACs at most, but the smallest .* takes 101,968"
    ) as caught:
        run({**pairs, "budgets": "watch=10,server=max"})
    assert isinstance(caught.value, FednasError)
    assert not Path(pairs["output"]).exists()


def test_the_space_of_a_run_is_in_its_models(finished: tuple[RunFolder, list[str], RunConfig]) -> None:
    run, _, config = finished
    meta = json.loads((run.path / "models" / "phone" / "arch.json").read_text())
    assert from_table(meta["space"], "x") == space_of(config)


def test_an_empty_table_has_a_head() -> None:
    assert table([], ACCURACY).split()[:2] == ["device", "budget"]


# -- one run and nobody else ---------------------------------------------------------------------------------------


def test_runs_of_one_second_keep_their_clients_private_layers_apart(
    pairs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, light: None
) -> None:
    """Of two runs in outputs of their own, one does all its rounds between the first two of the other."""
    mine = {**pairs, "method": "fedper", "rounds": 2, "install": False, "data.holdout": 0.2}
    monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "state"))
    alone = run({**mine, "output": str(tmp_path / "alone")})

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Stopped:
            return cls(2026, 1, 2, 3, 4, 5)

    def between(text: str) -> None:
        if text.startswith("round   1"):
            run({**mine, "seed": 9, "output": str(tmp_path / "other")})

    monkeypatch.setattr(creation, "datetime", Stopped)
    config = read({**mine, "output": str(tmp_path / "one")})
    assert history(conduct(config, LocalFleet(config), between)) == history(alone)


def test_a_run_that_goes_on_cannot_be_resumed_beside_it(pairs: dict[str, Any], light: None) -> None:
    again, refused = {"output": pairs["output"], "resume": "latest"}, list[str]()

    def resume(text: str) -> None:
        if text.startswith("round   2"):
            with pytest.raises(RunError, match="is going on: process") as caught:
                run(again)
            refused.append(str(caught.value))

    config = settle(read({**pairs, "rounds": 3}))
    done = conduct(config, LocalFleet(config), resume)
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]
    assert [event["round"] for event in recorded(done.events())] == [1, 2, 3]


def test_a_damaged_record_stops_a_resume_and_loses_nothing(
    pairs: dict[str, Any], reference: RunFolder, light: None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pairs, Stopping(LocalFleet(read(pairs)), 3))
    folder, again = find(Path(pairs["output"]), "latest"), {"output": pairs["output"], "resume": "latest"}
    record = folder.path / "events.jsonl"
    whole = record.read_bytes()
    damaged = whole.replace(b'"round"', b'"ro\0nd"', 2).replace(b'"ro\0nd"', b'"round"', 1)
    record.write_bytes(damaged)
    with pytest.raises(RunError, match=r"events\.jsonl, line 2: is not JSON .* is damaged\. The checkpoint .* safe"):
        run(again)
    assert record.read_bytes() == damaged
    record.write_bytes(whole)
    same_run(reference, run(again))


def test_a_run_goes_on_without_a_record_that_was_given_up_and_says_so(pairs: dict[str, Any], light: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pairs, Stopping(LocalFleet(read(pairs)), 3))
    folder, said = find(Path(pairs["output"]), "latest"), list[str]()
    (folder.path / "events.jsonl").rename(folder.path / "events.lost.jsonl")
    config = settle(read({"output": pairs["output"], "resume": "latest"}))
    done = conduct(config, LocalFleet(config), said.append)
    assert "rounds 1 to 3 are not recorded: figures count from round 4" in said
    result, (first, *_) = done.read_json("result.json"), recorded(done.events())
    assert first["round"] == 4 and result["unrecorded"] == 3 and result["rounds"] == read(pairs).rounds


def test_a_copy_of_a_run_with_private_state_goes_on_once_the_other_is_gone(
    pairs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, light: None
) -> None:
    monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "state"))
    mine = {**pairs, "method": "fedper", "install": False, "data.holdout": 0.2}
    with pytest.raises(KeyboardInterrupt):
        run(mine, Stopping(LocalFleet(read(mine)), 2))
    folder = find(Path(pairs["output"]), "latest").path
    shutil.copytree(folder, tmp_path / "copies" / folder.name)
    renamed = folder.rename(folder.with_name("renamed"))
    with pytest.raises(RunError, match=f"created as '{folder.name}'.*rename the folder back to {folder.name}"):
        run({"output": pairs["output"], "resume": "renamed"})
    renamed.rename(folder)
    again = {"output": str(tmp_path / "copies"), "resume": folder.name}
    for _ in range(2):
        with pytest.raises(RunError, match=f"lies in {folder} too.*only one can go on"):
            run(again)
    shutil.rmtree(folder)
    assert len(run(again).events()) == read(mine).rounds
