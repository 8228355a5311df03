"""Evolution in the style of MnasNet (Tan et al., CVPR 2019), the second host search of FedNAS (arXiv 2002.06352).

Regularised evolution (Real et al., AAAI 2019): the best of a few drawn at random has a child; the caller lets the
oldest die by handing only the youngest. One score trades accuracy for cost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from fednas_core.base.values import Arch
from fednas_core.search.evolution import TOURNAMENT
from fednas_core.search.within import within
from fednas_core.spaces.space import Elastic

ATTEMPTS = 32
"""Attempts for each child that is wanted: a space may hold no more that are new and fit."""


@dataclass(frozen=True, slots=True)
class Child:
    """A new architecture and the one that it descends from, None if it was drawn at random."""

    arch: Arch
    parent: Arch | None


@dataclass(frozen=True, slots=True)
class _Fitting:
    """A `Limit` of one function."""

    allows: Callable[[Arch], bool]


def score(accuracy: float, cost: float, target: float, w: float = -0.07) -> float:
    """Return ``accuracy · (cost / target)^w`` (MnasNet, equation 2, with the soft exponent on both sides).

    `cost` and `target` are above zero and in one unit; with w = −0.07 twice the cost is worth 5 % of accuracy.
    """
    return float(accuracy * (cost / target) ** w)


def children(
    space: Elastic,
    population: Sequence[tuple[Arch, float]],
    count: int,
    rng: np.random.Generator,
    fits: Callable[[Arch], bool],
    known: Collection[Arch],
) -> tuple[Child, ...]:
    """Return up to `count` different architectures that fit and are not `known`.

    Each descends from the best of a tournament of the population (architectures and scores), crossed with that of
    another and mutated; an empty population has random ones. What does not fit is narrowed until it does. Fewer come
    back if `ATTEMPTS` a child find no more.
    """
    found: dict[Arch, Child] = {}
    seen = set(known)
    for _ in range(ATTEMPTS * count):
        if len(found) == count:
            break
        parent = _winner(population, rng) if population else None
        drawn = space.sample(rng) if parent is None else _mated(space, parent, _winner(population, rng), rng)
        arch = within(space, drawn, _Fitting(fits))
        if arch is not None and arch not in seen and arch not in found:
            found[arch] = Child(arch, parent)
    return tuple(found.values())


def _winner(population: Sequence[tuple[Arch, float]], rng: np.random.Generator) -> Arch:
    drawn = rng.integers(len(population), size=TOURNAMENT)
    return max((population[int(i)] for i in drawn), key=lambda one: one[1])[0]


def _mated(space: Elastic, first: Arch, second: Arch, rng: np.random.Generator) -> Arch:
    """Return a cross of two rows of genes (each gene from either), of which one gene or more is drawn anew."""
    genes = len(space.gene_choices)
    row = np.where(rng.random(genes) < 0.5, space.encode(first), space.encode(second))
    anew = rng.random(genes) < 1 / genes
    anew[rng.integers(genes)] = True
    return space.decode(np.where(anew, rng.integers(0, space.gene_choices), row))
