from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas_core.search.rewards import INFEASIBLE, Thresholds, ddc_reward, n2n_reward

EXACT = pytest.approx
RATIOS = st.floats(allow_nan=False)

PUBLISHED = {
    "VGG11/CIFAR-10 DDC": (0.9333333333333332, 0.3236151603498542, 0.04807692307692307, 0.2566107396963543),
    "VGG11/CIFAR-10 DDC_ht": (0.9, 0.32944606413994165, 0.04807692307692307, 0.19561940628171978),
    "VGG11/CIFAR-10 N2N": (0.9444444444444444, 0.434402332361516, 0.1111111111111111, 0.07760772653583947),
    "ResNet18/CIFAR-10 DDC": (0.9759036144578315, 0.27106227106227104, 0.17513134851138354, 0.45884907038390027),
    "ResNet18/CIFAR-10 N2N": (0.9759036144578315, 0.29304029304029305, 0.2304147465437788, 0.3969042112068658),
    "ResNet18/CIFAR-10 DDC_ht": (0.9759036144578315, 0.30952380952380953, 0.390625, 0.3371200705136931),
}
"""Accuracy, latency and parameters of published results by their teachers', and the reward that follows."""


@pytest.mark.parametrize(
    ("ratio", "part"),
    [(0.8, 0.18242552380635635), (0.9, 0.5), (0.95, 0.6791786991753928), (1.0, 0.8175744761936437)],
)
def test_golden_accuracy(ratio: float, part: float) -> None:
    assert ddc_reward(ratio, 0.3, 0.5).accuracy == EXACT(part, abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "part"),
    [(0.1, 0.9525741268224331), (0.3, 0.5), (0.5, 0.04742587317756678), (1.0, 2.7535691114583473e-05)],
)
def test_golden_latency(ratio: float, part: float) -> None:
    assert ddc_reward(0.9, ratio, 0.5).latency == EXACT(part, abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "part"),
    [(0.05, 0.9997388096809043), (0.2, 0.9975273768433653), (0.6, 0.5), (1.0, 0.0024726231567347743)],
)
def test_golden_parameters(ratio: float, part: float) -> None:
    assert ddc_reward(0.9, 0.3, ratio).params == EXACT(part, abs=1e-9)


@pytest.mark.parametrize("name", PUBLISHED)
def test_golden_rewards_of_the_published_results(name: str) -> None:
    accuracy, latency, params, wanted = PUBLISHED[name]
    found = ddc_reward(accuracy, latency, params, Thresholds(0.9, 0.3, 0.6))
    assert found.total == EXACT(wanted, abs=1e-9)
    assert found.total == EXACT(found.accuracy * found.latency * found.params, abs=1e-15)


@pytest.mark.parametrize("teacher", ["VGG11", "ResNet18"])
def test_the_reward_ranks_ddc_first_on_cifar10(teacher: str) -> None:
    totals = {name: ddc_reward(*row[:3]).total for name, row in PUBLISHED.items() if name.startswith(teacher)}
    assert len(totals) == 3 and max(totals, key=totals.__getitem__) == f"{teacher}/CIFAR-10 DDC"


@pytest.mark.parametrize("ratio", [1.0, 1.5, float("inf")])
def test_a_student_that_is_not_smaller_is_infeasible(ratio: float) -> None:
    assert ddc_reward(1.0, 0.1, ratio).total == INFEASIBLE == -1
    assert ddc_reward(1.0, 0.1, 0.999).total > 0


def test_a_ratio_that_is_no_number_is_infeasible() -> None:
    for ratios in [(math.nan, 0.1, 0.5), (1.0, math.nan, 0.5), (1.0, 0.1, math.nan)]:
        assert ddc_reward(*ratios).total == INFEASIBLE


@given(RATIOS, RATIOS, RATIOS)
def test_no_ratio_overflows(accuracy: float, latency: float, params: float) -> None:
    found = ddc_reward(accuracy, latency, params)
    assert all(0 <= part <= 1 for part in (found.accuracy, found.latency, found.params))
    assert found.total == INFEASIBLE if params >= 1 else 0 <= found.total <= 1


@given(st.floats(0, 2), st.floats(0, 2), st.floats(0, 0.9), st.floats(0.001, 0.5))
def test_better_is_never_worth_less(accuracy: float, latency: float, params: float, step: float) -> None:
    here = ddc_reward(accuracy, latency, params).total
    assert ddc_reward(accuracy + step, latency, params).total >= here
    assert ddc_reward(accuracy, latency - step, params).total >= here
    assert ddc_reward(accuracy, latency, params - step).total >= here


@given(st.floats(0, 2), st.floats(0, 2), st.floats(0, 0.9), st.floats(0.001, 0.5))
def test_looser_thresholds_never_make_it_worth_less(
    accuracy: float, latency: float, params: float, step: float
) -> None:
    here = ddc_reward(accuracy, latency, params).total
    for looser in (Thresholds(accuracy=0.9 - step), Thresholds(latency=0.3 + step), Thresholds(params=0.6 + step)):
        assert ddc_reward(accuracy, latency, params, looser).total >= here


@pytest.mark.parametrize(
    ("accuracy", "compression", "wanted"),
    [(0.98, 0.8, 0.9408), (1.0, 0.9, 0.99), (1.0, 0.0, 0.0), (0.5, 0.5, 0.375), (0.9, 0.95, 0.89775)],
)
def test_golden_n2n(accuracy: float, compression: float, wanted: float) -> None:
    assert n2n_reward(accuracy, compression) == EXACT(wanted, abs=1e-9)
    assert n2n_reward(accuracy, compression, violated=False, iteration=9) == EXACT(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("iteration", "epsilon"),
    [(0, 1.0), (5, 0.19753086419753096), (10, 0.012345679012345685), (15, 0.0), (20, 0.0), (30, 0.0)],
)
def test_golden_n2n_epsilon(iteration: int, epsilon: float) -> None:
    """At R = 0 a violated constraint is worth ε − 1."""
    assert n2n_reward(1.0, 0.0, True, iteration) == EXACT(epsilon - 1, abs=1e-9)


@pytest.mark.parametrize(
    ("iteration", "wanted"), [(0, 0.9408), (5, -0.6166320987654319), (10, -0.9760395061728394), (15, -1.0)]
)
def test_golden_n2n_violated(iteration: int, wanted: float) -> None:
    assert n2n_reward(0.98, 0.8, True, iteration) == EXACT(wanted, abs=1e-9)


def test_a_constraint_stays_violated_for_good() -> None:
    rewards = [n2n_reward(0.98, 0.8, True, iteration) for iteration in (*range(40), 10**9)]
    assert rewards == sorted(rewards, reverse=True) and rewards[-1] == -1


STUDENTS = st.lists(st.tuples(*[st.floats(0.05, 0.99)] * 3), min_size=1, max_size=12, unique=True)


@given(STUDENTS, st.floats(0.05, 1.2), st.floats(0.05, 1.2), st.sampled_from(["accuracy", "latency", "params"]))
def test_a_threshold_moves_the_chosen_student_monotonically(
    students: list[tuple[float, float, float]], one: float, two: float, what: str
) -> None:
    """Of given students the best has never less accuracy, latency or parameters when that threshold rises."""

    def chosen(threshold: float) -> tuple[float, float, float]:
        thresholds = replace(Thresholds(), **{what: threshold})
        return max(students, key=lambda student: ddc_reward(*student, thresholds).total)

    place = ["accuracy", "latency", "params"].index(what)
    low, high = chosen(min(one, two)), chosen(max(one, two))
    rewards = [ddc_reward(*s, replace(Thresholds(), **{what: max(one, two)})).total for s in (low, high)]
    assert low[place] <= high[place] or rewards[0] == EXACT(rewards[1], rel=1e-9)
