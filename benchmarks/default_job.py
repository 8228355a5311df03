"""The default job over several seeds: accuracy per budget, the largest subnet against FedAvg.

Every arm starts from the same weights and data of its seed and runs the same rounds; differences are paired by seed.

    python benchmarks/default_job.py --seeds 4 --out default.jsonl     # trains, or trains on
    python benchmarks/default_job.py --out default.jsonl --summary
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from common import collect, stored

from fednas_core.devices.budgets import Allowance, parse_budgets
from fednas_core.local import LocalFleet
from fednas_core.methods.registry import make, path_of
from fednas_core.methods.setup import Setup
from fednas_core.rounds import run_round
from fednas_core.seeding import derive
from fednas_core.selection import Judge, best_within, candidates, judge_all
from fednas_core.settings import read
from fednas_core.spaces.modules import initial_weights
from fednas_core.subnets.packing import subnets_of
from fednas_core.tasks.bench import space_of

ARMS: dict[str, dict[str, Any]] = {"deepfednas": {}, "fedavg": {"method": "fedavg"}}


def run(arm: str, seed: int) -> dict[str, Any]:
    """Train one arm with one seed; return test accuracies in percent."""
    torch.set_num_threads(1)
    config = read({"seed": seed, "workers": 1, **ARMS[arm]})
    space, supernet = space_of(config), initial_weights(space_of(config), derive(seed, "weights"))
    budgets = parse_budgets(config.budgets, space.cost(space.largest).macs)
    allowances = [Allowance(budget, space) for budget in budgets]
    path = path_of(config, space, int(budgets[0].macs))
    method, fleet = make(Setup(config, space, path, supernet)), LocalFleet(config)
    for index in range(config.rounds):
        run_round(config, method, fleet, index)
    judge = Judge(config, subnets_of(space_of(config), supernet))
    accuracy = {"largest": 100 * judge.test(space.largest).accuracy}
    if config.method == "deepfednas":
        judged = judge_all(config, judge, candidates(config, allowances, path))
        for allowance in allowances:
            budget, chosen = allowance.budget, best_within(judged, allowance.allows)
            assert chosen is not None
            accuracy[budget.device] = 100 * judge.test(chosen.arch).accuracy
    return {"arm": arm, "seed": seed, "accuracy": accuracy}


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the result as Markdown."""
    by = {(row["arm"], row["seed"]): row["accuracy"] for row in rows}
    seeds = sorted({seed for _, seed in by if all((arm, seed) in by for arm in ARMS)})

    def spread(values: list[float]) -> str:
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} (lowest {min(values):.2f})"

    lines = [f"{len(seeds)} seeds; test accuracy in %, mean ± SD over seeds", "", "| | |", "|---|---|"]
    for name in ("phone", "tablet", "workstation", "largest"):
        lines.append(f"| deepfednas, {name} | {spread([by['deepfednas', s][name] for s in seeds])} |")
    lines.append(f"| fedavg, largest | {spread([by['fedavg', s]['largest'] for s in seeds])} |")
    gaps = [by["deepfednas", s]["largest"] - by["fedavg", s]["largest"] for s in seeds]
    lines.append(f"| largest: deepfednas − fedavg | {spread(gaps)} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing in the output file, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per arm and seed")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--summary", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    rows = stored(options.out)
    done = {(row["arm"], row["seed"]) for row in rows}
    missing = [(arm, seed) for seed in range(1, options.seeds + 1) for arm in ARMS if (arm, seed) not in done]
    if not options.summary and missing:
        rows += collect(run, missing, options.out)
    print(summary(rows))


if __name__ == "__main__":
    main()
