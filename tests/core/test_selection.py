from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import InfeasibleError
from fednas_core.base.settings import flatten, read
from fednas_core.base.values import Arch
from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.engine.evaluation import (
    FRONTIER_ROWS,
    Judge,
    Judged,
    best_within,
    candidates,
    frontier,
    judge_all,
    measured,
    preference,
    prepared,
    trained_archs,
)
from fednas_core.methods.registry import path_of
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import subnets_of
from fednas_core.tasks.bench import dataset_of, preprocessing_of, space_of, validation_images
from fednas_core.training.evaluate import Evaluation, evaluate


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read({**tiny_pairs, "sample.budgets": 60})


def judged(macs: int, accuracy: float, loss: float = 1.0) -> Judged:
    return Judged(space_of(read({})).smallest, macs, macs, macs, 0.0, accuracy, loss)


def test_candidates_fit_every_budget_and_span_the_path(config: RunConfig) -> None:
    space = space_of(config)
    low, high = (space.cost(arch).macs for arch in (space.smallest, space.largest))
    path = path_of(config, space, low)
    budgets = [Budget("watch", macs=low), Budget("phone", macs=high // 3), Budget("server", macs=high)]
    found = candidates(config, [Allowance(budget, space) for budget in budgets], path)
    macs = [space.cost(arch).macs for arch in found]
    assert macs == sorted(macs) and len(set(found)) == len(found)
    assert space.smallest in found and space.largest in found and path[0].arch in found
    for budget in budgets:
        assert any(value <= budget.macs for value in macs)
    assert len(found) <= FRONTIER_ROWS * 2 + 1 + 4 * len(budgets)


def test_a_budget_that_nothing_meets_names_the_device(config: RunConfig) -> None:
    path = path_of(config, space_of(config), 10)
    with pytest.raises(InfeasibleError, match="device 'watch': .* at most 10 MACs; the cheapest has"):
        candidates(config, [Allowance(Budget("watch", macs=10), space_of(config))], path)


@pytest.mark.parametrize("kind", ["params", "bytes", "latency_ms"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_device_limited_otherwise_has_the_fittest_network_that_fits(
    config: RunConfig, kind: str, share: float
) -> None:
    space = space_of(config)

    def figure(arch: Arch) -> float:
        return space.cost(arch).macs / 1e5 if kind == "latency_ms" else float(getattr(space.cost(arch), kind))

    most = max(figure(space.smallest), share * figure(space.largest))
    allowance = Allowance(Budget("d", **{kind: most}), space, figure)
    found = candidates(config, [allowance], path_of(config, space, 10))
    fitting = [arch for arch in found if allowance.allows(arch)]
    assert fitting and max(map(figure, fitting)) >= 0.4 * most
    with pytest.raises(InfeasibleError, match="device 'd': nothing in space .* keeps its budget of"):
        candidates(config, [Allowance(Budget("d", **{kind: 0.01}), space, figure)], path_of(config, space, 10))


def test_of_equally_accurate_networks_the_cheaper_is_chosen() -> None:
    """The first two are what a run of the default job judged for the phone: 139 of 144 images right by each."""
    accuracy = 139 / 144
    dear, cheap = judged(953_792, accuracy, 0.1), judged(697_792, accuracy, 0.2)
    worse, fat = judged(500_000, 0.96, 0.1), replace(cheap, params=cheap.params + 1, validation_loss=0.1)
    assert best_within([worse, dear, fat, cheap], lambda arch: True) is cheap
    assert sorted([worse, dear, fat, cheap], key=preference) == [cheap, fat, dear, worse]
    mean = replace(dear, validation_accuracy=statistics.fmean([1 / 3, 2 / 3, 0.1, 0.2]) + 1e-16)
    other = replace(cheap, validation_accuracy=statistics.fmean([0.2, 2 / 3, 1 / 3, 0.1]))
    assert best_within([mean, other], lambda arch: True) is other, "means are equal but for rounding"
    assert [row["on_frontier"] for row in frontier([fat, cheap, dear])] == [True, False, False]
    assert frontier([fat, cheap])[0]["params"] == cheap.params


def test_of_equals_at_equal_cost_that_of_least_loss_is_chosen() -> None:
    space = space_of(read({}))
    archs = [space.decode(space.encode(space.largest) - i) for i in (1, 0)] + [space.smallest]
    rows = [replace(judged(10, 0.9, loss), arch=arch) for arch, loss in zip(archs, (0.5, 0.4, 0.9), strict=True)]
    rows.append(judged(10, 0.95))
    assert best_within(rows, lambda arch: arch in archs[:2]) is rows[1]
    assert best_within(rows, lambda arch: arch == archs[0]) is rows[0]
    assert best_within(rows, lambda arch: True) is rows[3]
    assert best_within(rows, lambda arch: False) is None and best_within([], lambda arch: True) is None


def test_the_frontier_marks_what_nothing_cheaper_reaches() -> None:
    rows = frontier([judged(30, 0.7), judged(10, 0.5), judged(20, 0.5), judged(10, 0.6), judged(40, 0.9)])
    assert [(row["macs"], row["validation_accuracy"], row["on_frontier"]) for row in rows] == [
        (10, 0.6, True), (10, 0.5, False), (20, 0.5, False), (30, 0.7, True), (40, 0.9, True),
    ]  # fmt: skip
    assert set(rows[0]) >= {"arch", "macs", "params", "bytes", "fitness", "validation_accuracy"}


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_the_judge_evaluates_the_extracted_network(tiny_pairs: dict[str, Any], norm: str) -> None:
    config = read({**tiny_pairs, "space.norm": norm})
    space = space_of(config)
    supernet = initial_weights(space, 1)
    judge = Judge(config, subnets_of(space_of(config), supernet))
    found = judge.validate(space.smallest)
    assert found.images == len(validation_images(config).y) == 20
    module = judge.network(space.smallest)
    batches = prepared(validation_images(config), preprocessing_of(config))
    assert evaluate(module, batches) == found
    assert judge.test(space.smallest).images == len(dataset_of(config).test.y) == 359
    assert judge.macs(space.smallest) == space.cost(space.smallest).macs


def test_the_judge_follows_the_supernet(config: RunConfig) -> None:
    space = space_of(config)
    supernet = initial_weights(space, 1)
    judge = Judge(config, subnets_of(space_of(config), supernet))
    before = judge.validate(space.largest)
    supernet["head.bias"].copy_(torch.arange(10.0) * 5)
    after = judge.validate(space.largest)
    assert after.loss > before.loss
    rows = judge_all(config, judge, [space.smallest, space.largest])
    assert rows[1].validation_accuracy == after.accuracy
    cost = space.cost(space.largest)
    assert (rows[1].macs, rows[1].params, rows[1].bytes) == (cost.macs, cost.params, cost.bytes)


def test_each_distinct_limit_has_one_search_and_each_network_one_measurement(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read({**flatten(config), "search.population": 6, "search.generations": 2, "search.images": 10})
    space = space_of(config)
    judge = Judge(config, subnets_of(space, initial_weights(space, 1)))
    asked: list[Arch] = []

    def validate(arch: Arch, most: int | None = None) -> Evaluation:
        asked.append(arch)
        found = Judge.validate(judge, arch, most)
        assert found.images == 10
        return found

    monkeypatch.setattr(judge, "validate", validate)
    monkeypatch.setattr(judge, "test", None)  # the test set is not for choosing
    half = space.cost(space.largest).macs // 2
    limits = [Allowance(Budget(name, macs=macs), space) for name, macs in [("a", half), ("b", half), ("c", 10**12)]]
    found = measured(config, judge, limits)
    assert len(asked) == len(set(asked)) <= 2 * 6 * 3
    assert set(found) <= set(asked) and [space.cost(a).macs for a in found] == sorted(space.cost(a).macs for a in found)
    assert any(limits[0].allows(arch) for arch in found)
    asked.clear()
    assert measured(config, judge, limits) == found and asked
    assert measured(config, judge, limits[:1]) == tuple(a for a in measured(config, judge, limits[1:2]))
    with pytest.raises(InfeasibleError, match="device 'watch': nothing in space .* keeps its budget"):
        measured(config, judge, [Allowance(Budget("watch", macs=10), space)])


def test_what_the_search_leaves_is_at_least_as_accurate_as_its_first_generation(config: RunConfig) -> None:
    config = read({**flatten(config), "search.population": 6, "search.generations": 3, "search.images": 0})
    space = space_of(config)
    judge = Judge(config, subnets_of(space, initial_weights(space, 1)))
    limit = Allowance(Budget("any", params=space.cost(space.largest).params * 0.8), space)
    first = read({**flatten(config), "search.generations": 1})
    best, early = (
        best_within(judge_all(of, judge, measured(of, judge, [limit])), limit.allows) for of in (config, first)
    )
    assert best and early and best.validation_accuracy >= early.validation_accuracy


def test_only_fedavg_is_bound_to_one_network(config: RunConfig) -> None:
    space = space_of(config)
    assert trained_archs(config, space) is None
    assert trained_archs(read({"method": "fedavg"}), space) == (space.largest,)


def test_images_are_prepared_in_batches(config: RunConfig) -> None:
    batches = list(prepared(dataset_of(config).test, preprocessing_of(config)))
    assert sum(len(y) for _, y in batches) == 359 and all(len(x) == len(y) <= 32 for x, y in batches)
    assert batches[0][0].dtype == torch.float32
