from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from contracts.samples import toy_space
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas_core.base.values import Arch
from fednas_core.devices.budgets import Allowance, Budget
from fednas_core.search.measured import MUTANTS, PARENTS, Worth, most_accurate
from fednas_core.search.within import within
from fednas_core.spaces.registry import load
from fednas_core.spaces.space import Elastic

TOY = toy_space(widths=(0.5, 1.0, 1.5), expansions=(0.25, 0.5, 1.0))
FREE = Allowance(Budget("any"), TOY)
EVERY = tuple({TOY.decode(np.array(row)) for row in product(*(range(count) for count in TOY.gene_choices))})


class Exam:
    """Accuracies that are known, seemingly without order, and what was asked."""

    def __init__(self, space: Elastic = TOY, seed: int = 0) -> None:
        self.space, self.seed, self.asked = space, seed, list[Arch]()

    def __call__(self, arch: Arch) -> Worth:
        self.asked.append(arch)
        return self.worth(arch)

    def worth(self, arch: Arch) -> Worth:
        row = self.space.encode(arch)
        return (float(np.random.default_rng([self.seed, *row.tolist()]).random()),)


def allowance(kind: str, share: float, space: Elastic = TOY) -> Allowance:
    """A limit of one kind, from the smallest network (share 0) to the largest."""

    def milliseconds(arch: Arch) -> float:
        return space.cost(arch).macs / 1e4

    def figure(arch: Arch) -> float:
        return milliseconds(arch) if kind == "latency_ms" else float(getattr(space.cost(arch), kind))

    least, most = figure(space.smallest), figure(space.largest)
    return Allowance(Budget("device", **{kind: least + share * (most - least)}), space, milliseconds)


@settings(max_examples=16, deadline=None)
@given(
    kind=st.sampled_from(["macs", "params", "bytes", "latency_ms"]),
    share=st.sampled_from([0.0, 0.01, 0.4, 1.0]),
    seed=st.integers(0, 2**31),
    population=st.integers(4, 8),
    generations=st.integers(1, 3),
)
def test_nothing_infeasible_is_measured_and_nothing_twice(
    kind: str, share: float, seed: int, population: int, generations: int
) -> None:
    limit, exam = allowance(kind, share), Exam(seed=seed)
    found = most_accurate(TOY, limit, exam, population, generations, np.random.default_rng(seed))
    assert found and all(limit.allows(arch) for arch in exam.asked)
    assert len(set(exam.asked)) == len(exam.asked) <= population * (generations + 1)
    best = sorted(exam.asked, key=exam.worth, reverse=True)
    assert list(found) == best[: max(2, round(PARENTS * population))]  # so never behind the first generation
    again = most_accurate(TOY, limit, Exam(seed=seed), population, generations, np.random.default_rng(seed))
    assert again == found


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_it_is_never_behind_the_largest_network_that_fits(share: float) -> None:
    limit = allowance("params", share)
    found = most_accurate(TOY, limit, lambda arch: (TOY.cost(arch).params,), 4, 1, np.random.default_rng(0))
    largest = within(TOY, TOY.largest, limit)
    assert largest and TOY.cost(found[0]).params >= TOY.cost(largest).params


def test_a_space_that_holds_no_more_ends_the_search() -> None:
    space = toy_space(extra_blocks=0, widths=(1.0,), expansions=(0.5, 1.0))
    exam = Exam(space)
    most_accurate(space, Allowance(Budget("any"), space), exam, 8, 50, np.random.default_rng(0))
    assert len(exam.asked) == len(set(exam.asked)) == 4


def test_nothing_fits_and_nothing_is_measured() -> None:
    exam = Exam()
    tiny = Allowance(Budget("watch", macs=10), TOY)
    assert most_accurate(TOY, tiny, exam, 8, 5, np.random.default_rng(0)) == () and not exam.asked


def smooth(space: Elastic, best: Arch) -> Callable[[Arch], Worth]:
    """An accuracy that falls with the genes that differ from those of the best network."""
    target = space.encode(best)
    return lambda arch: (-float(np.abs(space.encode(arch) - target).sum()),)


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_the_best_network_is_found_where_accuracy_is_known(share: float) -> None:
    limit = allowance("macs", share)
    fitting = [arch for arch in EVERY if limit.allows(arch)]
    measure = smooth(TOY, EVERY[len(EVERY) // 3])
    found = most_accurate(TOY, limit, measure, 24, 12, np.random.default_rng(5))
    assert measure(found[0]) == max(map(measure, fitting))
    assert len(EVERY) > 24 * 13


def test_it_beats_as_many_random_networks_in_a_space_too_large_to_try() -> None:
    space = load("deepfednas-cifar")
    limit = Allowance(Budget("any"), space)
    target = space.sample(np.random.default_rng(99))
    measure, rng = smooth(space, target), np.random.default_rng(1)
    random = max(measure(space.sample(rng)) for _ in range(20 * 16))
    assert measure(most_accurate(space, limit, measure, 20, 15, rng)[0]) > random


def test_a_generation_is_a_fifth_mutants_and_crosses_of_the_best_quarter() -> None:
    space = toy_space(extra_blocks=0, widths=tuple(i / 8 for i in range(1, 17)), stem=64, stages=(64, 64))
    exam, count = Exam(space), 20
    most_accurate(space, Allowance(Budget("any"), space), exam, count, 1, np.random.default_rng(3))
    first, second = exam.asked[:count], exam.asked[count:]
    parents = [space.encode(arch) for arch in sorted(first, key=exam.worth, reverse=True)[: round(PARENTS * count)]]
    assert len(second) == count

    def crossed(arch: Arch) -> bool:
        row = space.encode(arch)
        return any(np.all((row == one) | (row == two)) for one in parents for two in parents)

    strangers = [position for position, arch in enumerate(second) if not crossed(arch)]
    assert strangers and max(strangers) < round(MUTANTS * count) == 4
