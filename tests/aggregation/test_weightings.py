from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas_core.subnets.weightings import ByExamples, MaxNet, Uniform, Weighting, credible

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "beta_schedule.json").read_text())
POINTS = [
    pytest.param(schedule, point, id=f"{schedule['name']}-{point['round']}")
    for schedule in GOLDEN["schedules"]
    for point in schedule["values"]
]
cohorts = st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 10_000), min_size=1, max_size=20)


@pytest.mark.parametrize(("schedule", "point"), POINTS)
def test_beta_schedule_as_published(schedule: dict[str, float], point: dict[str, float]) -> None:
    cohort = int(schedule["clients_per_round"])
    rule = MaxNet(schedule["beta0"], schedule["beta_final"], int(schedule["decay_rounds"]))
    assert rule.beta(int(point["round"]), cohort) == pytest.approx(point["beta_max"], abs=1e-9)
    weights = rule.weights(int(point["round"]), {f"c{i}": i for i in range(cohort)}, "c3")
    assert weights.pop("c3") == pytest.approx(point["beta_max"], abs=1e-9)
    assert len(weights) == cohort - 1
    assert all(weight == pytest.approx(point["weight_other"], abs=1e-9) for weight in weights.values())


def test_there_are_goldens() -> None:
    assert len(POINTS) >= 28


def test_an_end_of_zero_means_one_over_the_cohort() -> None:
    weights = MaxNet(0.9, 0.0, 10).weights(10, dict.fromkeys("abcde", 1), "a")
    assert all(weight == pytest.approx(0.2) for weight in weights.values())


@given(
    examples=cohorts, round=st.integers(0, 100), by_examples=st.booleans(), start=st.floats(0, 1), end=st.floats(0, 1)
)
def test_weights_are_positive_and_sum_to_one(
    examples: dict[str, int], round: int, by_examples: bool, start: float, end: float
) -> None:
    largest = min(examples)
    for rule in (MaxNet(start, end, 40, by_examples), ByExamples(), Uniform()):
        for who in (largest, None):
            weights = rule.weights(round, examples, who)
            assert set(weights) == set(examples)
            assert all(weight > 0 for weight in weights.values())
            assert sum(weights.values()) == pytest.approx(1.0)


def test_by_examples_is_proportional() -> None:
    assert ByExamples().weights(0, {"a": 10, "b": 30}, None) == {"a": 0.25, "b": 0.75}
    assert ByExamples().weights(0, {"a": 0, "b": 1}, "a") == {"a": 0.5, "b": 0.5}


def test_uniform_weights_are_alike() -> None:
    assert Uniform().weights(0, {"a": 1, "b": 99, "c": 7, "d": 0}, "a") == dict.fromkeys("abcd", 0.25)


def test_max_net_may_weigh_examples_as_well() -> None:
    weights = MaxNet(0.5, 0.5, 10, by_examples=True).weights(0, {"a": 10, "b": 20, "c": 40}, "a")
    # 0.5·10 : 0.25·20 : 0.25·40 = 5 : 5 : 10
    assert weights == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})


@pytest.mark.parametrize("rule", [MaxNet(0.9, 0.125, 10), MaxNet(0.9, 0.0, 10, True), ByExamples(), Uniform()])
def test_a_cohort_of_one_counts_fully(rule: Weighting) -> None:
    assert rule.weights(0, {"a": 7}, "a") == {"a": 1.0}
    assert rule.weights(0, {"a": 7}, None) == {"a": 1.0}


def test_without_a_largest_all_count_alike() -> None:
    assert MaxNet(0.9, 0.0, 10).weights(0, {"a": 7, "b": 9}, None) == {"a": 0.5, "b": 0.5}


def test_a_claim_of_examples_that_nobody_can_check_does_not_decide_a_round() -> None:
    honest = {f"client-{i}": 100 + i for i in range(9)}
    for weighting in (ByExamples(), MaxNet(0.1, 0.1, 1, by_examples=True)):
        weights = weighting.weights(0, {**honest, "liar": 10**12}, "client-0")
        assert weights["liar"] == pytest.approx(10 * weights["client-5"], rel=0.06) and sum(
            weights.values()
        ) == pytest.approx(1)
    assert credible({**honest, "liar": 10**12})["liar"] == 1040
    assert credible({"a": 5, "b": 900}) == {"a": 5, "b": 900} and credible({"a": 0}) == {"a": 1}
