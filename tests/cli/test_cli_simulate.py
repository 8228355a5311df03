"""The parts of `simulate` that need no Flower, and one slow test of the whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from contracts.records import event as made
from contracts.records import result
from typer.testing import CliRunner

from fednas_core.base.errors import RunError
from fednas_core.base.fingerprint import PACKAGES, digest_of, fingerprint
from fednas_core.base.metrics import ACCURACY
from fednas_core.base.typed import object_of
from fednas_core.cli import app, progress, superlink
from fednas_core.cli.simulate import NAMED, NODES_A_CORE, STARTED, conclude, nodes_for, read_lines
from fednas_core.runs.record import HandedOver

EVENT: dict[str, Any] = {
    "round": 3, "loss": 1.25, "accuracy": 0.5, "bytes_up": 2_000_000, "seconds": 1.5,
    "evaluation": [{"name": "phone", "macs": 1, "accuracy": 0.75, "loss": 1.0}],
    "failures": [{"client": "client-01", "reason": "too slow"}],
}  # fmt: skip


def test_events_are_read_as_they_are_completed(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    assert read_lines(file, 0) == ([], 0)
    file.write_text('{"round": 1}\n{"round":')
    lines, offset = read_lines(file, 0)
    assert lines == [b'{"round": 1}'] and read_lines(file, offset) == ([], offset)
    file.write_text('{"round": 1}\n{"round": 2}\n')
    assert read_lines(file, offset)[0] == [b'{"round": 2}']


def test_names_of_a_run_are_found_in_what_flower_streams() -> None:
    found = STARTED.search("Successfully started run 2655805742522145535 in federation x")
    assert found and found[1] == "2655805742522145535"
    for line in ("run 20260101-000000-fedavg", "run 20260101-000000-fedavg, resumed after round 12"):
        named = NAMED.match(line)
        assert named and named[1] == "20260101-000000-fedavg"
    assert not NAMED.match("run folder: /somewhere")


def test_a_round_is_one_line_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.display(5) as show:
        show(made(EVENT), ACCURACY)
    told = capsys.readouterr().out
    for part in ("round 3", "loss 1.250", "accuracy 50.0%", "up 2.0 MB", "phone 75.0%", "failed clients client-01"):
        assert part in told
    with progress.display(5) as show:
        row = {**EVENT["evaluation"][0], "clients": {"mean": 0.7, "worst_decile": 0.4}}
        show(made({**EVENT, "evaluation": [row]}), ACCURACY)
    assert "networks' accuracy phone 75.0% (clients 70.0%, worst tenth 40.0%)" in capsys.readouterr().out
    with progress.display(5, to_stderr=True) as show:
        show(made({**EVENT, "failures": [], "evaluation": None}), ACCURACY)
    told, error = capsys.readouterr()
    assert told == "" and "round 3" in error and "failed" not in error


def test_the_live_view_follows_rounds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.display(3) as show:
        show(made(EVENT), ACCURACY)
    told = capsys.readouterr().out
    assert "3/3" in told and "search" not in told


def test_the_live_view_of_a_search_has_no_total(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish = {"stage": "finish", "iteration": 2, "round": 1, "of": 2, "alive": [], "finishing": "2.1", "over": False}
    event = {**EVENT, "round": 17, "clients": [], "search": finish}
    with progress.display(6) as show:
        show(made(event), ACCURACY)
    assert "search finish 2.1 1/2" in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    with progress.display(None) as show:
        show(made(event), ACCURACY)
    told = capsys.readouterr().out
    assert "17/?" in told and "finish 2.1 1/2" in told and "training" in told
    with progress.display(6) as show:
        show(made({**event, "search": {**finish, "over": True}}), ACCURACY)
    told = capsys.readouterr().out
    assert "17/?" in told and "17/6" not in told and "choosing models" in told


def test_many_clients_are_played_by_few_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert [nodes_for(clients) for clients in (1, 10, 1000, 0)] == [1, 10, 2 * NODES_A_CORE, 2 * NODES_A_CORE]


def test_a_process_is_ended_with_its_descendants() -> None:
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    process = subprocess.Popen([sys.executable, "-c", nested], start_new_session=True)
    end = time.monotonic() + 20
    while not superlink.descendants(process.pid) and time.monotonic() < end:
        time.sleep(0.02)
    (child,) = superlink.descendants(process.pid)
    superlink.end_tree(process)
    assert process.returncode is not None and not superlink._alive(child)


def test_free_ports_can_be_bound() -> None:
    assert 1024 < superlink.free_port() < 65536


def test_the_app_is_made_of_the_code_that_runs(tmp_path: Path) -> None:
    link = superlink.connection(tmp_path / "home", "")
    for _ in range(2):  # a home may be used again
        folder = superlink.app_folder(link)
    made = tomllib.loads((folder / "pyproject.toml").read_text())
    given = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    app, wanted = (table["tool"]["flwr"]["app"] for table in (made, given))
    assert {**app, "fab-include": set(app["fab-include"])} == {**wanted, "fab-include": set(wanted["fab-include"])}
    assert made["project"]["dependencies"] == [] and made["project"]["name"] == given["project"]["name"]
    assert digest_of({name: folder / name for name in PACKAGES}) == fingerprint().digest


def test_a_missing_flower_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="'flower-nothing' is missing"):
        superlink.script("flower-nothing")


def test_settings_are_checked_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(keep: bool) -> None:
        raise AssertionError("a SuperLink was started")

    monkeypatch.setattr("fednas_core.cli.simulate.superlink", started)
    monkeypatch.chdir(tmp_path)
    for given, message in (
        ("rounds=none", "whole number"),
        ("data.path=absent", f"{tmp_path}/absent': there is no such file or folder"),
        ("space.name=absent.toml", f"{tmp_path}/absent.toml"),
        ("data.clients=9999", "data.clients = 9999, but 1294 training examples"),
        ("budgets=watch=1k", "device 'watch'"),
    ):
        shown = CliRunner().invoke(app, ["simulate", "--set", given, "--json"])
        assert shown.exit_code == 2 and message in json.loads(shown.stdout)["error"], shown.output


# -- the whole -----------------------------------------------------------------------------------------------------


def _fednas(*arguments: str, **more: Any) -> subprocess.Popen[str]:
    program = "from fednas_core.cli import main; main()"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], env=environment, text=True, start_new_session=True, **more
    )


@pytest.mark.slow
def test_simulate_trains_through_flower_and_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = [f"output={tmp_path}", "data.examples=200", "rounds=2", "budgets=server=max"]
    sets = [part for pair in settings for part in ("--set", pair)]
    process = _fednas("simulate", "--clients", "3", "--json", *sets, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["rounds"] == 2 and (tmp_path / result["run"] / "report.html").is_file()
    assert "round 2" in err and superlink.descendants(process.pid) == []


@pytest.mark.slow
def test_simulate_works_from_an_installed_wheel(tmp_path: Path) -> None:
    """From an empty folder, with images that a relative path names."""
    root, site, empty = Path(__file__).parents[2], tmp_path / "site", tmp_path / "empty"
    pip = [sys.executable, "-m", "pip", "-q"]
    source = tmp_path / "source"
    shutil.copytree(root, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "runs"))
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run([*pip, *wheel], check=True, cwd=tmp_path)
    (built,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(built)], check=True)
    empty.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 10), dtype=np.uint8)
    np.savez(empty / "images.npz", x_train=x, y_train=np.arange(40) % 2)
    program = "from fednas_core.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "simulate", "--json", "--set", "rounds=1", "--set", "data.path=images.npz"],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert (empty / "runs" / json.loads(done.stdout)["run"] / "report.html").is_file()


@pytest.mark.slow
def test_simulate_tells_the_truth_about_a_failed_run(tmp_path: Path) -> None:
    sets = ("--set", f"output={tmp_path}", "--set", "contest.start=nowhere", "--set", "method=fednas")
    process = _fednas("simulate", "--json", *sets, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    told = json.loads(out)
    assert told["status"] == "finished:failed" and "'nowhere'" in told["error"]


@pytest.mark.slow
def test_simulate_stops_on_ctrl_c_and_can_be_resumed(tmp_path: Path) -> None:
    sets = ("--set", f"output={tmp_path}", "--set", "data.examples=200", "--set", "rounds=500")
    process = _fednas("simulate", "--clients", "2", *sets, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if line.startswith("round 2"):
            break
    family = superlink.descendants(process.pid)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "fednas resume" in err
    assert family and not any(superlink._alive(pid) for pid in family)


def test_the_time_that_flower_takes_besides_the_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r1").mkdir()
    found = result(seconds={"total": 10.0, "start": 2.0, "training": 8.0})
    (tmp_path / "r1" / "result.json").write_text(json.dumps(object_of(found)))
    ended: Any = SimpleNamespace(run_name="r1", lines=[])
    conclude(ended, ("finished:completed", ""), tmp_path, False, wall_s=25.0)
    told = "time  10 s: start 2 s, training 8 s\nbesides 15 s in which Flower starts and ends\n"
    assert told in capsys.readouterr().out


def test_a_client_without_its_model_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "r1"
    run.mkdir()
    row = HandedOver(client="phone", budget="1 M MACs", reason="out of memory: it was ended", failed=True)
    found = result(clients=[row], seconds={"total": 20.0})
    (run / "result.json").write_text(json.dumps(object_of(found)))
    ended: Any = SimpleNamespace(run_name="r1", lines=[])
    with pytest.raises(typer.Exit) as left:
        conclude(ended, ("finished:completed", ""), tmp_path, False)
    assert left.value.exit_code == 1
    assert "phone (out of memory: it was ended); resume the run" in capsys.readouterr().err
