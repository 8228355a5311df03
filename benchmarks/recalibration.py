"""Batch statistics of extracted subnets: whose images set them, and how many passes the federated ones take.

    python benchmarks/recalibration.py --seeds 3 --out recalibration.jsonl     # trains, or trains on
    python benchmarks/recalibration.py --out recalibration.jsonl --summary

CIFAR-10 at 16×16, 8,000 images over 10 clients (Dirichlet α = 0.3) and the server (a tenth), `cifar-light` with batch
norm, method superfednas. After training the smallest, a middle and the largest subnet are tested with the statistics
that: a network starts with (mean 0, variance 1); the largest network has, cut to the subnet's channels; each client's
own images give (mean over five); 32 or 512 of the server's images give; federated passes give, which start from
those of the 512. One pass takes each client's images through the network once.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import CIFAR10, collect, deviation, read, stored, three_sizes
from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.seeding import derive
from fednas_core.base.values import Arch
from fednas_core.engine.calibration import recalibrated
from fednas_core.engine.cohort import Crew
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import rounds
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.subnets.moments import MEAN, VARIANCE, norms_of
from fednas_core.subnets.networks import calibrate, network, shapes_of, subnet
from fednas_core.tasks.bench import client_images, dataset_of, preprocessing_of, space_of, validation_images
from fednas_core.tasks.images import prepared
from fednas_core.training.evaluate import evaluate

Tensors = Mapping[str, Tensor]
SIZES = ("smallest", "middle", "largest")
FEW, MANY = 32, 512
PASSES = (1, 2, 3, 0)
"""Federated passes; 0: all that it takes."""
FRESH, CUT, OWN = "fresh", "the largest's, cut", "one client's own images"
SERVER = {FEW: f"server, {FEW} images", MANY: f"server, {MANY} images"}
FEDERATED = {passes: f"federated, {passes or 'all'} pass{'es' if passes != 1 else ''}" for passes in PASSES}
ARMS = (FRESH, CUT, OWN, *SERVER.values(), *FEDERATED.values())


def settings(seed: int, count: int) -> RunConfig:
    """Return the settings of a run."""
    return read(
        {
            "method": "superfednas",
            "seed": seed,
            "rounds": count,
            "workers": 1,
            "space.name": "cifar-light",
            "space.norm": "batch",
            "calibrate": "federated",
            "data.source": "npz",
            "data.path": str(CIFAR10),
            "data.image-size": 16,
            "data.examples": 8000,
            "data.clients": 10,
            "data.alpha": 0.3,
            "data.holdout": 0.0,
            "train.epochs": 2,
            "train.batch": 32,
            "train.lr": 0.1,
            "train.momentum": 0.0,
            "train.weight-decay": 5e-4,
            "train.label-smoothing": 0.0,
            "train.augment": "crop-flip",
        }
    )


class Bench:
    """A trained supernet, its clients, and the subnets' accuracy on the test set."""

    def __init__(self, config: RunConfig, supernet: Tensors, fleet: LocalFleet) -> None:
        self.config, self.supernet, self.space = config, supernet, space_of(config)
        self.crew = Crew(fleet, config, [self.space.smallest], print)
        self.prepare = preprocessing_of(config)

    def by(self, arch: Arch, images: Iterable[tuple[Tensor, Tensor]] | None) -> Tensors:
        """Return a subnet with the statistics that these images give it, or fresh ones."""
        module = subnet(self.space, arch, self.supernet)
        if images is not None:
            calibrate(module, (x for x, _ in images))
        state = module.state_dict()
        return {name: state[name] for name in shapes_of(self.space, arch, statistics=True)}

    def by_server(self, arch: Arch, count: int) -> Tensors:
        return self.by(arch, prepared(validation_images(self.config), self.prepare, count))

    def federated(self, arch: Arch, passes: int) -> tuple[Tensors, int]:
        """Return a subnet with federated statistics, and how many passes there were."""
        config = replace(self.config, calibration_passes=passes)
        found = recalibrated(config, self.crew, arch, self.by_server(arch, MANY), "")
        assert not found.failures
        return found.tensors, found.passes

    def accuracy(self, arch: Arch, tensors: Tensors) -> float:
        """Return the accuracy of a subnet on the whole test set, in percent."""
        images = prepared(dataset_of(self.config).test, self.prepare)
        return 100 * evaluate(network(self.space, arch, tensors), images).accuracy


def cut(bench: Bench, arch: Arch, largest: Tensors) -> Tensors:
    """Return a subnet with the largest network's statistics of its own channels."""
    tensors, plan = dict(bench.by(arch, None)), bench.space.plan(arch)
    for norm in norms_of(tensors):
        for kind in (MEAN, VARIANCE):
            tensors[norm + kind] = largest[norm + kind][plan[f"{norm}.weight"]]
    return tensors


def judged(bench: Bench, arch: Arch, largest: Tensors) -> tuple[dict[str, float], int]:
    """Return the accuracy of a subnet by arm, and how many federated passes it took."""
    clients = range(0, bench.config.data.clients, 2)
    own = (bench.by(arch, prepared(client_images(bench.config, i), bench.prepare, MANY)) for i in clients)
    ways: dict[str, Callable[[], float]] = {
        FRESH: lambda: bench.accuracy(arch, bench.by(arch, None)),
        CUT: lambda: bench.accuracy(arch, cut(bench, arch, largest)),
        OWN: lambda: statistics.fmean(bench.accuracy(arch, tensors) for tensors in own),
        **{SERVER[n]: lambda n=n: bench.accuracy(arch, bench.by_server(arch, n)) for n in SERVER},
    }
    found, taken = {arm: way() for arm, way in ways.items()}, 0
    for passes, arm in FEDERATED.items():
        tensors, taken = bench.federated(arch, passes)
        found[arm] = bench.accuracy(arch, tensors)
    return found, taken


def run(seed: int, count: int) -> dict[str, Any]:
    """Train one supernet; return accuracies in percent by size and arm, and how many passes all of them are."""
    torch.set_num_threads(1)
    config = settings(seed, count)
    space, supernet = space_of(config), initial_weights(space_of(config), derive(seed, "weights"))
    assert isinstance(space, ResNetSpace)
    with closing(LocalFleet(config)) as fleet:
        for _ in rounds(config, make(Setup(config, space, [], supernet)), fleet, 0):
            pass
        bench = Bench(config, supernet, fleet)
        largest, _ = bench.federated(space.largest, 0)
        found = {size: judged(bench, arch, largest) for size, arch in three_sizes(space).items()}
    return {
        "seed": seed,
        "rounds": count,
        "accuracy": {size: accuracy for size, (accuracy, _) in found.items()},
        "passes": {size: passes for size, (_, passes) in found.items()},
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the result as Markdown: mean and standard deviation over seeds, and paired differences."""
    lines = [
        f"{len(rows)} seeds; test accuracy in %, mean ± standard deviation (points more than with {SERVER[MANY]}, "
        "paired, lowest to highest)",
        "",
        "| statistics | " + " | ".join(SIZES) + " |",
        "|---" * (1 + len(SIZES)) + "|",
    ]
    for arm in ARMS:
        cells = []
        for size in SIZES:
            values = [row["accuracy"][size][arm] for row in rows]
            more = [v - row["accuracy"][size][SERVER[MANY]] for v, row in zip(values, rows, strict=True)]
            spread = deviation(values)
            cells.append(f"{statistics.fmean(values):.1f} ± {spread:.1f} ({min(more):+.1f} to {max(more):+.1f})")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    taken = {size: sorted({row["passes"][size] for row in rows}) for size in SIZES}
    all_passes = ", ".join(f"{size} {'/'.join(map(str, taken[size]))}" for size in SIZES)
    return "\n".join([*lines, "", f"all passes: {all_passes}, of which the last finds that nothing changes"])


def main() -> None:
    """Train what is missing in the output file, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--summary", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    rows = [row for row in stored(options.out) if row["rounds"] == options.rounds]
    done = {row["seed"] for row in rows}
    jobs = [(seed, options.rounds) for seed in range(1, options.seeds + 1) if seed not in done]
    if not options.summary and jobs:
        rows += collect(run, jobs, options.out, options.processes)
    print(summary(rows))


if __name__ == "__main__":
    main()
