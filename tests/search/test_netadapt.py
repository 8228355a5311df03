from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contracts.mobile import toy_mobile
from contracts.samples import toy_space
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.search.netadapt import proposals, step_size
from fednas_core.spaces.chain import ChainSpace
from fednas_core.spaces.registry import load

CNN = load("cnn")
SPACES: dict[str, Any] = {"resnet": toy_space(), "mobile": toy_mobile(), "chain": CNN}
CASES = st.tuples(st.sampled_from(sorted(SPACES)), st.integers(0, 10_000), st.floats(0.3, 1.1))


def macs_of(space: Any) -> Any:
    return lambda arch: float(space.cost(arch).macs)


def test_the_step_shrinks_as_published() -> None:
    assert step_size(1000.0, 0.03, 0.96, 0) == pytest.approx(30.0)
    assert step_size(1000.0, 0.03, 0.96, 2) == pytest.approx(30.0 * 0.96 * 0.96)


@settings(max_examples=100, deadline=None)
@given(case=CASES)
def test_proposals_meet_the_target_by_one_gene_and_are_just_small_enough(case: tuple[str, int, float]) -> None:
    kind, seed, share = case
    space = SPACES[kind]
    base = space.sample(np.random.default_rng(seed))
    resource = macs_of(space)
    target = share * resource(base)
    found = proposals(space, base, resource, target)
    assert len(set(found)) == len(found) and base not in found

    row, expected = space.encode(base), []
    for position in range(len(row)):
        lower = [row.copy() for _ in range(row[position])]
        for choice, one in enumerate(lower):
            one[position] = choice
        meeting = [arch for arch in map(space.decode, lower) if resource(arch) <= target and arch != base]
        expected += meeting[-1:]
    assert list(found) == list(dict.fromkeys(expected))


def test_only_the_given_positions_are_lowered_and_in_their_order() -> None:
    space = toy_space()
    resource, base = macs_of(space), space.largest
    row = space.encode(base)
    widths = [len(row) - 1, len(row) - 2]
    found = proposals(space, base, resource, resource(base) - 1, widths)
    assert len(found) == 2
    for arch, position in zip(found, sorted(widths), strict=True):
        changed = np.flatnonzero(space.encode(arch) != row)
        assert changed.tolist() == [position]


def test_genes_of_missing_blocks_and_targets_out_of_reach_propose_nothing() -> None:
    space = toy_space()
    resource = macs_of(space)
    assert proposals(space, space.largest, resource, resource(space.smallest) - 1) == ()
    assert proposals(space, space.smallest, resource, resource(space.smallest)) == ()
    shallow = space.arch({"d": [0, 0], "e": [1.0, 1.0, 1.0, 1.0], "w": [1, 1, 1]})
    generous = proposals(space, shallow, resource, resource(shallow))
    assert len(generous) == 5  # two blocks' expansions and three widths; the expansions of missing blocks are no genes


def test_a_resource_that_is_not_monotone_still_gives_the_largest_choice_that_meets_it() -> None:
    space = toy_mobile()
    positions = np.flatnonzero(space.gene_choices >= 3)
    row = space.encode(space.largest)
    cheap = row.copy()
    cheap[positions[0]] = 0
    found = proposals(space, space.largest, lambda a: 1.0 if a == space.decode(cheap) else 9.0, 5.0)
    assert found == (space.decode(cheap),)


def test_spaces_without_width_groups_have_a_proposal_at_every_position() -> None:
    space = toy_space()
    assert space.shrinkable == tuple(range(len(space.gene_choices)))


def test_of_a_chain_each_width_group_is_shrunk_and_no_layer_removed() -> None:
    assert isinstance(CNN, ChainSpace)
    assert CNN.shrinkable == tuple(range(len(CNN.groups)))
    resource, base = macs_of(CNN), CNN.largest
    initial = resource(base)
    target = initial - step_size(initial, 0.03, 0.96, 0)
    found = proposals(CNN, base, resource, target, CNN.shrinkable)
    assert len(found) >= 5
    shrunk = []
    for arch in found:
        assert resource(arch) <= target and arch["k"] == base["k"]
        (group,) = [g for g, (now, before) in enumerate(zip(arch["w"], base["w"], strict=True)) if now != before]
        wider = list(arch["w"])
        wider[group] += 1
        assert resource(CNN.arch({"w": wider, "k": arch["k"]})) > target
        shrunk.append(group)
    assert shrunk == sorted(set(shrunk))


def test_tied_groups_of_a_chain_are_one_proposal() -> None:
    assert isinstance(CNN, ChainSpace)
    kept = [1] * len(CNN.removable)
    base = CNN.arch({"w": CNN.largest["w"], "k": [*kept[1:], 0]})
    resource = macs_of(CNN)
    target = 0.95 * resource(base)
    ninth, tenth = (proposals(CNN, base, resource, target, [position]) for position in (8, 9))
    assert ninth == tenth and len(ninth) == 1 and ninth[0]["w"][8] == ninth[0]["w"][9]
    assert len(proposals(CNN, base, resource, target, CNN.shrinkable)) == len(CNN.groups) - 1


def test_netadapt_reaches_a_budget_step_by_step() -> None:
    resource, base = macs_of(CNN), CNN.largest
    initial, budget = resource(base), 0.5 * resource(base)
    for iteration in range(100):
        if resource(base) <= budget:
            break
        target = max(budget, resource(base) - step_size(initial, 0.05, 0.96, iteration))
        found = proposals(CNN, base, resource, target, CNN.shrinkable)
        assert found and all(resource(arch) <= target for arch in found)
        base = max(found, key=lambda arch: sum(arch["w"]))
    assert resource(base) <= budget and iteration < 30
