"""FedNAS against the straightforward design and against centralised NetAdapt: clients' work and accuracy.

    python benchmarks/fednas.py --seeds 3 --out fednas.jsonl      # trains, or trains on
    python benchmarks/fednas.py --out fednas.jsonl --summary

CIFAR-10 at 16×16, 30 clients of 120 images each, 24 of whom train and 6 test. A plain CNN of twelve convolutions is
trained by federated averaging; from there on, in four iterations, every one of its layers is a candidate for saving
3 % of the MACs. In the straightforward design all 24 clients train every candidate for 10 rounds (`--most`). FedNAS
trains each on two clients, drops half of them after every round and begins with 2 rounds. Both then train the last
winner with all clients for 60 rounds. Centralised NetAdapt has the images of all 24 in one place, trains each candidate
for two epochs and the last winner for 60.

Work is counted in client-rounds, MACs of training and bytes, as the run's events tell, and compared with the closed
form of `fednas_core.search.ledger`. Accuracies are those of the last winner on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import CIFAR10, collect, stored

from fednas_core.config import RunConfig
from fednas_core.experiment import conduct
from fednas_core.local import LocalFleet
from fednas_core.methods.setup import annealed
from fednas_core.protocol import TrainOrder, TrainSettings
from fednas_core.runs.folder import RunFolder, find, output_folder
from fednas_core.search.ledger import Design, dynamic_rounds
from fednas_core.search.netadapt import positions_of, proposals, step_size
from fednas_core.seeding import derive
from fednas_core.selection import Judge
from fednas_core.settings import read
from fednas_core.spaces.sorting import rank_filters
from fednas_core.starts import trained
from fednas_core.subnets.networks import network
from fednas_core.subnets.packing import extract, nested
from fednas_core.tasks.bench import Ground, client_images, preprocessing_of, space_of
from fednas_core.tasks.images import epochs_of, prepared
from fednas_core.training.evaluate import evaluate
from fednas_core.training.loop import train

CLIENTS, TRAINERS, CANDIDATES, ITERATIONS, LEAST_ROUNDS, EVERY, FINISH = 30, 24, 12, 4, 2, 1, 60
SPACE = Path(__file__).parent / "spaces" / "cnn12.toml"
START = {"method": "fednas", "rounds": 40, "train.epochs": 2, "contest.iterations": 1, "contest.finish": 0}
ARMS: dict[str, dict[str, Any]] = {
    "straightforward": {"contest.clients": "all", "fednas.drop": 0.0, "fednas.rounds-min": 0},
    "partial": {"fednas.drop": 0.0, "fednas.rounds-min": 0},
    "dropping": {"contest.clients": "all", "fednas.rounds-min": 0},
    "dynamic": {"contest.clients": "all", "fednas.drop": 0.0},
    "fednas": {},
}
LONG_EPOCHS = 2
"""Epochs of centralised NetAdapt for each candidate."""


def settings(seed: int, folder: Path, partition: str, most: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "workers": 1,
        "output": str(folder),
        "budgets": "any=max",
        "evaluate-every": 1000,
        "install": False,
        "space.name": str(SPACE),
        "space.norm": "batch",
        "data.source": "npz",
        "data.path": str(CIFAR10),
        "data.image-size": 16,
        "data.examples": 4000,
        "data.clients": CLIENTS,
        "data.partition": partition,
        "data.disclose": True,
        "train.epochs": 1,
        "train.batch": 32,
        "train.lr": 0.03,
        "train.precision": "fp32",
        "train.weight-decay": 5e-4,
        "train.augment": "crop-flip",
        "contest.iterations": ITERATIONS,
        "contest.candidates": CANDIDATES,
        "contest.finish": FINISH,
        "fednas.step": 0.03,
        "fednas.rounds-min": LEAST_ROUNDS,
        "fednas.rounds-max": most,
        "fednas.drop-every": EVERY,
    }


def start(seed: int, folder: str, partition: str, most: int) -> dict[str, Any]:
    """Train the network that all arms of a seed start from; return the id of its run."""
    config = read(settings(seed, Path(folder), partition, most) | START)
    run = _conducted(config)
    _, method = trained(run)
    accuracy = Judge(config, method.network).test(space_of(config).largest).accuracy
    return {"arm": "start", "seed": seed, "partition": partition, "most": 0, "run": run.id, "accuracy": 100 * accuracy}


def run(arm: str, seed: int, folder: str, partition: str, most: int, start_id: str) -> dict[str, Any]:
    """Search from the start network; return what it took of the clients and the last winner's test accuracy."""
    changes = {"method": "fednas", "contest.start": start_id, **ARMS[arm]}
    changes["fednas.rounds-min"] = changes.get("fednas.rounds-min", LEAST_ROUNDS) or most
    config = read(settings(seed, Path(folder), partition, most) | changes)
    found = _conducted(config)
    _, method = trained(found)
    assert method.networks is not None
    leader = method.networks[0]
    events = [event for event in found.events() if event["search"]["stage"] == "compete"]
    rows = [row for event in events for row in event["clients"]]
    return {
        "arm": arm,
        "seed": seed,
        "partition": partition,
        "most": most,
        "run": found.id,
        "client_rounds": len(rows),
        "analytic": design(arm, most, candidates_of(found)).client_rounds,
        "train_macs": sum(row["client_macs"] for row in rows),
        "train_bytes": sum(row["bytes_up"] + row["bytes_down"] for row in rows),
        "train_seconds": sum(row["seconds"] for row in rows),
        "test_macs": sum(event["client_macs"] for event in events) - sum(row["client_macs"] for row in rows),
        "test_bytes": sum(e["bytes_down"] for e in events) - sum(row["bytes_down"] for row in rows),
        "candidates": candidates_of(found),
        "macs": space_of(config).cost(leader).macs,
        "accuracy": 100 * Judge(config, method.network).test(leader).accuracy,
        "seconds": sum(event["seconds"] for event in found.events()),
    }


def centralised(seed: int, folder: str, partition: str, most: int, start_id: str) -> dict[str, Any]:
    """NetAdapt with all images of the training clients in one place, those of the testing clients to choose by."""
    torch.set_num_threads(1)
    config = read(settings(seed, Path(folder), partition, most) | {"method": "fednas"})
    space, prepare = space_of(config), preprocessing_of(config)
    parts = [client_images(config, index) for index in range(CLIENTS)]
    sides = [[p for i, p in enumerate(parts) if (i % 5 == 4) == tests] for tests in (False, True)]
    pooled, held = (
        replace(side[0], x=torch.cat([p.x for p in side]), y=torch.cat([p.y for p in side])) for side in sides
    )
    ground = Ground(space, prepare, pooled, held, held, True)
    full = config.train.settings()
    low = replace(full, lr=config.fednas.lr * full.lr, epochs=1)

    def tuned(arch: Any, tensors: Any, rates: Sequence[TrainSettings], step: int) -> dict[str, torch.Tensor]:
        module = network(space, arch, tensors)
        for epoch, given in enumerate(rates):
            order = TrainOrder("all", 0, "", arch, {}, given, derive(seed, step, epoch, "all"))
            train(module, epochs_of(order, ground, torch.device("cpu")), given)
        return {name: parameter.detach() for name, parameter in module.named_parameters()}

    _, method = trained(find(output_folder(config), start_id))
    base, tensors = space.largest, {name: tensor.clone() for name, tensor in method.network(space.largest).items()}

    def macs(arch: Any) -> float:
        return float(space.cost(arch).macs)

    for iteration in range(ITERATIONS):
        target = macs(base) - step_size(macs(space.largest), config.fednas.step, config.fednas.decay, iteration)
        rank_filters(space, base, tensors)
        found = []
        for arch in proposals(space, base, macs, target, positions_of(space)):
            inherited = extract(tensors, nested(space.plan(arch), space.plan(base)))
            own = tuned(arch, inherited, [low] * LONG_EPOCHS, iteration)
            module = Judge(config, dict.fromkeys([arch], own).__getitem__).network(arch)
            found.append((evaluate(module, prepared(held, prepare)).accuracy, arch, own))
        _, base, tensors = max(found, key=lambda one: one[0])
    tensors = tuned(base, tensors, [annealed(full, epoch, FINISH) for epoch in range(FINISH)], ITERATIONS)
    accuracy = Judge(config, lambda arch: tensors).test(base).accuracy
    told = {"arm": "centralised", "seed": seed, "partition": partition, "most": most}
    return told | {"macs": int(macs(base)), "accuracy": 100 * accuracy}


def candidates_of(run: RunFolder) -> list[int]:
    """Return the number of candidates in each iteration."""
    return [len(event["search"]["candidates"]) for event in run.events() if "candidates" in event["search"]]


def design(arm: str, most: int, candidates: Sequence[int]) -> Design:
    """Return what an arm is in closed form."""
    given = {"fednas.drop": 0.5, "fednas.rounds-min": LEAST_ROUNDS, "contest.clients": "parts", **ARMS[arm]}
    rounds = dynamic_rounds(given["fednas.rounds-min"] or most, most, ITERATIONS)
    return Design(tuple(candidates), TRAINERS, rounds, EVERY, given["fednas.drop"], given["contest.clients"] == "parts")


def _conducted(config: RunConfig) -> RunFolder:
    torch.set_num_threads(1)
    os.environ["FEDNAS_STATE"] = f"{config.output}/state"
    with closing(LocalFleet(config)) as fleet:
        return conduct(config, fleet, announce=lambda text: None)


def summary(rows: Sequence[dict[str, Any]]) -> None:
    """Print each arm's work against the straightforward design's, and its accuracy against that and centralised."""
    by = {(row["arm"], row["seed"]): row for row in rows}
    for arm in ("start", *ARMS, "centralised"):
        seeds = sorted(seed for name, seed in by if name == arm)
        if not seeds:
            continue
        accuracies = [by[arm, seed]["accuracy"] for seed in seeds]
        text = f"{arm:<16} {len(seeds)} seeds: {statistics.fmean(accuracies):.1f} %"
        if "macs" in by[arm, seeds[0]]:
            text += f" at {statistics.fmean(by[arm, seed]['macs'] for seed in seeds) / 1e6:.2f} M MACs"
        if arm in ARMS:
            text += f", {by[arm, seeds[0]]['client_rounds']:,} client-rounds"
            same = all(by[arm, seed]["client_rounds"] == by[arm, seed]["analytic"] for seed in seeds)
            text += " (as the closed form says)" if same else " (NOT as the closed form says)"
        for other in ("straightforward", "centralised"):
            both = [seed for seed in seeds if (other, seed) in by and arm not in (other, "start")]
            if not both:
                continue
            gaps = [by[arm, seed]["accuracy"] - by[other, seed]["accuracy"] for seed in both]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
            text += f"; to {other} {statistics.fmean(gaps):+.1f} ± {error:.1f} points"
            if "client_rounds" in by[other, both[0]] and arm in ARMS:
                saved = {
                    what: statistics.fmean(by[other, seed][what] / by[arm, seed][what] for seed in both)
                    for what in ("client_rounds", "train_macs", "train_bytes")
                }
                text += ", " + ", ".join(f"{value:.1f} times less {what}" for what, value in saved.items())
                tested = (by[arm, s]["train_macs"] + by[arm, s]["test_macs"] for s in both)
                whole = (by[other, s]["train_macs"] + by[other, s]["test_macs"] for s in both)
                text += f" ({statistics.fmean(b / a for a, b in zip(tested, whole, strict=True)):.1f} with tests)"
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default="fednas,straightforward,centralised")
    parser.add_argument("--partition", default="iid")
    parser.add_argument("--most", type=int, default=10, help="rounds that the candidates of the last iteration train")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("fednas-runs"), help="where the runs go")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    rows = [row for row in stored(given.out) if row["partition"] == given.partition]
    if not given.summary:
        common = (str(given.folder.resolve()), given.partition, given.most)
        there = {(row["arm"], row["seed"]) for row in rows if row["most"] in (0, given.most)}
        seeds = range(1, given.seeds + 1)
        new = [(seed, *common) for seed in seeds if ("start", seed) not in there]
        rows += collect(start, new, given.out, given.processes)
        ids = {row["seed"]: row["run"] for row in rows if row["arm"] == "start"}
        arms = [arm for arm in given.arms.split(",") if arm != "centralised"]
        if "centralised" in given.arms.split(","):
            jobs = [(s, *common, ids[s]) for s in seeds if ("centralised", s) not in there]
            rows += collect(centralised, jobs, given.out, given.processes)
        jobs = [(arm, s, *common, ids[s]) for arm in arms for s in seeds if (arm, s) not in there]
        rows += collect(run, jobs, given.out, given.processes)
    summary([row for row in rows if row["most"] in (0, given.most)])


if __name__ == "__main__":
    main()
