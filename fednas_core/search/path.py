"""The Pareto path of DeepFedNAS: the best architecture for each of a series of MAC budgets.

Phase 1 of the paper makes it, phase 2 trains along it. `pareto_path` finds it by exact search or, like the paper, by
evolution, and can spread it over depths, which the published path does not. `range_matched` and `mac_matched` draw the
random architectures that a path is honestly compared with; the third control, uniform, is ``space.sample``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fednas_core.base.errors import ArchError, ConfigError, InfeasibleError
from fednas_core.base.seeding import derive
from fednas_core.base.values import Arch, Cost
from fednas_core.search.evolution import Constraint, evolve
from fednas_core.search.exact import exact_search
from fednas_core.search.fitness import PUBLISHED, Fitness, Ints, evaluate
from fednas_core.search.fittest import fitness_of, fittest, macs_of
from fednas_core.spaces.capabilities import Staged, staged
from fednas_core.spaces.space import Elastic

How = Literal["exact", "evolved"]

_BATCH = 256
"""Random architectures drawn at once by the controls."""
_TRIES = 64
_STEPS = 400


@dataclass(frozen=True, slots=True)
class PathRow:
    """One architecture of a path, what it costs and its fitness F (NaN where that is not defined)."""

    arch: Arch
    cost: Cost
    fitness: float


def budgets(space: Elastic, count: int, low: int | None = None, high: int | None = None) -> tuple[int, ...]:
    """Return `count` equally spaced MAC budgets from `low` to `high`, both included.

    `low` is by default the cost of the smallest network at full width (one block a stage, least expansion), as
    published: 458,969,088 in the space ``deepfednas-cifar``. In a space of one width that is the smallest network.
    `high` is by default the cost of the largest network. With a count of 1 the only budget is `high`.
    """
    if low is None:
        closed = staged(space)
        low = space.cost(_wide(closed) if closed else space.smallest).macs
    if high is None:
        high = space.cost(space.largest).macs
    if count < 1 or low > high:
        raise ConfigError(
            f"path: {count} budgets from {low:,} to {high:,} MACs; allowed are 1 or more, in rising order"
        )
    return tuple(low + (high - low) * i // (count - 1) for i in range(count)) if count > 1 else (high,)


def _wide(space: Staged) -> Arch:
    """Return the smallest network at full width."""
    stages, blocks = len(space.stages), space.most_blocks
    genes = {"d": [0] * stages, "e": [space.expansions[0]] * (stages * blocks)}
    return space.arch({**genes, "w": [len(space.widths) - 1] * (stages + 1)})


def pareto_path(
    space: Elastic,
    count: int = 60,
    constants: Fitness = PUBLISHED,
    how: How = "exact",
    stratify: bool = False,
    seed: int = 0,
    low: int | None = None,
    population: int = 128,
    generations: int = 100,
) -> tuple[PathRow, ...]:
    """Return exactly `count` rows, sorted by MACs: the best architecture within each of ``budgets(space, count, low)``.

    The last row is the space's largest network whatever its fitness, because it owns every coordinate of the
    supernet; the first row is the path's smallest. Neighbouring budgets may share their best architecture; such rows
    are kept, so that a uniform draw of a row is a uniform draw of a budget.

    With `stratify` (not in the paper) budgets take turns between uniform depth vectors, from full depth downwards,
    among those whose networks reach the budget: shallow subnets are trained where they belong.

    `seed`, `population` and `generations` (published: 256 and 512) matter to ``how="evolved"`` alone, which needs the
    extra ``search``. In a space without a closed form of
    the fitness the path is a ladder (see `fittest`); `how` and `stratify` then mean nothing.
    """
    limits = budgets(space, count, low)
    closed = staged(space)
    if closed is None:
        ladder = rows_of(space, [*fittest(space, limits[:-1], constants), space.largest], constants)
        return tuple(sorted(ladder, key=lambda row: row.cost.macs))
    depths = _strata(closed, limits) if stratify else [None] * count
    if how == "exact":
        found = _exact(closed, limits[:-1], depths[:-1], constants)
    else:
        found = _evolved(closed, limits[:-1], depths[:-1], constants, seed, population, generations)
    rows = rows_of(space, [*found, space.largest], constants)
    return tuple(sorted(rows, key=lambda row: (row.cost.macs, row.fitness)))


def rows_of(space: Elastic, archs: Sequence[Arch], constants: Fitness = PUBLISHED) -> tuple[PathRow, ...]:
    """Return the rows of the given architectures, in their order."""
    fitness = fitness_of(space, archs, constants)
    return tuple(PathRow(arch, space.cost(arch), f) for arch, f in zip(archs, fitness, strict=True))


def _exact(space: Staged, limits: Sequence[int], depths: Sequence[int | None], constants: Fitness) -> list[Arch]:
    """Search every budget at its depth (None: any), budgets of the same depth together."""
    found: dict[int, Arch] = {}
    for depth in dict.fromkeys(depths):
        at = [i for i, other in enumerate(depths) if other == depth]
        vectors = None if depth is None else [[depth] * len(space.stages)]
        found.update(zip(at, exact_search(space, [limits[i] for i in at], constants, vectors), strict=True))
    return [found[i] for i in range(len(limits))]


def _evolved(
    space: Staged,
    limits: Sequence[int],
    depths: Sequence[int | None],
    constants: Fitness,
    seed: int,
    population: int,
    generations: int,
) -> list[Arch]:
    """Search every budget at its depth (None: any) by evolution, each from a stream of its own."""

    def fitness(rows: Ints) -> object:
        return evaluate(space, rows).fitness(constants)

    def macs(rows: Ints) -> Ints:
        return evaluate(space, rows).macs

    found = []
    for i, (limit, depth) in enumerate(zip(limits, depths, strict=True)):
        fixed = {} if depth is None else dict.fromkeys(range(len(space.stages)), depth)
        limited = [Constraint("MACs", macs, limit)]
        found.append(evolve(space, fitness, limited, derive(seed, "path", i), population, generations, fixed))
    return found


def _strata(space: Staged, limits: Sequence[int]) -> list[int | None]:
    """Return for each budget its uniform depth: in turn those whose networks reach it, full depth at the last one.

    A depth reaches a budget if its cheapest network is within it and its dearest at least as much; where none does,
    the deepest affordable depth is taken.
    """
    stages, depth = len(space.stages), np.arange(space.most_blocks)
    rows = np.zeros((space.most_blocks, len(space.gene_choices)), dtype=np.int64)
    dearest = np.tile(space.gene_choices - 1, (space.most_blocks, 1))
    rows[:, :stages] = dearest[:, :stages] = depth[:, None]
    low, high = evaluate(space, rows).macs, evaluate(space, dearest).macs
    chosen: list[int | None] = []
    for i, limit in enumerate(limits):
        affordable = [int(d) for d in depth[::-1] if low[d] <= limit]
        reaching = [d for d in affordable if high[d] >= limit] or affordable[:1] or [0]
        chosen.append(reaching[(len(limits) - 1 - i) % len(reaching)])
    return chosen


def to_json(rows: Iterable[PathRow]) -> str:
    """Return rows as JSON lines: ``{"arch": {…}, "macs": …, "params": …, "fitness": …}``."""
    lines = []
    for row in rows:
        values = {"arch": row.arch.to_json(), "macs": row.cost.macs, "params": row.cost.params, "fitness": row.fitness}
        lines.append(json.dumps(values) + "\n")
    return "".join(lines)


def from_json(space: Elastic, text: str) -> tuple[PathRow, ...]:
    """Return the rows of JSON lines that `to_json` wrote, in their order.

    Raises `ArchError`, naming the line, if one is malformed, does not fit the space, or states other costs than its
    genes have.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            stated = (int(values["macs"]), int(values["params"]))
            arch, fitness = space.arch(values["arch"]), float(values["fitness"])
        except (ValueError, TypeError, KeyError, ArchError) as error:
            raise ArchError(f"path, line {number}: {error}; needed are arch, macs, params and fitness") from error
        cost = space.cost(arch)
        if stated != (cost.macs, cost.params):
            raise ArchError(
                f"path, line {number}: states {stated[0]:,} MACs and {stated[1]:,} parameters, but its genes have "
                f"{cost.macs:,} and {cost.params:,} in space '{space.name}'"
            )
        rows.append(PathRow(arch, cost, fitness))
    return tuple(rows)


def from_csv(space: Staged, text: str) -> tuple[tuple[PathRow, ...], tuple[int, ...]]:
    """Return the rows of a published cache (columns macs, params, fitness_score, d, e, w_indices) and its errors.

    Costs and fitness (λ = 1000) are computed from the genes; the second value lists the rows, counted from 0, whose
    stated numbers differ. In the cache that the authors ship that is row 59.
    """
    stated, archs = [], []
    for number, line in enumerate(csv.DictReader(text.splitlines())):
        try:
            columns = {"d": "d", "e": "e", "w": "w_indices"}
            archs.append(space.arch({gene: json.loads(line[column]) for gene, column in columns.items()}))
            stated.append((int(line["macs"]), int(line["params"]), float(line["fitness_score"])))
        except (ValueError, TypeError, KeyError, ArchError) as error:
            raise ArchError(f"published cache, row {number}: {error}") from error
    rows = rows_of(space, archs)
    wrong = []
    for number, (row, (macs, params, fitness)) in enumerate(zip(rows, stated, strict=True)):
        if (row.cost.macs, row.cost.params) != (macs, params) or abs(row.fitness - fitness) > 1e-6:
            wrong.append(number)
    return rows, tuple(wrong)


def range_matched(space: Elastic, low: int, high: int, rng: np.random.Generator) -> Arch:
    """Return an architecture drawn uniformly (every gene) from those of `low` to `high` MACs, both included.

    Raises `InfeasibleError` if none of 16,384 draws lies in the range, with the range they cover.
    """
    nearest = (np.inf, -np.inf)
    for _ in range(_TRIES):
        rows = _draw(space, rng)
        macs = macs_of(space, rows)
        hits = np.flatnonzero((macs >= low) & (macs <= high))
        if len(hits):
            return space.decode(rows[hits[0]])
        nearest = (min(nearest[0], macs.min()), max(nearest[1], macs.max()))
    raise InfeasibleError(
        f"range-matched sampling: none of {_BATCH * _TRIES:,} random architectures of space '{space.name}' has "
        f"{low:,} to {high:,} MACs; they have {nearest[0]:,} to {nearest[1]:,}: widen the range"
    )


def mac_matched(space: Elastic, target_macs: int, tolerance: float, rng: np.random.Generator) -> Arch:
    """Return a random architecture whose MACs are within ``tolerance · target_macs`` of the target.

    The first hit of a uniform draw of 256. Where it holds none, as near the largest network, the nearest of the draw
    is changed gene by gene at random, each step towards the target, until it is within the tolerance. If no single
    gene brings it nearer, that nearest architecture is returned: the function always ends.
    """
    allowed = tolerance * target_macs
    rows = _draw(space, rng)
    current, distance = rows[:0], np.inf
    for _ in range(_STEPS):
        gaps = np.abs(macs_of(space, rows) - target_macs)
        hits = np.flatnonzero(gaps <= allowed)
        if len(hits):
            return space.decode(rows[hits[0]])
        nearer = np.flatnonzero(gaps < distance)
        if not len(nearer):
            break
        chosen = nearer[0] if len(current) else gaps.argmin()
        current, distance = rows[chosen], gaps[chosen]
        rows = _neighbours(space, current, rng)
    return space.decode(current)


def _draw(space: Elastic, rng: np.random.Generator) -> Ints:
    return rng.integers(0, space.gene_choices, (_BATCH, len(space.gene_choices)))


def _neighbours(space: Elastic, row: Ints, rng: np.random.Generator) -> Ints:
    """Return every architecture that differs from `row` in one gene, in random order."""
    gene = np.repeat(np.arange(len(row)), space.gene_choices)
    value = np.concatenate([np.arange(n) for n in space.gene_choices])
    rows = np.tile(row, (len(gene), 1))
    rows[np.arange(len(gene)), gene] = value
    return rng.permutation(rows)
