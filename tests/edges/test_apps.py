from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from edges.grid import InProcessGrid, simulated
from flwr.app import Context, RecordDict
from safetensors.torch import load_file

import fednas_core.engine.run as experiment
from client_app.app import app as client
from fednas_core.base.environment import ENVIRONMENT
from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.settings import read
from fednas_core.devices.containers import available_cores
from fednas_core.engine.local import LocalFleet
from server_app.app import PlainErrors
from server_app.app import app as server

ROOT = Path(__file__).parents[2]


def flower_run(pairs: dict[str, Any], nodes: int = 2) -> None:
    """Run both apps end to end, as Flower would."""
    server(InProcessGrid(client, simulated(nodes)), Context(1, 1, {}, RecordDict(), dict(pairs)))


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what follows the rounds: it has tests of its own."""
    monkeypatch.setattr(experiment, "_finish", lambda config, run, *rest: run)


def history(folder: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    for event in events:
        event.pop("seconds")
        for row in event["clients"]:
            row.pop("seconds", None)
    return events


def test_a_run_through_flower_has_the_history_of_one_in_process(tiny_pairs: dict[str, Any], tmp_path: Path) -> None:
    flower_run(tiny_pairs | {"output": str(tmp_path / "flower")})
    config = read(tiny_pairs | {"output": str(tmp_path / "local")})
    fleet = LocalFleet(config)
    experiment.conduct(config, fleet, lambda text: None)
    fleet.close()
    one, other = (
        next(path for path in (tmp_path / name).iterdir() if path.name != "latest") for name in ("flower", "local")
    )
    assert history(one) == history(other) and len(history(one)) == 2
    weights = [load_file(next((folder / "checkpoint").glob("supernet*.safetensors"))) for folder in (one, other)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_resumed_run_takes_its_own_settings_to_the_clients(tiny_pairs: dict[str, Any]) -> None:
    flower_run(tiny_pairs | {"rounds": 1})
    root = Path(tiny_pairs["output"])
    stored = (root / "latest" / "config.toml").read_text()
    run = (root / "latest").resolve()
    (run / "config.toml").write_text(stored.replace("rounds = 1", "rounds = 2"))
    flower_run({"resume": run.name, "output": str(root)})
    assert [event["round"] for event in history(run)] == [1, 2]
    assert len(history(run)[1]["clients"]) == 4


def test_a_wrong_setting_ends_the_run_with_its_name(tiny_pairs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="setting 'rounds' = 0"):
        flower_run(tiny_pairs | {"rounds": 0})


def logged(error: Exception) -> str:
    logger, lines = logging.Logger("like flwr"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(logging.Formatter("%(message)s").format(record))  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.addFilter(PlainErrors())
    try:
        raise error
    except Exception:
        logger.error("%s raised an exception", "ServerApp", exc_info=sys.exc_info())
    return lines[0]


def test_errors_for_people_are_logged_without_a_traceback() -> None:
    assert logged(RunError("the disk is full: make room")) == "fednas: the disk is full: make room"
    assert "Traceback" in logged(ZeroDivisionError("a bug"))


@pytest.mark.parametrize("given", [None, '{"CPU": 3}'])
def test_ray_is_offered_two_cpus_a_core_unless_told_otherwise(given: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_OVERRIDE_RESOURCES"}
    environment |= {"RAY_OVERRIDE_RESOURCES": given} if given else {}
    code = "import os, client_app.front; print(os.environ['RAY_OVERRIDE_RESOURCES'])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert json.loads(shown.stdout) == json.loads(given or f'{{"CPU": {2 * available_cores()}}}')


@pytest.mark.parametrize("given", [None, "77"])
def test_rays_processes_start_in_the_environment_of_those_that_compute(given: str | None) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    environment = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
    environment |= {name: given} if given else {}
    code = "import json, os, client_app.front; print(json.dumps(dict(os.environ)))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    told = json.loads(shown.stdout)
    assert {key: told[key] for key in ENVIRONMENT} == ENVIRONMENT | ({name: given} if given else {})
