"""FedNAS against the straightforward design and against centralised NetAdapt: clients' work and accuracy.

    python benchmarks/fednas.py --seeds 3 --out fednas.jsonl      # trains, or trains on
    python benchmarks/fednas.py --out fednas.jsonl --summary

CIFAR-10 at 16×16, 30 clients of 120 images each, 24 of whom train on all of theirs and 6 test on all of theirs. A plain
CNN of twelve convolutions is trained by federated averaging; from there on, in four iterations, every one of its layers
is a candidate for saving 3 % of the MACs. In the straightforward design all 24 clients train every candidate for 10
rounds (`--most`). FedNAS trains each on two clients, drops half of them after every round and begins with 2 rounds.
Both then train the last winner with all clients for 60 rounds. Centralised NetAdapt has the images of all 24 in one
place, trains each candidate for two epochs, or with ``same budget`` on as many images as FedNAS, and the last winner
for 60; or that winner, too, is trained by the clients. Arm ``random`` is the control: in each iteration one of the
candidates is taken by lot, none is trained or tested, and the clients train the last one: what it loses is what the
search is worth.

All arms begin with one network, choose by the images of the six testing clients and train at the same rates, which are
tuned for none of them. Work is counted in client-rounds, MACs of training and bytes, as the run's events tell, and
compared with the closed form of `fednas_core.search.ledger`. Accuracies are those of the last winner on the 10,000 test
images; winners of other MACs are compared as they are, their MACs beside.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import CIFAR10, collect, read, searched, standard_error, stored

from fednas_core.base.config import RunConfig
from fednas_core.base.seeding import derive, stream
from fednas_core.base.values import Arch
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import rounds
from fednas_core.engine.starts import trained
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup, annealed
from fednas_core.runs.folder import RunFolder, find, output_folder
from fednas_core.search.dropping import alive_counts
from fednas_core.search.ledger import Design, dynamic_rounds
from fednas_core.search.netadapt import proposals, step_size
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.sorting import rank_filters
from fednas_core.subnets.networks import network
from fednas_core.subnets.packing import extract, nested, subnets_of, views
from fednas_core.tasks.bench import client_images, preprocessing_of, space_of
from fednas_core.tasks.images import epochs_of, prepared
from fednas_core.tasks.site import site_of
from fednas_core.training.evaluate import evaluate
from fednas_core.training.loop import train
from fednas_core.training.settings import TrainSettings, train_settings

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
POOLED = ("centralised", "same budget", "random")
LONG_EPOCHS = 2
"""Epochs of centralised NetAdapt for each candidate."""


def settings(seed: int, folder: Path, partition: str, most: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "output": str(folder),
        "budgets": "any=max",
        "space.name": str(SPACE),
        "space.norm": "batch",
        "data.source": "npz",
        "data.path": str(CIFAR10),
        "data.image-size": 16,
        "data.examples": 4000,
        "data.clients": CLIENTS,
        "data.partition": partition,
        "data.disclose": True,
        "data.holdout": 0.0,
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
    run = searched(config)
    _, method = trained(run)
    accuracy = Judge(config, method.network).test(space_of(config).largest).accuracy
    return {"arm": "start", "seed": seed, "partition": partition, "most": 0, "run": run.id, "accuracy": 100 * accuracy}


def run(arm: str, seed: int, folder: str, partition: str, most: int, start_id: str) -> dict[str, Any]:
    """Search from the start network; return what it took of the clients and the last winner's test accuracy."""
    changes = {"method": "fednas", "contest.start": start_id, **ARMS[arm]}
    changes["fednas.rounds-min"] = changes.get("fednas.rounds-min", LEAST_ROUNDS) or most
    config = read(settings(seed, Path(folder), partition, most) | changes)
    found = searched(config)
    _, method = trained(found)
    assert method.catalogue.these is not None
    leader = method.catalogue.these[0]
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


def centralised(arm: str, seed: int, folder: str, partition: str, most: int, start_id: str) -> dict[str, Any]:
    """NetAdapt with all images of the training clients in one place, those of the testing clients to choose by.

    A candidate trains for two epochs; with ``same budget`` on as many images as FedNAS spends on one on average; with
    ``random`` not at all, and one of them is taken by lot.
    """
    torch.set_num_threads(1)
    config = read(settings(seed, Path(folder), partition, most) | {"method": "fednas"})
    space, prepare = space_of(config), preprocessing_of(config)
    parts = [client_images(config, index) for index in range(CLIENTS)]
    sides = [[p for i, p in enumerate(parts) if (i % 5 == 4) == tests] for tests in (False, True)]
    pooled, held = (
        replace(side[0], x=torch.cat([p.x for p in side]), y=torch.cat([p.y for p in side])) for side in sides
    )
    here = replace(site_of(config, 0), device=torch.device("cpu"))
    site = replace(here, train=pooled, validation=held, test=held, held_out=True)
    full = train_settings(config.train)
    low = replace(full, lr=config.fednas.lr * full.lr, epochs=1)

    def tuned(
        arch: Any, tensors: Any, rates: Sequence[TrainSettings], step: int, images: int = 0
    ) -> dict[str, torch.Tensor]:
        module = network(space, arch, tensors)
        for epoch, given in enumerate(rates):
            batches = epochs_of(given, derive(seed, step, epoch, "all"), site)
            steps = -(-images // given.batch) or None
            train(module, (itertools.islice(epoch, steps) for epoch in batches), given)
        return {name: parameter.detach() for name, parameter in module.named_parameters()}

    _, method = trained(find(output_folder(config), start_id))
    base, tensors = space.largest, {name: tensor.clone() for name, tensor in method.network(space.largest).items()}

    def macs(arch: Any) -> float:
        return float(space.cost(arch).macs)

    for iteration in range(ITERATIONS):
        target = macs(base) - step_size(macs(space.largest), config.fednas.step, config.fednas.decay, iteration)
        rank_filters(space, base, tensors)
        few = spent(iteration, most, len(pooled.y)) if arm == "same budget" else 0
        archs = proposals(space, base, macs, target, space.shrinkable)
        if arm == "random":
            arch = archs[stream(seed, iteration, "random").integers(len(archs))]
            base, tensors = arch, extract(tensors, nested(space.plan(arch), space.plan(base)))
            continue
        found = []
        for arch in archs:
            inherited = extract(tensors, nested(space.plan(arch), space.plan(base)))
            own = tuned(arch, inherited, [low] if few else [low] * LONG_EPOCHS, iteration, few)
            module = Judge(config, dict.fromkeys([arch], own).__getitem__).network(arch)
            found.append((evaluate(module, prepared(held, prepare)).accuracy, arch, own))
        _, base, tensors = max(found, key=lambda one: one[0])
    row = {"arm": arm, "seed": seed, "partition": partition, "most": most, "macs": int(macs(base))}
    by_clients = 100 * _finished_by_clients(config, base, tensors)
    if arm == "random":
        return row | {"accuracy": by_clients}
    finished = tuned(base, tensors, [annealed(full, epoch, FINISH) for epoch in range(FINISH)], ITERATIONS)
    accuracy = 100 * Judge(config, lambda arch: finished).test(base).accuracy
    return row | {"accuracy": accuracy, "finished_by_clients": by_clients}


def spent(iteration: int, most: int, images: int) -> int:
    """Return how many images FedNAS trains a candidate on in an iteration (from 0), the mean over its candidates."""
    rounds = dynamic_rounds(LEAST_ROUNDS, most, ITERATIONS)[iteration]
    return round(sum(alive_counts(CANDIDATES, rounds, EVERY, 0.5)) / CANDIDATES * images / CANDIDATES)


class Trainers(LocalFleet):
    """The clients that train."""

    def clients(self) -> Sequence[ClientInfo]:
        return [client for i, client in enumerate(super().clients()) if i % 5 != 4]


def _finished_by_clients(config: RunConfig, arch: Arch, tensors: Mapping[str, torch.Tensor]) -> float:
    """Return the test accuracy of a network after all clients trained it as they train FedNAS's last winner."""
    own = replace(config, method="fedavg", rounds=FINISH, sample=replace(config.sample, arch=str(arch)))
    space = space_of(own)
    supernet = initial_weights(space, 0)
    for name, tensor in views(supernet, space.plan(arch)).items():
        tensor.copy_(tensors[name])
    with closing(Trainers(own)) as fleet:
        for _ in rounds(own, make(Setup(own, space, [], supernet)), fleet, 0):
            pass
    return Judge(own, subnets_of(space, supernet)).test(arch).accuracy


def candidates_of(run: RunFolder) -> list[int]:
    """Return the number of candidates in each iteration."""
    return [len(event["search"]["candidates"]) for event in run.events() if "candidates" in event["search"]]


def design(arm: str, most: int, candidates: Sequence[int]) -> Design:
    """Return what an arm is in closed form."""
    given = {"fednas.drop": 0.5, "fednas.rounds-min": LEAST_ROUNDS, "contest.clients": "parts", **ARMS[arm]}
    rounds = dynamic_rounds(given["fednas.rounds-min"] or most, most, ITERATIONS)
    return Design(tuple(candidates), TRAINERS, rounds, EVERY, given["fednas.drop"], given["contest.clients"] == "parts")


def summary(rows: Sequence[dict[str, Any]]) -> None:
    """Print each arm's work against the straightforward design's, and its accuracy against that and centralised."""
    by = {(row["arm"], row["seed"]): row for row in rows}
    for arm in ("start", *ARMS, *POOLED):
        mine = {seed: row for (name, seed), row in by.items() if name == arm}
        if not mine:
            continue
        text = f"{arm}, {len(mine)} seeds: {statistics.fmean(row['accuracy'] for row in mine.values()):.1f} %"
        if arm in ARMS:
            text += f" at {statistics.fmean(row['macs'] for row in mine.values()) / 1e6:.2f} M MACs"
            spent = sorted({f"{row['client_rounds']:,} (closed form {row['analytic']:,})" for row in mine.values()})
            text += f", client-rounds {', '.join(spent)}"
        print(text)
        for other, key in COMPARED if arm in ARMS else ():
            theirs = {s: row for (name, s), row in by.items() if name == other and s in mine and key in row}
            if theirs and other != arm:
                print(f"    to {other}, {key}: " + gap([mine[s]["accuracy"] - theirs[s][key] for s in theirs]))
                if other in ARMS:
                    print("    " + ", ".join(f"{what} {saved(mine, theirs, keys):.1f}" for what, keys in WORK.items()))


COMPARED = (
    ("straightforward", "accuracy"),
    ("random", "accuracy"),
    *((arm, key) for arm in ("centralised", "same budget") for key in ("accuracy", "finished_by_clients")),
)
WORK = {
    "times less client-rounds": ("client_rounds",),
    "MACs of training": ("train_macs",),
    "bytes of training": ("train_bytes",),
    "MACs with tests": ("train_macs", "test_macs"),
    "bytes with tests": ("train_bytes", "test_bytes"),
}


def saved(mine: Mapping[int, dict[str, Any]], theirs: Mapping[int, dict[str, Any]], keys: Sequence[str]) -> float:
    """Return how many times more the others took, the mean over seeds."""
    return statistics.fmean(sum(theirs[s][k] for k in keys) / sum(mine[s][k] for k in keys) for s in theirs)


def gap(gaps: Sequence[float]) -> str:
    """Return a paired difference of accuracies in points: mean, standard error, least and most."""
    error = standard_error(gaps)
    return f"{statistics.fmean(gaps):+.1f} ± {error:.1f} points ({min(gaps):+.1f} to {max(gaps):+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default="fednas,random,straightforward,same budget,centralised")
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
        named = given.arms.split(",")
        arms = [arm for arm in named if arm not in POOLED]
        jobs = [(a, s, *common, ids[s]) for a in POOLED for s in seeds if a in named and (a, s) not in there]
        rows += collect(centralised, jobs, given.out, given.processes)
        jobs = [(arm, s, *common, ids[s]) for arm in arms for s in seeds if (arm, s) not in there]
        rows += collect(run, jobs, given.out, given.processes)
    summary([row for row in rows if row["most"] in (0, given.most)])


if __name__ == "__main__":
    main()
