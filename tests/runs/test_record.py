"""What a run records can be read again: of which format it is, what is wrong with it, and what older runs lack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tomli_w
from contracts.records import event, head
from typer.testing import CliRunner

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import RunError
from fednas_core.base.metrics import ACCURACY, Metric
from fednas_core.base.typed import FieldError, from_json, object_of
from fednas_core.cli import app
from fednas_core.methods.story import ClientRow, Rewarded, Scored, Takes
from fednas_core.runs.events import read_events
from fednas_core.runs.folder import RunFolder
from fednas_core.runs.format import FORMAT, Head, head_of, head_of_folder
from fednas_core.show.read import read_run
from fednas_core.show.write import write

OLDER = Path(__file__).parent / "format-1"
"""A small run of fednas whose record names no format."""
F1 = Metric("macro_f1", "Macro F1", "Macro F1 scores")


@pytest.fixture
def older(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLDER, tmp_path / "20260101-120000-0123abcd-fednas"))


def test_a_run_without_a_format_is_read_as_what_it_was(older: Path) -> None:
    run = read_run(older)
    assert run.head == Head(1, (ACCURACY,), "netadapt") and run.notes == ()
    assert [one.round for one in run.rounds] == list(range(1, run.done + 1))
    assert all(one.search and one.search.kind == "netadapt" for one in run.rounds)
    leads = [one.search.own for one in run.rounds if one.search and one.search.outcome]
    assert leads and all(isinstance(own, Takes) and own.resource == "macs" for own in leads)
    assert run.result and run.result.models[0].test["accuracy"] is not None


def test_what_was_read_is_written_as_it_was(older: Path) -> None:
    lines = [json.loads(line) for line in (older / "events.jsonl").read_text().splitlines()]
    assert [one.to_json() for one in read_events(older).rounds] == lines
    content = json.loads((older / "result.json").read_text())
    assert object_of(RunFolder(older).result()) == content


def test_its_report_is_written_and_it_is_listed(older: Path) -> None:
    page = write(older).read_text(encoding="utf-8")
    assert "A family of " in page and "<h2>Accuracy against cost</h2>" in page and "Won: the most accurate" in page
    listed = CliRunner().invoke(app, ["runs", "--output", str(older.parent), "--json"])
    (row,) = json.loads(listed.stdout)
    assert row["state"] == "finished" and 0 < row["best_accuracy"] <= 1


def test_fields_that_came_later_are_added_as_what_they_were(older: Path) -> None:
    content = json.loads((older / "result.json").read_text())
    for key in ("personal", "search", "unrecorded", "seconds"):
        del content[key]
    content["models"] = [{**content["models"][0], "budget": 500_000}]
    content["clients"] = [{"client": "a", "budget": 2e6, "reason": "", "macs": 1, "params": 1, "bytes": 4,
                           "validation_accuracy": 0.5, "accuracy": 0.5}]  # fmt: skip
    (older / "result.json").write_text(json.dumps(content))
    result = RunFolder(older).result()
    assert (result.models[0].budget, result.models[0].budget_macs) == ("500 k MACs", 500_000)
    (row,) = result.clients
    assert row.budget == "2 M MACs" and row.model and (row.model.tested, row.model.latency_ms) == (0, None)


@pytest.mark.parametrize("found", [3, 0, "2", 1.5])
def test_a_format_that_is_not_known_is_refused_in_words(older: Path, found: object) -> None:
    text = (older / "config.toml").read_text()
    (older / "config.toml").write_text(f"format = {json.dumps(found)}\n{text}")
    wanted = rf"config.toml: the run is recorded in format {found!r}, this fednas reads 1 and 2: read it with"
    for read in (read_run, lambda folder: RunFolder(folder).config(), read_events, head_of_folder):
        with pytest.raises(RunError, match=wanted):
            read(older)
    end = CliRunner().invoke(app, ["report", older.name, "--output", str(older.parent)])
    assert end.exit_code == 2 and "this fednas reads 1 and 2" in end.stderr


def test_the_head_of_a_record_stands_beside_the_settings(tmp_path: Path) -> None:
    for config, kind in ((RunConfig(), ""), (RunConfig(method="ddc"), "ddc"), (RunConfig(method="fednas"), "netadapt")):
        told = head_of(config)
        assert told == Head(FORMAT, (ACCURACY,), kind)
        (tmp_path / "config.toml").write_text(tomli_w.dumps({**told.to_json(), "settings": {}}))
        assert head_of_folder(tmp_path) == told


def test_a_damaged_head_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('format = 2\nmetrics = [{name = "accuracy"}]\nsearch = ""\n')
    with pytest.raises(RunError, match=r"config.toml: field 'metrics.0.title' is missing"):
        head_of_folder(tmp_path)
    (tmp_path / "config.toml").write_text('format = 2\nmetrics = []\nsearch = ""\n')
    with pytest.raises(RunError, match=r"config.toml: field 'metrics' names none"):
        head_of_folder(tmp_path)


@pytest.mark.parametrize(
    ("kind", "own", "wanted"),
    [
        ("netadapt", {"resource": "ms", "takes": 0.5}, Takes(resource="ms", takes=0.5)),
        ("evolution", {"score": 0.5, "scores": {"1.1": 0.5}}, Scored(score=0.5, scores={"1.1": 0.5})),
        ("ddc", {"rewards": [], "scores": {}, "leader": "1.1", "accuracy": 0.5, "reward": None},
         Rewarded(rewards=(), scores={}, leader="1.1", metrics={"accuracy": 0.5}, reward=None)),
    ],
)  # fmt: skip
def test_what_a_kind_of_search_tells_is_typed(kind: str, own: dict[str, object], wanted: object) -> None:
    found = event({"search": {"winner": "1.1", **own}}, kind)
    assert found.search and found.search.own == wanted
    assert head(kind).event(found.to_json(), "a test") == found
    with pytest.raises(RunError, match=r"line 7: field 'search.*' is missing"):
        head(kind).event({**found.to_json(), "search": {"stage": "compete"}}, "events.jsonl, line 7")


def test_another_metric_is_read_and_shown_by_its_own_name(older: Path) -> None:
    for path in older.iterdir():
        path.write_text(path.read_text().replace("accuracy", "macro_f1"))
    told = {**Head(FORMAT, (F1,), "netadapt").to_json(), "settings": {"method": "fednas", "rounds": 2}}
    (older / "config.toml").write_text(tomli_w.dumps(told))
    page = write(older).read_text(encoding="utf-8")
    for words in (
        "<h2>Macro F1 against cost</h2>",
        "Macro F1 scores are those on",
        "Test<br>macro f1",
        "Macro F1 ± SE",
    ):
        assert words in page
    assert "ccuracy" not in page
    listed = CliRunner().invoke(app, ["runs", "--output", str(older.parent), "--json"])
    assert 0 < json.loads(listed.stdout)[0]["best_macro_f1"] <= 1


def test_a_value_of_the_wrong_type_is_named_from_the_outside_in() -> None:
    row = object_of(event({"clients": [{}]}).clients[0])
    assert from_json(ClientRow, row, ("accuracy",)) == event({"clients": [{}]}).clients[0]
    for key, value, needed in (
        ("client", 3, "a text"), ("macs", True, "a whole number"), ("macs", 1.0, "a whole number"),
        ("loss", "low", "a number"), ("accuracy", "high", "a number"),
    ):  # fmt: skip
        with pytest.raises(FieldError, match=f"field '{key}' holds {value!r}, needed is {needed}"):
            from_json(ClientRow, {**row, key: value}, ("accuracy",))
    with pytest.raises(RunError, match=r"line 3: field 'clients.0.accuracy' is missing"):
        head().event({**event({}).to_json(), "clients": [{k: v for k, v in row.items() if k != "accuracy"}]}, "line 3")
