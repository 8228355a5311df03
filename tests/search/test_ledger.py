from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas_core.search.dropping import alive_counts
from fednas_core.search.ledger import Design, Job, Work, candidates_for, dynamic_rounds, work

ROUNDS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)
ALL = Design(candidates=10, clients=100, rounds=ROUNDS, every=2, share=0.5, parts=True)
FULL = (20,) * 20
GOLDEN = {
    "baseline": (replace(ALL, rounds=FULL, share=0.0, parts=False), 400_000, 1.0),
    "partial_clients": (replace(ALL, rounds=FULL, share=0.0), 40_000, 10.0),
    "early_drop": (replace(ALL, rounds=FULL, parts=False), 96_000, 4.166666666666667),
    "dynamic_rounds": (replace(ALL, share=0.0, parts=False), 220_000, 1.8181818181818181),
    "partial+drop": (replace(ALL, rounds=FULL), 9_600, 41.666666666666664),
    "all_three": (ALL, 7_610, 52.562417871222074),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_golden_table(name: str) -> None:
    design, client_rounds, ratio = GOLDEN[name]
    assert design.client_rounds == client_rounds
    assert design.saving(GOLDEN["baseline"][0]) == pytest.approx(ratio, abs=1e-9)
    assert design.straightforward == GOLDEN["baseline"][0]


def test_dynamic_rounds_as_in_the_golden_table() -> None:
    assert dynamic_rounds(2, 20, 20) == ROUNDS
    assert sum(ROUNDS) == 220


def test_dynamic_rounds_at_the_edges() -> None:
    assert dynamic_rounds(2, 20, 1) == (20,)
    assert dynamic_rounds(2, 5, 3) == (2, 4, 5)  # 3.5 rounds up
    assert dynamic_rounds(7, 7, 4) == (7, 7, 7, 7)
    assert dynamic_rounds(2, 20, 2) == (2, 20)


def test_parts_that_are_not_equal_differ_by_one_client() -> None:
    once = Design(candidates=3, clients=10, rounds=(1,), every=0, share=0.0, parts=True)
    assert once.client_rounds == 10
    dropped = replace(once, rounds=(3,), every=1, share=0.5)
    assert dropped.client_rounds == 10 + 4 + 4
    five = Design(candidates=4, clients=10, rounds=(2,), every=1, share=0.25, parts=True)
    assert five.client_rounds == 10 + (3 + 3 + 2)


def test_iterations_may_have_candidates_of_their_own() -> None:
    design = Design(candidates=(10, 4), clients=20, rounds=(4, 2), every=2, share=0.5, parts=True)
    assert design.client_rounds == 2 * (10 + 10 + 5 + 5) + 5 * (4 + 4)
    assert design.straightforward.client_rounds == 20 * 4 * (10 + 4)
    same = Design(candidates=(10,) * 20, clients=100, rounds=ROUNDS, every=2, share=0.5, parts=True)
    assert same.client_rounds == ALL.client_rounds
    with pytest.raises(ValueError, match="1 numbers of candidates for 2 iterations"):
        replace(design, candidates=(3,))


def test_candidates_for_two_orders_of_magnitude() -> None:
    found = candidates_for(100.0, ALL)
    assert found is not None
    wider = replace(ALL, candidates=found)
    assert wider.saving(wider.straightforward) >= 100
    for fewer in range(1, found):
        narrower = replace(ALL, candidates=fewer)
        assert narrower.saving(narrower.straightforward) < 100
    assert found == 19  # 5 parts of 6 clients and 14 of 5: 760,000 / 7,476 client-rounds
    assert candidates_for(1.0, ALL) == 1
    assert candidates_for(1000.0, replace(ALL, share=0.0, rounds=FULL)) is None
    assert candidates_for(100.0, replace(ALL, share=0.0, rounds=FULL)) == 100


def test_work_adds_up_as_in_the_cost_model() -> None:
    iterations = [
        [[Job(2, 60, 1000, 8), Job(3, 90, 500, 4)], [Job(2, 60, 1000, 8)]],
        [[Job(5, 150, 300, 2)]],
    ]
    assert work(iterations, epochs=2) == Work(
        client_rounds=2 + 3 + 2 + 5,
        macs=3 * 2 * (60 * 1000 + 90 * 500 + 60 * 1000 + 150 * 300),
        bytes=2 * (2 * 8 + 3 * 4 + 2 * 8 + 5 * 2),
    )
    assert work([], epochs=1) == Work(0, 0, 0)


@given(
    candidates=st.integers(1, 12),
    size=st.integers(1, 6),
    rounds=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    every=st.integers(0, 4),
    share=st.floats(0, 1),
)
def test_work_counts_the_units_of_a_design(
    candidates: int, size: int, rounds: list[int], every: int, share: float
) -> None:
    design = Design(candidates, candidates * size, tuple(rounds), every, share, parts=True)
    iterations = [
        [[Job(size, 10 * size, 7, 3)] * alive for alive in alive_counts(candidates, many, every, share)]
        for many in rounds
    ]
    done = work(iterations, epochs=5)
    assert done.client_rounds == design.client_rounds
    assert done.macs == design.client_rounds * 3 * 5 * 10 * 7
    assert done.bytes == design.client_rounds * 2 * 3
