"""The command `profile`: what it measures, what it prints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from fednas_core.cli import app, profiling
from fednas_core.devices import probes
from fednas_core.devices.containers import available_cores
from fednas_core.devices.profile import from_json
from fednas_core.search.exact import exact_search
from fednas_core.spaces.registry import load


@pytest.fixture(autouse=True)
def _few_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "TURNS", 2)


def fednas(space: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["profile", "--space", str(space), *arguments])


def told(space: Path, *arguments: str) -> dict[str, dict[str, float]]:
    result = fednas(space, "--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, dict[str, float]] = json.loads(result.stdout)
    return found


def test_the_table_shows_the_device_every_probe_and_what_the_model_says(tiny_space_file: Path) -> None:
    result = fednas(tiny_space_file)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    networks = [line for line in lines if " ms " in line]
    assert len(networks) == len(probes.architectures(load(str(tiny_space_file))))
    macs = [float(line.split(" M ")[0].split()[-1]) for line in networks]
    assert macs == sorted(macs)
    for word in ("this device", "cores", "threads used", "free memory", "training", torch.__version__, "predicted"):
        assert word in result.stdout
    assert "the latency model errs by" in result.stdout and "best network within" not in result.stdout


def test_json_holds_a_profile_that_can_be_read_back(tiny_space_file: Path) -> None:
    found = told(tiny_space_file)
    profile = from_json(load(str(tiny_space_file)), found["profile"])
    assert profile.cores == available_cores() and len(profile.probes) == len(found["model"]["held_out_ms"])  # type: ignore[arg-type]
    assert found["model"]["error"] >= 0 and found["model"]["margin"] >= 0.05 and "budget" not in found


def test_the_best_network_within_a_budget_is_predicted_and_measured(tiny_space_file: Path) -> None:
    space = load(str(tiny_space_file))
    found = told(tiny_space_file, "--budget", "15%+1000ms")["budget"]
    most = space.cost(space.largest).macs
    (wanted,) = exact_search(space, [int(0.15 * most)])
    assert space.arch(found["arch"]) == wanted and found["macs"] == space.cost(wanted).macs  # type: ignore[arg-type]
    assert 0 < found["predicted_ms"] < found["upper_ms"] <= 1000 and found["measured_ms"] > 0 and found["kept"]
    shown = fednas(tiny_space_file, "--budget", "1000ms").stdout
    assert "best network within" in shown and "keeps the budget" in shown and '--arch \'{"d":' in shown


def test_a_network_that_turns_out_slower_is_said_to_exceed(
    tiny_space_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fednas_core.devices.latency_model.LatencyModel.upper_ms", lambda self, arch: 1e-5)
    assert told(tiny_space_file, "--budget", "0.0001ms")["budget"]["kept"] is False
    assert "exceeds the budget" in fednas(tiny_space_file, "--budget", "0.0001ms").stdout


def test_too_few_probes_are_said_to_be_too_few(tiny_space_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = probes.architectures(load(str(tiny_space_file)))[:2]
    monkeypatch.setattr(probes, "architectures", lambda space: few)
    assert "too few probes" in fednas(tiny_space_file).stdout
    assert told(tiny_space_file)["model"]["error"] is None


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--budget", "0.000001ms"], "the smallest takes"),
        (["--budget", "1k"], "no network of space"),
        (["--budget", "soon"], "budget 'soon'"),
        (["--threads", "4096"], "allowed are 1 to"),
    ],
)
def test_what_cannot_be_done_is_said_with_what_can(tiny_space_file: Path, arguments: Sequence[str], why: str) -> None:
    result = fednas(tiny_space_file, *arguments)
    assert result.exit_code == 2 and why in result.stderr
    assert why in json.loads(fednas(tiny_space_file, *arguments, "--json").stdout)["error"]


def test_times_are_shown_in_milliseconds() -> None:
    assert profiling._ms(3.14159) == "3.14 ms"


def test_a_network_is_shown_by_its_channels_and_blocks() -> None:
    space = load("small")
    assert space.describe(space.largest) == "16 · 32×2 · 64×2 · 128×2  e 1.00"
    assert space.describe(space.smallest) == "8 · 16×1 · 32×1 · 64×1  e 0.25"
