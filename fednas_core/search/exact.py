"""Exact search: for every budget at once, the architecture of highest fitness whose cost stays within it.

Given the depths, F is a sum over stages except for the effectiveness λ·ρ = λ·L·exp(−S/L), where S is the sum of the
layers' log-widths. That term is convex in S. Over a short interval of S a chord lies barely above it, and under a chord
the value is a sum over stages: dynamic programming over (stage, width) keeps Pareto fronts of (cost, value), and
complete networks are rescored with the true fitness.

The result is the true optimum, not nearly so. A chord never undervalues a network of its interval, and a partial
network is dropped for only two reasons. Either another one of the same width is cheaper and better by more than chord
and term can differ. Or no budget can want it: at a price μ per unit of cost the best completion of every partial
network is known without any front (`Bounds`), and even that falls short of what each budget has already. The same bound
drops whole depth vectors: that full depth is best at large budgets is proved for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from fednas_core.base.errors import ArchError, ConfigError, InfeasibleError
from fednas_core.base.values import Arch
from fednas_core.search.bounds import Bounds, Chords, Problem
from fednas_core.search.fitness import MACS, PARAMS, PUBLISHED, Fitness, Floats, Ints, evaluate, tables
from fednas_core.search.fronts import TIE, Aim, sweep
from fednas_core.spaces.capabilities import Staged

Resource = Literal["macs", "params"]

_CHORDS = 8
"""Intervals of geometric mean width for which whole depth vectors are bounded."""
_SPACING = 0.15
"""Longest interval, in ln(geometric mean width), under one chord of the dynamic programme."""
_PRICES = 40
_SLACK = 0.5
"""How far below its bound a budget's optimum is first sought; doubled until it is found."""


def _solve(
    problem: Problem, depths: tuple[int, ...], edges: Floats, prices: Floats, limits: Ints, best: Floats
) -> tuple[Floats, Ints]:
    """Return for each budget the best fitness at these depths and its genes; where it is below `best`, maybe less.

    `edges` are the ends of the intervals, shape (intervals, 2), in which the optimum's geometric mean width may lie.
    """
    pieces = math.ceil(math.log(edges[0, 1] / edges[0, 0]) / _SPACING)
    cuts = edges[:, :1] * (edges[:, 1:] / edges[:, :1]) ** (np.arange(pieces + 1) / pieces)
    lines = Chords.over(problem.constants.lam, cuts[:, :-1].ravel(), cuts[:, 1:].ravel())
    bounds = Bounds(problem, lines, prices)
    upper, price = bounds.total(depths, limits)
    ceiling, slack = upper.max(axis=0), np.full(len(limits), _SLACK)
    best, genes = best.copy(), np.zeros((len(limits), len(problem.space.gene_choices)), dtype=np.int64)
    open_ = np.arange(len(limits))
    while len(open_):
        wanted = np.maximum(best, ceiling - slack)[open_]
        line, budget = np.nonzero(upper[:, open_] >= wanted - TIE)
        if not len(line):
            break
        aim = Aim(line, budget, price[:, open_][line, budget], limits[open_], wanted)
        found, rows = sweep(problem, depths, bounds, aim)
        done = (found >= wanted - TIE) | (wanted <= best[open_])
        better = found > best[open_] + TIE
        best[open_[better]], genes[open_[better]] = found[better], rows[better]
        slack[open_] *= 2
        open_ = open_[~done]
    return best, genes


def exact_search(
    space: Staged,
    budgets: Sequence[int],
    constants: Fitness = PUBLISHED,
    depths: Sequence[Sequence[int]] | None = None,
    resource: Resource = "macs",
) -> tuple[Arch, ...]:
    """Return for each budget the architecture of highest fitness that costs at most that much, in the given order.

    `budgets` are MACs, or parameters where `resource` says so. `depths` restricts the search to these depth vectors
    (gene d). The result is deterministic. Limits on both costs at once are for the evolutionary search.

    Raises `InfeasibleError` for a budget below the cheapest architecture, `ArchError` for depth vectors that the space
    lacks, and `ConfigError` if ``constants.rho_max`` excludes architectures: that constraint does not separate.
    """
    problem = Problem(space, constants, tables(space), {"macs": MACS, "params": PARAMS}[resource])
    vectors = _depth_vectors(space, depths)
    least, most = (evaluate(space, problem.corner(vectors, largest)) for largest in (False, True))
    cheapest, dearest = getattr(least, resource), getattr(most, resource)
    _check(space, budgets, resource, int(cheapest.min()), float(least.rho.max()), constants)
    limits = np.array([min(int(budget), int(dearest.max())) for budget in budgets], dtype=np.int64)
    corners = np.concatenate([least.fitness(constants), most.fitness(constants)])
    scale = (np.ptp(corners) + 1.0) / float(dearest.max() - cheapest.min() + 1)
    prices = np.array([0.0, *scale * np.geomspace(1e-3, 1e4, _PRICES)])
    edges = np.geomspace((least.layers / least.rho).min() * 0.999, (most.layers / most.rho).max() * 1.001, _CHORDS + 1)
    found = _best_of(problem, vectors, limits, cheapest, _Grid(edges, prices))
    return tuple(space.decode(row) for row in found)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Ends of the intervals of geometric mean width, and prices, on which depth vectors are bounded; rising."""

    edges: Floats
    prices: Floats

    def finer(self, chosen: Ints) -> Floats:
        """Return finer prices around the chosen ones (indices)."""
        low, high = max(1, int(chosen.min()) - 1), min(len(self.prices) - 1, int(chosen.max()) + 1)
        return np.array([0.0, *np.geomspace(self.prices[low], self.prices[high], _PRICES)])


def _best_of(problem: Problem, vectors: Ints, limits: Ints, cheapest: Ints, grid: _Grid) -> Ints:
    """Return the genes of the best network within each limit, most promising depth vectors first."""
    edges = grid.edges
    bounds = Bounds(problem, Chords.over(problem.constants.lam, edges[:-1], edges[1:]), grid.prices)
    totals = [bounds.total(tuple(d), limits) for d in vectors.tolist()]
    upper = np.where(cheapest[:, None, None] <= limits, np.array([upper for upper, _ in totals]), -np.inf)
    best = np.full(len(limits), -np.inf)
    genes = np.zeros((len(limits), len(problem.space.gene_choices)), dtype=np.int64)
    lead = (upper.max(axis=1) - upper.max(axis=(0, 1))).max(axis=1, initial=-np.inf)
    for i in np.argsort(-lead, kind="stable"):
        open_ = upper[i] > best + TIE
        left = np.flatnonzero(open_.any(axis=0))
        if not len(left):
            continue
        intervals = np.flatnonzero(open_.any(axis=1))
        prices = grid.finer(totals[i][1][upper[i].argmax(axis=0), np.arange(len(limits))][left])
        spans = np.stack([edges[intervals], edges[intervals + 1]], axis=1)
        found, rows = _solve(problem, tuple(vectors[i].tolist()), spans, prices, limits[left], best[left])
        better = found > best[left] + TIE
        best[left[better]], genes[left[better]] = found[better], rows[better]
    return genes


def _depth_vectors(space: Staged, depths: Sequence[Sequence[int]] | None) -> Ints:
    """Return the depth vectors to search, shape (n, stages): those given, or all of the space."""
    if depths is None:
        return np.array(list(product(range(space.most_blocks), repeat=len(space.stages))), dtype=np.int64)
    stages, deepest = len(space.stages), space.extra_blocks
    if not depths or any(len(d) != stages or any(not 0 <= int(x) <= deepest for x in d) for d in depths):
        allowed = f"one or more lists of {stages} numbers from 0 to {deepest}"
        raise ArchError(f"depths {list(depths)!r} of space '{space.name}': allowed are {allowed}")
    return np.array(sorted({tuple(map(int, d)) for d in depths}), dtype=np.int64)


def _check(
    space: Staged, budgets: Sequence[int], resource: Resource, cheapest: int, rho: float, constants: Fitness
) -> None:
    """Refuse budgets that nothing meets and a bound on ρ that excludes architectures."""
    low = min(budgets, default=cheapest)
    if low < cheapest:
        what = {"macs": "MACs", "params": "parameters"}[resource]
        raise InfeasibleError(
            f"no architecture of space '{space.name}' has at most {low:,} {what}; the cheapest has {cheapest:,}"
        )
    if constants.rho_max < rho:
        raise ConfigError(
            f"fitness: rho_max = {constants.rho_max} excludes architectures of space '{space.name}' "
            f"(ρ up to {rho:.4f}), which exact search cannot take into account; raise it or use the evolutionary search"
        )
