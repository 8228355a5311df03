"""run, resume, runs, report and export on the smallest run there is."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from contracts.records import recorded, result
from typer.testing import CliRunner, Result

from fednas_core.base.errors import RunError
from fednas_core.cli import app
from fednas_core.cli.runs import newest
from fednas_core.runs.folder import RunFolder
from fednas_core.runs.listing import run_folders


def fednas(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def settings(tiny_space_file: Path) -> list[str]:
    pairs: dict[str, Any] = {
        "rounds": 2, "budgets": "server=max", "evaluate-every": 1, "device": "cpu", "workers": 1,
        "space.name": tiny_space_file, "data.examples": 200, "data.clients": 3, "train.epochs": 1,
        "train.precision": "fp32", "sample.budgets": 3, "sample.fitness-lambda": 0.0,
    }  # fmt: skip
    return [part for key, value in pairs.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Result]:
    """A finished run: the folder of runs, its result, and what the command printed."""
    root = tmp_path_factory.mktemp("cli") / "runs"
    shown = fednas("run", *settings, "--set", f"output={root}", "--json")
    assert shown.exit_code == 0, shown.output
    return root, json.loads(shown.stdout), shown


def test_run_prints_its_result_and_tells_rounds_on_stderr(finished: tuple[Path, dict[str, Any], Result]) -> None:
    root, result, shown = finished
    folder = root / result["run"]
    assert result == json.loads((folder / "result.json").read_text())
    assert [model["device"] for model in result["models"]] == ["server"] and result["rounds"] == 2
    assert f"run {result['run']}" in shown.stderr and "2/2" in shown.stderr
    assert (folder / "report.html").is_file() and (root / "latest").resolve() == folder


def test_runs_lists_it(finished: tuple[Path, dict[str, Any], Result], tmp_path: Path) -> None:
    root, result, _ = finished
    row = json.loads(fednas("runs", "--output", str(root), "--json").stdout)[0]
    assert row["id"] == result["run"] and row["state"] == "finished" and row["method"] == "deepfednas"
    assert row["rounds_done"] == row["rounds"] == 2 and 0 <= row["best_accuracy"] <= 1 and row["seconds"] > 0
    assert row["seconds"] == pytest.approx(result["seconds"]["total"]) and row["phases"]["training"] < row["seconds"]
    assert (row["tested_by"], row["worst_decile"]) == ("server", None)
    assert result["run"] in fednas("runs", "-o", str(root)).stdout
    empty = fednas("runs", "--output", str(tmp_path))
    assert empty.exit_code == 0 and "no runs" in empty.stderr and empty.stdout == ""


def test_a_run_with_personal_layers_says_who_tested_it_and_why_it_has_no_model(
    settings: list[str], tmp_path: Path
) -> None:
    own = ("--set", "personal.layers=head", "--set", "data.holdout=0.2")
    shown = fednas("run", *settings, *own, "--set", f"output={tmp_path}", "--json")
    assert shown.exit_code == 0, shown.output
    row = json.loads(fednas("runs", "--output", str(tmp_path), "--json").stdout)[0]
    assert row["tested_by"] == "clients" and 0 <= row["worst_decile"] <= row["best_accuracy"] <= 1
    assert "clients" in fednas("runs", "--output", str(tmp_path)).stdout
    refused = fednas("export", "latest", "--device", "phone", "--output", str(tmp_path))
    assert refused.exit_code == 2 and "no complete network: head never left the clients" in refused.stderr


def test_runs_shows_unfinished_and_damaged_ones(finished: tuple[Path, dict[str, Any], Result], tmp_path: Path) -> None:
    root, result, _ = finished
    shutil.copytree(root / result["run"], tmp_path / "a-run")
    (tmp_path / "a-run" / "result.json").unlink()
    shutil.copytree(tmp_path / "a-run", tmp_path / "b-run")
    (tmp_path / "b-run" / "config.toml").write_text("= broken")
    shutil.copytree(root / result["run"], tmp_path / "c-run")
    longer = (tmp_path / "c-run" / "events.jsonl").read_text().splitlines()[-1].replace('"round": 2', '"round": 3')
    with (tmp_path / "c-run" / "events.jsonl").open("a") as file:
        file.write(longer + "\n")  # goes on after its result
    states = {row["id"]: row["state"] for row in json.loads(fednas("runs", "-o", str(tmp_path), "--json").stdout)}
    assert states == {"a-run": "unfinished", "b-run": "damaged", "c-run": "unfinished"}
    assert [path.name for path in run_folders(tmp_path)] == ["a-run", "b-run", "c-run"]
    assert newest(tmp_path) == "c-run"


def made(root: Path, run_id: str, method: str, finished: bool) -> None:
    """Write what a listing reads of a run."""
    folder = root / run_id
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'[settings]\nmethod = "{method}"\nrounds = 1000\n')
    (folder / "events.jsonl").write_text("")
    if finished:
        (folder / "result.json").write_text(json.dumps(recorded(result(run=run_id, method=method, rounds=0))))


IDS = ("20261126-191500-superfednas-0a1b2c", "20261127-091500-deepfednas-3fa9c1", "20261127-191500-fedavg-77d0e4")


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for run_id, finished in zip(IDS, (True, False, True), strict=True):
        made(tmp_path / "runs", run_id, run_id.split("-")[2], finished)
    return tmp_path / "runs"


@pytest.mark.parametrize("columns", [80, 40])
def test_the_ids_of_runs_can_be_copied_in_a_narrow_terminal(three: Path, columns: int) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    program = "from fednas_core.cli import main; main()"
    command = [sys.executable, "-c", program, "runs", "--output", str(three)]
    subprocess.run(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment, check=True, timeout=120)
    os.close(theirs)
    lines = re.sub(r"\x1b\[[\d;]*m", "", os.read(ours, 100_000).decode()).splitlines()
    os.close(ours)
    words = [word for line in lines for word in line.split()]
    assert set(IDS) <= set(words) and all(len(line) <= columns for line in lines)
    assert columns == 40 or {"state", "accuracy", "unfinished", "0/1000"} <= set(words)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), IDS),
        (("--method", "fedavg"), IDS[2:]),
        (("--state", "unfinished"), IDS[1:2]),
        (("--state", "finished", "--last", "1"), IDS[2:]),
        (("--since", "2026-11-27"), IDS[1:]),
        (("--since", "2026-11-27T12:00"), IDS[2:]),
        (("--last", "2"), IDS[1:]),
    ],
)
def test_runs_can_be_filtered(three: Path, options: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    shown = fednas("runs", "-o", str(three), *options, "--json")
    assert tuple(row["id"] for row in json.loads(shown.stdout)) == wanted


def test_a_method_that_does_not_exist_is_refused_and_one_without_runs_is_said(three: Path) -> None:
    refused = fednas("runs", "-o", str(three), "--method", "fedavq")
    assert refused.exit_code == 2 and "allowed are fedavg" in refused.stderr
    assert "no such runs" in fednas("runs", "-o", str(three), "--method", "ddc").stderr


def test_a_run_whose_record_is_damaged_is_listed_as_such_naming_the_line(
    finished: tuple[Path, dict[str, Any], Result], tmp_path: Path
) -> None:
    root, result, _ = finished
    shutil.copytree(root / result["run"], tmp_path / "a-run")
    record = tmp_path / "a-run" / "events.jsonl"
    record.write_bytes(record.read_bytes().replace(b"{", b"", 1))
    shown = fednas("runs", "-o", str(tmp_path), "--json")
    assert json.loads(shown.stdout)[0]["state"] == "damaged" and f"{record}, line 1: is not JSON" in shown.stderr


def test_report_is_written_anew(
    finished: tuple[Path, dict[str, Any], Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, result, _ = finished
    shutil.copytree(root / result["run"], tmp_path / "copy")
    (tmp_path / "copy" / "report.html").unlink()
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    shown = fednas("report", "latest", "-o", str(tmp_path), "--json", "--open")
    paths = json.loads(shown.stdout)
    assert Path(paths["html"]).is_file() and Path(paths["markdown"]).is_file()
    assert opened == [Path(paths["html"]).as_uri()]


def test_an_unknown_run_names_those_there_are(finished: tuple[Path, dict[str, Any], Result]) -> None:
    root, result, _ = finished
    for command in (("report", "nothing"), ("export", "nothing", "--device", "x"), ("resume", "nothing")):
        shown = fednas(*command, "-o", str(root), "--json")
        assert shown.exit_code == 2 and result["run"] in json.loads(shown.stdout)["error"]


def test_resume_gives_the_rounds_of_an_uninterrupted_run(
    finished: tuple[Path, dict[str, Any], Result], settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, result, _ = finished

    def killed(self: RunFolder, round: int, state: object) -> None:
        save(self, round, state)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    save = RunFolder.save_checkpoint
    monkeypatch.setattr(RunFolder, "save_checkpoint", killed)
    stopped = fednas("run", *settings, "--set", f"output={tmp_path}")
    monkeypatch.undo()
    (folder,) = run_folders(tmp_path)
    assert stopped.exit_code == 130 and f"fednas resume {folder.name} --output {tmp_path}" in stopped.stderr
    resumed = fednas("resume", "latest", "--output", str(tmp_path), "--json")
    assert resumed.exit_code == 0, resumed.output
    whole, parts = recorded(RunFolder(root / result["run"]).events()), recorded(RunFolder(folder).events())
    for key in ("round", "loss", "accuracy", "evaluation"):
        assert [event[key] for event in parts] == [event[key] for event in whole]


def test_resume_takes_settings_and_refuses_by_name(
    finished: tuple[Path, dict[str, Any], Result], tmp_path: Path
) -> None:
    root, result, _ = finished
    shutil.copytree(root / result["run"], tmp_path / result["run"])
    where = (result["run"], "--output", str(tmp_path))
    refused = fednas("resume", *where, "--set", "rounds=3", "--set", "train.lr=0.001")
    assert refused.exit_code == 2 and "train.lr = 0.001 instead of 0.03" in refused.stderr
    assert fednas("resume", *where, "--set", "resume=another").exit_code == 2
    elsewhere = tmp_path / "elsewhere"
    longer = fednas("resume", *where, "--set", "rounds=3", "--set", f"output={elsewhere}", "--json")
    assert longer.exit_code == 0, longer.output
    assert (elsewhere / result["run"] / "result.json").is_file() and not (tmp_path / result["run"]).exists()
    assert json.loads(longer.stdout)["rounds"] == 3 and "rounds 2 → 3" in longer.stderr


def test_a_run_that_fails_later_says_how_to_continue(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(*_: object) -> None:
        raise RunError("no client answered")

    monkeypatch.setattr("fednas_core.engine.run._finish", failed)
    shown = fednas("run", *settings, "--set", f"output={tmp_path}", "--set", "rounds=1")
    assert shown.exit_code == 2 and "error: no client answered" in shown.stderr
    assert f"fednas resume {newest(tmp_path)} --output {tmp_path}" in shown.stderr


def test_stopping_before_the_first_round_says_so(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "append_event", killed)
    stopped = fednas("run", *settings, "--set", f"output={tmp_path}")
    assert stopped.exit_code == 130 and "nothing to resume" in stopped.stderr


def test_export_of_the_best_within_a_budget(finished: tuple[Path, dict[str, Any], Result], tmp_path: Path) -> None:
    root, result, _ = finished
    where = ("-o", str(root), "--to", str(tmp_path), "--json")
    model = json.loads(fednas("export", result["run"], "--device", "watch", "--max-macs", "30%", *where).stdout)
    assert model["macs"] <= model["budget_macs"] < result["models"][0]["budget_macs"]
    assert model["export_max_abs_error"] < 1e-4
    assert sorted(path.name for path in (tmp_path / "watch").iterdir()) == [
        "arch.json", "card.md", "model.onnx", "weights.safetensors",
    ]  # fmt: skip


def test_export_within_a_budget_of_another_kind(finished: tuple[Path, dict[str, Any], Result], tmp_path: Path) -> None:
    root, result, _ = finished
    where = ("-o", str(root), "--to", str(tmp_path), "--json")
    most = result["models"][-1]["bytes"] // 2
    model = json.loads(fednas("export", "latest", "--device", "watch", "--budget", f"{most}B", *where).stdout)
    assert model["bytes"] <= most and model["budget_macs"] is None
    model = json.loads(fednas("export", "latest", "--device", "fast", "--budget", "50ms+30%", *where).stdout)
    assert model["budget"].endswith("M MACs + 50 ms") and model["macs"] <= model["budget_macs"]


def test_export_of_one_architecture(finished: tuple[Path, dict[str, Any], Result]) -> None:
    root, result, _ = finished
    genes = result["models"][0]["arch"]
    shown = fednas("export", "latest", "--device", "mine", "--arch", json.dumps(genes), "-o", str(root), "--json")
    model = json.loads(shown.stdout)
    assert model["arch"] == genes and model["test_accuracy"] == result["models"][0]["test_accuracy"]
    assert model["budget_macs"] == model["macs"] and (root / result["run"] / "models" / "mine" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--arch", "{"), "is not JSON"),
        (("--arch", "{}"), "needed are d, e and w"),
        (("--arch", "{}", "--max-macs", "1M"), "not both"),
        (("--max-macs", "1"), "at most 1 MACs"),
        (("--max-macs", "much"), "budget 'much'"),
        (("--budget", "1kB"), "keeps its budget of 0.001 MB"),
        (("--budget", "20 minutes"), "1.5Mparams, 8MB or 20ms"),
    ],
)
def test_export_refuses(finished: tuple[Path, dict[str, Any], Result], options: tuple[str, ...], told: str) -> None:
    shown = fednas("export", "latest", "--device", "x", "-o", str(finished[0]), *options)
    assert shown.exit_code == 2 and told in shown.stderr and "Traceback" not in shown.output
