from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fednas_core.base.errors import ArchError, ConfigError, InfeasibleError
from fednas_core.search import bounds, fronts
from fednas_core.search.exact import exact_search
from fednas_core.search.fitness import MACS, Fitness, Scores, evaluate, tables
from fednas_core.search.path import from_csv
from fednas_core.spaces.registry import load
from fednas_core.spaces.resnet import ResNetSpace

CACHE = Path(__file__).parents[1] / "golden" / "deepfednas_cache_60.csv"
CIFAR = load("deepfednas-cifar")
NARROWING = ResNetSpace("narrowing", 16, (96, 24, 64), (1, 2, 2), (0.5, 1.0), (0.25, 1.0), 1, image_size=16)
DEEP = ResNetSpace("deep", 24, (48, 80), (2, 1), (0.25, 0.5, 1.0), (0.2, 0.5, 0.9), 2, image_size=20, norm="none")
SINGLE = ResNetSpace("single", 8, (24,), (1,), (1.0,), (0.5,), 0, image_size=4)
LONG = ResNetSpace(
    "long", 8, (16, 24, 24, 40, 32), (1, 2, 1, 2, 1), (0.5, 1.0), (1.0,), 1, image_size=16, in_channels=1
)


def everything(space: ResNetSpace) -> np.ndarray:
    return np.stack([axis.ravel() for axis in np.indices(tuple(space.gene_choices))], axis=1)


def scores_of(space: ResNetSpace, archs: tuple) -> Scores:
    return evaluate(space, np.stack([space.encode(arch) for arch in archs]))


def compare(space: ResNetSpace, constants: Fitness, resource: str, count: int, seed: int = 0) -> None:
    """Exact search equals full enumeration at `count` budgets, among them every kind of edge."""
    scores = evaluate(space, everything(space))
    cost, fitness = getattr(scores, resource), scores.fitness(constants)
    order = np.argsort(cost, kind="stable")
    best = np.maximum.accumulate(fitness[order])
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([rng.choice(cost, count // 2), rng.integers(cost.min(), cost.max() + 1, count // 2)])
    limits = np.array([cost.min(), cost.max(), 2 * cost.max(), *drawn])
    found = scores_of(space, exact_search(space, limits.tolist(), constants, resource=resource))
    assert (getattr(found, resource) <= limits).all()
    want = best[np.searchsorted(cost[order], limits, side="right") - 1]
    np.testing.assert_allclose(found.fitness(constants), want, rtol=0, atol=1e-7)


@pytest.mark.parametrize("space", [NARROWING, DEEP, SINGLE, LONG], ids=lambda space: space.name)
@pytest.mark.parametrize("resource", ["macs", "params"])
@pytest.mark.parametrize("constants", [Fitness(), Fitness(lam=100.0), Fitness(omega=0.0, lam=20000.0, gamma=0.0)])
def test_equals_brute_force(space: ResNetSpace, resource: str, constants: Fitness) -> None:
    compare(space, constants, resource, 300)


def test_equals_brute_force_without_effectiveness() -> None:
    compare(DEEP, Fitness(lam=0.0), "macs", 200)


def random_space(rng: np.random.Generator) -> ResNetSpace:
    stages = int(rng.integers(1, 4))
    tenths = np.arange(1, 20)
    return ResNetSpace(
        name="random",
        stem=int(rng.integers(8, 64)),
        stages=tuple(map(int, rng.integers(8, 200, stages))),
        strides=tuple(map(int, rng.integers(1, 3, stages))),
        widths=tuple(float(x) / 10 for x in sorted(rng.choice(tenths, int(rng.integers(1, 4)), replace=False))),
        expansions=tuple(float(x) / 10 for x in sorted(rng.choice(tenths, int(rng.integers(1, 3)), replace=False))),
        extra_blocks=int(rng.integers(0, 3 if stages < 3 else 2)),
        image_size=int(rng.integers(4, 33)),
        in_channels=int(rng.integers(1, 4)),
    )


@pytest.mark.parametrize("seed", range(25))
def test_equals_brute_force_in_random_spaces(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = random_space(rng)
    constants = Fitness(float(rng.choice([0, 10, 100])), float(10 ** rng.uniform(0, 5)), float(rng.choice([0, 1, 100])))
    compare(space, constants, "macs", 100, seed)


def test_the_toys_hold_the_hard_cases() -> None:
    scores = evaluate(NARROWING, everything(NARROWING))
    limits = np.linspace(scores.macs.min(), scores.macs.max(), 300).astype(int).tolist()
    found = exact_search(NARROWING, limits)
    assert any(len(set(arch["d"])) > 1 for arch in found)
    assert (scores_of(NARROWING, found).violation > 0).any()


def test_at_or_above_the_published_path_at_every_row() -> None:
    rows, _ = from_csv(CIFAR, CACHE.read_text())
    found = scores_of(CIFAR, exact_search(CIFAR, [row.cost.macs for row in rows]))
    gain = found.fitness(Fitness()) - [row.fitness for row in rows]
    assert len(gain) == 60
    assert gain.min() >= -1e-9
    assert np.median(gain) > 4.5
    assert (found.macs <= [row.cost.macs for row in rows]).all()


def test_sixty_budgets_take_half_a_second_of_computing() -> None:
    limits = np.linspace(458_969_088, 3_403_370_496, 60).astype(int).tolist()
    seconds = []
    for _ in range(3):
        start = time.process_time()
        exact_search(CIFAR, limits)
        seconds.append(time.process_time() - start)
    assert min(seconds) <= 0.5


def test_no_change_of_one_or_two_genes_improves_the_result() -> None:
    limits = np.linspace(8_000_000, 3_300_000_000, 8).astype(int)
    archs = exact_search(CIFAR, limits.tolist())
    fitness = scores_of(CIFAR, archs).fitness(Fitness())
    single = [(g, v) for g, choices in enumerate(CIFAR.gene_choices) for v in range(choices)]
    first, second = np.triu_indices(len(single))
    gene, value = np.array(single).T
    for arch, limit, best in zip(archs, limits, fitness, strict=True):
        rows = np.tile(CIFAR.encode(arch), (len(first), 1))
        rows[np.arange(len(rows)), gene[first]] = value[first]
        rows[np.arange(len(rows)), gene[second]] = value[second]
        scores = evaluate(CIFAR, rows)
        assert scores.fitness(Fitness())[scores.macs <= limit].max() <= best + 1e-9


def test_small_budgets_need_unequal_depths() -> None:
    found = exact_search(CIFAR, np.linspace(7_545_888, 25_000_000, 12).astype(int).tolist())
    assert found[0] == CIFAR.smallest
    assert any(len(set(arch["d"])) > 1 for arch in found)
    assert (np.diff(scores_of(CIFAR, found).fitness(Fitness())) >= 0).all()


def test_deterministic_and_independent_of_the_order_of_budgets() -> None:
    limits = [10_000_000, 700_000_000, 60_000_000, 1_445_000_000, 10**12]
    found = exact_search(CIFAR, limits)
    assert exact_search(CIFAR, limits) == found
    assert exact_search(CIFAR, limits[::-1]) == found[::-1]
    assert found[-1] == CIFAR.largest
    assert exact_search(CIFAR, []) == ()


def test_depths_can_be_restricted() -> None:
    every = everything(DEEP)
    scores = evaluate(DEEP, every)
    allowed = (every[:, :2] == [0, 1]).all(axis=1) | (every[:, :2] == [1, 1]).all(axis=1)
    low = int(scores.macs[allowed].min())
    for limit in np.linspace(low, scores.macs.max(), 40).astype(int).tolist():
        (arch,) = exact_search(DEEP, [limit], depths=[(0, 1), (1, 1)])
        assert arch["d"] in {(0, 1), (1, 1)}
        want = scores.fitness(Fitness())[allowed & (scores.macs <= limit)].max()
        assert scores_of(DEEP, (arch,)).fitness(Fitness())[0] == pytest.approx(want, abs=1e-7)


@pytest.mark.parametrize("depths", [[], [(0,)], [(0, 3)], [(0, 1), (-1, 0)]])
def test_depths_that_the_space_lacks_are_refused(depths: list) -> None:
    with pytest.raises(ArchError, match="0 to 2"):
        exact_search(DEEP, [10**9], depths=depths)


def test_a_budget_that_nothing_meets() -> None:
    with pytest.raises(InfeasibleError, match=r"at most 7,000,000 MACs; the cheapest has 7,545,888"):
        exact_search(CIFAR, [500_000_000, 7_000_000])
    with pytest.raises(InfeasibleError, match=r"parameters; the cheapest has 128,706"):
        exact_search(CIFAR, [128_705], resource="params")


def test_a_bound_on_rho_that_excludes_architectures_is_refused() -> None:
    with pytest.raises(ConfigError, match="0.1926"):
        exact_search(CIFAR, [10**9], Fitness(rho_max=0.15))
    assert exact_search(CIFAR, [10**9], Fitness(rho_max=0.51)) == exact_search(CIFAR, [10**9])


def test_chords_bound_the_effectiveness_from_above() -> None:
    edges = np.geomspace(50.0, 2000.0, 9)
    lines = bounds.Chords.over(1000.0, edges[:-1], edges[1:])
    for k, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        inside = np.geomspace(low, high, 50)
        chord = lines.level[k] + lines.slope[k] * np.log(inside)
        assert (chord >= 1000.0 / inside - 1e-9).all()
        assert (np.abs(-1000.0 / inside - lines.slope[k]) <= lines.spread[k] + 1e-9).all()


@pytest.mark.parametrize("depths", [(0, 0), (2, 1), (2, 2)])
def test_bounds_are_never_below_the_best(depths: tuple[int, int]) -> None:
    problem = bounds.Problem(DEEP, Fitness(), tables(DEEP), MACS)
    edges = np.geomspace(10.0, 2000.0, 9)
    lines = bounds.Chords.over(1000.0, edges[:-1], edges[1:])
    every = everything(DEEP)
    every = every[(every[:, :2] == depths).all(axis=1)]
    scores = evaluate(DEEP, every)
    limits = np.linspace(scores.macs.min(), scores.macs.max(), 50).astype(int)
    best = np.array([scores.fitness(Fitness())[scores.macs <= limit].max() for limit in limits])
    upper, price = bounds.Bounds(problem, lines, np.array([0.0, *np.geomspace(1e-7, 1e-2, 60)])).total(depths, limits)
    assert upper.shape == price.shape == (8, 50)
    assert (upper.max(axis=0) >= best - 1e-9).all()


def test_a_sweep_finds_nothing_where_too_much_is_wanted() -> None:
    problem = bounds.Problem(DEEP, Fitness(), tables(DEEP), MACS)
    edges = np.geomspace(10.0, 2000.0, 9)
    prices = np.array([0.0, 1e-5])
    bound = bounds.Bounds(problem, bounds.Chords.over(1000.0, edges[:-1], edges[1:]), prices)
    limits = np.array([evaluate(DEEP, DEEP.encode(DEEP.largest)[None]).macs[0]])
    one = np.zeros(1, dtype=int)
    found, genes = fronts.sweep(problem, (1, 1), bound, fronts.Aim(one, one, one, limits, np.array([1e6])))
    assert found.tolist() == [-np.inf]
    assert genes.shape == (1, len(DEEP.gene_choices))


def test_other_classes_and_channels_change_the_result_consistently() -> None:
    space = replace(CIFAR, classes=100, in_channels=1, norm="none")
    (arch,) = exact_search(space, [900_000_000])
    assert space.cost(arch).macs <= 900_000_000
