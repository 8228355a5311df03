from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fednas_core.base.errors import ArchError, ConfigError
from fednas_core.search.fitness import REFUSED, Fitness, evaluate
from fednas_core.spaces.registry import load, names
from fednas_core.spaces.resnet import ResNetSpace, make_divisible

GOLDEN = Path(__file__).parents[1] / "golden"
WIDE = ResNetSpace(
    name="wide",
    stem=20,
    stages=(40, 36, 100, 24, 60),
    strides=(1, 2, 1, 2, 2),
    widths=(0.3, 0.5, 1.1),
    expansions=(0.2, 1.0, 1.5),
    extra_blocks=3,
    stem_stride=2,
    image_size=45,
    in_channels=1,
    classes=7,
    norm="none",
)

RESNETS = [space for space in map(load, names()) if isinstance(space, ResNetSpace)]


def population(space: ResNetSpace, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, space.gene_choices, (count, len(space.gene_choices)))


def reference(space: ResNetSpace, row: np.ndarray) -> tuple[int, float, float, float, int]:
    """The published formula, block by block: L, rho, entropy, Q, V."""
    arch = space.decode(row)
    bases = (space.stem, *space.stages)
    c = [make_divisible(base * space.widths[int(w)]) for base, w in zip(bases, arch["w"], strict=True)]
    logs, entropy = [math.log(9 * space.in_channels)], 0.0
    for j, depth in enumerate(arch["d"], start=1):
        terms = []
        for b in range(int(depth) + 1):
            c_in = c[j - 1] if b == 0 else c[j]
            mid = make_divisible(c[j] * arch["e"][(j - 1) * space.most_blocks + b])
            terms += [math.log(9 * c_in), math.log(9 * mid)] + ([math.log(c_in)] if b == 0 else [])
        entropy += math.log(space.sizes[j] ** 2 * c[j]) * sum(terms)
        logs += terms
    rho = len(logs) / math.exp(sum(logs) / len(logs))
    balance = math.exp(float(np.var([1 + int(d) for d in arch["d"]])))
    return len(logs), rho, entropy, balance, sum(max(0, a - b) for a, b in zip(c[1:-1], c[2:], strict=True))


def test_golden_architectures() -> None:
    space = load("deepfednas-cifar")
    golden = json.loads((GOLDEN / "deepfednas_golden.json").read_text())
    scores = evaluate(space, np.stack([space.encode(space.arch({g: row[g] for g in "dew"})) for row in golden]))
    assert len(golden) == 10
    for key, found in {
        "macs": scores.macs,
        "params": scores.params,
        "L": scores.layers,
        "rho": scores.rho,
        "entropy": scores.entropy,
        "Q": scores.balance,
        "V": scores.violation,
        "fitness_lambda1000": scores.fitness(Fitness()),
        "fitness_lambda100": scores.fitness(Fitness(lam=100.0)),
    }.items():
        np.testing.assert_allclose(found, [row[key] for row in golden], rtol=0, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("space", [*RESNETS, WIDE], ids=lambda space: space.name)
@pytest.mark.parametrize("norm", ["none", "group", "parametric"])
def test_costs_are_those_of_the_space(space: ResNetSpace, norm: str) -> None:
    space = replace(space, norm=norm)
    rows = population(space, 500)
    scores = evaluate(space, rows)
    costs = [space.cost(space.decode(row)) for row in rows]
    assert scores.macs.tolist() == [cost.macs for cost in costs]
    assert scores.params.tolist() == [cost.params for cost in costs]


@pytest.mark.parametrize("space", [load("deepfednas-cifar"), load("small"), WIDE], ids=lambda space: space.name)
def test_terms_are_those_of_the_formula(space: ResNetSpace) -> None:
    rows = population(space, 200, seed=1)
    scores = evaluate(space, rows)
    expected = np.array([reference(space, row) for row in rows])
    found = np.stack([scores.layers, scores.rho, scores.entropy, scores.balance, scores.violation], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_inactive_genes_change_nothing() -> None:
    space = load("deepfednas-cifar")
    rows = population(space, 50)
    canonical = np.stack([space.encode(space.decode(row)) for row in rows])
    assert (rows != canonical).any()
    assert evaluate(space, rows).fitness(Fitness()).tolist() == evaluate(space, canonical).fitness(Fitness()).tolist()


def test_rho_above_its_bound_is_refused() -> None:
    space = load("deepfednas-cifar")
    scores = evaluate(space, np.stack([space.encode(space.smallest), space.encode(space.largest)]))
    fitness = scores.fitness(Fitness(rho_max=0.1))
    assert fitness[0] == REFUSED
    assert fitness[1] == pytest.approx(2430.4339539572197)


def test_empty_population() -> None:
    space = load("small")
    assert evaluate(space, np.zeros((0, len(space.gene_choices)), dtype=int)).fitness(Fitness()).shape == (0,)


@pytest.mark.parametrize("change", [-1, 99])
def test_genes_out_of_range_are_refused(change: int) -> None:
    space = load("small")
    rows = population(space, 3)
    rows[1, 4] = change
    with pytest.raises(ArchError, match="space 'small'"):
        evaluate(space, rows)
    with pytest.raises(ArchError, match="shape"):
        evaluate(space, rows[:, 1:])


@pytest.mark.parametrize("wrong", [{"lam": -1.0}, {"omega": math.nan}, {"gamma": math.inf}, {"rho_max": 0.0}])
def test_constants_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Fitness(**wrong)
