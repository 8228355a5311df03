from __future__ import annotations

import gc
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from contracts.samples import random_tensors, supernet_of, toy_space
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.base.errors import ReplyError
from fednas_core.base.values import Arch
from fednas_core.subnets.merge import HEADROOM, DampedMerge, Merge, check_tensors, largest_allowed
from fednas_core.subnets.packing import shapes

SPACE = toy_space()
archs = st.tuples(*(st.integers(0, n - 1) for n in SPACE.gene_choices.tolist())).map(
    lambda row: SPACE.decode(np.array(row))
)
weights = st.floats(1e-6, 1e3)


def clone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def expected(supernet: dict[str, torch.Tensor], replies: list[tuple[Arch, dict[str, torch.Tensor], float]]) -> Any:
    """The definition, coordinate by coordinate, in float64."""
    out = {}
    for name, tensor in supernet.items():
        total, cover = np.zeros(tensor.shape), np.zeros(tensor.shape)
        for arch, tensors, weight in replies:
            region = SPACE.plan(arch).get(name)
            if region is not None:
                total[region] += weight * tensors[name].double().numpy()
                cover[region] += weight
        kept = tensor.double().numpy()
        out[name] = np.where(cover > 0, total / np.where(cover > 0, cover, 1), kept)
    return out


@given(arch=archs, weight=weights, seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_one_client_reproduces_its_tensors_and_leaves_the_rest(arch: Arch, weight: float, seed: int) -> None:
    supernet = supernet_of(SPACE, seed)
    before, plan = clone(supernet), SPACE.plan(arch)
    reply = random_tensors(plan, seed + 1)
    merge = Merge(supernet)
    merge.add(plan, reply, weight)
    merge.finish()
    for name, tensor in supernet.items():
        rest = torch.ones(tensor.shape, dtype=torch.bool)
        if name in plan:
            rest[plan[name]] = False
            torch.testing.assert_close(tensor[plan[name]], reply[name], rtol=1e-6, atol=1e-7)
        assert torch.equal(tensor[rest], before[name][rest])


def test_one_client_of_weight_one_is_reproduced_to_the_bit() -> None:
    supernet, plan = supernet_of(SPACE), SPACE.plan(SPACE.largest)
    reply = random_tensors(plan, 9)
    merge = Merge(supernet)
    merge.add(plan, reply, 1.0)
    merge.finish()
    assert all(torch.equal(supernet[name], reply[name]) for name in plan)


def test_hand_computed_overlap_of_two_clients() -> None:
    supernet = {"w": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "b": torch.tensor([7.0, 8.0])}
    narrow = {"w": (slice(0, 1), slice(0, 2))}
    wide = {"w": (slice(0, 2), slice(0, 2)), "b": (slice(0, 1),)}
    merge = Merge(supernet)
    merge.add(narrow, {"w": torch.tensor([[10.0, 20.0]])}, 0.25)
    merge.add(wide, {"w": torch.tensor([[30.0, 40.0], [50.0, 60.0]]), "b": torch.tensor([70.0])}, 0.75)
    merge.finish()
    # (0.25·10 + 0.75·30) / 1 = 25;  (0.25·20 + 0.75·40) / 1 = 35;  alone: 50, 60, 70;  nobody: 3, 6, 8
    assert supernet["w"].tolist() == [[25.0, 35.0, 3.0], [50.0, 60.0, 6.0]]
    assert supernet["b"].tolist() == [70.0, 8.0]


def test_hand_computed_damped_merge_of_two_clients() -> None:
    supernet = {"w": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "b": torch.tensor([7.0, 8.0])}
    narrow = {"w": (slice(0, 1), slice(0, 2))}
    wide = {"w": (slice(0, 2), slice(0, 2)), "b": (slice(0, 1),)}
    merge = DampedMerge(supernet)
    merge.add(narrow, {"w": torch.tensor([[10.0, 20.0]])}, 0.5)
    merge.add(wide, {"w": torch.tensor([[30.0, 40.0], [50.0, 60.0]]), "b": torch.tensor([70.0])}, 1.5)
    merge.finish()
    # weights ¼ and ¾: 1 + ¼·9 + ¾·29 = 25;  2 + ¼·18 + ¾·38 = 35;  4 + ¾·46 = 38.5;  5 + ¾·55 = 46.25
    assert supernet["w"].tolist() == [[25.0, 35.0, 3.0], [38.5, 46.25, 6.0]]
    assert supernet["b"].tolist() == [7 + 0.75 * 63, 8.0]


@given(st.lists(st.tuples(archs, weights, st.integers(0, 1000)), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_damped_merge_is_the_mean_of_whole_supernets(items: list[tuple[Arch, float, int]]) -> None:
    """What FedSup's code computes: every client's supernet, of which it changed its part, averaged."""
    supernet = supernet_of(SPACE, 5)
    total = sum(weight for _, weight, _ in items)
    wanted = {name: np.zeros(tensor.shape) for name, tensor in supernet.items()}
    merge = DampedMerge(supernet)
    for arch, weight, seed in items:
        reply = random_tensors(SPACE.plan(arch), seed)
        merge.add(SPACE.plan(arch), reply, weight)
        for name, tensor in supernet.items():
            mine = tensor.double().clone()
            if name in reply:
                mine[SPACE.plan(arch)[name]] = reply[name].double()
            wanted[name] += weight / total * mine.numpy()
    merge.finish()
    for name, tensor in supernet.items():
        np.testing.assert_allclose(tensor.double().numpy(), wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shares", [(0.3, 0.3, 0.4), (0.1, 0.2, 0.7), (5.0, 3.0, 1.0)])
def test_full_plans_make_both_merges_the_same_to_the_bit(shares: tuple[float, ...]) -> None:
    results = []
    for kind in (Merge, DampedMerge):
        supernet, plan = supernet_of(SPACE), SPACE.plan(SPACE.largest)
        merge = kind(supernet)
        for _ in range(2):  # a second round starts afresh
            for seed, weight in enumerate(shares):
                merge.add(plan, random_tensors(plan, seed), weight)
            merge.finish()
        results.append(supernet)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("kind", [Merge, DampedMerge])
def test_what_nobody_covers_keeps_its_value_to_the_bit(kind: type[Merge]) -> None:
    supernet, plan = supernet_of(SPACE), SPACE.plan(SPACE.smallest)
    before = clone(supernet)
    merge = kind(supernet)
    for seed in range(3):
        merge.add(plan, random_tensors(plan, seed), 0.1)
        merge.add({}, {}, 0.3)
    merge.finish()
    for name, tensor in supernet.items():
        rest = torch.ones(tensor.shape, dtype=torch.bool)
        if name in plan:
            rest[plan[name]] = False
        assert torch.equal(tensor[rest], before[name][rest])


def test_nothing_at_all_can_be_merged() -> None:
    """Where every layer is private there is no supernet."""
    for merge in (Merge({}), DampedMerge({})):
        merge.add({}, {}, 1.0)
        merge.finish()
    assert largest_allowed({}) == HEADROOM
    check_tensors("c", {}, {}, 1.0)
    with pytest.raises(ReplyError, match="client c: tensor 'a': found a tensor that its architecture does not have"):
        check_tensors("c", {}, {"a": torch.zeros(1)})


@given(st.lists(st.tuples(archs, weights, st.integers(0, 1000)), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_merge_is_the_weighted_mean_of_its_definition(items: list[tuple[Arch, float, int]]) -> None:
    replies = [(arch, random_tensors(SPACE.plan(arch), seed), weight) for arch, weight, seed in items]
    supernet = supernet_of(SPACE, 5)
    wanted = expected(supernet, replies)
    merge = Merge(supernet)
    for arch, tensors, weight in replies:
        merge.add(SPACE.plan(arch), tensors, weight)
    merge.finish()
    for name, tensor in supernet.items():
        np.testing.assert_allclose(tensor.double().numpy(), wanted[name], rtol=1e-5, atol=1e-6)


def test_order_of_replies_matters_no_more_than_rounding() -> None:
    rng = np.random.default_rng(3)
    chosen = [SPACE.largest, SPACE.smallest, SPACE.sample(rng), SPACE.sample(rng)]
    replies = [(SPACE.plan(arch), random_tensors(SPACE.plan(arch), i), 0.1 + i) for i, arch in enumerate(chosen)]
    results = []
    for order in itertools.permutations(replies):
        supernet = supernet_of(SPACE)
        merge = Merge(supernet)
        for plan, tensors, weight in order:
            merge.add(plan, tensors, weight)
        merge.finish()
        results.append(supernet)
    for other in results[1:]:
        for name in other:
            torch.testing.assert_close(other[name], results[0][name], rtol=1e-5, atol=1e-6)


def test_a_second_round_starts_afresh() -> None:
    supernet, plan = supernet_of(SPACE), SPACE.plan(SPACE.smallest)
    merge = Merge(supernet)
    for seed in (1, 2):
        reply = random_tensors(plan, seed)
        merge.add(plan, reply, 1.0)
        merge.finish()
        assert all(torch.equal(supernet[name][plan[name]], reply[name]) for name in plan)


def test_a_round_without_replies_changes_nothing() -> None:
    supernet = supernet_of(SPACE)
    before = clone(supernet)
    Merge(supernet).finish()
    assert all(torch.equal(supernet[name], before[name]) for name in before)


def held_bytes(value: Any, seen: set[int]) -> int:
    """Bytes of all tensors reachable from a value, each storage once."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return int(storage.nbytes())
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(held_bytes(part, seen) for part in parts)


@pytest.mark.parametrize("kind", [Merge, DampedMerge])
def test_memory_does_not_grow_with_the_number_of_replies(kind: type[Merge]) -> None:
    supernet, rng = supernet_of(SPACE), np.random.default_rng(1)
    merge = kind(supernet)
    size = sum(tensor.numel() * 4 for tensor in supernet.values())

    def tensors_alive() -> int:
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    counts = []
    for i in range(60):
        arch = SPACE.sample(rng)
        merge.add(SPACE.plan(arch), random_tensors(SPACE.plan(arch), i), 1.0)
        if i in (4, 59):
            counts.append((tensors_alive(), held_bytes(vars(merge), set())))
    assert counts[0] == counts[1]
    assert counts[1][1] <= 2 * size


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    supernet, plan = supernet_of(SPACE), SPACE.plan(SPACE.smallest)
    with pytest.raises(ValueError, match="number above zero"):
        Merge(supernet).add(plan, random_tensors(plan, 1), weight)


# -- replies that must not be merged -------------------------------------------------------------------------------

NAME = "stages.0.0.conv1.weight"


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[NAME]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["stages.9.0.conv1.weight"] = torch.zeros(1)


def transpose(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NAME] = tensors[NAME][:, :4]


def broadcastable(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NAME] = torch.zeros(1, 1, 1, 1)


def half(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NAME] = tensors[NAME].half()


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NAME][1, 1, 1, 1] = math.nan


def infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NAME][0, 0, 0, 0] = -math.inf


def huge(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NAME][0, 0, 0, 0] = -1e6


@pytest.mark.parametrize(
    ("spoil", "found", "allowed"),
    [
        (drop, "no such tensor", r"shape \(8, 8, 3, 3\)"),
        (transpose, r"shape \(8, 4, 3, 3\)", r"shape \(8, 8, 3, 3\)"),
        (broadcastable, r"shape \(1, 1, 1, 1\)", r"shape \(8, 8, 3, 3\)"),
        (half, "torch.float16", "torch.float32"),
        (nan, "values that are not finite", "finite values"),
        (infinite, "values that are not finite", "finite values"),
        (huge, r"values up to 1e\+06", r"values up to [\d.e+]+"),
    ],
)
def test_a_bad_reply_is_refused_with_client_tensor_found_and_allowed(spoil: Any, found: str, allowed: str) -> None:
    supernet, plan = supernet_of(SPACE), SPACE.plan(SPACE.smallest)
    before, tensors = clone(supernet), random_tensors(plan, 1)
    check_tensors("client-07", plan, tensors, largest_allowed(supernet))
    spoil(tensors)
    with pytest.raises(ReplyError, match=f"client client-07: tensor '{NAME}': found {found}, allowed {allowed}"):
        check_tensors("client-07", plan, tensors, largest_allowed(supernet))
    assert all(torch.equal(supernet[name], before[name]) for name in before)


def test_a_tensor_too_many_is_refused() -> None:
    plan = SPACE.plan(SPACE.smallest)
    tensors = random_tensors(plan, 1)
    add(tensors)
    with pytest.raises(ReplyError, match="client c: tensor 'stages.9.0.conv1.weight': found a tensor that its arch"):
        check_tensors("c", plan, tensors)


def test_a_long_name_is_cut_in_the_message() -> None:
    plan = SPACE.plan(SPACE.smallest)
    with pytest.raises(ReplyError) as caught:
        check_tensors("c", plan, {**random_tensors(plan, 1), "x" * 5000: torch.zeros(1)})
    assert len(str(caught.value)) < 250


def test_a_supernet_of_another_size_is_refused_even_if_it_would_broadcast() -> None:
    largest, smallest = SPACE.plan(SPACE.largest), SPACE.plan(SPACE.smallest)
    with pytest.raises(ReplyError, match="allowed"):
        check_tensors("c", largest, random_tensors(smallest, 1))


def test_the_limit_scales_with_the_supernet() -> None:
    assert largest_allowed({"a": torch.tensor([0.1, -0.2])}) == HEADROOM
    assert largest_allowed({"a": torch.tensor([1.0]), "b": torch.tensor([-3.0])}) == 3 * HEADROOM


def test_shapes_of_a_plan() -> None:
    assert shapes(SPACE.plan(SPACE.smallest))["head.weight"] == (3, 16)
