from __future__ import annotations

import sys

import numpy as np
import pytest

from fednas_core.base.errors import ConfigError, InfeasibleError, MissingExtraError
from fednas_core.search.evolution import Constraint, evolve
from fednas_core.search.exact import exact_search
from fednas_core.search.fitness import PUBLISHED, evaluate
from fednas_core.spaces.registry import load
from fednas_core.spaces.resnet import ResNetSpace

TOY = ResNetSpace("toy", 16, (32, 64), (1, 2), (0.5, 1.0), (0.25, 0.5, 1.0), 1, image_size=16)


def fitness(space: ResNetSpace):
    return lambda rows: evaluate(space, rows).fitness(PUBLISHED)


def limit(space: ResNetSpace, name: str, value: float) -> Constraint:
    return Constraint(name, lambda rows: getattr(evaluate(space, rows), name), value)


def test_two_limits_at_once_equal_brute_force() -> None:
    every = np.stack([axis.ravel() for axis in np.indices(tuple(TOY.gene_choices))], axis=1)
    scores = evaluate(TOY, every)
    macs, params = np.median(scores.macs), np.quantile(scores.params, 0.3)
    limits = [limit(TOY, "macs", macs), limit(TOY, "params", params)]
    arch = evolve(TOY, fitness(TOY), limits, seed=3, population=48, generations=30)
    want = scores.fitness(PUBLISHED)[(scores.macs <= macs) & (scores.params <= params)].max()
    found = evaluate(TOY, TOY.encode(arch)[None])
    assert found.macs[0] <= macs
    assert found.params[0] <= params
    assert found.fitness(PUBLISHED)[0] == pytest.approx(want)


def test_same_seed_same_architecture_and_never_above_the_exact_optimum() -> None:
    space = load("deepfednas-cifar")
    budget = 700_000_000
    runs = [evolve(space, fitness(space), [limit(space, "macs", budget)], 7, 32, 15) for _ in range(2)]
    assert runs[0] == runs[1]
    assert space.cost(runs[0]).macs <= budget
    rows = np.stack([space.encode(arch) for arch in (runs[0], *exact_search(space, [budget]))])
    evolved, exact = evaluate(space, rows).fitness(PUBLISHED)
    assert exact >= evolved


def test_a_tight_limit_leaves_the_smallest() -> None:
    space = load("deepfednas-cifar")
    tight = limit(space, "macs", space.cost(space.smallest).macs)
    assert evolve(space, fitness(space), [tight], 0, 16, 3) == space.smallest


def test_limits_that_cannot_be_met_end_with_the_nearest() -> None:
    latency = Constraint("latency_ms", lambda rows: evaluate(TOY, rows).macs / 1e5, 0.5)
    loose = limit(TOY, "params", 10**9)
    nearest = TOY.cost(TOY.smallest).macs / 1e5
    with pytest.raises(InfeasibleError, match=rf"latency_ms ≤ 0\.5 \(nearest found: {nearest:.4g}\)") as caught:
        evolve(TOY, fitness(TOY), [latency, loose], 0, 16, 5)
    assert "params" not in str(caught.value)


def test_without_constraints_and_with_genes_held() -> None:
    arch = evolve(TOY, lambda rows: evaluate(TOY, rows).macs, (), 1, 32, 20, fixed={0: 0, 1: 1})
    assert arch["d"] == (0, 1)
    assert arch["w"] == (1, 1, 1)


def test_settings_that_run_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="population of 2"):
        evolve(TOY, fitness(TOY), population=1)


def test_without_pymoo_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymoo.core.problem", None)
    with pytest.raises(MissingExtraError, match=r"fednas\[search\]"):
        evolve(TOY, fitness(TOY))
