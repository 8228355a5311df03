from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contracts.mobile import toy_mobile
from contracts.samples import toy_space
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.search.sized import sized
from fednas_core.spaces.registry import load

SPACES = [toy_space(widths=(0.5, 1.0, 1.5), expansions=(0.25, 0.5, 1.0)), toy_mobile(), load("small")]


def params(space: Any, arch: Any) -> int:
    return int(space.cost(arch).params)


@given(st.sampled_from(SPACES), st.floats(0.01, 1.0), st.floats(0.05, 1.2), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_neither_size_nor_limit_is_ever_exceeded(space: Any, share: float, allowed: float, seed: int) -> None:
    most = space.cost(space.largest)
    limit = Allowance(Budget("d", macs=allowed * most.macs), space)
    high = share * most.params
    found = sized(space, 0.75 * high, high, limit, np.random.default_rng(seed))
    smallest_fits = params(space, space.smallest) <= high and limit.allows(space.smallest)
    assert (found is not None) == smallest_fits
    if found is not None:
        assert params(space, found) <= high and limit.allows(found)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.97])
def test_the_size_is_met_where_there_are_such_networks(share: float) -> None:
    space = load("small")
    high = share * params(space, space.largest)
    found = {sized(space, 0.75 * high, high, None, np.random.default_rng(seed)) for seed in range(30)}
    assert len(found) > 15
    assert all(arch is not None and 0.75 * high <= params(space, arch) <= high for arch in found)


def test_a_gap_in_the_sizes_ends_with_the_largest_below_it() -> None:
    """FedSup's space has nothing between 1.12 M and 2.2 M parameters."""
    space = load("fedsup").with_norm("parametric")
    for seed in range(5):
        found = sized(space, 1.4e6, 2.0e6, None, np.random.default_rng(seed))
        assert found is not None and 1.0e6 < params(space, found) < 1.4e6
