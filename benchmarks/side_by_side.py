"""Do runs disturb each other? Twenty at once, in one home folder.

    python benchmarks/side_by_side.py

First twenty of different methods in one output; each is first run alone, in a home folder and an output of its own, and
then all start at one moment. Then twenty of one method, with private layers and the same settings, at one moment in one
home folder but each in an output of its own: all are what the first of them is alone. Compared is what a run leaves but
clocks and names; nothing may be missing or unfinished (see `left.py`).

Exit status 1 if a run fails, or leaves something else than alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import options
from left import digest, faults
from watched import arguments, live

from fednas_core.base.config import COMPETING
from fednas_core.methods.catalogue import METHODS
from fednas_core.runs.folder import RunFolder


def main() -> int:
    given = options(
        __doc__,
        count={"type": int, "default": 20, "help": "number of runs"},
        only={"choices": ["different", "same"], "help": "runs of different methods, or of the same one"},
    )
    count = 4 if given.quick else given.count
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="fednas-side-by-side-") as folder:
        if given.only != "same":
            jobs = jobs_of(count)
            alone = [found(Path(folder) / f"alone-{i}", job) for i, job in enumerate(jobs)]
            wrong += compare("in one output", jobs, alone, together(Path(folder) / "beside", jobs, ["runs"] * count))
        if given.only != "different":
            jobs = [{"method": "fedper", "seed": 1}] * count
            alone = [found(Path(folder) / "one", jobs[0])] * count
            beside = together(Path(folder) / "same", jobs, [f"runs-{i}" for i in range(count)])
            wrong += compare("each in its own output", jobs, alone, beside)
    return int(wrong > 0)


def together(root: Path, jobs: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> list[str]:
    """Start all jobs at one moment in the home folder `root`, and return what they left."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda job, output: found(root, job, output), jobs, outputs))


def compare(how: str, jobs: Sequence[Mapping[str, Any]], alone: Sequence[str], beside: Sequence[str]) -> int:
    """Print a line for each run and return how many are not what they are alone."""
    same = 0
    for job, one, two in zip(jobs, alone, beside, strict=True):
        same += one == two and " " not in one
        print(f"{job['method']:12} seed {job['seed']}  {one}  {'same' if one == two else f'OTHER: {two}'}")
    print(f"{how}: {same} of {len(jobs)} leave what they leave alone", flush=True)
    return len(jobs) - same


def jobs_of(count: int) -> list[Mapping[str, Any]]:
    """Return the settings of so many runs that differ in method or seed, every one with private state if it can."""
    names, jobs = list(METHODS), []
    for i in range(count):
        job: dict[str, Any] = {"method": names[i % len(names)], "seed": 1 + i // len(names)}
        if job["method"] not in COMPETING and job["seed"] % 2:
            job["wire.up"] = "topk"  # residuals are private state
        if job["method"] == "ddc":
            job["space.name"] = "cnn8"  # of layers that can be removed
        jobs.append(job)
    return jobs


def found(root: Path, job: Mapping[str, Any], output: str = "runs") -> str:
    """Return the digest of what a run in the home folder `root` leaves, or what is wrong with it."""
    root.mkdir(parents=True, exist_ok=True)
    end = live(arguments(root.parent / "tiny.toml", root / output, job), root, traced=False)
    if end.code:
        return f"failed: {end.said[-500:]}"
    run = RunFolder(root / output / end.run())
    return "; ".join(faults(run, root / "home" / ".cache" / "fednas" / "state")) or digest(run)


if __name__ == "__main__":
    sys.exit(main())
