"""FedSup, E-FedSup and plain random subnets at equal rounds: accuracy of the ends, bytes and the clients' MACs.

    python benchmarks/fedsup.py --seeds 5 --out fedsup.jsonl                   # trains, or trains on
    python benchmarks/fedsup.py --data cifar10 --seeds 5 --out fedsup.jsonl
    python benchmarks/fedsup.py --out fedsup.jsonl --summary

Digits, or 3,000 images of CIFAR-10 at 16×16, over 10 clients (`--alpha`), all of them in every round; space
`mobilenet` with parametric normalisation. `fedsup` trains the largest, two random and the smallest network in each
step; `random` four random ones on the labels, which costs about as much; `efedsup` one network a client, of four tiers.
Accuracy is that on test images (2,000 at most) of the largest and the smallest network, and of one whose genes are the
middle choices.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import CIFAR10, collect, stored

from fednas_core.data.sources import Images
from fednas_core.local import LocalFleet
from fednas_core.methods.registry import make, path_of
from fednas_core.methods.setup import Setup
from fednas_core.rounds import rounds
from fednas_core.seeding import derive
from fednas_core.selection import Judge
from fednas_core.settings import read
from fednas_core.spaces.modules import initial_weights
from fednas_core.subnets.networks import subnet
from fednas_core.subnets.packing import subnets_of
from fednas_core.tasks.bench import dataset_of, preprocessing_of, space_of
from fednas_core.tasks.images import prepared
from fednas_core.training.evaluate import evaluate

ARMS: dict[str, dict[str, Any]] = {
    "fedsup": {"method": "fedsup", "sample.inner": 2},
    "random": {"method": "fedsup", "sample.inner": 4, "sample.sandwich": False},
    "efedsup": {"method": "efedsup"},
    "labels": {"method": "fedsup", "sample.inner": 2, "sample.distill": False},
    "efedsup, damped": {"method": "efedsup", "merge.rule": "damped"},
    "fedsup, batch norm": {"method": "fedsup", "sample.inner": 2, "space.norm": "batch"},
    "fedsup, group norm": {"method": "fedsup", "sample.inner": 2, "space.norm": "group"},
    "fedsup, shrinking": {"method": "fedsup", "sample.inner": 2, "sample.shrink": "r,k,d,e,w"},
}
DATA: dict[str, dict[str, Any]] = {
    "digits": {"train.batch": 16},
    "cifar10": {
        "data.source": "npz",
        "data.path": str(CIFAR10),
        "data.image-size": 16,
        "data.examples": 3000,
        "train.augment": "crop-flip",
    },
}
REQUIRED = ("fedsup", "random", "efedsup")
PAIRS = (
    ("fedsup", "random"),
    ("efedsup", "fedsup"),
    ("fedsup", "labels"),
    ("fedsup", "fedsup, batch norm"),
    ("fedsup, shrinking", "fedsup"),
)
NETWORKS = ("smallest", "middle", "largest")
TESTED = 2000


def run(data: str, alpha: float, arm: str, seed: int, count: int) -> dict[str, Any]:
    """Train one federation; return test accuracies in percent, bytes and MACs of all clients, and seconds."""
    torch.set_num_threads(1)
    config = read(
        {
            "seed": seed,
            "rounds": count,
            "workers": 1,
            "space.name": "mobilenet",
            "space.norm": "parametric",
            "data.alpha": alpha,
            "train.epochs": 2,
            "train.batch": 32,
            "train.lr": 0.05,
            "train.momentum": 0.9,
            "train.weight-decay": 1e-4,
            "train.clip-value": 1.0,
            "train.clip": 0.0,
            "train.label-smoothing": 0.0,
            "train.warmup": 2,
            "train.precision": "fp32",
            **DATA[data],
            **ARMS[arm],
        }
    )
    space = space_of(config)
    initial = initial_weights(space, derive(seed, "weights"))
    method = make(Setup(config, space, path_of(config, space, space.cost(space.smallest).macs), initial))
    fleet = LocalFleet(config)
    events = list(rounds(config, method, fleet, 0, run=f"{arm}-{seed}"))
    fleet.close()
    test = dataset_of(config).test
    images = Images(test.x[:TESTED], test.y[:TESTED])
    found = {}
    middle = space.decode((space.gene_choices - 1) // 2)
    for name, arch in (("smallest", space.smallest), ("middle", middle), ("largest", space.largest)):
        module = subnet(space, arch, method.weights())
        if space.norm == "batch":
            module = Judge(config, subnets_of(space_of(config), method.weights())).network(arch)
        found[name] = 100 * evaluate(module, prepared(images, preprocessing_of(config))).accuracy
    return {
        "data": data,
        "alpha": alpha,
        "arm": arm,
        "seed": seed,
        "rounds": count,
        **found,
        "bytes_down": sum(event["bytes_down"] for event in events),
        "bytes_up": sum(event["bytes_up"] for event in events),
        "client_macs": sum(event["client_macs"] for event in events),
        "seconds": sum(event["seconds"] for event in events),
    }


def paired(rows: Sequence[dict[str, Any]], one: str, other: str, key: str) -> str:
    """Return the mean paired difference in points, its standard error, and its range over seeds."""
    by = {(row["arm"], row["seed"]): row[key] for row in rows}
    seeds = sorted(seed for arm, seed in by if arm == one and (other, seed) in by)
    gains = [by[one, seed] - by[other, seed] for seed in seeds]
    if len(gains) < 2:
        return "–"
    error = statistics.stdev(gains) / len(gains) ** 0.5
    return f"{statistics.fmean(gains):+.1f} ± {error:.1f} ({min(gains):+.1f} to {max(gains):+.1f}, {len(gains)} seeds)"


def summary(rows: Sequence[dict[str, Any]]) -> None:
    """Print means over seeds and paired differences."""
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm]
        if mine:
            cells = (
                f"{key} {statistics.fmean(row[key] for row in mine):.1f}" for key in ("smallest", "middle", "largest")
            )
            traffic = statistics.fmean((row["bytes_down"] + row["bytes_up"]) / 1e6 for row in mine)
            macs = statistics.fmean(row["client_macs"] / 1e12 for row in mine)
            print(f"{arm:>20}: {'  '.join(cells)} %  {traffic:.0f} MB  {macs:.2f} T MACs  ({len(mine)} seeds)")
    for one, other in (
        ("fedsup", "random"),
        ("efedsup", "fedsup"),
        ("fedsup", "labels"),
        ("fedsup", "fedsup, batch norm"),
    ):
        told = "; ".join(f"{key} {paired(rows, one, other, key)}" for key in NETWORKS)
        print(f"{one} − {other}: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--data", choices=list(DATA), default="digits")
    parser.add_argument("--alpha", type=float, default=1.0, help="Dirichlet concentration; small: non-IID")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="default: those that the README quotes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    rows = stored(given.out)
    if not given.summary:
        there = {(row["data"], row["alpha"], row["arm"], row["seed"], row["rounds"]) for row in rows}
        arms = given.arm or REQUIRED
        jobs = [
            (given.data, given.alpha, arm, seed, given.rounds) for seed in range(1, given.seeds + 1) for arm in arms
        ]
        rows += collect(run, [job for job in jobs if job not in there], given.out, given.processes)
    kind = (given.data, given.alpha, given.rounds)
    summary([row for row in rows if (row["data"], row["alpha"], row["rounds"]) == kind])


if __name__ == "__main__":
    main()
