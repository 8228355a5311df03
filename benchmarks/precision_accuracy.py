"""Does bf16 cost accuracy? The same runs in bf16 and in float32: equal rounds, equal seeds, paired differences.

    python benchmarks/precision_accuracy.py [--quick] [--data cifar10] [--seeds 8] [--rounds 30] [--out rows.jsonl]

Each run trains the small space with `superfednas` over 8 clients (Dirichlet α = 1): CIFAR-10 averaged down to 16 × 16
pixels, 4,000 images, or the digits. Seeds share data, initial weights, cohorts, architectures and batches; only the
arithmetic of training differs. At the end the smallest, two random and the largest subnet are judged on the test set in
float32. Prints, after a line for each run, one line of JSON: mean accuracy of both, and mean, standard deviation and
95 % interval of the paired difference (bf16 − float32, percentage points).
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import collect, deviation, npz, options, read, show, stored
from scipy.stats import t as student

from fednas_core.base.seeding import derive
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import run_round
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.networks import subnet
from fednas_core.tasks.bench import dataset_of, preprocessing_of, space_of
from fednas_core.tasks.images import prepared
from fednas_core.training.evaluate import evaluate

TEST_IMAGES = 2000
PRECISIONS = ("bf16", "fp32")


Row = dict[str, Any]


def run(pairs: dict[str, Any], seed: int, precision: str) -> Row:
    """Return the mean test accuracy, in percent, of four subnets after one run."""
    torch.set_num_threads(1)
    config = read({**pairs, "seed": seed, "train.precision": precision})
    space = space_of(config)
    supernet = initial_weights(space, derive(config.seed, "weights"))
    method = make(Setup(config, space, [], supernet))
    with closing(LocalFleet(config)) as fleet:
        for index in range(config.rounds):
            run_round(config, method, fleet, index)
    rng = np.random.default_rng(0)
    archs = (space.smallest, space.sample(rng), space.sample(rng), space.largest)
    batches = prepared(dataset_of(config).test, preprocessing_of(config), TEST_IMAGES)
    found = [100 * evaluate(subnet(space, arch, supernet), batches).accuracy for arch in archs]
    row = {"data": config.data.source, "rounds": config.rounds, "seed": seed, "precision": precision}
    return row | {"accuracy": statistics.fmean(found), "each": found}


def main() -> None:
    chosen = options(
        __doc__,
        data={"default": "cifar10", "choices": ("cifar10", "digits")},
        seeds={"type": int, "default": 8},
        rounds={"type": int, "default": 30},
        processes={"type": int, "default": 2},
        out={"type": Path, "help": "JSON lines, one per seed and precision, to go on from"},
    )
    seeds, rounds = (4, 5) if chosen.quick else (chosen.seeds, chosen.rounds)
    pairs = {
        "method": "superfednas",
        "rounds": rounds,
        "workers": 1,
        "space.name": "small",
        "data.clients": 8,
        "data.holdout": 0.0,
        "train.epochs": 1,
        "train.augment": "none" if chosen.data == "digits" else "crop-flip",
    }
    with tempfile.TemporaryDirectory() as folder:
        source, kind = chosen.data, "digits"
        if source == "cifar10":
            path, source = npz(Path(folder))
            kind = "npz"
            pairs |= {"data.source": kind, "data.path": str(path), "data.examples": 4000, "data.image-size": 16}
        out = chosen.out or Path(folder) / "rows.jsonl"
        by = {(row["data"], row["rounds"], row["seed"], row["precision"]): row["accuracy"] for row in stored(out)}
        wanted = [(seed, precision) for seed in range(1, seeds + 1) for precision in PRECISIONS]
        jobs = [(pairs, *one) for one in wanted if (kind, rounds, *one) not in by]
        for row in collect(run, jobs, out, chosen.processes):
            by[kind, rounds, row["seed"], row["precision"]] = row["accuracy"]
    low, full = ([by[kind, rounds, seed, precision] for seed in range(1, seeds + 1)] for precision in PRECISIONS)
    differences = [a - b for a, b in zip(low, full, strict=True)]
    mean, spread = statistics.fmean(differences), deviation(differences)
    half = float(student.ppf(0.975, seeds - 1)) * spread / seeds**0.5
    show(
        {
            "benchmark": "precision_accuracy",
            "data": source,
            "rounds": rounds,
            "seeds": seeds,
            "bf16_accuracy": statistics.fmean(low),
            "fp32_accuracy": statistics.fmean(full),
            "difference": mean,
            "difference_sd": spread,
            "interval_95": [mean - half, mean + half],
            "differences": differences,
        }
    )


if __name__ == "__main__":
    main()
