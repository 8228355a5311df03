"""Evolutionary search, for constraints that do not separate by stage: measured latency, several limits at once.

The genetic algorithm of DeepFedNAS (tournaments of three, single-point crossover, one gene resampled with probability
0.3) on pymoo, with its rule that a feasible architecture beats any infeasible one. Survivors are the best of parents
and children, which is more elitist than the published replacement of one child, and a population holds no architecture
twice. It runs for a fixed number of generations, so it always ends.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fednas_core.base.errors import ConfigError, InfeasibleError, MissingExtraError
from fednas_core.base.values import Arch
from fednas_core.search.fitness import Floats, Ints

Measure = Callable[[Ints], Any]
"""A function of a population, shape (n, genes), to one number per row, shape (n,)."""

TOURNAMENT = 3
MUTATION = 0.3
_MATINGS = 3
"""Rounds of mating a generation may take to fill up with architectures that are not yet in the population."""
_START = 8
"""Random candidates per place in the first population; feasible ones go first."""


class EncodedSpace(Protocol):
    """A search space whose architectures are rows of integers."""

    @property
    def gene_choices(self) -> Ints:
        """Number of choices of each gene, shape (genes,)."""
        ...

    @property
    def smallest(self) -> Arch:
        """The architecture of least cost."""
        ...

    def encode(self, arch: Arch) -> Ints:
        """Return the row of an architecture."""
        ...

    def decode(self, row: Ints) -> Arch:
        """Return the architecture of a row."""
        ...


@dataclass(frozen=True, slots=True)
class Constraint:
    """A limit on what `measure` finds: an architecture is feasible if its value is at most `limit`.

    `name` is shown to people and should hold the unit, e.g. ``"latency_ms"``.
    """

    name: str
    measure: Measure
    limit: float


def evolve(
    space: EncodedSpace,
    objective: Measure,
    constraints: Sequence[Constraint] = (),
    seed: int = 0,
    population: int = 128,
    generations: int = 100,
    fixed: Mapping[int, int] | None = None,
) -> Arch:
    """Return the feasible architecture of highest `objective` found; the same seed finds the same one.

    `fixed` holds genes (positions of a row) that keep a given value. Raises `InfeasibleError` if no architecture met
    all constraints, naming those that the nearest one breaks and by how much; `MissingExtraError` without pymoo.
    """
    if population < 2 or generations < 1:
        found = f"population {population}, generations {generations}"
        raise ConfigError(
            f"evolutionary search: {found}; allowed are a population of 2 or more and 1 or more generations"
        )
    core, evaluator, static, genetic = _pymoo(
        "core.problem", "core.evaluator", "problems.static", "algorithms.soo.nonconvex.ga"
    )
    choices, held = space.gene_choices, dict(fixed or {})
    evaluate = _Evaluation(objective, tuple(constraints))
    start = _first_population(space, evaluate, held, np.random.default_rng(seed), population)
    problem = core.Problem(
        n_var=len(choices), n_obj=1, n_ieq_constr=len(constraints), xl=np.zeros(len(choices)), xu=choices - 1, vtype=int
    )
    algorithm = genetic.GA(pop_size=population, sampling=start, mating=_mating(_Mutation(choices, held)))
    algorithm.setup(problem, termination=("n_gen", generations), seed=seed % 2**32, verbose=False)
    while algorithm.has_next():
        children = algorithm.ask()
        if children is None:
            break
        loss, excess = evaluate(children.get("X").astype(np.int64))
        evaluator.Evaluator().eval(static.StaticProblem(problem, F=loss[:, None], G=excess), children)
        algorithm.tell(infills=children)
    return space.decode(_chosen(evaluate, algorithm.pop.get("X").astype(np.int64)))


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """What a population is worth: the loss, shape (n,), and by what share each limit is exceeded, shape (n, limits)."""

    objective: Measure
    constraints: tuple[Constraint, ...]

    def __call__(self, rows: Ints) -> tuple[Floats, Floats]:
        loss = -np.asarray(self.objective(rows), dtype=np.float64)
        excess = np.zeros((len(rows), len(self.constraints)))
        for i, constraint in enumerate(self.constraints):
            value = np.asarray(constraint.measure(rows), dtype=np.float64)
            excess[:, i] = (value - constraint.limit) / max(abs(constraint.limit), 1e-12)
        return loss, excess


@dataclass(frozen=True, slots=True)
class _Mutation:
    """One gene, drawn uniformly from those not held, is resampled with probability `MUTATION`."""

    choices: Ints
    held: Mapping[int, int]

    def __call__(self, problem: Any, children: Any, random_state: np.random.Generator, **_: Any) -> Any:
        rows = children.get("X").astype(np.int64)
        free = np.array([i for i in range(rows.shape[1]) if i not in self.held])
        hit = np.flatnonzero(random_state.random(len(rows)) < MUTATION)
        if len(free) and len(hit):
            gene = random_state.choice(free, len(hit))
            rows[hit, gene] = random_state.integers(0, self.choices[gene])
        children.set("X", rows)
        return children


def _mating(mutation: _Mutation) -> Any:
    """Return the published operators as pymoo's way from parents to children."""
    mating, tournament, crossover, duplicate = _pymoo(
        "core.mating", "operators.selection.tournament", "operators.crossover.pntx", "core.duplicate"
    )
    return mating.Mating(
        tournament.TournamentSelection(func_comp=_tournament, pressure=TOURNAMENT),
        crossover.SinglePointCrossover(prob=1.0),
        mutation,
        eliminate_duplicates=duplicate.DefaultDuplicateElimination(),
        n_max_iterations=_MATINGS,
    )


def _tournament(population: Any, matches: Ints, **_: Any) -> Ints:
    """Return the winner of each match, shape (matches, 1): least violation of the constraints, then least loss."""
    order = np.lexsort((population.get("F")[:, 0], population.get("cv")))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    best = rank[matches].argmin(axis=1)
    return np.take_along_axis(matches, best[:, None], axis=1)


def _first_population(
    space: EncodedSpace, evaluate: _Evaluation, held: Mapping[int, int], rng: np.random.Generator, size: int
) -> Ints:
    """Return random rows, feasible ones first as far as the draw holds any, and the smallest architecture."""
    rows = rng.integers(0, space.gene_choices, (_START * size, len(space.gene_choices)))
    rows[0] = space.encode(space.smallest)
    for gene, value in held.items():
        rows[:, gene] = value
    over = np.maximum(evaluate(rows)[1], 0).sum(axis=1)
    best: Ints = rows[np.argsort(over, kind="stable")[: size - 1]]
    return np.concatenate([rows[:1], best])


def _chosen(evaluate: _Evaluation, rows: Ints) -> Ints:
    """Return the feasible row of least loss (of equals, the first by its genes), or say what stands in the way."""
    loss, excess = evaluate(rows)
    over = np.maximum(excess, 0).sum(axis=1)
    best: Ints = rows[np.lexsort((*rows.T[::-1], loss, over))[0]]
    if not over.any() or over.min() <= 0:
        return best
    broken = []
    for constraint in evaluate.constraints:
        value = float(np.asarray(constraint.measure(best[None]))[0])
        if value > constraint.limit:
            broken.append(f"{constraint.name} ≤ {_number(constraint.limit)} (nearest found: {_number(value)})")
    raise InfeasibleError(f"no architecture found meets {' and '.join(broken)}; raise the limit to what was found")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _pymoo(*modules: str) -> list[Any]:
    try:
        return [importlib.import_module(f"pymoo.{module}") for module in modules]
    except ImportError as error:
        raise MissingExtraError("pymoo", "search", "evolutionary search") from error
