from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.search.groups import groups
from fednas_core.subnets.weightings import credible


def cohort(clients: int, alpha: float, seed: int, classes: int = 10) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Sizes and label histograms as a Dirichlet partition of each class has them."""
    shares = np.random.default_rng(seed).dirichlet([alpha] * clients, classes).T
    histograms = (shares * 50 * clients).astype(int)
    histograms[histograms.sum(1) == 0, 0] = 1
    labels = {f"c{i:04}": row.tolist() for i, row in enumerate(histograms)}
    return {name: sum(row) for name, row in labels.items()}, labels


def imbalance(dealt: Sequence[Sequence[str]], examples: Mapping[str, int]) -> float:
    sizes = credible(examples)
    totals = [sum(sizes[name] for name in group) for group in dealt]
    return max(totals) / min(totals)


def divergence(dealt: Sequence[Sequence[str]], labels: Mapping[str, Sequence[int]]) -> float:
    everyone = np.sum(list(labels.values()), axis=0)
    total = 0.0
    for group in dealt:
        mix = np.sum([labels[name] for name in group], axis=0)
        for p, q in zip(mix / mix.sum(), everyone / everyone.sum(), strict=True):
            total += p * math.log(p / q) if p > 0 else 0.0
    return total


@settings(max_examples=60, deadline=None)
@given(
    examples=st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 10**9), min_size=1, max_size=40),
    count=st.integers(1, 12),
    disclosed=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_groups_are_disjoint_cover_all_and_none_is_empty(
    examples: dict[str, int], count: int, disclosed: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = {name: rng.integers(0, 50, 4).tolist() for name in list(examples)[:disclosed]}
    if count > len(examples):
        with pytest.raises(ValueError, match="cannot make"):
            groups(examples, labels, count, rng)
        return
    dealt = groups(examples, labels, count, rng)
    assert len(dealt) == count and all(dealt)
    assert sorted(itertools.chain(*dealt)) == sorted(examples)
    assert all(list(group) == sorted(group) for group in dealt)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("clients", "count", "alpha"), [(100, 10, 0.3), (100, 10, 0.1), (20, 5, 0.3), (60, 12, 1.0)])
def test_groups_are_balanced_and_nearer_to_the_population_than_by_chance(
    clients: int, count: int, alpha: float, seed: int
) -> None:
    examples, labels = cohort(clients, alpha, seed)
    dealt = groups(examples, labels, count, np.random.default_rng(seed))
    assert imbalance(dealt, examples) <= 1.2
    rng = np.random.default_rng(seed)
    chance = [[list(examples)[i] for i in rng.permutation(clients)[g::count]] for g in range(count)]
    assert divergence(dealt, labels) < divergence(chance, labels)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), hidden=st.booleans())
def test_a_hundred_clients_of_dirichlet_sizes_are_balanced_whatever_they_disclose(seed: int, hidden: bool) -> None:
    examples, labels = cohort(100, 0.3, seed)
    dealt = groups(examples, {} if hidden else labels, 10, np.random.default_rng(seed))
    assert imbalance(dealt, examples) <= 1.2


def test_label_mix_is_far_better_than_by_chance() -> None:
    ours, chance = 0.0, 0.0
    for seed in range(5):
        examples, labels = cohort(100, 0.3, seed)
        rng = np.random.default_rng(seed)
        ours += divergence(groups(examples, labels, 10, rng), labels)
        chance += divergence([[list(examples)[i] for i in rng.permutation(100)[g::10]] for g in range(10)], labels)
    assert ours < 0.3 * chance


def test_two_kinds_of_clients_are_mixed() -> None:
    examples = {f"c{i}": 100 for i in range(8)}
    labels = {name: [100, 0] if i % 2 else [0, 100] for i, name in enumerate(examples)}
    for seed in range(5):
        dealt = groups(examples, labels, 4, np.random.default_rng(seed))
        assert all(sum(labels[name][0] for name in group) == 100 for group in dealt)


def test_other_draws_make_other_groups_even_if_all_sizes_differ() -> None:
    examples = {f"c{i:02}": 100 + 7 * i for i in range(30)}
    drawn = [groups(examples, {}, 5, np.random.default_rng(seed)) for seed in range(8)]
    assert len({frozenset(map(frozenset, dealt)) for dealt in drawn}) == 8
    met = {name: {g for dealt in drawn for g, group in enumerate(dealt) if name in group} for name in examples}
    assert all(len(candidates) > 1 for candidates in met.values())


def test_the_same_draw_makes_the_same_groups_in_whatever_order_clients_come() -> None:
    examples, labels = cohort(40, 0.5, 3)
    backwards = dict(reversed(examples.items()))
    first = groups(examples, labels, 6, np.random.default_rng(1))
    assert first == groups(backwards, labels, 6, np.random.default_rng(1))


def test_a_claim_of_a_huge_size_does_not_empty_the_other_groups() -> None:
    examples = {f"c{i:02}": 100 for i in range(40)} | {"liar": 10**12}
    dealt = groups(examples, {}, 4, np.random.default_rng(0))
    liars = next(group for group in dealt if "liar" in group)
    assert len(liars) > 1 and imbalance(dealt, examples) <= 1.2


def test_clients_serve_only_candidates_that_their_devices_allow() -> None:
    examples, labels = cohort(60, 0.5, 1)
    weak, useless = set(list(examples)[:30]), set(list(examples)[55:])

    def allowed(name: str, group: int) -> bool:
        return name not in useless and (group < 3 or name not in weak)

    dealt = groups(examples, labels, 6, np.random.default_rng(0), allowed)
    assert sorted(itertools.chain(*dealt)) == sorted(set(examples) - useless)
    assert all(allowed(name, g) for g, group in enumerate(dealt) for name in group)
    assert imbalance(dealt, examples) <= 1.2


def test_a_group_is_empty_only_if_nobody_can_fill_it() -> None:
    chain = {"a": {0, 1}, "b": {1, 2}, "c": {2, 3}, "d": {0, 3}}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sizes = {name: int(rng.integers(1, 1000)) for name in chain}
        dealt = groups(sizes, {}, 4, rng, lambda name, g: g in chain[name])
        assert all(len(group) == 1 for group in dealt)
    examples = {"a": 5, "b": 5, "c": 5}
    dealt = groups(examples, {}, 3, np.random.default_rng(0), lambda name, g: g != 1)
    assert dealt[1] == () and len(dealt[0]) + len(dealt[2]) == 3
    assert groups(examples, {}, 2, np.random.default_rng(0), lambda name, g: False) == ((), ())


@settings(max_examples=60, deadline=None)
@given(clients=st.integers(1, 8), count=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_as_many_groups_have_clients_as_any_arrangement_allows(clients: int, count: int, seed: int) -> None:
    if count > clients:
        return
    rng = np.random.default_rng(seed)
    may = rng.random((clients, count)) < 0.3
    examples = {f"c{i}": int(rng.integers(1, 100)) for i in range(clients)}
    dealt = groups(examples, {}, count, rng, lambda name, g: bool(may[int(name[1:]), g]))
    assert sum(map(bool, dealt)) == _largest_matching(may)
    assert all(may[int(name[1:]), g] for g, group in enumerate(dealt) for name in group)


def _largest_matching(may: np.ndarray) -> int:
    """The size of the largest set of groups that clients can serve, one each, by trying everything."""
    reached = {frozenset[int]()}
    for row in may:
        reached |= {done | {g} for done in reached for g in np.flatnonzero(row).tolist()}
    return max(map(len, reached))


def test_histograms_of_nothing_count_as_not_disclosed() -> None:
    examples = {"a": 10, "b": 10, "c": 10, "d": 10}
    labels = {"a": [0, 0], "b": [10, 0], "c": [0, 10], "stranger": [5, 5]}
    dealt = groups(examples, labels, 2, np.random.default_rng(0))
    assert {"b", "c"} in map(set, dealt)


def test_a_thousand_clients_are_dealt_at_once() -> None:
    examples, labels = cohort(1000, 0.3, 0)
    start = time.process_time()
    dealt = groups(examples, labels, 20, np.random.default_rng(0))
    assert time.process_time() - start < 1.0  # about 0.08 s on an idle core
    assert imbalance(dealt, examples) <= 1.2
