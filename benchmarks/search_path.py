"""The Pareto path of 60 budgets in the published space, against a plain genetic algorithm with the published settings.

    python benchmarks/search_path.py [--cache deepfednas_cache_60.csv] [--generations 20]

The genetic algorithm is written as the original is, one architecture at a time in pure Python (population 256). It
runs for a few of the 512 generations at one budget; the time of 512 generations and 60 budgets is extrapolated. All
times are seconds of computing of one thread. With ``--cache`` the fitness is compared with the published rows.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import options, show

from fednas_core.search.exact import exact_search
from fednas_core.search.fitness import PUBLISHED, evaluate
from fednas_core.search.path import budgets, from_csv, pareto_path
from fednas_core.spaces.registry import load
from fednas_core.spaces.resnet import ResNetSpace, make_divisible

POPULATION, GENERATIONS, BUDGETS = 256, 512, 60
BUDGET = 1_445_000_000

Genes = list[int]


def plain_fitness(space: ResNetSpace, genes: Genes, budget: int) -> float:
    """Return F (λ = 1000) as the original computes it, or −1e9 above the budget."""
    stages, blocks = len(space.stages), space.most_blocks
    d, e, w = genes[:stages], genes[stages : stages * (1 + blocks)], genes[stages * (1 + blocks) :]
    c_in = make_divisible(space.stem * space.widths[w[0]])
    macs = 9 * space.in_channels * c_in * space.sizes[0] ** 2
    logs, entropy, lost, before = [math.log(9 * space.in_channels)], 0.0, 0, 0
    for j in range(stages):
        c, area, terms = make_divisible(space.stages[j] * space.widths[w[j + 1]]), space.sizes[j + 1] ** 2, []
        for b in range(d[j] + 1):
            mid = make_divisible(c * space.expansions[e[j * blocks + b]])
            macs += (9 * c_in * mid + 9 * mid * c) * area
            terms += [math.log(9 * c_in), math.log(9 * mid)]
            if b == 0:
                macs += c_in * c * area
                terms.append(math.log(c_in))
            c_in = c
        entropy += math.log(area * c) * sum(terms)
        logs += terms
        lost += max(0, before - c)
        before = c
    if macs + c_in * space.classes > budget:
        return -1e9
    depths = [1 + x for x in d]
    mean = sum(depths) / stages
    balance = math.exp(sum((x - mean) ** 2 for x in depths) / stages)
    return entropy - 10 * balance + 1000 * len(logs) / math.exp(sum(logs) / len(logs)) - lost


def plain_search(space: ResNetSpace, budget: int, generations: int) -> tuple[float, float]:
    """Return the best fitness of the published genetic algorithm and its seconds per generation."""
    rng, choices = random.Random(42), space.gene_choices.tolist()
    people: list[Genes] = []
    while len(people) < POPULATION:
        genes = [rng.randrange(n) for n in choices]
        if plain_fitness(space, genes, budget) > -1e9:
            people.append(genes)
    worth = [plain_fitness(space, genes, budget) for genes in people]
    best = max(zip(worth, people, strict=True))
    start = time.process_time()
    for _ in range(generations):
        chosen = [max(rng.sample(range(POPULATION), 3), key=worth.__getitem__) for _ in range(POPULATION)]
        children = []
        for a, b in zip(chosen[::2], chosen[1::2], strict=True):
            cut = rng.randrange(1, len(choices))
            children += [people[a][:cut] + people[b][cut:], people[b][:cut] + people[a][cut:]]
        for genes in children:
            if rng.random() < 0.3:
                gene = rng.randrange(len(choices))
                genes[gene] = rng.randrange(choices[gene])
        people = children
        worth = [plain_fitness(space, genes, budget) for genes in people]
        worst = min(range(POPULATION), key=worth.__getitem__)
        if best[0] > worth[worst]:
            people[worst], worth[worst] = best[1], best[0]
        best = max(best, *zip(worth, people, strict=True))
    return best[0], (time.process_time() - start) / generations


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Return the median seconds of computing, after one call that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def against_cache(space: ResNetSpace, path: str) -> dict[str, Any]:
    """Return how much higher the exact fitness is than each published row's, at that row's MACs as the budget."""
    rows, inconsistent = from_csv(space, Path(path).read_text(encoding="utf-8"))
    archs = exact_search(space, [row.cost.macs for row in rows])
    fitness = evaluate(space, np.stack([space.encode(arch) for arch in archs])).fitness(PUBLISHED)
    gain = [float(f) - row.fitness for f, row in zip(fitness, rows, strict=True)]
    return {
        "rows": len(rows),
        "inconsistent_rows": list(inconsistent),
        "gain_min": min(gain),
        "gain_median": statistics.median(gain),
        "gain_max": max(gain),
    }


def main() -> None:
    asked = options(__doc__, cache={"default": ""}, generations={"type": int, "default": 20})
    space, repeats = load("deepfednas-cifar"), 3 if asked.quick else 15
    limits = budgets(space, BUDGETS)
    rows = np.random.default_rng(0).integers(0, space.gene_choices, (20_000, len(space.gene_choices)))
    exact = seconds(lambda: exact_search(space, limits), repeats)
    found, generation = plain_search(space, BUDGET, asked.generations)
    (arch,) = exact_search(space, [BUDGET])
    plain = generation * GENERATIONS * BUDGETS
    result = {
        "benchmark": "search_path",
        "budgets": BUDGETS,
        "exact_s": exact,
        "path_s": seconds(lambda: pareto_path(space, BUDGETS), repeats),
        "one_budget_s": seconds(lambda: exact_search(space, [BUDGET]), repeats),
        "evaluate_us": seconds(lambda: evaluate(space, rows), repeats) / len(rows) * 1e6,
        "plain_ga_generation_s": generation,
        "plain_ga_60_budgets_s_extrapolated": plain,
        "ratio_extrapolated": plain / exact,
        "fitness_at_1445M": float(evaluate(space, space.encode(arch)[None]).fitness(PUBLISHED)[0]),
        "plain_ga_fitness_at_1445M": found,
        "plain_ga_generations_run": asked.generations,
    }
    show(result | ({"cache": against_cache(space, asked.cache)} if asked.cache else {}))


if __name__ == "__main__":
    main()
