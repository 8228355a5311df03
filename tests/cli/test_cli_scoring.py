"""score, search and path: golden values, limits that cannot be met, and input that makes no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import fednas_core.cli.scoring
from fednas_core.cli import app
from fednas_core.spaces.registry import load

GOLDEN = Path(__file__).parents[1] / "golden" / "deepfednas_golden.json"
SPACE = "deepfednas-cifar"


def fednas(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("lam", [1000, 100])
def test_scores_of_the_golden_architectures(tmp_path: Path, lam: int) -> None:
    golden = json.loads(GOLDEN.read_text())
    file = tmp_path / "archs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in golden) + "\n")
    result = fednas("score", "--space", SPACE, "--archs", str(file), "--lambda", str(lam), "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert [row["name"] for row in found] == [row["name"] for row in golden]
    for row, wanted in zip(found, golden, strict=True):
        assert (row["macs"], row["params"]) == (wanted["macs"], wanted["params"])
        assert row["rho"] == pytest.approx(wanted["rho"], abs=1e-6)
        assert row["entropy"] == pytest.approx(wanted["entropy"], abs=1e-6)
        assert row["fitness"] == pytest.approx(wanted[f"fitness_lambda{lam}"], abs=1e-6)


def test_score_of_one_architecture_is_one_object() -> None:
    smallest = str(load(SPACE).smallest)
    row = json.loads(fednas("score", "--space", SPACE, "--arch", smallest, "--json").stdout)
    assert row["macs"] == 7_545_888 and row["arch"] == json.loads(smallest)
    assert "7.55 M" in fednas("score", "--space", SPACE, "--arch", smallest).stdout
    without = fednas("score", "--space", SPACE, "--arch", smallest, "--norm", "none", "--json")
    assert json.loads(without.stdout)["params"] < row["params"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "needs d, e and w"),
        ('{"d": [0, 0, 0, 0]}', "needs d, e and w"),
        ('{"d": [0, 0, 0, 9], "e": [], "w": []}', "gene d[3]"),
    ],
)
def test_bad_architectures_are_named_with_their_line(tmp_path: Path, text: str, told: str) -> None:
    good = str(load(SPACE).smallest)
    file = tmp_path / "archs.jsonl"
    file.write_text(f"{good}\n\n{text}\n")
    result = fednas("score", "--space", SPACE, "--archs", str(file), "--json")
    assert result.exit_code == 2
    assert told in result.stderr and "line 3" in result.stderr and "Traceback" not in result.output
    assert told in json.loads(result.stdout)["error"]
    assert told in fednas("score", "--space", SPACE, "--arch", text).stderr


def test_score_needs_one_source_of_architectures(tmp_path: Path) -> None:
    assert "--arch JSON or --archs" in fednas("score", "--space", SPACE).stderr
    assert "cannot be read" in fednas("score", "--space", SPACE, "--archs", str(tmp_path / "none")).stderr
    assert "no such search space" in fednas("score", "--space", "nonsense", "--arch", "{}").stderr


@pytest.mark.parametrize(("limit", "cost", "most"), [("500M", "macs", 500e6), ("10%", "params", 7_172_653)])
def test_one_limit_is_searched_exactly(limit: str, cost: str, most: float) -> None:
    row = json.loads(fednas("search", "--space", SPACE, f"--max-{cost}", limit, "--json").stdout)
    assert row["how"] == "exact" and 0.9 * most < row[cost] <= most
    assert row["macs"] == load(SPACE).cost(load(SPACE).arch(row["arch"])).macs


def test_two_limits_are_searched_by_evolution() -> None:
    pytest.importorskip("pymoo")
    arguments = ("search", "--space", "small", "--max-macs", "1M", "--max-params", "0.1M", "--json")
    row = json.loads(fednas(*arguments).stdout)
    assert row["how"] == "evolved" and row["macs"] <= 1e6 and row["params"] <= 1e5


def test_measured_latency_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymoo")
    monkeypatch.setattr(fednas_core.cli.scoring, "TIMED_POPULATION", (4, 1))
    result = fednas("search", "--space", "small", "--max-latency-ms", "1000", "--json")
    row = json.loads(result.stdout)
    assert 0 < row["latency_ms"] <= 1000 and "timing" in result.stderr
    refused = fednas("search", "--space", "small", "--max-latency-ms", "1e-9", "--json")
    assert refused.exit_code == 2 and json.loads(refused.stdout)["nearest"]["latency_ms"] > 0


def test_a_limit_that_cannot_be_met_names_the_nearest() -> None:
    result = fednas("search", "--space", SPACE, "--max-macs", "1M", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 2
    assert "7,545,888" in told["error"] and told["nearest"]["macs"] == 7_545_888
    assert "7,545,888" in result.stderr and "Traceback" not in result.output


def test_search_needs_a_limit() -> None:
    result = fednas("search", "--space", SPACE)
    assert result.exit_code == 2 and "at least one limit" in result.stderr
    assert fednas("search", "--space", SPACE, "--max-macs", "much").exit_code == 2


def test_path_has_a_row_for_each_budget() -> None:
    rows = json.loads(fednas("path", "--space", SPACE, "--budgets", "6", "--json").stdout)
    assert len(rows) == 6 and [row["macs"] for row in rows] == sorted(row["macs"] for row in rows)
    assert rows[-1]["macs"] == 3_403_370_496 and set(rows[0]) == {"macs", "params", "fitness", "arch"}
    space = load(SPACE)
    assert [space.cost(space.arch(row["arch"])).params for row in rows] == [row["params"] for row in rows]


def test_path_can_begin_lower_and_spread_over_depths() -> None:
    arguments = ("path", "--space", "small", "--budgets", "4", "--low", "10%", "--stratify", "--json")
    low = json.loads(fednas(*arguments).stdout)
    assert low[0]["macs"] <= 630_196 and len({tuple(row["arch"]["d"]) for row in low}) > 1
    assert fednas("path", "--space", "small", "--how", "guessed").exit_code == 2
    assert '{"d":' in fednas("path", "--space", "small", "--budgets", "2").stdout
