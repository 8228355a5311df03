"""Dynamic programming over (stage, width) on Pareto fronts of (cost, value), under chords of the effectiveness term.

A `sweep` grows the networks of one depth vector block by block from the stem. After every step it drops the partial
networks that no budget can want (`_useful`, by the bounds) and those that another one makes useless (`_front`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from fednas_core.search.bounds import Bounds, Chords, Problem
from fednas_core.search.fitness import LOG_WIDTH, Floats, Ints, layers

TIE = 1e-9
"""Differences of fitness below this are rounding."""
_GRID = 64
_NEVER = 1e300


@dataclass(frozen=True, slots=True)
class _States:
    """Partial networks: line, width index of the last stage, cost so far, value so far, sum of log-widths; (n,)."""

    line: Ints
    width: Ints
    cost: Floats
    value: Floats
    logs: Floats

    def take(self, index: Any) -> _States:
        return _States(self.line[index], self.width[index], self.cost[index], self.value[index], self.logs[index])


@dataclass(frozen=True, slots=True)
class Aim:
    """What is asked of one depth vector: which (line, budget) pairs are open and what a budget has already.

    `line` and `budget` list the open pairs, sorted by line; `price` indexes the price that gives the pair's bound;
    `limits`, the budgets, and `wanted`, the fitness below which a network does not interest, have shape (budgets,).
    """

    line: Ints
    budget: Ints
    price: Ints
    limits: Ints
    wanted: Floats

    def needed(self, bounds: Bounds, completion: Floats, grid: Floats) -> Floats:
        """Return the value below which a partial network is useless, by line, width and cost: shape (K, W, grid)."""
        price = bounds.prices[self.price]
        base = self.wanted[self.budget] - price * self.limits[self.budget]
        floor = (base[:, None] - completion[self.line, self.price])[:, :, None] + (price[:, None] * grid)[:, None, :]
        starts = np.flatnonzero(np.diff(self.line, prepend=-1))
        needed = np.full((len(completion), *floor.shape[1:]), _NEVER)
        needed[self.line[starts]] = np.minimum.reduceat(floor, starts, axis=0)
        return needed


def _useful(states: _States, needed: Floats, top: float) -> Ints:
    """Return the indices of states that some open budget may want, given `Aim.needed` on a grid from 0 to `top`.

    What is needed is concave in the cost, so interpolating on the grid drops no state that is needed.
    """
    position = states.cost * ((needed.shape[2] - 1) / top)
    cell = np.minimum(position.astype(np.int64), needed.shape[2] - 2)
    flat = (states.line * needed.shape[1] + states.width) * needed.shape[2] + cell
    low, high = needed.ravel()[flat], needed.ravel()[flat + 1]
    keep = states.value >= low + (high - low) * (position - cell) - TIE
    return np.flatnonzero(keep & (states.cost <= top))


def _front(states: _States, widths: int, lines: Chords) -> Ints:
    """Return the indices of the states that none of the same line and width makes useless.

    A state is made so by a cheaper one whose value is higher by at least spread·|difference of S|: with any completion
    whose true slope lies within the line's interval that one is at least as good.
    """
    key = states.line * widths + states.width
    order = np.lexsort((states.cost, key))
    key, value, logs = key[order], states.value[order], states.logs[order]
    raised = value + key * (float(np.ptp(value)) + 1.0 if len(value) else 1.0)
    record = np.ones(len(order), dtype=bool)
    record[1:] = raised[1:] > np.maximum.accumulate(raised)[:-1]
    holder = np.maximum.accumulate(np.where(record, np.arange(len(order)), 0))
    margin = lines.spread[states.line[order]] * np.abs(logs[holder] - logs)
    kept: Ints = order[record | (value[holder] - value < margin)]
    return kept


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of the dynamic programme: which state each state extends, and by which choice."""

    parent: Ints
    choice: Ints


def _start(problem: Problem, depths: tuple[int, ...], lines: Chords) -> _States:
    """Return the states after the stem: one for every line and stem width, in that order."""
    stem, k = problem.table.stem, len(lines.slope)
    value = problem.constant(depths, lines)[:, None] + lines.slope[:, None] * stem[:, LOG_WIDTH]
    line, width = np.divmod(np.arange(k * len(stem)), len(stem))
    return _States(line, width, stem[width, problem.column], value.ravel(), stem[width, LOG_WIDTH])


def _first_block(problem: Problem, states: _States, lines: Chords, j: int) -> _States:
    """Extend every state by stage j's first block: each stage width and expansion, in that order."""
    table = problem.table
    block = table.first[j][states.width]
    n, widths, expansions = block.shape[:3]
    weight = table.weight[j] + lines.slope[states.line][:, None]
    gain = weight[:, :, None] * block[..., LOG_WIDTH]
    gain -= problem.constants.gamma * table.loss[j][states.width][:, :, None]
    width = np.broadcast_to(np.arange(widths)[:, None], (n, widths, expansions))
    return _extended(states, width, block[..., problem.column], gain, block[..., LOG_WIDTH])


def _later_blocks(problem: Problem, states: _States, lines: Chords, j: int, options: Ints) -> _States:
    """Extend every state by the further blocks of stage j: each row of `options` holds their expansion indices."""
    table = problem.table
    block = table.later[j][:, options].sum(axis=2)[states.width]
    weight = table.weight[j][states.width] + lines.slope[states.line]
    gain = weight[:, None] * block[..., LOG_WIDTH]
    width = np.broadcast_to(states.width[:, None], gain.shape)
    return _extended(states, width, block[..., problem.column], gain, block[..., LOG_WIDTH])


def _extended(states: _States, width: Ints, cost: Floats, gain: Floats, logs: Floats) -> _States:
    """Return the states that come of adding blocks; the arrays have shape (states, choices…), the result is flat."""
    tail = (slice(None), *(None,) * (cost.ndim - 1))
    line = np.broadcast_to(states.line[tail], cost.shape)
    parts = (states.cost[tail] + cost, states.value[tail] + gain, states.logs[tail] + logs)
    return _States(line.ravel(), width.ravel(), *(part.ravel() for part in parts))


def _later_options(problem: Problem, depth: int) -> Ints:
    """Return the expansions of `depth` further blocks, shape (options, depth); their order has no effect."""
    choices = range(len(problem.space.expansions))
    return np.array(list(combinations_with_replacement(choices, depth)), dtype=np.int64).reshape(-1, depth)


def sweep(problem: Problem, depths: tuple[int, ...], bounds: Bounds, aim: Aim) -> tuple[Floats, Ints]:
    """Return for each budget the best fitness found (−inf: none wanted) and its genes, shape (budgets, genes)."""
    lines, top = bounds.lines, float(aim.limits.max())
    grid = np.linspace(0.0, top, _GRID)
    states, steps = _start(problem, depths, lines), []
    keep = _useful(states, aim.needed(bounds, bounds.after_stage(depths), grid), top)
    states = states.take(keep)
    steps.append(_Step(keep, keep))
    for j, depth in enumerate(depths):
        for blocks in range(1 + (depth > 0)):
            if blocks == 0:
                grown = _first_block(problem, states, lines, j)
                completion = bounds.after_first(depths, j)
            else:
                grown = _later_blocks(problem, states, lines, j, _later_options(problem, depth))
                completion = bounds.after_stage(depths[j + 1 :])
            keep = _useful(grown, aim.needed(bounds, completion, grid), top)
            keep = keep[_front(grown.take(keep), len(problem.table.stem), lines)]
            steps.append(_Step(*np.divmod(keep, max(1, len(grown.line) // max(1, len(states.line))))))
            states = grown.take(keep)
    return _winners(problem, depths, lines, states, steps, aim)


def _winners(
    problem: Problem, depths: tuple[int, ...], lines: Chords, states: _States, steps: list[_Step], aim: Aim
) -> tuple[Floats, Ints]:
    """Rescore complete networks with the true F; return for each budget the best that fits, and its genes."""
    found = np.full(len(aim.limits), -np.inf)
    genes = np.zeros((len(aim.limits), len(problem.space.gene_choices)), dtype=np.int64)
    count = float(layers(problem.space, np.array(depths)))
    fitness = states.value - count * lines.level[states.line] - lines.slope[states.line] * states.logs
    fitness += problem.constants.lam * count * np.exp(-states.logs / count)
    cost = states.cost + problem.table.head[states.width, problem.column]
    order = np.argsort(cost, kind="stable")
    best = np.maximum.accumulate(fitness[order])
    record = np.flatnonzero(np.diff(best, prepend=-np.inf) > 0)
    at = np.searchsorted(cost[order][record], aim.limits, side="right") - 1
    winner = order[record[at[at >= 0]]]
    found[at >= 0] = fitness[winner]
    genes[at >= 0] = _genes(problem, depths, steps, winner)
    return found, genes


def _genes(problem: Problem, depths: tuple[int, ...], steps: list[_Step], index: Ints) -> Ints:
    """Follow the steps back from states of the last one; return their genes, shape (len(index), genes)."""
    stages, blocks, expansions = problem.stages, problem.space.most_blocks, len(problem.space.expansions)
    rows = np.zeros((len(index), len(problem.space.gene_choices)), dtype=np.int64)
    rows[:, :stages] = depths
    remaining = steps[::-1]
    for j in reversed(range(stages)):
        e = stages + j * blocks
        if depths[j]:
            step, *remaining = remaining
            rows[:, e + 1 : e + 1 + depths[j]] = _later_options(problem, depths[j])[step.choice[index]]
            index = step.parent[index]
        step, *remaining = remaining
        rows[:, stages * (1 + blocks) + j + 1], rows[:, e] = np.divmod(step.choice[index], expansions)
        index = step.parent[index]
    rows[:, stages * (1 + blocks)] = remaining[0].choice[index] % len(problem.space.widths)
    return rows
