"""FedPer against federated averaging, on each client's own test images: at 2, 4 and 10 classes a client.

    python benchmarks/fedper.py --seeds 5 --out fedper.jsonl      # trains, or trains on
    python benchmarks/fedper.py --out fedper.jsonl --summary

CIFAR-10 at 16×16, 10 clients of about 270 training images each, all in every round, one network of 1.2 M MACs. Both
methods see the same images; a client's test images are drawn from its own share and never trained on. The paper's law:
the gain is large where clients have few classes, and there is none where their data are IID.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import CIFAR10, collect, read, standard_error, stored

from fednas_core.base.metrics import ACCURACY
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct
from fednas_core.runs.record import Spread

METHODS = ("fedavg", "fedper")
CLASSES = (2, 4, 10)
ARCH = '{"d":[0,0,0,0],"e":[0.5,0.25,0.5,0.25,0.5,0.25,0.5,0.25],"w":[2,1,1,1,1]}'


def run(method: str, classes: int, seed: int, rounds: int) -> dict[str, Any]:
    """Train one federation; return the clients' test accuracies in percent: mean, worst tenth and spread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEDNAS_STATE"] = f"{folder}/state"
        config = read(
            {
                "method": method,
                "seed": seed,
                "rounds": rounds,
                "workers": 1,
                "output": folder,
                "budgets": "any=max",
                "evaluate-every": rounds,
                "evaluate-clients": 10,
                "space.name": "cifar-light",
                "sample.arch": ARCH,
                "data.source": "npz",
                "data.path": str(CIFAR10),
                "data.image-size": 16,
                "data.examples": 5000,
                "data.partition": "iid" if classes == 10 else "classes",
                "data.classes-per-client": classes,
                "data.holdout": 0.4,
                "train.epochs": 4,
                "train.batch": 32,
                "train.lr": 0.02,
                "train.augment": "crop-flip",
            }
        )
        with closing(LocalFleet(config)) as fleet:
            found = conduct(config, fleet, announce=lambda text: None)
        clients = json.loads((found.path / "result.json").read_text())["clients"]
    accuracies = [100 * row["accuracy"] for row in clients]
    return {
        "method": method,
        "classes": classes,
        "seed": seed,
        "rounds": rounds,
        **{key: value for key, value in asdict(Spread.of(accuracies, ACCURACY)).items() if key != "clients"},
        "tested": sum(row["tested"] for row in clients),
    }


def summary(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table: mean over seeds of both methods, and the paired gain with its standard error."""
    by = {(row["method"], row["classes"], row["seed"]): row for row in rows}
    for classes in CLASSES:
        seeds = sorted(s for m, c, s in by if m == "fedper" and c == classes and ("fedavg", classes, s) in by)
        if not seeds:
            continue
        cells = []
        for key in ("mean", "worst_decile"):
            one, two = ([by[method, classes, s][key] for s in seeds] for method in METHODS)
            gains = [b - a for a, b in zip(one, two, strict=True)]
            error = standard_error(gains)
            cells.append(
                f"{key}: FedAvg {statistics.fmean(one):.1f} FedPer {statistics.fmean(two):.1f} "
                f"gain {statistics.fmean(gains):+.1f} ± {error:.1f} ({min(gains):+.1f} to {max(gains):+.1f})"
            )
        print(f"{classes:>2} classes a client, {len(seeds)} seeds: " + "; ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    rows = stored(given.out)
    if not given.summary:
        there = {(row["method"], row["classes"], row["seed"], row["rounds"]) for row in rows}
        jobs = [(m, c, s, given.rounds) for s in range(1, given.seeds + 1) for c in CLASSES for m in METHODS]
        rows += collect(run, [job for job in jobs if job not in there], given.out, given.processes)
    summary([row for row in rows if row["rounds"] == given.rounds])


if __name__ == "__main__":
    main()
