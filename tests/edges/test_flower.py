"""Real runs through `flwr`, on a SuperLink of their own in a neutral folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fednas_core.cli.superlink import end_tree, free_port

ROOT = Path(__file__).parents[2]
Flwr = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flwr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flwr]:
    """`flwr` with a FLWR_HOME and port of its own; the SuperLink that it starts is ended afterwards, by its pid."""
    home, port = tmp_path_factory.mktemp("home"), str(free_port())
    scripts = sysconfig.get_path("scripts")
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
    }
    command = [shutil.which("flower-superlink", path=scripts) or "flower-superlink", "--insecure", "--simulation"]
    with (home / "superlink.log").open("wb") as log:
        link = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", port], cwd=home, env=environment, stdout=log, stderr=log
        )
    try:
        time.sleep(3)

        def call(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["flwr", *arguments],
                cwd=home,
                env=environment,
                capture_output=True,
                text=True,
                timeout=280,
                check=False,
            )

        yield call
    finally:
        end_tree(link)


def last_run(flwr: Flwr) -> dict[str, Any]:
    """What Flower tells of the latest run."""
    listing = flwr("ls", "--format", "json").stdout
    return dict(json.loads(listing[listing.index("{") :])["runs"][0])


TINY = "rounds=1 data.examples=200 data.clients=4 train.epochs=1 sample.budgets=5 evaluate-every=1"


def test_a_plain_flwr_run_completes_and_leaves_its_models(flwr: Flwr, tmp_path: Path) -> None:
    shown = flwr("run", str(ROOT), "--stream", "--run-config", f"{TINY} output='{tmp_path}'")
    assert last_run(flwr)["status"] == "finished:completed", shown.stdout[-3000:]
    assert "export error" in shown.stdout and "report.html" in shown.stdout
    result = json.loads((tmp_path / "latest" / "result.json").read_text())
    assert [model["device"] for model in result["models"]] == ["phone", "tablet", "workstation"]
    assert result["failures"] == 0 and result["bytes_up"] > 0


def test_a_failed_run_is_listed_as_failed_with_its_reason(flwr: Flwr, tmp_path: Path) -> None:
    shown = flwr("run", str(ROOT), "--stream", "--run-config", f"rounds=0 output='{tmp_path}'")
    told = last_run(flwr)
    assert shown.returncode == 0  # Flower says nothing by its exit code
    assert told["status"] == "finished:failed"
    assert "setting 'rounds' = 0: allowed is from 1" in told["status-details"]
    assert "Traceback" not in shown.stdout
    assert not list(tmp_path.iterdir())
