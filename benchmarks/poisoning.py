"""A poisoned cohort: 2 of 10 clients flip the sign of their update, and make it longer, in every round.

    python benchmarks/poisoning.py --seeds 3 --out poisoning.jsonl     # trains, or trains on
    python benchmarks/poisoning.py --out poisoning.jsonl --summary

The default job (digits, method deepfednas), fewer rounds. A bad client returns w − k·(w_k − w) where it has w_k, with k
of 1, 5 or 10; which two are bad is drawn from the seed. Each way of merging is trained on the clean cohort too.
Accuracy is that of the network chosen for each budget, on the test images; its mean over the three budgets counts.
"""

from __future__ import annotations

import argparse
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import collect, read, stored

from fednas_core.base.seeding import derive, stream
from fednas_core.devices.budgets import Allowance, parse_budgets
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.evaluation import Judge, best_within, candidates, judge_all
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import rounds
from fednas_core.exchange.orders import WEIGHTS, Answer, Failure, Fleet, Order
from fednas_core.methods.registry import make, path_of
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import subnets_of
from fednas_core.tasks.bench import space_of

MERGES: dict[str, dict[str, Any]] = {
    "overlap": {},
    "overlap, clip 2": {"merge.clip": 2.0},
    "trimmed": {"merge.rule": "trimmed"},
    "trimmed, clip 2": {"merge.rule": "trimmed", "merge.clip": 2.0},
    "trimmed, clip 2, outlier 3": {"merge.rule": "trimmed", "merge.clip": 2.0, "merge.outlier": 3.0},
    "overlap, opposed 0.1": {"merge.opposed": 0.1},
    "trimmed, clip 2, opposed 0.1": {"merge.rule": "trimmed", "merge.clip": 2.0, "merge.opposed": 0.1},
}
LENGTHS = (0, 1, 5, 10)
"""How many times its own length a bad client's flipped update has; 0: nobody is bad."""


class Flipping:
    """A fleet of which some clients turn their update around."""

    def __init__(self, inner: Fleet, bad: Sequence[str], length: float) -> None:
        self._inner, self._bad, self._length = inner, bad, length

    def clients(self) -> Sequence[ClientInfo]:
        return self._inner.clients()

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Answer | Failure]:
        for answer in self._inner.train(orders, more):
            if isinstance(answer, Answer) and answer.client in self._bad:
                sent = orders[answer.client].weights
                flipped = {name: sent[name] - self._length * (t - sent[name]) for name, t in answer.weights.items()}
                answer = replace(answer, channels={WEIGHTS: flipped})
            yield answer

    def close(self) -> None:
        self._inner.close()


def run(merge: str, length: int, seed: int, count: int) -> dict[str, Any]:
    """Train one cohort with one way of merging; return test accuracies in percent and how many replies it refused."""
    torch.set_num_threads(1)
    config = read(
        {"seed": seed, "workers": 1, "rounds": count, "train.epochs": 3, "data.holdout": 0.0, **MERGES[merge]}
    )
    space, supernet = space_of(config), initial_weights(space_of(config), derive(seed, "weights"))
    budgets = parse_budgets(config.budgets, space.cost(space.largest).macs)
    allowances = [Allowance(budget, space) for budget in budgets]
    path = path_of(config, space, int(budgets[0].macs))
    fleet = LocalFleet(config)
    names = [client.name for client in fleet.clients()]
    bad = stream(seed, "bad clients").choice(names, len(names) // 5, replace=False).tolist() if length else []
    method = make(Setup(config, space, path, supernet))
    refused = {"bad": 0, "honest": 0}
    for event in rounds(config, method, Flipping(fleet, bad, length), 0):
        for failure in event["failures"]:
            refused["bad" if failure["client"] in bad else "honest"] += 1
    judge = Judge(config, subnets_of(space_of(config), supernet))
    judged = judge_all(config, judge, candidates(config, allowances, path))
    accuracy = {}
    for allowance in allowances:
        chosen = best_within(judged, allowance.allows)
        assert chosen is not None
        accuracy[allowance.budget.device] = 100 * judge.test(chosen.arch).accuracy
    return {"merge": merge, "length": length, "seed": seed, "rounds": count, "accuracy": accuracy, "refused": refused}


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the result as Markdown: accuracies, and in brackets the points lost against the clean plain mean."""
    by = {(row["merge"], row["length"], row["seed"]): statistics.mean(row["accuracy"].values()) for row in rows}
    seeds = sorted({seed for _, _, seed in by})
    lines = [
        f"{len(seeds)} seeds, fewer where a cell says so; test accuracy in %, mean over budgets and seeds (points lost "
        "against the clean mean, paired; the worst seed)",
        "",
        "| merge | " + " | ".join(f"flipped × {k}" if k else "clean" for k in LENGTHS) + " |",
        "|---" * (1 + len(LENGTHS)) + "|",
    ]
    for merge in MERGES:
        cells = []
        for length in LENGTHS:
            there = [s for s in seeds if (merge, length, s) in by and ("overlap", 0, s) in by]
            lost = [by["overlap", 0, s] - by[merge, length, s] for s in there]
            if not there:
                cells.append("–")
                continue
            mean = statistics.mean(by[merge, length, s] for s in there)
            few = f"; {len(there)} of them" if len(there) < len(seeds) else ""
            cells.append(f"{mean:.1f} (−{statistics.mean(lost):.1f}; −{max(lost):.1f}{few})")
        lines.append(f"| {merge} | " + " | ".join(cells).replace("−-", "+") + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing in the output file, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each way, length and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--merge", action="append", choices=list(MERGES), help="only this way (may be repeated)")
    parser.add_argument(
        "--length", action="append", type=int, choices=LENGTHS, help="only this length (may be repeated)"
    )
    parser.add_argument("--summary", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    rows = [row for row in stored(options.out) if row["rounds"] == options.rounds and row["merge"] in MERGES]
    done = {(row["merge"], row["length"], row["seed"]) for row in rows}
    ways, lengths = options.merge or list(MERGES), options.length or LENGTHS
    jobs = [(m, k, seed) for seed in range(1, options.seeds + 1) for k in lengths for m in ways]
    missing = [job for job in jobs if job not in done]
    if not options.summary and missing:
        rows += collect(run, [(*job, options.rounds) for job in missing], options.out, options.processes)
    print(summary(rows))


if __name__ == "__main__":
    main()
