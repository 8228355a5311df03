"""DDC on devices: does the policy learn, do thresholds steer it, is a subset cheaper, does a policy transfer?

    python benchmarks/ddc.py --seeds 5 --out ddc.jsonl      # trains, or trains on
    python benchmarks/ddc.py --out ddc.jsonl --summary

scikit-learn's digits over 20 clients (IID), 16 of whom train and 4 test; the teacher is a CNN of eight convolutions
(space `cnn8`, seven of them removable) after 20 rounds of federated averaging. 25 iterations of 4 students, each
distilled by four clients for 3 rounds of 5 epochs. The arms of a seed share its teacher:

policy        thresholds 0.9, 0.5 and 0.6; published are 0.9, 0.3 and 0.6 for networks a hundred times as large: of this
              one a third of the time is spent in the first layer and between layers
random        layers removed at random
latency, …    other thresholds of latency and of parameters (as many seeds as --steered)
subset        a device that sees the digits 0, 1, 4 and 7 only: teacher, training and tests of those classes
transfer      the same, beginning with the policy of arm `policy`
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from common import collect, stored

from fednas_core.config import RunConfig
from fednas_core.experiment import conduct
from fednas_core.local import LocalFleet
from fednas_core.runs.folder import RunFolder
from fednas_core.selection import Judge
from fednas_core.settings import read
from fednas_core.starts import trained
from fednas_core.tasks.bench import dataset_of, preprocessing_of, space_of

CLASSES = (0, 1, 4, 7)
SUBSET = {"data.only": ",".join(map(str, CLASSES))}
STEERED = {
    "latency 0.3": {"ddc.latency": 0.3},
    "latency 0.8": {"ddc.latency": 0.8},
    "params 0.1": {"ddc.latency": 2.0, "ddc.params": 0.1},
    "params 0.3": {"ddc.latency": 2.0, "ddc.params": 0.3},
    "params 0.8": {"ddc.latency": 2.0, "ddc.params": 0.8},
}
ARMS: dict[str, dict[str, Any]] = {
    "policy": {"contest.finish": 10},
    "random": {"ddc.sampler": "random"},
    "subset": {"contest.finish": 10, **SUBSET},
    "transfer": {"contest.finish": 10, **SUBSET},
    **STEERED,
}
ITERATIONS, ENDS = 25, 5


def settings(seed: int, folder: str) -> dict[str, Any]:
    return {
        "seed": seed,
        "workers": 1,
        "output": folder,
        "budgets": "any=max",
        "evaluate-every": 1000,
        "install": False,
        "space.name": "cnn8",
        "data.clients": 20,
        "data.partition": "iid",
        "train.epochs": 5,
        "train.batch": 32,
        "train.lr": 0.06,
        "contest.iterations": ITERATIONS,
        "contest.finish": 0,
        "ddc.rounds": 3,
        "ddc.latency": 0.5,
    }


def teach(seed: int, folder: str) -> dict[str, Any]:
    """Train the teacher of a seed; return the id of its run."""
    few = {"method": "ddc", "rounds": 20, "contest.iterations": 1, "ddc.rounds": 1}
    run = _conducted(read(settings(seed, folder) | few))
    return {"arm": "teacher", "seed": seed, "run": run.id, **_tested(run, teacher=True)}


def run(arm: str, seed: int, folder: str, teacher: str, policy: str) -> dict[str, Any]:
    """Search from the teacher; return the rewards of all iterations and the student that was chosen."""
    changes = {"method": "ddc", "contest.start": teacher, "ddc.policy": policy, **ARMS[arm]}
    found = _conducted(read(settings(seed, folder) | changes))
    told = [event["search"] for event in found.events()]
    rewards = [one for search in told for one in search.get("rewards", ())]
    last = [search for search in told if "reward" in search][-1]
    row = {"arm": arm, "seed": seed, "run": found.id, "rewards": [one["mean"] for one in rewards]}
    return row | {
        "best": [max(one["best"] for one in rewards[: i + 1]) for i in range(len(rewards))],
        "trained": sum(one["new"] for one in rewards),
        "reward": last["reward"],
        "judged_accuracy": last["accuracy"],
        **_tested(found),
    }


def _tested(run: RunFolder, teacher: bool = False) -> dict[str, Any]:
    """Return cost and test accuracy of a run's leading network or teacher, on all classes and on the subset's alone."""
    config = run.config()
    _, method = trained(run)
    space, judge = space_of(config), Judge(config, method.network)
    assert method.networks is not None
    arch = space.largest if teacher else method.networks[0]
    cost, whole = space.cost(arch), space.cost(space.largest)
    test, network = dataset_of(config).test, judge.network(arch)
    mine = [dataset_of(config).classes.index(str(digit)) for digit in CLASSES]
    rows = torch.isin(test.y, torch.tensor(mine))
    with torch.inference_mode():
        logits = network(preprocessing_of(config)(test.x[rows]))[:, mine]
    right = (torch.tensor(mine)[logits.argmax(1)] == test.y[rows]).float().mean()
    return {
        "accuracy": 100 * judge.test(arch).accuracy,
        "on_subset": 100 * float(right),
        "params": cost.params / whole.params,
        "macs": cost.macs / whole.macs,
        "arch": arch.to_json(),
        "latency": latency(run, arch, space),
    }


def latency(run: RunFolder, arch: Any, space: Any) -> float | None:
    """Return an architecture's share of the largest one's milliseconds, as the run's device measured them."""
    from fednas_core.devices.latency_model import LatencyModel
    from fednas_core.devices.profile import from_json

    noted = run.read_json("devices.json")
    if not noted.get("timed"):
        return None
    model = LatencyModel.fit(space, from_json(space, noted["profiles"][noted["timed"][0]]).probes)
    return model.predict_ms(arch) / model.predict_ms(space.largest)


def _conducted(config: RunConfig) -> RunFolder:
    torch.set_num_threads(1)
    os.environ["FEDNAS_STATE"] = f"{config.output}/state"
    with closing(LocalFleet(config)) as fleet:
        return conduct(config, fleet, announce=lambda text: None)


def summary(rows: Sequence[dict[str, Any]]) -> None:
    """Print what each question's answer is, by seed and over seeds."""
    by = {(row["arm"], row["seed"]): row for row in rows}

    def seeds(*arms: str) -> list[int]:
        return sorted(seed for arm, seed in by if arm == arms[0] and all((arm, seed) in by for arm in arms))

    def mean(values: Sequence[float]) -> str:
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.3f}{spread}"

    there = seeds("policy")
    if there:
        first, last = ([statistics.fmean(by["policy", s]["rewards"][part]) for s in there] for part in PARTS)
        print(
            f"mean reward, first {ENDS} iterations {mean(first)}, last {ENDS} {mean(last)} (SD over {len(there)} seeds)"
        )
    both = seeds("policy", "random")
    if both:
        policy, random = ([statistics.fmean(by[a, s]["rewards"][PARTS[1]]) for s in both] for a in ("policy", "random"))
        more = sum(a > b for a, b in zip(policy, random, strict=True))
        print(
            f"last {ENDS} iterations: policy {mean(policy)}, random {mean(random)}: more in {more} of {len(both)} seeds"
        )
        best = [(fewest(by["policy", s], by["random", s])) for s in both]
        more = sum(a > b for a, b in best)
        print(f"best student of as many iterations: policy {mean([a for a, _ in best])}, random "
              f"{mean([b for _, b in best])}: more in {more}, less in {sum(a < b for a, b in best)}")  # fmt: skip
    for what, arms in (("latency", ("latency 0.3", "policy", "latency 0.8")), ("params", tuple(STEERED)[2:])):
        steered = seeds(*arms)
        for s in steered:
            print(f"seed {s}: {what} of the student chosen: " + ", ".join(f"{a} {by[a, s][what]:.3f}" for a in arms))
    for arm in ("subset", "transfer"):
        for s in seeds("policy", "teacher", arm):
            one, full, teacher = by[arm, s], by["policy", s], by["teacher", s]
            print(
                f"seed {s}: {arm}: {one['on_subset']:.1f} % at {one['params']:.3f} of the parameters; of all classes "
                f"{full['on_subset']:.1f} % at {full['params']:.3f}; teacher {teacher['on_subset']:.1f} %"
            )
    for s in seeds("subset", "transfer"):
        goal = statistics.fmean(by["subset", s]["rewards"][PARTS[1]])
        print(f"seed {s}: scratch ends at {goal:.3f}; transferred policy there after {reached(by['transfer', s], goal)}"
              f" of {ITERATIONS} iterations (scratch: {reached(by['subset', s], goal)})")  # fmt: skip


PARTS = (slice(0, ENDS), slice(-ENDS, None))


def fewest(one: dict[str, Any], two: dict[str, Any]) -> tuple[float, float]:
    """Return the best rewards of both after as many iterations as the shorter one has."""
    length = min(len(one["best"]), len(two["best"]))
    return one["best"][length - 1], two["best"][length - 1]


def reached(row: dict[str, Any], goal: float) -> int | None:
    """Return after how many iterations the mean reward of three in a row is at `goal`; None if never."""
    rewards = row["rewards"]
    return next((i + 1 for i in range(len(rewards)) if statistics.fmean(rewards[max(0, i - 2) : i + 1]) >= goal), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steered", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("ddc-runs"), help="where the runs go")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    rows = stored(given.out)
    if not given.summary:
        folder, seeds = str(given.folder.resolve()), range(1, given.seeds + 1)
        done = {(row["arm"], row["seed"]): row["run"] for row in rows}
        found = collect(teach, [(s, folder) for s in seeds if ("teacher", s) not in done], given.out, given.processes)
        rows += found
        done |= {("teacher", row["seed"]): row["run"] for row in found}
        for arms in (("policy", "random", "subset"), ("transfer", *STEERED)):
            jobs = [
                (arm, s, folder, done["teacher", s], done["policy", s] if arm == "transfer" else "")
                for s in seeds
                for arm in arms
                if (arm, s) not in done and (arm not in STEERED or s <= given.steered)
            ]
            found = collect(run, jobs, given.out, given.processes)
            rows += found
            done |= {(row["arm"], row["seed"]): row["run"] for row in found}
    summary(rows)


if __name__ == "__main__":
    main()
