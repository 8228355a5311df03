from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contracts.mobile import toy_mobile
from contracts.samples import toy_space
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.search.mnas import Child, children, score

SPACE = toy_space()
MOBILE = toy_mobile()


def anything(arch: Any) -> bool:
    return True


def some(space: Any, seed: int, count: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return list(dict.fromkeys(space.sample(rng) for _ in range(count)))


def test_score_as_published() -> None:
    assert score(0.8, 2e6, 2e6) == pytest.approx(0.8)
    assert score(0.8, 4e6, 2e6) == pytest.approx(0.8 * 2**-0.07)
    assert score(0.8, 1e6, 2e6) == pytest.approx(0.8 * 2**0.07)
    assert score(0.8, 4e6, 2e6, w=-1.0) == pytest.approx(0.4)
    assert score(0.5, 2.0, 1.0) / 0.5 == pytest.approx(0.9526, abs=1e-4)  # 5 % for twice the latency


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), members=st.integers(0, 12), share=st.floats(0.2, 1.0))
def test_children_are_new_distinct_fit_and_have_parents_of_the_population(
    seed: int, members: int, share: float
) -> None:
    archs = some(MOBILE, seed, members)
    population = [(arch, float(i)) for i, arch in enumerate(archs)]
    most = share * MOBILE.cost(MOBILE.largest).macs

    def fits(arch: Any) -> bool:
        return MOBILE.cost(arch).macs <= most

    found = children(MOBILE, population, 8, np.random.default_rng(seed), fits, archs)
    assert len({child.arch for child in found}) == len(found) == 8
    for child in found:
        assert fits(child.arch) and child.arch not in archs
        assert MOBILE.arch(child.arch.to_json()) == child.arch
        assert (child.parent is None) == (not archs) and (child.parent is None or child.parent in archs)


def test_the_same_generator_has_the_same_children() -> None:
    population = [(arch, 1.0) for arch in some(MOBILE, 3, 5)]

    def born(seed: int) -> tuple[Child, ...]:
        return children(MOBILE, population, 5, np.random.default_rng(seed), anything, ())

    assert born(1) == born(1) != born(2)


def test_the_best_have_most_children() -> None:
    archs = some(MOBILE, 5, 20)
    population = [(arch, float(i)) for i, arch in enumerate(archs)]
    found = children(MOBILE, population, 200, np.random.default_rng(0), anything, archs)
    ranks = [archs.index(child.parent) for child in found if child.parent is not None]
    assert len(ranks) == 200 and np.mean(ranks) > 0.65 * (len(archs) - 1)  # random parents: half, tournaments: 3/4


def test_an_exhausted_space_ends_the_search() -> None:
    everything = {SPACE.decode(row) for row in np.ndindex(*SPACE.gene_choices)}
    rng = np.random.default_rng(0)
    assert children(SPACE, [(SPACE.largest, 1.0)], 3, rng, anything, everything) == ()
    left = set(some(SPACE, 1, 2))
    found = children(SPACE, [(SPACE.largest, 1.0)], 5, rng, anything, everything - left)
    assert {child.arch for child in found} <= left
    assert children(SPACE, [], 4, rng, lambda arch: False, ()) == ()
    assert children(SPACE, [], 4, rng, lambda arch: arch == SPACE.smallest, ()) == (Child(SPACE.smallest, None),)
    assert children(SPACE, [], 0, rng, anything, ()) == ()


def test_evolution_beats_random_search_at_equal_evaluations() -> None:
    target = MOBILE.sample(np.random.default_rng(99))

    def worth(arch: Any) -> float:
        return -float(np.abs(MOBILE.encode(arch) - MOBILE.encode(target)).sum())

    def best(seed: int, evolve: bool) -> float:
        rng = np.random.default_rng(seed)
        judged: list[tuple[Any, float]] = []
        for _ in range(10):
            parents = judged[-20:] if evolve else []
            born = children(MOBILE, parents, 10, rng, anything, [arch for arch, _ in judged])
            judged += [(child.arch, worth(child.arch)) for child in born]
        return max(one for _, one in judged)

    assert sum(best(seed, True) for seed in range(5)) > sum(best(seed, False) for seed in range(5))
