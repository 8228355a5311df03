from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from contracts.mobile import toy_mobile
from contracts.samples import toy_space

from fednas_core.base.errors import ConfigError, InfeasibleError
from fednas_core.search.exact import exact_search
from fednas_core.search.fittest import MacLimit, fitness_of, fittest, macs_of
from fednas_core.search.path import budgets, mac_matched, pareto_path, range_matched

MOBILE, RESNET = toy_mobile(), toy_space()


def test_where_fitness_has_a_closed_form_the_fittest_is_found() -> None:
    limits = budgets(RESNET, 6)
    assert fittest(RESNET, limits) == exact_search(RESNET, limits)
    archs = [RESNET.sample(np.random.default_rng(seed)) for seed in range(5)]
    rows = np.stack([RESNET.encode(arch) for arch in archs])
    assert macs_of(RESNET, rows).tolist() == [RESNET.cost(arch).macs for arch in archs]
    assert all(math.isfinite(value) for value in fitness_of(RESNET, archs))


def test_elsewhere_networks_form_a_ladder() -> None:
    limits = budgets(MOBILE, 8)
    assert limits[0] == MOBILE.cost(MOBILE.smallest).macs and limits[-1] == MOBILE.cost(MOBILE.largest).macs
    ladder = fittest(MOBILE, limits)
    costs = [MOBILE.cost(arch).macs for arch in ladder]
    assert all(cost <= limit for cost, limit in zip(costs, limits, strict=True))
    assert costs == sorted(costs) and ladder[0] == MOBILE.smallest and ladder[-1] == MOBILE.largest
    assert len(set(ladder)) > 5 and all(cost > 0.5 * limit for cost, limit in zip(costs, limits, strict=True))
    assert all(math.isnan(value) for value in fitness_of(MOBILE, ladder)) and fitness_of(MOBILE, []) == []


def test_a_budget_below_the_smallest_network_is_refused() -> None:
    with pytest.raises(InfeasibleError, match="budget of 10 MACs is below the smallest network of space 'toy'"):
        fittest(MOBILE, [10])


def test_any_space_has_a_path_and_its_controls() -> None:
    path = pareto_path(MOBILE, 7)
    assert [row.arch for row in path][-1] == MOBILE.largest and len(path) == 7
    assert [row.cost.macs for row in path] == sorted(row.cost.macs for row in path)
    rng = np.random.default_rng(1)
    low, high = path[1].cost.macs, path[-2].cost.macs
    assert low <= MOBILE.cost(range_matched(MOBILE, low, high, rng)).macs <= high
    target = path[3].cost.macs
    assert abs(MOBILE.cost(mac_matched(MOBILE, target, 0.2, rng)).macs - target) <= 0.2 * target


def test_a_limit_in_macs() -> None:
    most = MOBILE.cost(MOBILE.smallest).macs
    assert MacLimit(MOBILE, most).allows(MOBILE.smallest) and not MacLimit(MOBILE, most - 1).allows(MOBILE.smallest)


@pytest.mark.parametrize("space", [RESNET, MOBILE], ids=["resnet", "mobilenet"])
def test_parts_that_a_space_has_not_are_refused(space: Any) -> None:
    with pytest.raises(ConfigError, match="has no layer 'tail.3', allowed: stem"):
        space.with_personal(["head", "tail.3"])
