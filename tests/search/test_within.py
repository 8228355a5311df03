from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from contracts.samples import toy_space
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.search.within import within

SPACE = toy_space()
ARCHS = st.integers(0, 10_000).map(lambda seed: SPACE.sample(np.random.default_rng(seed)))


@settings(max_examples=150, deadline=None)
@given(arch=ARCHS, share=st.floats(0.0, 1.2), kind=st.sampled_from(["macs", "params", "bytes", "latency_ms"]))
def test_what_is_returned_keeps_the_limit_and_only_nothing_is_returned_if_nothing_fits(
    arch: Any, share: float, kind: str
) -> None:
    def figure(arch: Any) -> float:
        cost = SPACE.cost(arch)
        return cost.macs / 1e4 if kind == "latency_ms" else float(getattr(cost, kind))

    low, high = figure(SPACE.smallest), figure(SPACE.largest)
    limit = Allowance(Budget("d", **{kind: share * high}), SPACE, lambda arch: SPACE.cost(arch).macs / 1e4)
    found = within(SPACE, arch, limit)
    if share * high < low:
        assert found is None
    else:
        assert found is not None and figure(found) <= share * high
        assert (found == arch) == (figure(arch) <= share * high) or figure(found) <= figure(arch)
        assert all(a <= b for a, b in zip(SPACE.encode(found), SPACE.encode(arch), strict=True))


def test_the_result_is_not_needlessly_small() -> None:
    macs = SPACE.cost(SPACE.largest).macs
    found = within(SPACE, SPACE.largest, Allowance(Budget("d", macs=macs - 1), SPACE))
    assert found is not None and SPACE.cost(found).macs > 0.4 * macs


def test_no_limit_no_change() -> None:
    assert within(SPACE, SPACE.largest, None) == SPACE.largest
    assert within(SPACE, SPACE.largest, Allowance(Budget("d", macs=math.inf), SPACE)) == SPACE.largest


@pytest.mark.parametrize("device", ["d"])
def test_a_budget_says_what_it_limits(device: str) -> None:
    assert str(Budget(device, macs=2e6, latency_ms=20)) == "2 M MACs + 20 ms"
    assert str(Budget(device)) == "no limit"
