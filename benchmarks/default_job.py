"""The default job over several seeds: accuracy per budget, the largest subnet against FedAvg.

Every arm starts from the same weights and data of its seed; differences are paired by seed. Other settings than the
default ones are arms of their own: what training costs, in CPU-seconds of one thread, stands beside what it reaches.

    python benchmarks/default_job.py --seeds 4 --out default.jsonl     # trains, or trains on
    python benchmarks/default_job.py --seeds 5 --out default.jsonl --arm "train.batch=32 train.lr=0.04 train.epochs=4"
    python benchmarks/default_job.py --out default.jsonl --summary
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import collect, deviation, read, stored

from fednas_core.base.seeding import derive
from fednas_core.cli.settings import gather
from fednas_core.devices.budgets import Allowance, parse_budgets
from fednas_core.engine.evaluation import Judge, best_within, candidates, judge_all
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import run_round
from fednas_core.methods.registry import make, path_of
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import subnets_of
from fednas_core.tasks.bench import space_of

ARMS = ("deepfednas", "method=fedavg")
"""The default settings; federated averaging. An arm is settings with spaces between them, "deepfednas" none."""
DEVICES = ("phone", "tablet", "workstation")


def run(arm: str, seed: int) -> dict[str, Any]:
    """Train one arm with one seed; return its accuracies in percent and the CPU-seconds of its training."""
    torch.set_num_threads(1)
    config = read({"seed": seed, "workers": 1, **gather(None, [pair for pair in arm.split() if "=" in pair])})
    space, supernet = space_of(config), initial_weights(space_of(config), derive(seed, "weights"))
    budgets = parse_budgets(config.budgets, space.cost(space.largest).macs)
    allowances = [Allowance(budget, space) for budget in budgets]
    path = path_of(config, space, int(budgets[0].macs))
    method, fleet = make(Setup(config, space, path, supernet)), LocalFleet(config)
    start = time.process_time()
    for index in range(config.rounds):
        run_round(config, method, fleet, index)
    seconds = time.process_time() - start
    judge = Judge(config, subnets_of(space_of(config), supernet))
    accuracy = {"largest": 100 * judge.test(space.largest).accuracy}
    validation = {}
    if config.method == "deepfednas":
        judged = judge_all(config, judge, candidates(config, allowances, path))
        for allowance in allowances:
            budget, chosen = allowance.budget, best_within(judged, allowance.allows)
            assert chosen is not None
            accuracy[budget.device] = 100 * judge.test(chosen.arch).accuracy
            validation[budget.device] = 100 * chosen.validation_accuracy
    return {"arm": arm, "seed": seed, "accuracy": accuracy, "validation": validation, "seconds": seconds}


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the result as Markdown: the arms, and what each gains on the default settings over the seeds of both."""
    by = {(row["arm"], row["seed"]): row for row in rows}
    lines = ["accuracy in %, mean ± SD over seeds; arms are chosen by validation, on seeds that are not reported", ""]
    lines += ["| arm | seeds | validation | test | against the default, validation | test |", "|---" * 6 + "|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        seeds = [seed for name, seed in by if name == arm and ("deepfednas", seed) in by]
        mine, theirs = ([by[name, seed] for seed in seeds] for name in (arm, "deepfednas"))
        for device in (*DEVICES, "largest"):
            cells = [told(mine, theirs, kind, device) for kind in ("validation", "accuracy")]
            if seeds and any(cells[1]):
                values, gains = zip(*cells, strict=True)
                lines.append(f"| {arm}, {device} | {len(seeds)} | {' | '.join((*values, *gains))} |")
        if seeds:
            seconds = spread([row["seconds"] for row in mine])
            lines.append(f"| {arm}, CPU-seconds of training | {len(seeds)} | {seconds} | | | |")
    return "\n".join(lines)


def told(mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], kind: str, device: str) -> tuple[str, str]:
    """Return an arm's accuracies of one kind and its paired gains on the default's; '' where it has none."""
    found = [row[kind].get(device) for row in mine]
    if None in found:
        return "", ""
    gains = [value - row[kind][device] for value, row in zip(found, theirs, strict=True)]
    return spread(found), spread(gains)


def spread(values: list[float]) -> str:
    """Return mean, standard deviation and the lowest of some numbers."""
    return f"{statistics.mean(values):.2f} ± {deviation(values):.2f} (lowest {min(values):.2f})"


def main() -> None:
    """Train what is missing in the output file, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per arm and seed")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first", type=int, default=1, help="the first seed: others to choose by than to report")
    parser.add_argument("--arm", action="append", default=[], help='settings, e.g. "train.batch=32 train.lr=0.04"')
    parser.add_argument("--summary", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    rows = stored(options.out)
    done = {(row["arm"], row["seed"]) for row in rows}
    arms = tuple(dict.fromkeys(("deepfednas", *options.arm))) if options.arm else ARMS
    seeds = range(options.first, options.first + options.seeds)
    missing = [(arm, seed) for seed in seeds for arm in arms if (arm, seed) not in done]
    if not options.summary and missing:
        rows += collect(run, missing, options.out)
    print(summary(rows))


if __name__ == "__main__":
    main()
