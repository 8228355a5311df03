from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from contracts.samples import random_tensors, supernet_of, toy_space

from fednas_core.base.errors import ReplyError
from fednas_core.base.values import Plan
from fednas_core.exchange.processors.directions import alignments, check_direction, to_direction

SPACE = toy_space()


def test_the_cosine_is_that_with_the_sum_of_the_others_where_an_update_covers() -> None:
    rng = np.random.default_rng(3)
    plans = [SPACE.plan(arch) for arch in (SPACE.largest, SPACE.smallest, SPACE.sample(rng), SPACE.sample(rng))]
    there = [(f"c{i}", plan, random_tensors(plan, i)) for i, plan in enumerate(plans)]
    found = alignments(lambda: iter(there), supernet_of(SPACE))
    for client, plan, update in there:
        mine, rest = [], []
        for name, region in plan.items():
            others = np.zeros(tuple(supernet_of(SPACE)[name].shape))
            for other, its, theirs in there:
                if other != client and name in its:
                    others[its[name]] += theirs[name].double().numpy()
            mine.append(update[name].double().numpy().ravel())
            rest.append(others[region].ravel())
        a, b = np.concatenate(mine), np.concatenate(rest)
        assert found[client] == pytest.approx(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), abs=1e-5)


def test_nobody_else_there_is_no_direction() -> None:
    plan = SPACE.plan(SPACE.smallest)
    assert alignments(lambda: iter([("a", plan, random_tensors(plan, 1))]), supernet_of(SPACE)) == {"a": 0.0}


def test_who_turns_its_update_around_stands_out() -> None:
    plan = SPACE.plan(SPACE.largest)
    common = random_tensors(plan, 99)

    def updates() -> Iterator[tuple[str, Plan, Any]]:
        for i in range(10):
            noise, sign = random_tensors(plan, i), -1 if i in (2, 7) else 1
            yield f"c{i}", plan, {name: sign * (0.7 * common[name] + noise[name]) for name in plan}

    found = alignments(updates, supernet_of(SPACE))
    assert all((cosine < -0.1) == (client in ("c2", "c7")) for client, cosine in found.items())


def test_an_update_against_the_others_is_refused_with_its_cosine() -> None:
    with pytest.raises(
        ReplyError, match=r"client c: its update points against .* cosine -0.35 .* from -0.1 \(merge.opp"
    ):
        check_direction("c", -0.35, 0.1)
    check_direction("c", -0.05, 0.1)
    check_direction("c", -1.0, 1.0)


def test_replies_without_tensors_have_no_direction() -> None:
    to_direction({}, {}, 1.0)
    assert alignments(lambda: iter([("a", {}, {}), ("b", {}, {})]), {}) == {"a": 0.0, "b": 0.0}
