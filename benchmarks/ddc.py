"""DDC on devices: does the policy learn, do thresholds steer it, is a subset cheaper, does a policy transfer?

    python benchmarks/ddc.py --seeds 5 --out ddc.jsonl      # trains, or trains on
    python benchmarks/ddc.py --out ddc.jsonl --summary

scikit-learn's digits over 20 clients (IID), 16 of whom train on all their images and 4 test on all of theirs; the
teacher is a CNN of eight convolutions (space `cnn8`, seven of them removable) after 20 rounds of federated averaging.
25 iterations of 4 students, each distilled by four clients for 3 rounds of 5 epochs; the student that the search chose
then trains for 10 rounds with all 16. The arms of a seed share its teacher, its split and everything that the arm does
not name:

policy        the published thresholds 0.9, 0.3 and 0.6; T is MACs, so that a run can be repeated
random        layers removed at random, as often
macs, params  other thresholds (as many seeds as --steered)
subset        a device that sees the digits 0, 1, 4 and 7 only: training and tests are of those classes, the teacher's
              classifier keeps their rows; clients hold what they hold in the other arms, less the other digits
transfer      the same, beginning with the policy of arm `policy`

A search reward is what four clients found of one student after little training, and the search keeps the luckiest. So
arms are compared by test accuracy as well: the reward that the chosen student has on the test set, after equal
training. And what a policy has learnt is also told by the rewards that *other* seeds found for the students it samples.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import collect, deviation, medians, read, searched, standard_error, stored

from fednas_core.base.values import State
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.starts import trained
from fednas_core.methods.host import HOST
from fednas_core.methods.story import Rewarded
from fednas_core.runs.folder import RunFolder
from fednas_core.search.policy import Policy, Reinforce, sample
from fednas_core.search.rewards import Thresholds, ddc_reward
from fednas_core.show.search import rewards as rewards_of
from fednas_core.show.search import searches
from fednas_core.spaces.chain import ChainSpace
from fednas_core.tasks.bench import dataset_of, preprocessing_of, space_of

Row = dict[str, Any]

CLASSES = (0, 1, 4, 7)
SUBSET = {"data.only": ",".join(map(str, CLASSES))}
STEERED = {
    "macs 0.1": {"ddc.latency": 0.1},
    "macs 0.6": {"ddc.latency": 0.6},
    "params 0.1": {"ddc.latency": 2.0, "ddc.params": 0.1},
    "params 0.3": {"ddc.latency": 2.0, "ddc.params": 0.3},
    "params 0.8": {"ddc.latency": 2.0, "ddc.params": 0.8},
}
ARMS: dict[str, dict[str, Any]] = {
    "policy": {},
    "random": {"ddc.sampler": "random"},
    "subset": SUBSET,
    "transfer": SUBSET,
    **STEERED,
}
ITERATIONS, ENDS, SAMPLED = 25, 5, 200


def settings(seed: int, folder: str) -> dict[str, Any]:
    return {
        "seed": seed,
        "output": folder,
        "budgets": "any=max",
        "space.name": "cnn8",
        "data.examples": 1420,  # 64 images a client: two batches
        "data.clients": 20,
        "data.partition": "iid",
        "data.holdout": 0.0,
        "train.epochs": 5,
        "train.batch": 32,
        "train.lr": 0.06,
        "train.precision": "fp32",
        "contest.iterations": ITERATIONS,
        "contest.finish": 10,
        "ddc.rounds": 3,
        "ddc.resource": "macs",
        "ddc.accuracy": 0.9,
        "ddc.latency": 0.3,
        "ddc.params": 0.6,
    }


def teach(seed: int, folder: str) -> Row:
    """Train the teacher of a seed; return the id of its run."""
    few = {"method": "ddc", "rounds": 20, "contest.iterations": 1, "contest.finish": 0, "ddc.rounds": 1}
    run = searched(read(settings(seed, folder) | few))
    return {"arm": "teacher", "seed": seed, "run": run.id, **_tested(run, teacher=True)}


def run(arm: str, seed: int, folder: str, teacher: Row, policy: str) -> Row:
    """Search from the teacher; return the rewards of all iterations and the student that was chosen."""
    changes = {"method": "ddc", "contest.start": teacher["run"], "ddc.policy": policy, **ARMS[arm]}
    found = searched(read(settings(seed, folder) | changes))
    events = found.events()
    rewards = rewards_of(events)
    last = [told.own for _, told in searches(events) if isinstance(told.own, Rewarded)][-1]
    judged = found.load_checkpoint()[1].data[HOST]["judged"]
    tested = _tested(found)
    return {
        "arm": arm,
        "seed": seed,
        "run": found.id,
        "rewards": [one.mean for one in rewards],
        "best": [max(one.best for one in rewards[: i + 1]) for i in range(len(rewards))],
        "new": [one.new for one in rewards],
        "client_macs": sum(event.client_macs for event in events),
        "reward": last.reward,
        "judged": [[genes["k"], reward] for genes, _, reward in judged],
        "sampled": _sampled(found) if arm == "policy" else [],
        **tested,
        "test_reward": _reward(tested, teacher, "accuracy" if "data.only" not in ARMS[arm] else "on_subset"),
    }


def _reward(student: Row, teacher: Row, key: str) -> float:
    """Return the reward at the published thresholds, by accuracies on the test set."""
    ratio = student[key] / teacher[key]
    return ddc_reward(ratio, student["macs"], student["params"], Thresholds(0.9, 0.3, 0.6)).total


def _sampled(run: RunFolder) -> list[list[int]]:
    """Return masks of students that a run's policy samples in the end."""
    space = space_of(run.config())
    assert isinstance(space, ChainSpace)
    state = run.load_checkpoint()[1]
    own = {name.removeprefix(f"{HOST}/"): t for name, t in state.tensors.items() if name.startswith(f"{HOST}/")}
    learner = Reinforce(Policy(0), space.descriptors, 0.0)
    learner.transfer(State(own, state.data[HOST]["learner"]))
    masks = sample(learner.policy, space.descriptors, SAMPLED, torch.Generator().manual_seed(0))
    return [list(mask) for mask in masks]


def _tested(run: RunFolder, teacher: bool = False) -> Row:
    """Return cost and test accuracy of a run's leading network or teacher, on all classes and on the subset's alone."""
    config = run.config()
    _, method = trained(run)
    space, judge = space_of(config), Judge(config, method.network)
    assert method.catalogue.these is not None
    arch = space.largest if teacher else method.catalogue.these[0]
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
        "latency": _latency(judge, arch, space),
    }


def _latency(judge: Judge, arch: Any, space: ChainSpace) -> float:
    """Return what share of the largest network's time one image takes here, the two measured in turns."""
    image = torch.zeros(1, space.in_channels, space.image_size, space.image_size)
    networks = [judge.network(one) for one in (arch, space.largest)]
    with torch.inference_mode():
        mine, whole = medians([lambda network=network: network(image) for network in networks], 100)
    return mine / whole


def summary(rows: Sequence[Row]) -> None:
    """Print what each question's answer is, by seed and over seeds."""
    by = {(row["arm"], row["seed"]): row for row in rows}

    def seeds(*arms: str) -> list[int]:
        return sorted(seed for arm, seed in by if arm == arms[0] and all((arm, seed) in by for arm in arms))

    def column(arm: str, key: str, mine: Iterable[int]) -> list[float]:
        return [by[arm, s][key] for s in mine]

    for arm in ("teacher", *ARMS):
        mine = seeds(arm)
        if mine:
            told = ", ".join(f"{key} {mean(column(arm, key, mine))}" for key in COSTS if key in by[arm, mine[0]])
            trained = f", students trained {column_text(sum(by[arm, s]['new']) for s in mine)}" if arm in ARMS else ""
            print(f"{arm}, {len(mine)} seeds: {told}{trained}")
    both = seeds("policy", "random")
    if both:
        print(f"\npolicy and random, {len(both)} seeds (mean ± SD):")
        for part, what in ((PARTS[0], f"mean reward, first {ENDS}"), (PARTS[1], f"mean reward, last {ENDS}")):
            compare(what, *([statistics.fmean(by[a, s]["rewards"][part]) for s in both] for a in ("policy", "random")))
        compare("best reward of the search", *(column(arm, "reward", both) for arm in ("policy", "random")))
        few = [min(sum(by[arm, s]["new"]) for arm in ("policy", "random")) for s in both]
        pairs = [[best_of(by[a, s], n) for s, n in zip(both, few, strict=True)] for a in ("policy", "random")]
        compare("best reward at as many trained students", *pairs)
        compare("test reward of the chosen", *(column(arm, "test_reward", both) for arm in ("policy", "random")))
        compare("its test accuracy", *(column(arm, "accuracy", both) for arm in ("policy", "random")))
    if len(both) > 1:
        others = [elsewhere(by, s) for s in both]
        learnt = [expected(by["policy", s]["sampled"], found) for s, found in zip(both, others, strict=True)]
        compare("reward in other seeds of what it samples", learnt, [statistics.fmean(f.values()) for f in others])
    for what, arms in (("macs", ("macs 0.1", "policy", "macs 0.6")), ("params", tuple(STEERED)[2:])):
        for s in seeds(*arms):
            print(f"seed {s}: {what} of the student chosen: " + ", ".join(f"{a} {by[a, s][what]:.3f}" for a in arms))
    there = seeds("subset", "policy", "teacher")
    if there:
        print(f"\nthe subset's student against that of all classes, {len(there)} seeds:")
        for key in ("on_subset", "params", "macs"):
            compare(key, *(column(arm, key, there) for arm in ("subset", "policy")))
    there = seeds("subset", "transfer")
    if there:
        print(f"\ntransferred policy and policy from scratch, {len(there)} seeds:")
        for part, what in ((PARTS[0], f"first {ENDS}"), (PARTS[1], f"last {ENDS}"), (slice(None), "all")):
            pairs = [[statistics.fmean(by[a, s]["rewards"][part]) for s in there] for a in ("transfer", "subset")]
            compare(f"mean reward, {what}", *pairs)
        for key in ("reward", "test_reward", "on_subset", "params"):
            compare(key, *(column(arm, key, there) for arm in ("transfer", "subset")))
    for s in there:
        one, scratch = by["transfer", s], by["subset", s]
        goal, best = statistics.fmean(scratch["rewards"][PARTS[1]]), scratch["best"][-1]
        print(
            f"seed {s}: iterations of the transferred policy (of scratch) until the mean of three is at {goal:.3f}, "
            f"scratch's last {ENDS}: {reached(one, goal)} ({reached(scratch, goal)}); until the best is at {best:.3f}, "
            f"scratch's best: {first(one, best)} ({first(scratch, best)})"
        )


COSTS = ("accuracy", "on_subset", "params", "macs", "latency", "client_macs")
PARTS = (slice(0, ENDS), slice(-ENDS, None))


def mean(values: Sequence[float]) -> str:
    """Return mean and standard deviation as text."""
    return f"{statistics.fmean(values):.4g} ± {deviation(values):.3g}"


def column_text(values: Iterable[int]) -> str:
    """Return whole numbers as text."""
    return " ".join(map(str, values))


def compare(what: str, one: Sequence[float], two: Sequence[float]) -> None:
    """Print two arms' figures, and the paired difference of the first from the second with its standard error."""
    gaps = [a - b for a, b in zip(one, two, strict=True)]
    error = standard_error(gaps)
    more, less = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    print(
        f"  {what}: {mean(one)} and {mean(two)}; difference {statistics.fmean(gaps):+.3f} ± {error:.3f}, "
        f"more in {more}, less in {less}"
    )


def best_of(row: Row, trained: int) -> float:
    """Return the best reward once so many students were trained."""
    done, best = 0, row["best"][0]
    for new, here in zip(row["new"], row["best"], strict=True):
        done += new
        if done > trained:
            break
        best = here
    return float(best)


def elsewhere(by: Mapping[tuple[str, int], Row], seed: int) -> dict[str, float]:
    """Return by mask the mean reward that arms `policy` and `random` of other seeds found."""
    found: dict[str, list[float]] = {}
    for (arm, other), row in by.items():
        if arm in ("policy", "random") and other != seed:
            for mask, reward in row["judged"]:
                found.setdefault(str(mask), []).append(reward)
    return {mask: statistics.fmean(rewards) for mask, rewards in found.items()}


def expected(masks: Iterable[Sequence[int]], rewards: Mapping[str, float]) -> float:
    """Return the mean reward of sampled students, as far as it is known."""
    known = [rewards[str(list(mask))] for mask in masks if str(list(mask)) in rewards]
    return statistics.fmean(known) if known else float("nan")


def reached(row: Row, goal: float) -> int | None:
    """Return after how many iterations the mean reward of three in a row is at `goal`; None if never."""
    rewards = row["rewards"]
    return next((i for i in range(3, len(rewards) + 1) if statistics.fmean(rewards[i - 3 : i]) >= goal), None)


def first(row: Row, goal: float) -> int | None:
    """Return after how many iterations a student's reward is at `goal`; None if never."""
    return next((i + 1 for i, best in enumerate(row["best"]) if best >= goal), None)


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
        done = {(row["arm"], row["seed"]): row for row in rows}
        found = collect(teach, [(s, folder) for s in seeds if ("teacher", s) not in done], given.out, given.processes)
        rows += found
        done |= {("teacher", row["seed"]): row for row in found}
        for arms in (("policy", "random", "subset"), ("transfer",), tuple(STEERED)):
            jobs = [
                (arm, s, folder, done["teacher", s], done["policy", s]["run"] if arm == "transfer" else "")
                for s in seeds
                for arm in arms
                if (arm, s) not in done and (arm not in STEERED or s <= given.steered)
            ]
            found = collect(run, jobs, given.out, given.processes)
            rows += found
            done |= {(row["arm"], row["seed"]): row for row in found}
    summary(rows)


if __name__ == "__main__":
    main()
