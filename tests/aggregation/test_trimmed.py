from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from contracts.samples import random_tensors, supernet_of, toy_space
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.base.values import Plan
from fednas_core.subnets import trimmed
from fednas_core.subnets.merge import Merge
from fednas_core.subnets.trimmed import TrimmedMerge

SPACE = toy_space()
archs = st.tuples(*(st.integers(0, n - 1) for n in SPACE.gene_choices.tolist())).map(
    lambda row: SPACE.decode(np.array(row))
)
Replies = list[tuple[Plan, dict[str, torch.Tensor], float]]
SOME = ("stem.weight", "stages.0.1.conv1.weight", "stages.1.0.shortcut.weight", "head.weight", "head.bias")
"""A few tensors are enough where every coordinate is visited: some are covered in part, some by few."""


def some_of(tensors: Any) -> Any:
    return {name: tensors[name] for name in SOME if name in tensors}


def brute_force(supernet: dict[str, torch.Tensor], replies: Replies, trim: float) -> dict[str, Any]:
    """The definition, one coordinate after the other, in float64."""
    out = {}
    for name, tensor in supernet.items():
        values: dict[tuple[int, ...], list[tuple[float, float]]] = {}
        for plan, tensors, weight in replies:
            if name in plan:
                starts = [part.start for part in plan[name]]
                for index, value in np.ndenumerate(tensors[name].double().numpy()):
                    where = tuple(i + start for i, start in zip(index, starts, strict=True))
                    values.setdefault(where, []).append((float(value), weight))
        result = tensor.double().numpy().copy()
        for where, found in values.items():
            cut = math.floor(trim * len(found) + 1e-9)
            kept = sorted(found, key=lambda pair: pair[0])[cut : len(found) - cut]
            result[where] = sum(v * w for v, w in kept) / sum(w for _, w in kept)
        out[name] = result
    return out


def merged(supernet: dict[str, torch.Tensor], replies: Replies, trim: float) -> dict[str, torch.Tensor]:
    merge = TrimmedMerge(supernet, trim)
    for plan, tensors, weight in replies:
        merge.add(plan, tensors, weight)
    merge.finish()
    return supernet


@given(
    st.lists(
        st.tuples(archs, st.floats(0.1, 10), st.integers(0, 1000)),
        min_size=1,
        max_size=9,
        unique_by=lambda item: item[2],  # equal values are a matter of their own
    ),
    st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.34, 0.49]),
    st.sampled_from([50, 5000, 1 << 18]),
)
@settings(max_examples=25, deadline=None)
def test_it_is_the_trimmed_mean_of_its_definition(items: Any, trim: float, block: int) -> None:
    plans = [some_of(SPACE.plan(arch)) for arch, _, _ in items]
    replies = [(plan, random_tensors(plan, s), weight) for plan, (_, weight, s) in zip(plans, items, strict=True)]
    wanted = brute_force(some_of(supernet_of(SPACE, 5)), replies, trim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trimmed, "BLOCK", block)
        found = merged(some_of(supernet_of(SPACE, 5)), replies, trim)
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.double().numpy(), wanted[name], rtol=1e-5, atol=1e-6)


def test_regions_need_not_begin_at_zero() -> None:
    supernet = {"w": torch.zeros(4, 5), "b": torch.tensor([7.0, 8.0, 9.0])}
    replies: Replies = []
    for i, (rows, columns) in enumerate([((1, 4), (0, 3)), ((0, 2), (2, 5)), ((1, 3), (1, 4)), ((2, 4), (0, 5))]):
        plan = {"w": (slice(*rows), slice(*columns)), "b": (slice(1, 2 + i % 2),)}
        replies.append((plan, random_tensors(plan, i), 1.0 + i))
    wanted = brute_force({name: tensor.clone() for name, tensor in supernet.items()}, replies, 0.34)
    for name, tensor in merged(supernet, replies, 0.34).items():
        np.testing.assert_allclose(tensor.double().numpy(), wanted[name], rtol=1e-5, atol=1e-6)


@given(st.lists(st.tuples(archs, st.floats(0.1, 10), st.integers(0, 1000)), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_without_trimming_it_is_the_mean(items: Any) -> None:
    replies = [(SPACE.plan(arch), random_tensors(SPACE.plan(arch), seed), weight) for arch, weight, seed in items]
    found, mean = merged(supernet_of(SPACE, 5), replies, 0.0), supernet_of(SPACE, 5)
    merge = Merge(mean)
    for plan, tensors, weight in replies:
        merge.add(plan, tensors, weight)
    merge.finish()
    for name in mean:
        torch.testing.assert_close(found[name], mean[name], rtol=1e-5, atol=1e-6)


def test_hand_computed() -> None:
    supernet = {"b": torch.tensor([5.0, 6.0, 7.0])}
    values = [[1.0, 1.0], [2.0], [-900.0, 3.0], [900.0, 5.0], [3.0, 1e6]]
    replies: Replies = [
        ({"b": (slice(0, len(v)),)}, {"b": torch.tensor(v)}, w) for v, w in zip(values, [1, 2, 3, 4, 2], strict=True)
    ]
    # five cover the first: 1, 2, 3 are left, of weights 1, 2, 2; four the second: 3 and 5, of weights 3 and 4
    assert merged(supernet, replies, 0.25)["b"].tolist() == pytest.approx([11 / 5, 29 / 7, 7.0])


def test_of_equal_values_all_stay_if_one_does() -> None:
    for values, wanted in (([0.0, 0.0, 0.0, 5.0], 0.0), ([0.0, 0.0, 1.0, 1.0, 5.0], 0.5), ([1.0, 2.0, 2.0, 9.0], 2.0)):
        replies: Replies = [({"b": (slice(0, 1),)}, {"b": torch.tensor([value])}, 1.0) for value in values]
        assert merged({"b": torch.zeros(1)}, replies, 0.25)["b"].item() == pytest.approx(wanted)


def test_liars_no_more_than_are_left_out_do_not_move_it_beyond_the_honest() -> None:
    plan = SPACE.plan(SPACE.largest)
    honest = [random_tensors(plan, seed) for seed in range(8)]
    lies = [{name: torch.full_like(tensor, value) for name, tensor in honest[0].items()} for value in (1e9, -1e9)]
    found = merged(supernet_of(SPACE), [(plan, tensors, 1.0) for tensors in [*lies, *honest]], 0.2)
    for name, tensor in found.items():
        stack = torch.stack([tensors[name] for tensors in honest])
        assert (tensor >= stack.amin(0)).all() and (tensor <= stack.amax(0)).all()


def test_rounds_follow_each_other() -> None:
    supernet, plan = supernet_of(SPACE), SPACE.plan(SPACE.smallest)
    merge = TrimmedMerge(supernet, 0.2)
    for seed in (1, 2):
        reply = random_tensors(plan, seed)
        merge.add(plan, reply, 0.7)
        merge.finish()
        for name in plan:
            torch.testing.assert_close(supernet[name][plan[name]], reply[name], rtol=1e-6, atol=1e-7)
    before = {name: tensor.clone() for name, tensor in supernet.items()}
    merge.finish()
    assert all(torch.equal(supernet[name], before[name]) for name in before)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    plan = SPACE.plan(SPACE.smallest)
    with pytest.raises(ValueError, match="number above zero"):
        TrimmedMerge(supernet_of(SPACE), 0.2).add(plan, random_tensors(plan, 1), weight)


def test_no_reply_stays_in_memory() -> None:
    supernet, plan = supernet_of(SPACE), SPACE.plan(SPACE.largest)
    merge = TrimmedMerge(supernet, 0.2)
    for seed in range(20):
        merge.add(plan, random_tensors(plan, seed), 1.0)
    assert not merge._shelf._memory


def test_replies_without_tensors_change_nothing() -> None:
    supernet = supernet_of(SPACE)
    before = {name: tensor.clone() for name, tensor in supernet.items()}
    for merge in (TrimmedMerge(supernet, 0.25), TrimmedMerge({}, 0.25)):
        merge.add({}, {}, 1.0)
        merge.finish()
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.items())
