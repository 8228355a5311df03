from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fednas_core.base.errors import ArchError, ConfigError, InfeasibleError
from fednas_core.search.fitness import Fitness, evaluate
from fednas_core.search.path import (
    PathRow,
    budgets,
    from_csv,
    from_json,
    mac_matched,
    pareto_path,
    range_matched,
    rows_of,
    to_json,
)
from fednas_core.spaces.registry import load, names

CACHE = Path(__file__).parents[1] / "golden" / "deepfednas_cache_60.csv"
CIFAR = load("deepfednas-cifar")
LOW, HIGH = 458_969_088, 3_403_370_496


@pytest.fixture(scope="module")
def path() -> tuple[PathRow, ...]:
    return pareto_path(CIFAR)


def test_budgets_span_the_published_range() -> None:
    limits = budgets(CIFAR, 60)
    assert (limits[0], limits[-1], len(limits)) == (LOW, HIGH, 60)
    assert set(np.diff(limits)) <= {49_905_108, 49_905_109, 49_905_110, 49_905_111}
    assert budgets(load("superfednas-cifar"), 2) == (LOW, HIGH)
    assert budgets(CIFAR, 3, low=10, high=20) == (10, 15, 20)
    assert budgets(CIFAR, 1) == (HIGH,)


@pytest.mark.parametrize(("count", "low"), [(0, None), (5, HIGH + 1)])
def test_budgets_that_do_not_rise_are_refused(count: int, low: int | None) -> None:
    with pytest.raises(ConfigError, match="budgets"):
        budgets(CIFAR, count, low=low)


def test_path_rises_in_cost_and_fitness_to_the_largest(path: tuple[PathRow, ...]) -> None:
    assert len(path) == 60
    assert path[-1].arch == CIFAR.largest
    assert path[-1].fitness == pytest.approx(2430.433954)
    assert all(row.cost.macs <= limit for row, limit in zip(path, budgets(CIFAR, 60), strict=True))
    assert (np.diff([row.cost.macs for row in path]) > 0).all()
    assert (np.diff([row.fitness for row in path]) > 0).all()
    assert all(row.cost == CIFAR.cost(row.arch) for row in path)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("stratify", [False, True])
def test_every_preset_has_a_path(name: str, stratify: bool) -> None:
    space = load(name)
    path = pareto_path(space, 25, stratify=stratify)
    assert len(path) == 25
    assert path[-1].arch == space.largest
    assert list(path) == sorted(path, key=lambda row: row.cost.macs)
    assert path == pareto_path(space, 25, stratify=stratify)


def test_stratified_path_holds_every_depth_and_the_best_of_each() -> None:
    path = pareto_path(CIFAR, 30, stratify=True)
    depths = [row.arch["d"] for row in path]
    assert {d[0] for d in depths} == {0, 1, 2}
    assert all(len(set(d)) == 1 for d in depths)
    full = pareto_path(CIFAR, 30)
    assert all(a.fitness <= b.fitness + 1e-9 for a, b in zip(path[:-1], full[:-1], strict=True))
    assert len({row.arch for row in path}) == 30


def test_a_lower_end_of_ones_own() -> None:
    path = pareto_path(CIFAR, 10, low=8_000_000)
    assert path[0].cost.macs <= 8_000_000
    for stratify in (False, True):
        with pytest.raises(InfeasibleError, match="7,545,888"):
            pareto_path(CIFAR, 10, stratify=stratify, low=7_000_000)


@pytest.mark.parametrize("stratify", [False, True])
def test_evolved_path_is_feasible_and_at_most_the_exact_one(stratify: bool) -> None:
    space = load("small")
    exact = pareto_path(space, 2, stratify=stratify)
    evolved = pareto_path(space, 2, how="evolved", stratify=stratify, seed=5)
    assert evolved == pareto_path(space, 2, how="evolved", stratify=stratify, seed=5)
    assert all(row.cost.macs <= limit for row, limit in zip(evolved, budgets(space, 2), strict=True))
    assert all(a.fitness <= b.fitness + 1e-9 for a, b in zip(evolved, exact, strict=True))


def test_published_cache_reproduces_but_for_row_59() -> None:
    rows, wrong = from_csv(CIFAR, CACHE.read_text())
    assert len(rows) == 60
    assert wrong == (59,)
    assert rows[59].arch == CIFAR.largest
    with pytest.raises(ArchError, match="row 0"):
        from_csv(CIFAR, "macs,params,fitness_score,d,e,w_indices\n1,2,3,[0],[],[]\n")


def test_json_lines_round_trip(path: tuple[PathRow, ...]) -> None:
    text = to_json(path)
    assert len(text.splitlines()) == 60
    assert set(json.loads(text.splitlines()[0])) == {"arch", "macs", "params", "fitness"}
    assert from_json(CIFAR, text) == path
    assert rows_of(CIFAR, ()) == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        ('{"arch": {"d": [0]}, "macs": 1, "params": 1, "fitness": 1}', "line 2.*needed are d, e and w"),
    ],
)
def test_malformed_lines_are_refused(path: tuple[PathRow, ...], line: str, message: str) -> None:
    with pytest.raises(ArchError, match=message):
        from_json(CIFAR, to_json(path[:1]) + line + "\n")


def test_lines_that_state_other_costs_are_refused(path: tuple[PathRow, ...]) -> None:
    text = to_json(path[-1:]).replace("3403370496", "3365621760")
    with pytest.raises(ArchError, match="line 1: states 3,365,621,760 MACs"):
        from_json(CIFAR, text)


def test_range_matched_stays_in_the_range() -> None:
    rng = np.random.default_rng(0)
    macs = [CIFAR.cost(range_matched(CIFAR, LOW, HIGH, rng)).macs for _ in range(200)]
    assert min(macs) >= LOW
    assert max(macs) <= HIGH
    assert 700e6 < np.mean(macs) < 870e6
    assert range_matched(CIFAR, LOW, HIGH, np.random.default_rng(1)) == range_matched(
        CIFAR, LOW, HIGH, np.random.default_rng(1)
    )


def test_range_matched_ends_where_nothing_is_in_range() -> None:
    with pytest.raises(InfeasibleError, match="3,403,370,497 to 4,000,000,000 MACs"):
        range_matched(CIFAR, HIGH + 1, 4_000_000_000, np.random.default_rng(0))


def test_mac_matched_meets_every_target_of_the_path(path: tuple[PathRow, ...]) -> None:
    rng = np.random.default_rng(2)
    found = [CIFAR.cost(mac_matched(CIFAR, row.cost.macs, 0.05, rng)).macs for row in path]
    assert max(abs(macs / row.cost.macs - 1) for macs, row in zip(found, path, strict=True)) <= 0.05
    archs = {mac_matched(CIFAR, LOW, 0.05, rng) for _ in range(20)}
    assert len(archs) == 20


def test_mac_matched_ends_at_the_nearest_where_the_target_is_out_of_reach() -> None:
    rng = np.random.default_rng(3)
    assert mac_matched(CIFAR, 10**10, 0.01, rng) == CIFAR.largest
    small = load("small")
    arch = mac_matched(small, 1, 0.01, rng)
    assert evaluate(small, small.encode(arch)[None]).macs[0] == small.cost(small.smallest).macs


def test_fitness_constants_reach_the_rows() -> None:
    rows = pareto_path(CIFAR, 2, Fitness(lam=100.0))
    assert rows[-1].fitness == pytest.approx(2415.665833)
