"""What the benchmarks share: images, architectures of three sizes, interleaved timing, and the line they print."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fednas_core.base.config import RunConfig
from fednas_core.base.settings import Scalar
from fednas_core.base.settings import read as parsed
from fednas_core.base.values import Arch, NormKind
from fednas_core.data.sources import STATISTICS
from fednas_core.devices.budgets import parse_budgets
from fednas_core.engine.cohort import Crew
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import rounds
from fednas_core.engine.run import settle
from fednas_core.engine.starts import starting
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.runs.folder import RunFolder, create
from fednas_core.spaces.registry import load
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.tasks.bench import digest_of, space_of

CIFAR10 = Path(os.environ.get("FEDNAS_CIFAR10", "~/.cache/fednas-data/cifar10.npz")).expanduser()
"""CIFAR-10 as an npz file with x_train (n, 32, 32, 3) uint8 and y_train; random images stand in where it is missing."""

MEAN, STD = STATISTICS["cifar10"]

CLIENTS = 20
"""Clients of a round in the benchmarks of whole rounds."""

Work = Callable[[], Any]


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; nan of a single value, whose spread nobody knows."""
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a sample's mean; nan of a single value."""
    return deviation(values) / len(values) ** 0.5


def options(doc: str | None, **extra: Mapping[str, Any]) -> argparse.Namespace:
    """Return the command line's options: ``--quick`` and those in `extra`, by name."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats: a first look, not a result")
    for name, settings in extra.items():
        parser.add_argument(f"--{name}", **settings)
    return parser.parse_args()


def read(pairs: Mapping[str, Scalar]) -> RunConfig:
    """Return the settings of flat pairs, with what they leave open as it is for a run."""
    return settle(parsed(pairs))


def pixels(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], str]:
    """Return `count` training images (n, 32, 32, 3) uint8, their labels (n,) int64, and where they come from."""
    if CIFAR10.is_file():
        with np.load(CIFAR10) as arrays:
            return arrays["x_train"][:count], arrays["y_train"][:count].astype(np.int64), "cifar10"
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, count), "random"


def npz(folder: Path) -> tuple[Path, str]:
    """Return the path of CIFAR-10, or of random images of its shape written to `folder`, and which of the two it is."""
    if CIFAR10.is_file():
        return CIFAR10, "cifar10"
    x, y, source = pixels(20_000)
    np.savez(folder / "random.npz", x_train=x, y_train=y, x_test=x[:1000], y_test=y[:1000])
    return folder / "random.npz", source


def cohort(data: Path, norm: str, examples: int) -> dict[str, Any]:
    """Return the settings of rounds in which `CLIENTS` clients train subnets of `cifar-quarter` for one epoch.

    Each has `examples` images; 400 take a core of the machine of the README 0.85 seconds on average.
    """
    return {
        "method": "superfednas",
        "space.name": "cifar-quarter",
        "space.norm": norm,
        "data.source": "npz",
        "data.path": str(data),
        "data.examples": int(examples * CLIENTS / 0.9),
        "data.partition": "iid",
        "data.clients": CLIENTS,
        "data.holdout": 0.0,
        "train.epochs": 1,
        "train.batch": 64,
        "train.lr": 0.01,
        "train.augment": "crop-flip-cutout",
    }


def space(name: str, norm: NormKind = "none") -> ResNetSpace:
    """Return a preset of the elastic ResNet with this normalisation."""
    found = load(name).with_norm(norm)
    assert isinstance(found, ResNetSpace)
    return found


def three_sizes(space: ResNetSpace) -> dict[str, Arch]:
    """Return the smallest architecture, one whose every gene is the middle choice, and the largest."""
    middle = space.decode((space.gene_choices - 1) // 2)
    return {"smallest": space.smallest, "middle": middle, "largest": space.largest}


def alternate(works: Sequence[Work], repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[list[float]]:
    """Return the seconds of `repeats` calls of each work, taking turns so that a busy machine slows all alike.

    One more call of each, before, is not counted. `clock` is `time.process_time` for CPU-seconds.
    """
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, column in zip(works, times, strict=True):
            start = clock()
            work()
            if turn:
                column.append(clock() - start)
    return times


def medians(works: Sequence[Work], repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Return the median seconds of each work (see `alternate`)."""
    return [statistics.median(column) for column in alternate(works, repeats, clock)]


def copies(flats: Sequence[torch.Tensor]) -> Work:
    """Return the floor for moving tensors: a copy of each into memory that was touched before."""
    outs = [torch.empty_like(flat).zero_() for flat in flats]

    def work() -> None:
        for out, flat in zip(outs, flats, strict=True):
            out.copy_(flat)

    return work


def stored(out: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines; none if there is no such file."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def collect(
    run: Callable[..., dict[str, Any]], jobs: Sequence[Sequence[Any]], out: Path, processes: int = 2
) -> list[dict[str, Any]]:
    """Return ``run(*job)`` of every job, side by side; each row is appended to `out` and shown when it is there."""
    rows = []
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, *job) for job in jobs]):
            rows.append(future.result())
            with out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{len(rows)} of {len(jobs)}: {rows[-1]}", flush=True)
    return rows


def searched(config: RunConfig) -> RunFolder:
    """Carry out the rounds of a run whose networks compete, in this process; return its folder.

    It is `fednas_core.engine.run.conduct` without what does not count here: evaluations by the server on the way,
    export of models and the report, which together take longer than a short search.
    """
    torch.set_num_threads(1)
    os.environ["FEDNAS_STATE"] = f"{config.output}/state"
    space, start = space_of(config), starting(config, space_of(config))
    with closing(LocalFleet(replace(config, workers=1))) as fleet:
        crew = Crew(fleet, config, [space.smallest], print)
        limits = crew.allowances(parse_budgets(config.budgets, space.cost(space.largest).macs))
        method = make(Setup(config, space, (), start.weights, limits, crew.latency_ms, start.policy, start.sides))
        crew.settle(method.trains)
        run = create(config)
        run.note_images(digest_of(config))
        judge = Judge(config, method.network)
        for event in rounds(config, method, crew, 0, run=run.id, model=judge.model):
            run.append_event(event)
        run.save_checkpoint(event["round"], method.state())
    return run


def show(result: Mapping[str, Any]) -> None:
    """Print one line of JSON, numbers to four digits."""
    print(json.dumps(_rounded(result)), flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
