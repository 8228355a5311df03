"""DeepFedNAS's claim on a small CIFAR-10: does training along the Pareto path beat honest controls?

Every arm trains a supernet from the same initial weights on the same clients for the same rounds; only what the clients
train differs. Every supernet is then judged on the same architectures: those of the published path, those of the exact
path, and random ones of the same MACs (off the path), all on test images that nothing was chosen by. Differences are
paired by seed.

    python benchmarks/paper_claim.py --data cifar10.npz --seeds 8 --out claim.jsonl   # trains, or trains on
    python benchmarks/paper_claim.py --out claim.jsonl --summary                      # the table
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from common import collect, stored
from scipy.stats import ttest_1samp

from fednas_core.config import RunConfig
from fednas_core.data.sources import Images
from fednas_core.local import LocalFleet
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.rounds import run_round
from fednas_core.search.fitness import Fitness
from fednas_core.search.path import mac_matched, pareto_path
from fednas_core.seeding import derive, stream
from fednas_core.selection import prepared
from fednas_core.settings import read
from fednas_core.spaces.modules import initial_weights
from fednas_core.subnets.networks import subnet
from fednas_core.tasks.bench import dataset_of, preprocessing_of, space_of
from fednas_core.training.evaluate import evaluate
from fednas_core.values import Arch

ROWS = 12
FITNESS = Fitness(lam=100.0)
"""λ of the published search script: in networks this narrow 1000 would outweigh the entropy."""
JUDGED = (0, 4, 8, 11)
OFF_PATH_PER_BUDGET = 3
TEST_IMAGES = 3000
CONTROLS: dict[str, dict[str, Any]] = {
    "uniform": {"sample.between": "uniform"},
    "range-matched": {"sample.between": "range-matched"},
    "MAC-matched": {"sample.between": "mac-matched"},
}
OURS: dict[str, dict[str, Any]] = {
    "exact, depth-stratified": {"sample.stratify": True},
    "exact, 25 % range-matched": {"sample.range-share": 0.25},
}
ARMS: dict[str, dict[str, Any]] = {
    "published path": {"sample.path": "evolved"},
    "exact path": {"sample.path": "exact"},
    **CONTROLS,
    **OURS,
}


def settings(arm: str, seed: int, data: str, rounds: int) -> RunConfig:
    """Return the settings of one arm: 8 clients of 800 images, 4 a round, as in the small-scale check."""
    return read(
        {
            "method": "deepfednas",
            "rounds": rounds,
            "cohort": 4,
            "seed": seed,
            "workers": 1,
            "space.name": str(Path(__file__).parent / "spaces" / "claim.toml"),
            "data.source": "npz",
            "data.path": data,
            "data.image-size": 16,
            "data.examples": 8000,
            "data.validation": 0.2,
            "data.clients": 8,
            "data.alpha": 1.0,
            "train.epochs": 1,
            "train.batch": 32,
            "train.lr": 0.1,
            "train.schedule": "constant",
            "train.momentum": 0.0,
            "train.weight-decay": 5e-4,
            "train.label-smoothing": 0.0,
            "sample.budgets": ROWS,
            "sample.beta-start": 0.9,
            "sample.fitness-lambda": FITNESS.lam,
            **ARMS[arm],
        }
    )


def judged_archs(config: RunConfig) -> dict[str, list[Arch]]:
    """Return what every arm of one seed is judged on, at four budgets from the smallest to the largest."""
    space = space_of(config)
    published = pareto_path(space, ROWS, FITNESS, "evolved", seed=derive(config.seed, "path"))
    exact = pareto_path(space, ROWS, FITNESS)
    rng = stream(config.seed, "off-path")
    off = [
        mac_matched(space, exact[row].cost.macs, 0.05, rng) for row in JUDGED[:-1] for _ in range(OFF_PATH_PER_BUDGET)
    ]
    return {
        "published": [published[row].arch for row in JUDGED],
        "exact": [exact[row].arch for row in JUDGED],
        "off": off,
    }


def run(arm: str, seed: int, data: str, rounds: int) -> dict[str, Any]:
    """Train one arm with one seed and judge it."""
    torch.set_num_threads(1)
    config = settings(arm, seed, data, rounds)
    space, supernet = space_of(config), initial_weights(space_of(config), derive(seed, "weights"))
    path = pareto_path(space, ROWS, how=config.sample.path, stratify=config.sample.stratify, seed=derive(seed, "path"))
    method, fleet = make(Setup(config, space, path, supernet)), LocalFleet(config)
    events = [run_round(config, method, fleet, index) for index in range(rounds)]
    test = dataset_of(config).test
    batches = prepared(Images(test.x[:TEST_IMAGES], test.y[:TEST_IMAGES]), preprocessing_of(config))
    accuracy = {
        kind: [100 * evaluate(subnet(space, arch, supernet), batches).accuracy for arch in archs]
        for kind, archs in judged_archs(config).items()
    }
    return {
        "arm": arm,
        "seed": seed,
        "rounds": rounds,
        "accuracy": accuracy,
        "upload_params_m": sum(event["bytes_up"] for event in events) / 4e6,
        "client_macs_t": sum(event["client_macs"] for event in events) / 1e12,
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the result as Markdown: means and SD over seeds, and one-sided paired tests against the controls."""
    by = {(row["arm"], row["seed"]): row for row in rows}
    arms = [arm for arm in ARMS if any(a == arm for a, _ in by)]
    seeds = sorted({s for _, s in by if all((arm, s) in by for arm in arms)})

    def mean(arm: str, seed: int, kind: str) -> float:
        return statistics.mean(by[arm, seed]["accuracy"][kind])

    def spread(values: list[float]) -> str:
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"

    lines = [f"{len(seeds)} seeds, {rows[0]['rounds']} rounds; accuracy in %, mean ± SD over seeds", ""]
    lines += ["| trained with | published path | exact path | off the path | upload, M parameters | client TMACs |"]
    lines += ["|---|---|---|---|---|---|"]
    for arm in arms:
        cells = [spread([mean(arm, s, kind) for s in seeds]) for kind in ("published", "exact", "off")]
        cost = [statistics.mean(by[arm, s][key] for s in seeds) for key in ("upload_params_m", "client_macs_t")]
        lines.append(f"| {arm} | {' | '.join(cells)} | {cost[0]:.1f} | {cost[1]:.2f} |")
    lines += ["", "| difference, own path (points) | mean ± SD | seeds above 0 | one-sided p |", "|---|---|---|---|"]
    pairs = [(arm, control) for arm in arms if arm not in CONTROLS for control in CONTROLS if control in arms]
    pairs += [("exact path", "published path")] if {"exact path", "published path"} <= set(arms) else []
    for arm, other in pairs:
        kind = "published" if arm == "published path" else "exact"
        rival = "published" if other == "published path" else kind
        gaps = [mean(arm, s, kind) - mean(other, s, rival) for s in seeds]
        p = ttest_1samp(gaps, 0.0, alternative="greater").pvalue
        above = sum(gap > 0 for gap in gaps)
        lines.append(f"| {arm} − {other} | {spread(gaps)} | {above} of {len(seeds)} | {p:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing in the output file, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="cifar10.npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per arm and seed")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--summary", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    rows = stored(options.out)
    done = {(row["arm"], row["seed"]) for row in rows}
    wanted = [
        (arm, s) for arms in (ARMS.keys() - OURS.keys(), OURS) for s in range(options.seeds) for arm in sorted(arms)
    ]
    missing = [job for job in wanted if job not in done]
    if not options.summary and missing:
        rows += collect(run, [(*job, options.data, options.rounds) for job in missing], options.out)
    print(summary(rows))


if __name__ == "__main__":
    main()
