"""FedSup and E-FedSup against random subnets and plain federated averaging, at equal rounds and at equal client MACs.

    python benchmarks/fedsup.py --out fedsup.jsonl                # trains, or trains on
    python benchmarks/fedsup.py --out fedsup.jsonl --summary

Digits over 40 clients (`--alpha`), 10 of them in each round; space
`spaces/mobile.toml` (up to 0.35 M MACs) with group normalisation. `fedsup`
trains the largest, two random and the smallest network in each step; `random` four random ones on the labels;
`efedsup` one network a client, of four tiers, that go round or are bound to clients; `fedavg` one network alone.

Each arm has its own learning rate: of `RATES`, the one of the best mean accuracy of its networks on validation images,
over two seeds that are not among those reported (shrinking has that of `fedsup`). Each arm then trains for `--rounds`
rounds; those of `LONG` also train, with the same rate, for as many as cost the clients what `fedsup` costs. Accuracies
are those on test images, by which this program chooses nothing, of the largest and the smallest network and of one
whose genes are the middle choices (20 % of the MACs).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import collect, read, standard_error, stored

from fednas_core.base.config import RunConfig
from fednas_core.base.seeding import derive
from fednas_core.base.values import Arch
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import rounds
from fednas_core.methods.registry import make, path_of
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.space import Elastic
from fednas_core.tasks.bench import space_of

Row = dict[str, Any]

SPACE = Path(__file__).parent / "spaces" / "mobile.toml"
NARROW = "min,30%,70%,max"
"""From three quarters of these shares up to them, about as published."""
SHRINK = {"method": "fedsup", "sample.shrink": "k,d,e,w"}
ARMS: dict[str, Row] = {
    "fedsup": {"method": "fedsup"},
    "random": {"method": "fedsup", "sample.inner": 4, "sample.sandwich": False},
    "efedsup, bound": {"method": "efedsup", "sample.tiers": NARROW, "sample.deal": "fixed"},
    "efedsup, rotating": {"method": "efedsup", "sample.tiers": NARROW},
    "efedsup, rotating, wide": {"method": "efedsup"},
    "fedsup, shrinking": SHRINK,
    "fedavg, largest": {"method": "fedavg"},
    "fedavg, smallest": {"method": "fedavg"},
    "fedavg, middle": {"method": "fedavg"},
    "efedsup, bound, wide": {"method": "efedsup", "sample.deal": "fixed"},
    "fedsup, labels": {"method": "fedsup", "sample.distill": False},
    "fedsup, batch norm": {"method": "fedsup", "space.norm": "batch"},
    "fedsup, parametric norm": {"method": "fedsup", "space.norm": "parametric"},
    "fedsup, shrinking 0.6": {**SHRINK, "sample.shrink-until": 0.6},
}
QUOTED = tuple(ARMS)[:8]
LONG = ("fedavg, largest", "efedsup, rotating, wide", "fedsup, shrinking", "efedsup, bound", "random")
"""Arms that are also run for as many rounds as cost the clients what ``fedsup`` costs, where that is another number."""
AS_TUNED = {arm: "fedsup" for arm in ARMS if "shrinking" in arm}
"""Arms whose rate is that of another one."""
PAIRS = (
    ("fedsup", "random"),
    ("fedsup", "fedavg, largest"),
    ("fedsup", "fedavg, middle"),
    ("fedsup", "fedavg, smallest"),
    ("fedsup, shrinking", "fedsup"),
    ("efedsup, rotating", "efedsup, bound"),
    ("efedsup, rotating, wide", "efedsup, rotating"),
    ("efedsup, bound", "fedsup"),
    ("efedsup, rotating", "fedsup"),
    ("efedsup, rotating, wide", "fedsup"),
    ("efedsup, rotating, wide", "fedavg, largest"),
    ("fedsup", "fedsup, labels"),
    ("fedsup, parametric norm", "fedsup, batch norm"),
)
NETWORKS = ("smallest", "middle", "largest")
RATES = {"fedsup": (0.0125, 0.025, 0.05), "efedsup": (0.025, 0.05, 0.1), "fedavg": (0.025, 0.05, 0.1)}
"""Learning rates to choose from, by method: four networks a step, whose gradients add up, take smaller ones."""
TUNING_SEEDS = (101, 102)


def settings(alpha: float, arm: str, lr: float, seed: int, count: int) -> RunConfig:
    """Return the settings of one run."""
    pairs: Row = {
        "seed": seed,
        "rounds": count,
        "cohort": 10,
        "workers": 1,
        "space.name": str(SPACE),
        "space.norm": "group",
        "data.clients": 40,
        "data.alpha": alpha,
        "data.holdout": 0.0,
        "train.epochs": 2,
        "train.batch": 8,
        "train.lr": lr,
        "train.momentum": 0.9,
        "train.weight-decay": 1e-4,
        "train.clip-value": 1.0,
        "train.clip": 0.0,
        "train.label-smoothing": 0.0,
        "train.warmup": 2,
        "train.precision": "fp32",
        **ARMS[arm],
    }
    config = read(pairs)
    if config.method == "fedavg":
        config = read({**pairs, "sample.arch": str(networks(space_of(config), arm)[arm.split()[-1]])})
    return config


def networks(space: Elastic, arm: str) -> dict[str, Arch]:
    """Return the networks that an arm is judged by, by name: federated averaging has but one."""
    found = {
        "smallest": space.smallest,
        "middle": space.decode((space.gene_choices - 1) // 2),
        "largest": space.largest,
    }
    return {name: arch for name, arch in found.items() if not arm.startswith("fedavg") or arm.endswith(name)}


def run(alpha: float, arm: str, lr: float, seed: int, count: int) -> Row:
    """Train one federation; return accuracies in percent, bytes and MACs of all clients, and seconds."""
    torch.set_num_threads(1)
    config = settings(alpha, arm, lr, seed, count)
    space = space_of(config)
    initial = initial_weights(space, derive(seed, "weights"))
    method = make(Setup(config, space, path_of(config, space, space.cost(space.smallest).macs), initial))
    fleet = LocalFleet(config)
    events = list(rounds(config, method, fleet, 0, run=f"{arm}-{seed}"))
    fleet.close()
    judge = Judge(config, method.network)
    judged = networks(space, arm)
    return {
        "alpha": alpha,
        "arm": arm,
        "lr": lr,
        "seed": seed,
        "rounds": count,
        "validation": {name: 100 * judge.validate(arch).accuracy for name, arch in judged.items()},
        "test": {name: 100 * judge.test(arch).accuracy for name, arch in judged.items()},
        "bytes": sum(event["bytes_down"] + event["bytes_up"] for event in events),
        "client_macs": sum(event["client_macs"] for event in events),
        "seconds": sum(event["seconds"] for event in events),
    }


def of(rows: Sequence[Row], arm: str, **given: Any) -> list[Row]:
    """Return the rows of an arm in which these fields have these values."""
    return [row for row in rows if row["arm"] == arm and all(row[key] == value for key, value in given.items())]


def rates_of(arm: str) -> tuple[float, ...]:
    """Return the rates that are tried for an arm."""
    return RATES[ARMS[arm]["method"]]


def tuned(rows: Sequence[Row], arm: str) -> float:
    """Return the rate of the best validation accuracy over networks and tuning seeds."""
    arm = AS_TUNED.get(arm, arm)

    def score(lr: float) -> float:
        found = [row for row in of(rows, arm, lr=lr) if row["seed"] in TUNING_SEEDS]
        return statistics.fmean(value for row in found for value in row["validation"].values())

    return max(rates_of(arm), key=score)


def equal_rounds(rows: Sequence[Row], arm: str, count: int) -> int:
    """Return in how many rounds an arm costs the clients the MACs of `count` rounds of ``fedsup``, as measured.

    A tenth more or less counts as equal.
    """

    def macs(arm: str) -> float:
        return statistics.fmean(r["client_macs"] for r in of(rows, arm, rounds=count))

    ratio = macs("fedsup") / macs(arm)
    return count if 0.9 <= ratio <= 1.1 else round(count * ratio)


def paired(ones: Sequence[Row], others: Sequence[Row], name: str) -> str:
    """Return the mean paired difference in points, its standard error, and its range over seeds."""
    by_seed = {row["seed"]: row["test"] for row in others}
    gains = [row["test"][name] - by_seed[row["seed"]][name] for row in ones if name in by_seed.get(row["seed"], ())]
    if not gains:
        return "–"
    error = standard_error(gains)
    return f"{statistics.fmean(gains):+.1f} ± {error:.1f} ({min(gains):+.1f} to {max(gains):+.1f}, {len(gains)} seeds)"


def summary(rows: Sequence[Row], count: int) -> None:
    """Print what each arm reaches and costs, at equal rounds and at equal MACs, and paired differences."""
    final = [row for row in rows if row["seed"] not in TUNING_SEEDS]
    arms = [arm for arm in ARMS if of(final, arm)]
    equal = {arm: equal_rounds(rows, arm, count) for arm in arms}
    chosen = {arm: tuned(rows, arm) for arm in arms}
    for title, length in (("equal rounds", dict.fromkeys(arms, count)), ("equal client MACs", equal)):
        found = {arm: of(final, arm, rounds=length[arm], lr=chosen[arm]) for arm in arms}
        print(f"\n{title}: accuracy in % of the smallest, middle and largest network")
        for arm, mine in found.items():
            if mine:
                cells = [
                    f"{statistics.fmean(row['test'][name] for row in mine):.1f}" if name in mine[0]["test"] else "–"
                    for name in NETWORKS
                ]
                traffic = statistics.fmean(row["bytes"] / 1e6 for row in mine)
                macs = statistics.fmean(row["client_macs"] / 1e12 for row in mine)
                print(
                    f"{arm:>24}: {'  '.join(cells)}  {length[arm]} rounds, rate {chosen[arm]}, {traffic:.0f} MB, "
                    f"{macs:.3f} T MACs ({len(mine)} seeds)"
                )
        for one, other in PAIRS:
            if found.get(one) and found.get(other):
                told = "; ".join(f"{name} {paired(found[one], found[other], name)}" for name in NETWORKS)
                print(f"{one} − {other}: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--alpha", type=float, default=1.0, help="Dirichlet concentration; small: non-IID")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="besides fedsup; default: the README's")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    alpha, count = given.alpha, given.rounds
    arms = tuple(dict.fromkeys(("fedsup", *(given.arm or QUOTED))))  # fedsup gives rates and MACs to others

    def known() -> list[Row]:
        return [row for row in stored(given.out) if row["alpha"] == alpha]

    def train(jobs: Sequence[tuple[str, float, int, int]]) -> None:
        there = {(row["arm"], row["lr"], row["seed"], row["rounds"]) for row in known()}
        collect(run, [(alpha, *job) for job in dict.fromkeys(jobs) if job not in there], given.out, given.processes)

    if not given.summary:
        train(
            [
                (arm, lr, seed, count)
                for seed in TUNING_SEEDS
                for arm in arms
                if arm not in AS_TUNED
                for lr in rates_of(arm)
            ]
        )
        rows, seeds = known(), range(1, given.seeds + 1)
        train([(arm, tuned(rows, arm), seed, count) for seed in seeds for arm in arms])
        long = {arm: equal_rounds(known(), arm, count) for arm in LONG if arm in arms}
        for arm, length in long.items():
            train([(arm, tuned(rows, arm), seed, length) for seed in seeds])
    summary(known(), count)


if __name__ == "__main__":
    main()
