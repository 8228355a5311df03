from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas_core.search.dropping import alive_counts, keep, remaining

ALIVE = (10, 10, 5, 5, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
TESTS = st.dictionaries(st.sampled_from("uvwxyz"), st.tuples(st.integers(1, 200), st.floats(0, 1)), max_size=6)
RESULTS = st.dictionaries(st.sampled_from([f"c{i}" for i in range(8)]), TESTS, min_size=1, max_size=8)


def test_alive_counts_as_in_the_golden_table() -> None:
    assert alive_counts(10, 20, 2, 0.5) == ALIVE
    assert sum(ALIVE) == 48


def test_alive_counts_at_the_edges() -> None:
    assert alive_counts(4, 3, 0, 0.5) == alive_counts(4, 3, 1, 0.0) == (4, 4, 4)
    assert alive_counts(5, 4, 1, 1.0) == (5, 1, 1, 1)
    assert alive_counts(10, 2, 1, 0.8) == (10, 2)  # 10·(1 − 0.8) is 1.9999999999999996
    assert alive_counts(3, 0, 2, 0.5) == ()
    assert [remaining(10, share / 10) for share in range(11)] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1]


def test_the_worst_half_goes_by_accuracy_weighted_by_examples() -> None:
    results = {
        "c0": {"x": (300, 0.5), "y": (100, 0.9)},  # 0.6
        "c1": {"x": (300, 0.8), "y": (100, 0.2)},  # 0.65
        "c2": {"x": (300, 0.4), "y": (100, 0.9)},  # 0.525
        "c3": {"x": (300, 0.7), "y": (100, 0.7)},  # 0.7
    }
    verdict = keep(results, share=0.5, margin=0.0)
    assert [one.label for one in verdict.ranking] == ["c3", "c1", "c0", "c2"]
    assert [one.accuracy for one in verdict.ranking] == pytest.approx([0.7, 0.65, 0.6, 0.525])
    assert [one.gap for one in verdict.ranking] == pytest.approx([0, 0.05, 0.1, 0.175])
    assert all(one.images == 400 for one in verdict.ranking)
    assert verdict.kept == ("c1", "c3")
    assert set(verdict.dropped) == {"c0", "c2"}


def test_the_reason_is_for_people_and_the_error_is_that_of_paired_differences() -> None:
    best = {"x": (100, 0.80), "y": (100, 0.60), "z": (100, 0.70)}
    other = {"x": (100, 0.77), "y": (100, 0.58), "z": (100, 0.68)}
    verdict = keep({"c0.conv3": best, "c1.conv1": other}, share=0.5, margin=2.0)
    last = verdict.ranking[-1]
    gaps = [0.03, 0.02, 0.02]
    mean = sum(gaps) / 3
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 2 / 3)
    assert last.gap == pytest.approx(mean) and last.se == pytest.approx(spread)
    assert verdict.dropped == {"c1.conv1": "2.3 points behind c0.conv3 (SE 0.3)"}


def test_with_a_margin_only_proven_losers_go() -> None:
    results = {
        "noisy": {"x": (100, 0.9), "y": (100, 0.1), "z": (100, 0.6)},
        "best": {"x": (100, 0.7), "y": (100, 0.6), "z": (100, 0.65)},
        "worse": {"x": (100, 0.5), "y": (100, 0.41), "z": (100, 0.45)},
    }
    assert keep(results, 0.9, 0.0).kept == ("best",)
    verdict = keep(results, 0.9, 2.0)
    assert verdict.kept == ("noisy", "best") and set(verdict.dropped) == {"worse"}


def test_with_one_testing_client_the_error_is_binomial() -> None:
    verdict = keep({"a": {"x": (100, 0.6)}, "b": {"x": (100, 0.5)}}, share=0.5, margin=1.0)
    expected = math.sqrt(0.6 * 0.4 / 100 + 0.5 * 0.5 / 100)
    assert verdict.ranking[1].se == pytest.approx(expected)
    assert set(verdict.dropped) == {"b"}
    assert keep({"a": {"x": (100, 0.6)}, "b": {"x": (100, 0.5)}}, share=0.5, margin=2.0).dropped == {}


def test_only_clients_that_tested_all_candidates_count_if_there_are_any() -> None:
    results = {"a": {"x": (10, 0.5), "easy": (90, 1.0)}, "b": {"x": (10, 0.6), "hard": (90, 0.0)}}
    verdict = keep(results, 0.5, 0.0)
    assert [(one.label, one.accuracy, one.images) for one in verdict.ranking] == [("b", 0.6, 10), ("a", 0.5, 10)]


def test_if_none_tested_all_each_candidate_is_judged_by_those_that_tested_it() -> None:
    results = {"a": {"x": (50, 0.5), "y": (50, 0.7)}, "b": {"z": (100, 0.9)}}
    verdict = keep(results, 0.5, 0.0)
    assert [(one.label, one.accuracy) for one in verdict.ranking] == [("b", 0.9), ("a", pytest.approx(0.6))]
    assert verdict.ranking[1].se == pytest.approx(math.sqrt(0.9 * 0.1 / 100 + 0.6 * 0.4 / 100))


def test_candidates_that_nobody_tested() -> None:
    results: dict[str, dict[str, tuple[int, float]]] = {"a": {}, "b": {"x": (10, 0.4)}, "c": {"x": (10, 0.3)}}
    verdict = keep(results, 0.4, 0.0)
    assert verdict.dropped == {"a": "no client trained and tested it", "c": "10.0 points behind b (SE 21.2)"}
    assert keep(results, 0.4, 1.0).dropped == {}
    assert keep({"a": {}, "b": {}}, 0.5, 0.0).kept == ("a", "b")


def test_of_equal_candidates_the_earlier_wins() -> None:
    same = {"x": (10, 0.5), "y": (10, 0.5)}
    assert keep({"late": same, "early": same, "last": same}, 0.5, 0.0).kept == ("late",)


def test_a_claimed_number_of_images_does_not_decide_alone() -> None:
    honest = {f"c{i}": (100, 0.9) for i in range(40)}
    worse = {f"c{i}": (100, 0.5) for i in range(40)}
    results = {"good": {**honest, "liar": (10**12, 0.0)}, "bad": {**worse, "liar": (10**12, 1.0)}}
    assert keep(results, 0.5, 0.0).kept == ("good",)


def test_a_candidate_that_is_always_wrong_is_before_one_that_nobody_tested() -> None:
    found = keep({"untested": {}, "wrong": {"u": (1, 0.0), "v": (1, 0.0)}}, 0.5, 0.0)
    assert found.kept == ("wrong",) and [one.label for one in found.ranking] == ["wrong", "untested"]


@given(results=RESULTS, share=st.floats(0, 1), margin=st.floats(0, 3))
def test_the_best_stays_and_a_margin_never_drops_more(
    results: dict[str, dict[str, tuple[int, float]]], share: float, margin: float
) -> None:
    plain, careful = keep(results, share, 0.0), keep(results, share, margin)
    assert [one.label for one in plain.ranking] == [one.label for one in careful.ranking]
    assert sorted(one.label for one in plain.ranking) == sorted(results)
    assert set(careful.dropped) <= set(plain.dropped)
    assert plain.ranking[0].label in plain.kept and plain.ranking[0].gap == 0
    tested = any(results.values())
    assert len(plain.kept) == (remaining(len(results), share) if tested else len(results))
    assert plain.kept == tuple(label for label in results if label not in plain.dropped)
    assert all(math.isfinite(one.se) and one.se >= 0 and one.gap >= 0 for one in plain.ranking)
