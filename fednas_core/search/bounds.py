"""What any completion of a partial network can reach: the bound with which exact search discards almost everything.

The effectiveness term of the fitness, λ·L·exp(−S/L) in the sum S of the log-widths, is convex. Under a `Chord` in its
place the value of a network is a sum over stages, and at a price per unit of cost so is value − price·cost: its
maximum over all completions takes one pass over pairs of neighbouring widths.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fednas_core.search.fitness import LOG_WIDTH, Fitness, Floats, Ints, Tables, balance, layers
from fednas_core.spaces.capabilities import Staged


@dataclass(frozen=True, slots=True)
class Chords:
    """K chords of the effectiveness term, L·level + slope·S, each over an interval of geometric mean widths; (K,).

    A chord lies above the term inside its interval and below it outside; `spread` is the largest difference of its
    slope to that of the term inside.
    """

    level: Floats
    slope: Floats
    spread: Floats

    @staticmethod
    def over(lam: float, low: Floats, high: Floats) -> Chords:
        """Return the chords over the intervals from `low` to `high`."""
        slope = lam * (1 / high - 1 / low) / np.log(high / low)
        return Chords(lam / low - slope * np.log(low), slope, np.maximum(slope + lam / low, -lam / high - slope))


@dataclass(frozen=True)
class Problem:
    """A space, its tables, the constants of F and the column of the tables that is the limited cost."""

    space: Staged
    constants: Fitness
    table: Tables
    column: int

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.space.stages)

    def corner(self, depths: Ints, largest: bool) -> Ints:
        """Return as a population the narrowest or the widest network of each depth vector, shape (n, genes)."""
        rows = np.zeros((len(depths), len(self.space.gene_choices)), dtype=np.int64)
        if largest:
            rows += self.space.gene_choices - 1
        rows[:, : self.stages] = depths
        return rows

    def constant(self, depths: tuple[int, ...], lines: Chords) -> Floats:
        """Return the part of the value that no width changes, shape (K,)."""
        d = np.array(depths)
        fixed = float(-self.constants.omega * balance(d))
        return fixed + float(layers(self.space, d)) * lines.level


@dataclass
class Bounds:
    """The best completion of every partial network, value − price·cost, under K lines and M prices."""

    problem: Problem
    lines: Chords
    prices: Floats
    _first: list[Floats] = field(default_factory=list)
    _later: list[Floats] = field(default_factory=list)
    _known: dict[tuple[int, ...], Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the best expansion of every possible block: first (K, M, W, W), later (K, M, W) a stage."""
        table, column = self.problem.table, self.problem.column
        slope, prices = self.lines.slope[:, None, None], self.prices[:, None]
        for j, weight in enumerate(table.weight):
            first, later = table.first[j], table.later[j][:, :-1]
            lost = self.problem.constants.gamma * table.loss[j]
            best = np.full((len(self.lines.slope), len(self.prices), *lost.shape), -np.inf)
            more = np.full(best.shape[:3], -np.inf)
            for e in range(later.shape[1]):
                gain = (weight + slope) * first[:, :, e, LOG_WIDTH]
                np.maximum(best, gain[:, None] - prices[:, None] * first[:, :, e, column], out=best)
                gain = (weight + slope[:, 0]) * later[:, e, LOG_WIDTH]
                np.maximum(more, gain[:, None] - prices * later[:, e, column], out=more)
            self._first.append(best - lost)
            self._later.append(more)

    def after_first(self, depths: tuple[int, ...], j: int) -> Floats:
        """Return the bound after the first block of stage j of that width, shape (K, M, W)."""
        return depths[j] * self._later[j] + self.after_stage(depths[j + 1 :])

    def after_stage(self, rest: tuple[int, ...]) -> Floats:
        """Return the bound of the stages of these depths, given the width before them, shape (K, M, W)."""
        if rest not in self._known:
            if rest:
                j = self.problem.stages - len(rest)
                ahead = self._first[j] + self.after_first((0,) * j + rest, j)[:, :, None, :]
                self._known[rest] = ahead.max(axis=3)
            else:
                head = self.prices[:, None] * self.problem.table.head[:, self.problem.column]
                self._known[rest] = np.broadcast_to(-head, (len(self.lines.slope), *head.shape))
        return self._known[rest]

    def total(self, depths: tuple[int, ...], budgets: Ints) -> tuple[Floats, Ints]:
        """Return the bound of F within each budget and the price that gives it, both of shape (K, budgets)."""
        stem = self.problem.table.stem
        start = self.after_stage(depths) - self.prices[:, None] * stem[:, self.problem.column]
        start += self.lines.slope[:, None, None] * stem[:, LOG_WIDTH]
        whole = start.max(axis=2)[:, :, None] + self.prices[:, None] * budgets
        price = whole.argmin(axis=1)
        return self.problem.constant(depths, self.lines)[:, None] + whole.min(axis=1), price
