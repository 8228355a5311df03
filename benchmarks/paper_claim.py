"""DeepFedNAS's claim on a small CIFAR-10: does training along the Pareto path beat honest controls?

Every arm trains a supernet from the same initial weights on the same clients for the same rounds at a rate tuned for
it; only what the clients train differs: the exact path, the path of a search that was stopped early, or random
architectures (uniform, of the path's range of MACs, of the path's MACs). Then every arm has one candidate for each
budget of the path, an architecture of its own kind within it. For four budgets the best candidate within the budget is
chosen on the server's validation images and reported on test images that nothing was chosen by. All supernets are also
judged on the same networks: those of the exact path, and random ones (off the path). Differences are paired by seed.

On the supernets that are not biased towards the path, fitness is compared with the accuracy of random networks of equal
MACs.

    python benchmarks/paper_claim.py --tune --out claim.jsonl            # rates, with a seed that is not compared
    python benchmarks/paper_claim.py --seeds 8 --out claim.jsonl         # trains, or trains on
    python benchmarks/paper_claim.py --out claim.jsonl --summary         # the tables
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import CIFAR10, collect, deviation, read, stored
from scipy.stats import kendalltau, spearmanr, ttest_1samp
from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.seeding import derive, stream
from fednas_core.base.values import Arch
from fednas_core.data.sources import Images
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import run_round
from fednas_core.methods.method import Method
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.search.evolution import Constraint, evolve
from fednas_core.search.fitness import Fitness, Floats, Ints
from fednas_core.search.fitness import evaluate as scores
from fednas_core.search.path import PathRow, budgets, mac_matched, pareto_path, rows_of
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.subnets.networks import subnet
from fednas_core.tasks.bench import dataset_of, preprocessing_of, space_of, validation_images
from fednas_core.tasks.images import prepared
from fednas_core.training.evaluate import evaluate

ROWS = 12
JUDGED = (2, 5, 8, 11)
"""Rows of the path at whose budgets networks are chosen: 3, 6, 9 and 12 candidates are within them."""
LAMBDA = 100.0
"""λ of the published search script: in networks this narrow 1000 would outweigh the entropy."""
STOPPED = {"population": 16, "generations": 5}
"""The search that is stopped early; fednas's own takes 128 × 100."""
ROUNDS = 12
TEST_IMAGES = 2000
MATCHED, BANDS = 20, (2, 5)
"""Random networks within 5 % of the MACs of each of these budgets, on which fitness is compared with accuracy."""
TOLERANCE = 0.05
TUNING_SEED, TUNING_ROUNDS = 100, 8
TRIED = (0.025, 0.05, 0.1)
CONTROLS: dict[str, dict[str, str | float | bool]] = {
    "uniform": {"sample.between": "uniform"},
    "range-matched": {"sample.between": "range-matched"},
    "MAC-matched": {"sample.between": "mac-matched"},
}
OURS: dict[str, dict[str, str | float | bool]] = {
    "exact, depth-stratified": {"sample.stratify": True},
    "exact, 25 % range-matched": {"sample.range-share": 0.25},
}
ARMS: dict[str, dict[str, str | float | bool]] = {"exact path": {}, "stopped search": {}, **CONTROLS, **OURS}
RATES = dict.fromkeys(ARMS, 0.05)
"""Learning rate of each arm: of `TRIED` the one with the best validation accuracy (`--tune`)."""
KINDS = ("own", "exact", "random")
"""Candidates that supernets are judged on: see `Arm.candidates`."""
UNBIASED = ("uniform", "MAC-matched")
"""Arms whose supernets tell whether fitness means accuracy: no network of the path was preferred in their training."""


def settings(arm: str, seed: int, data: str, rounds: int, lr: float) -> RunConfig:
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
            "data.holdout": 0.0,
            "data.clients": 8,
            "data.alpha": 100.0,
            "train.epochs": 1,
            "train.batch": 32,
            "train.lr": lr,
            "train.precision": "fp32",
            "train.schedule": "constant",
            "train.momentum": 0.0,
            "train.weight-decay": 5e-4,
            "train.label-smoothing": 0.0,
            "sample.budgets": ROWS,
            "sample.beta-start": 0.9,
            "sample.fitness-lambda": LAMBDA,
            **ARMS[arm],
        }
    )


Job = tuple[str, int, int, float]
"""Arm, seed, rounds and learning rate of one run."""


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One arm of one seed, made once, so that what is judged is what was trained.

    `path` is what it trains along or what its random draws are matched to, `exact` the exact path; row i of either, and
    of the `random` architectures, is within ``limits[i]`` MACs. The last one is the largest network, which all train.
    """

    config: RunConfig
    space: ResNetSpace
    fitness: Fitness
    limits: tuple[int, ...]
    exact: tuple[PathRow, ...]
    path: tuple[PathRow, ...]
    random: tuple[Arch, ...]
    supernet: dict[str, Tensor]

    def method(self) -> Method:
        """Return the method that trains the arm's supernet in place."""
        return make(Setup(self.config, self.space, self.path, self.supernet))

    def candidates(self) -> dict[str, tuple[Arch, ...]]:
        """Return one architecture within each budget: of the arm's own kind, of the exact path, and random ones."""
        walked = tuple(row.arch for row in self.path)
        own = walked if self.config.sample.between == "path" else self.random
        return {"own": own, "exact": tuple(row.arch for row in self.exact), "random": self.random}

    def of_equal_macs(self, row: int) -> list[Arch]:
        """Return random architectures within 5 % of the MACs of a budget."""
        rng = stream(self.config.seed, "equal", row)
        return [mac_matched(self.space, self.limits[row], TOLERANCE, rng) for _ in range(MATCHED)]


def arm_of(name: str, seed: int, data: str, rounds: int = ROUNDS, lr: float | None = None) -> Arm:
    """Return an arm before its training."""
    config = settings(name, seed, data, rounds, RATES[name] if lr is None else lr)
    space, fitness = space_of(config), Fitness(lam=config.sample.fitness_lambda)
    assert isinstance(space, ResNetSpace)
    limits, exact = budgets(space, ROWS), pareto_path(space, ROWS, fitness)
    path = exact
    if name == "stopped search":
        path = stopped_path(space, limits, fitness, derive(seed, "path"))
    elif config.sample.stratify:
        path = pareto_path(space, ROWS, fitness, stratify=True)
    rng = stream(seed, "random")
    random = (*(below(space, row.cost.macs, rng) for row in exact[:-1]), space.largest)
    supernet = initial_weights(space, derive(seed, "weights"))
    return Arm(config, space, fitness, limits, exact, path, random, supernet)


def stopped_path(space: ResNetSpace, limits: Sequence[int], fitness: Fitness, seed: int) -> tuple[PathRow, ...]:
    """Return the path that an evolutionary search of few generations finds, sorted by MACs; its last row is the largest
    network, as of every path."""

    def macs(rows: Ints) -> Ints:
        return scores(space, rows).macs

    def objective(rows: Ints) -> Floats:
        return scores(space, rows).fitness(fitness)

    found = []
    for row, limit in enumerate(limits[:-1]):
        limited = [Constraint("MACs", macs, limit)]
        found.append(evolve(space, objective, limited, derive(seed, "stopped", row), **STOPPED))
    return tuple(sorted(rows_of(space, [*found, space.largest], fitness), key=lambda row: row.cost.macs))


def below(space: ResNetSpace, macs: int, rng: Any) -> Arch:
    """Return a random architecture of 90 to 100 % of so many MACs."""
    arch = mac_matched(space, int(macs / (1 + TOLERANCE)), TOLERANCE, rng)
    assert space.cost(arch).macs <= macs
    return arch


def train(arm: Arm) -> dict[str, float]:
    """Train an arm's supernet in place and return what that cost."""
    method, fleet = arm.method(), LocalFleet(arm.config)
    events = [run_round(arm.config, method, fleet, index) for index in range(arm.config.rounds)]
    return {
        "upload_params_m": sum(event["bytes_up"] for event in events) / 4e6,
        "client_macs_t": sum(event["client_macs"] for event in events) / 1e12,
    }


def accuracy_of(arm: Arm, images: Images, most: int | None = None) -> Callable[[Arch], float]:
    """Return how accurate a network of the arm's supernet is on (at most so many of) the images, in percent."""
    batches = prepared(images, preprocessing_of(arm.config), most)
    return cache(lambda arch: 100 * evaluate(subnet(arm.space, arch, arm.supernet), batches).accuracy)


def run(name: str, seed: int, data: str, rounds: int, lr: float) -> dict[str, Any]:
    """Train one arm with one seed and judge it; with the seed for tuning, on validation images only."""
    torch.set_num_threads(1)
    arm = arm_of(name, seed, data, rounds, lr)
    row: dict[str, Any] = {"arm": name, "seed": seed, "rounds": rounds, "lr": lr, **train(arm)}
    validation = accuracy_of(arm, validation_images(arm.config))
    candidates = arm.candidates()
    if seed == TUNING_SEED:
        return row | {"validation": [validation(arch) for arch in candidates["own"]]}
    test = accuracy_of(arm, dataset_of(arm.config).test, TEST_IMAGES)
    for kind, archs in candidates.items():
        chosen = [max(archs[: judged + 1], key=validation) for judged in JUDGED]
        row[kind] = {
            "test": [test(arch) for arch in chosen],
            "macs": [arm.space.cost(arch).macs for arch in chosen],
            "params": [arm.space.cost(arch).params for arch in chosen],
            "validation": [validation(arch) for arch in archs],
        }
    gaps = [best.fitness - found.fitness for best, found in zip(arm.exact, arm.path, strict=True)]
    row["fitness_gap"] = statistics.mean(gaps[:-1])
    row["shared_rows"] = len({row.arch for row in arm.exact[:-1]} & {row.arch for row in arm.path[:-1]})
    if name in UNBIASED:
        row["bands"] = [band(arm, judged, test) for judged in BANDS]
    return row


def job_of(row: dict[str, Any]) -> Job:
    """Return what a row of results is the result of."""
    return row["arm"], row["seed"], row["rounds"], row["lr"]


def tuning(found: dict[Job, dict[str, Any]]) -> str:
    """Return the mean validation accuracy of each arm's own candidates at every rate, as Markdown."""
    lines = [f"one seed, {TUNING_ROUNDS} rounds; mean validation accuracy of an arm's own candidates, %", ""]
    lines += [f"| trained with | {' | '.join(map(str, TRIED))} |", f"|---|{'---|' * len(TRIED)}"]
    for arm in dict.fromkeys(job[0] for job in found):
        means = [statistics.mean(found[arm, TUNING_SEED, TUNING_ROUNDS, lr]["validation"]) for lr in TRIED]
        lines.append(f"| {arm} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return "\n".join(lines)


def band(arm: Arm, judged: int, test: Callable[[Arch], float]) -> dict[str, list[float]]:
    """Return fitness, costs and test accuracy of random networks of nearly equal MACs."""
    rows = rows_of(arm.space, arm.of_equal_macs(judged), arm.fitness)
    return {
        "fitness": [row.fitness for row in rows],
        "macs": [row.cost.macs for row in rows],
        "params": [row.cost.params for row in rows],
        "accuracy": [test(row.arch) for row in rows],
    }


def summary(found: dict[Job, dict[str, Any]], arms: Sequence[str]) -> str:
    """Return the result as Markdown, over the seeds that every arm has."""
    by = {(job[0], job[1]): row for job, row in found.items()}
    seeds = [seed for seed in sorted({seed for _, seed in by}) if all((arm, seed) in by for arm in arms)]
    rounds = ", ".join(sorted({str(job[2]) for job in found}))
    lines = [f"{len(seeds)} seeds, {rounds} rounds; accuracy in %, mean ± SD over seeds of the mean over budgets", ""]
    tables = (accuracies(by, arms, seeds), differences(by, arms, seeds), searches(by, seeds), correlations(by, seeds))
    for table in tables:
        lines += [*table, ""]
    return "\n".join(lines)


By = dict[tuple[str, int], dict[str, Any]]
"""Rows of results by arm and seed."""


def at_budgets(row: dict[str, Any], kind: str) -> list[float]:
    """Return the test accuracy at each budget; off the path without the last one, within which is the largest network,
    which every arm trains."""
    tests: list[float] = row[kind]["test"]
    return tests[:-1] if kind == "random" else tests


def accuracies(by: By, arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Return the table of every arm's test accuracy and costs."""
    lines = ["| trained with | rate | own | of the exact path | off the path | MACs of own, M | upload, M | TMACs |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for arm in arms:
        rows = [by[arm, seed] for seed in seeds]
        cells = [spread([statistics.mean(at_budgets(row, kind)) for row in rows]) for kind in KINDS]
        cells.append(f"{statistics.mean(statistics.mean(row['own']['macs']) for row in rows) / 1e6:.2f}")
        cells.append(f"{statistics.mean(row['upload_params_m'] for row in rows):.1f}")
        cells.append(f"{statistics.mean(row['client_macs_t'] for row in rows):.2f}")
        lines.append(f"| {arm} | {rows[0]['lr']} | {' | '.join(cells)} |")
    stopped = [by["stopped search", seed] for seed in seeds]
    gap, shared = (spread([row[key] for row in stopped]) for key in ("fitness_gap", "shared_rows"))
    found = (
        f"The stopped search is {gap} below the optimal fitness and shares {shared} of {ROWS - 1} rows with the path."
    )
    return [*lines, "", f"Upload in parameters. {found}"]


def differences(by: By, arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Return the tables of paired differences, with one-sided tests of those between the arms' own networks."""
    pairs = [(arm, control) for arm in arms if arm not in CONTROLS for control in CONTROLS]
    pairs.append(("exact path", "stopped search"))
    lines = [f"{len(pairs)} tests, not corrected: all of them together take p < {0.05 / len(pairs):.3f}.", ""]
    lines += [
        "| difference, own, points | mean ± SD | seeds above 0 | one-sided p | of the exact path | off the path |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    by_budget = ["", "| difference, own, at budget | " + " | ".join(str(row + 1) for row in JUDGED) + " |"]
    by_budget += ["|---|" + "---|" * len(JUDGED)]
    for arm, other in pairs:
        gaps = {}
        for kind in KINDS:
            both = [(at_budgets(by[arm, seed], kind), at_budgets(by[other, seed], kind)) for seed in seeds]
            gaps[kind] = [[a - b for a, b in zip(*tests, strict=True)] for tests in both]
        own, exact, off = ([statistics.mean(gap) for gap in gaps[kind]] for kind in KINDS)
        lines.append(f"| {arm} − {other} | {spread(own)} | {tested(own)} | {spread(exact)} | {spread(off)} |")
        cells = [spread(column) for column in zip(*gaps["own"], strict=True)]
        by_budget.append(f"| {arm} − {other} | {' | '.join(cells)} |")
    return lines + by_budget


def searches(by: By, seeds: Sequence[int]) -> list[str]:
    """Return what choosing by fitness brings on supernets that are not biased towards the path."""
    lines = ["| networks of the exact path − random ones, same supernet | mean ± SD | seeds above 0 | one-sided p |"]
    lines += ["|---|---|---|---|"]
    for arm in UNBIASED:
        rows = [by[arm, seed] for seed in seeds]
        gaps = [
            statistics.mean(row["exact"]["test"][:-1]) - statistics.mean(row["random"]["test"][:-1]) for row in rows
        ]
        lines.append(f"| {arm} | {spread(gaps)} | {tested(gaps)} |")
    return lines


def correlations(by: By, seeds: Sequence[int]) -> list[str]:
    """Return the table of rank correlations inside a budget: of fitness, MACs and parameters with accuracy."""
    lines = [f"Rank correlation with test accuracy over {MATCHED} random networks within 5 % of a budget:", ""]
    lines += ["| supernet | budget, M MACs | of | Spearman ρ | Kendall τ | seeds above 0 | one-sided p of ρ |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for arm in UNBIASED:
        for number in range(len(BANDS)):
            bands = [by[arm, seed]["bands"][number] for seed in seeds]
            macs = statistics.mean(statistics.mean(one["macs"]) for one in bands) / 1e6
            for of in ("fitness", "macs", "params"):
                spearman = [float(spearmanr(one[of], one["accuracy"]).statistic) for one in bands]
                kendall = [float(kendalltau(one[of], one["accuracy"]).statistic) for one in bands]
                cells = [f"{macs:.1f}", of, spread(spearman), spread(kendall), tested(spearman)]
                lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation."""
    return f"{statistics.mean(values):.2f} ± {deviation(values):.2f}"


def tested(values: Sequence[float]) -> str:
    """Return how many values are above 0, and the one-sided p of their mean being so (t-test), as two cells."""
    p = ttest_1samp(values, 0.0, alternative="greater").pvalue
    return f"{sum(value > 0 for value in values)} of {len(values)} | {p:.3f}"


def main() -> None:
    """Train what is missing in the output file, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(CIFAR10), help="npz file with x_train, y_train, x_test, y_test")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per arm, seed, rounds and rate")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--ours", action="store_true", help="also the arms that are not in the paper")
    parser.add_argument("--tune", action="store_true", help="try the rates of every arm instead")
    parser.add_argument("--summary", action="store_true", help="only print the tables of what is there")
    options = parser.parse_args()
    arms = [arm for arm in ARMS if options.ours or arm not in OURS]
    wanted: list[Job] = [(arm, seed, options.rounds, RATES[arm]) for seed in range(options.seeds) for arm in arms]
    if options.tune:
        wanted = [(arm, TUNING_SEED, TUNING_ROUNDS, lr) for lr in TRIED for arm in arms]
    rows = stored(options.out)
    missing = [job for job in wanted if job not in map(job_of, rows)]
    if missing and not options.summary:
        jobs = [(arm, seed, options.data, rounds, lr) for arm, seed, rounds, lr in missing]
        rows += collect(run, jobs, options.out)
    found = {job: row for row in rows if (job := job_of(row)) in wanted}
    print(tuning(found) if options.tune else summary(found, arms))


if __name__ == "__main__":
    main()
