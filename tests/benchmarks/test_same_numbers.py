"""The recorder of numbers: its cases cover all pairs, its projection holds numbers and no clocks, its file holds."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASE = "fedavg small"
"""Part of the name of the case that is lived here."""


@pytest.fixture(scope="module")
def numbers() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module("same_numbers")


def run_of(path: Path, seconds: float = 1.0) -> Path:
    """Write a run's folder as two rounds of two clients leave it; `seconds` stands for all that clocks say."""
    rounds = []
    for number in (1, 2):
        row = {"role": "subnet", "macs": 7, "loss": 2.0, "accuracy": 0.5, "seconds": seconds}
        clients = [{"client": name, **row} for name in ("client-00", "client-01")]
        told = {"round": number, "alive": ["1.1"], "tests": [{"network": "1.1", "accuracy": 0.5}], "seconds": seconds}
        event = {"round": number, "loss": 2.0, "seconds": seconds, "bytes_up": 9, "search": told}
        rounds.append(event | {"clients": clients, "failures": [], "evaluation": None})
    model = {"device": "phone", "test_accuracy": 0.5, "latency_ms": seconds, "path": str(path)}
    result = {"run": path.name, "versions": {"fednas": str(seconds)}, "seconds": {"total": seconds}}
    for folder in ("checkpoint", "models/phone"):
        (path / folder).mkdir(parents=True)
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in rounds))
    (path / "result.json").write_text(json.dumps(result | {"client_macs": 28, "models": [model], "clients": []}))
    (path / "frontier.json").write_text(json.dumps([{"macs": 7, "latency_ms": seconds}]))
    save_file({"stem.weight": np.arange(3, dtype=np.float32)}, path / f"checkpoint/supernet-{int(seconds)}.safetensors")
    save_file({"stem.weight": np.ones(3, dtype=np.float32)}, path / "models/phone/weights.safetensors")
    return path


def in_events(before: str, now: str) -> Callable[[Path], None]:
    """Return what changes the second round of a run's folder."""

    def change(run: Path) -> None:
        first, second = (run / "events.jsonl").read_text().splitlines()
        assert before in second
        (run / "events.jsonl").write_text(f"{first}\n{second.replace(before, now, 1)}\n")

    return change


def in_tensors(run: Path) -> None:
    (file,) = run.glob("checkpoint/*")
    save_file({"stem.weight": np.array([0, 1, np.nextafter(np.float32(2), 3)], dtype=np.float32)}, file)


def in_models(run: Path) -> None:
    save_file({"stem.bias": np.ones(3, dtype=np.float32)}, run / "models/phone/weights.safetensors")


def in_result(run: Path) -> None:
    (run / "frontier.json").write_text("[]")


def test_every_pair_is_in_a_case_or_refused(numbers: Any) -> None:
    cases = numbers.covering()
    covered = {pair for case in cases for pair in combinations(case.items(), 2)}
    assert covered == set(numbers.pairs())
    assert not any(map(numbers.refused, cases)) and all(map(numbers.refused, numbers.refusals()))
    whole = [(factor, value) for factor, values in numbers.FACTORS.items() for value in values]
    left = {pair for pair in combinations(whole, 2) if pair[0][0] != pair[1][0]} - covered
    assert left == {pair for pair in left if numbers.refused(dict(pair))}


def test_the_cases_are_those_of_the_file(numbers: Any) -> None:
    names = [numbers.name_of(case) for case in [*numbers.covering(), *numbers.refusals()]]
    assert len(set(names)) == len(names)
    assert list(json.loads(numbers.FILE.read_text())["cases"]) == names


def test_clocks_names_and_places_are_not_projected(numbers: Any, tmp_path: Path) -> None:
    one, other = (numbers.projection(run_of(tmp_path / name, seconds)) for name, seconds in (("a", 1.0), ("b", 2.0)))
    assert one == other
    assert not {"seconds", "latency", str(tmp_path), "versions"} & set(json.dumps(one).split('"'))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (in_events('"macs": 7', '"macs": 8'), "orders from round 2"),
        (in_events('"failures": []', '"failures": [{"client": "client-02", "reason": "gone"}]'), "orders from round 2"),
        (in_events('"accuracy": 0.5, "seconds"', '"accuracy": 0.25, "seconds"'), "figures from round 2"),
        (in_events('"loss": 2.0', '"loss": 2.0000000000000004'), "figures from round 2"),
        (in_events('"evaluation": null', '"evaluation": []'), "figures from round 2"),
        (in_events('"alive": ["1.1"]', '"alive": []'), "search"),
        (in_tensors, "weights"),
        (in_models, "weights"),
        (in_result, "results"),
    ],
)
def test_a_change_is_named_by_its_part(numbers: Any, tmp_path: Path, change: Callable[[Path], None], part: str) -> None:
    run = run_of(tmp_path / "run")
    before = numbers.line_of(numbers.projection(run))
    change(run)
    case = numbers.covering()[0]
    assert numbers.difference(case, before, before) == ""
    assert numbers.difference(case, before, numbers.line_of(numbers.projection(run))) == f"OTHER {part}"


def test_what_is_refused_or_missing_is_told(numbers: Any) -> None:
    case, never = numbers.covering()[0], numbers.refusals()[0]
    line = dict.fromkeys(numbers.PARTS, "0")
    assert numbers.difference(never, {"refused": "one"}, {"refused": "other words"}) == ""
    assert numbers.difference(case, line, {"refused": "no"}) == "REFUSED: no"
    assert numbers.difference(never, {"refused": "no"}, line).startswith("CARRIED OUT")
    assert numbers.difference(case, line, {"failed": "why"}) == "FAILED: why"
    assert numbers.difference(case, None, line) == "NOT RECORDED"


def test_a_case_is_as_recorded(numbers: Any) -> None:
    name = next(name for name in json.loads(numbers.FILE.read_text())["cases"] if CASE in name)
    command = [sys.executable, str(numbers.HERE / "same_numbers.py"), "--only", name, "--processes", "1"]
    lived = subprocess.run(command, capture_output=True, text=True, check=False)
    if lived.returncode == 2:
        pytest.skip(lived.stdout)
    assert lived.returncode == 0, lived.stdout + lived.stderr
