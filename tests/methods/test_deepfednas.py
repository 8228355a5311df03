from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fednas_core.base.config import SampleConfig
from fednas_core.devices.info import ClientInfo
from fednas_core.methods.deepfednas import MATCH_TOLERANCE, curriculum
from fednas_core.methods.fedavg import Assignment
from fednas_core.search.fitness import Fitness
from fednas_core.search.path import PathRow, pareto_path
from fednas_core.spaces.registry import load

SPACE = load("small")
PATH = pareto_path(SPACE, 12, Fitness(lam=0.0))
CLIENTS = [ClientInfo(f"client-{i:02d}", 10) for i in range(6)]


def drawn(config: SampleConfig, rounds: int = 40, path: tuple[PathRow, ...] = PATH) -> Iterator[Assignment]:
    sampler, rng = curriculum(SPACE, path, config), np.random.default_rng(8)
    for _ in range(rounds):
        yield from sampler.assign(0, CLIENTS, rng).values()


def by_role(config: SampleConfig, role: str) -> list[int]:
    return [SPACE.cost(a.arch).macs for a in drawn(config) if a.role == role]


@pytest.mark.parametrize("between", ["auto", "path"])
def test_every_draw_is_a_row_of_the_path(between: str) -> None:
    on_path = {row.arch for row in PATH}
    found = list(drawn(SampleConfig(between=between)))
    assert {a.arch for a in found} <= on_path
    assert {a.arch for a in found if a.role == "smallest"} == {PATH[0].arch}
    assert {a.arch for a in found if a.role == "largest"} == {SPACE.largest}
    assert len({a.arch for a in found}) >= len(on_path) - 1


def test_rows_are_drawn_uniformly() -> None:
    archs = [a.arch for a in drawn(SampleConfig(), rounds=400)]
    middle = [row.arch for row in PATH if row.arch not in (PATH[0].arch, PATH[-1].arch)]
    expected = 400 * 4 / len(PATH)
    for arch in set(middle):
        times = middle.count(arch)
        assert 0.7 * expected * times < archs.count(arch) < 1.3 * expected * times


def test_range_matched_stays_within_the_range_of_the_path() -> None:
    low, high = PATH[0].cost.macs, PATH[-1].cost.macs
    macs = by_role(SampleConfig(between="range-matched"), "between")
    assert macs and all(low <= value <= high for value in macs)
    on_path = {row.arch for row in PATH}
    archs = {a.arch for a in drawn(SampleConfig(between="range-matched")) if a.role == "between"}
    assert len(archs) > 50 and len(archs & on_path) < 5


def test_mac_matched_costs_what_the_path_costs() -> None:
    targets = np.array([row.cost.macs for row in PATH])
    macs = by_role(SampleConfig(between="mac-matched"), "between")
    for value in macs:
        assert (np.abs(targets - value) <= MATCH_TOLERANCE * targets).any()
    assert np.mean(macs) == pytest.approx(targets.mean(), rel=0.1)


@pytest.mark.parametrize("between", ["range-matched", "mac-matched"])
def test_the_smallest_of_a_matched_control_is_matched_too(between: str) -> None:
    target = PATH[0].cost.macs
    macs = by_role(SampleConfig(between=between), "smallest")
    assert all(abs(value - target) <= MATCH_TOLERANCE * target for value in macs)


def test_the_uniform_control_is_superfednas() -> None:
    found = list(drawn(SampleConfig(between="uniform")))
    assert {a.arch for a in found if a.role == "smallest"} == {SPACE.smallest}
    assert {a.arch for a in found if a.role == "largest"} == {SPACE.largest}
    assert any(SPACE.cost(a.arch).macs < PATH[0].cost.macs for a in found if a.role == "between")


@pytest.mark.parametrize(("share", "low", "high"), [(0.5, 0.35, 0.65), (1.0, 0.9, 1.0), (0.2, 0.1, 0.32)])
def test_a_share_of_range_matched_draws(share: float, low: float, high: float) -> None:
    on_path = {row.arch for row in PATH}
    between = [a.arch for a in drawn(SampleConfig(range_share=share), rounds=80) if a.role == "between"]
    assert low <= sum(arch not in on_path for arch in between) / len(between) <= high


def test_a_stratified_path_trains_shallow_networks() -> None:
    path = pareto_path(SPACE, 12, Fitness(lam=0.0), stratify=True)
    depths = {a.arch["d"] for a in drawn(SampleConfig(), path=path)}
    assert len(depths) > 1 and (0, 0, 0) in depths and (1, 1, 1) in depths


@pytest.mark.parametrize("between", ["auto", "uniform", "range-matched", "mac-matched"])
def test_draws_depend_on_the_generator_alone(between: str) -> None:
    config = SampleConfig(between=between)
    assert list(drawn(config, rounds=5)) == list(drawn(config, rounds=5))
