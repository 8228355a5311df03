"""Do runs disturb each other? Twenty of different methods at once, in one home folder and one output.

    python benchmarks/side_by_side.py

Each is first run alone, in a home folder and an output of its own, and then all start at one moment. Compared is a
digest of all that a run leaves but clocks and names (see `one_history.py`).

Exit status 1 if a run fails, or has another digest than alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import options
from one_history import digest
from watched import Ended, arguments, live

from fednas_core.base.config import COMPETING
from fednas_core.methods.catalogue import METHODS
from fednas_core.runs.folder import RunFolder


def main() -> int:
    given = options(__doc__, count={"type": int, "default": 20, "help": "number of runs"})
    jobs = jobs_of(4 if given.quick else given.count)
    with tempfile.TemporaryDirectory(prefix="fednas-side-by-side-") as folder:
        alone = [found(Path(folder) / f"alone-{i}", job) for i, job in enumerate(jobs)]
        with ThreadPoolExecutor(len(jobs)) as pool:
            beside = list(pool.map(lambda job: found(Path(folder) / "beside", job), jobs))
    same = 0
    for job, one, two in zip(jobs, alone, beside, strict=True):
        same += one == two and not one.startswith("failed")
        print(f"{job['method']:12} seed {job['seed']}  {one}  {'same' if one == two else f'OTHER: {two}'}")
    print(f"{same} of {len(jobs)} have the digest that they have alone")
    return int(same < len(jobs))


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


def found(root: Path, job: Mapping[str, Any]) -> str:
    """Return the digest of a run in the home folder and output `root`, or how it failed."""
    (root / "home").mkdir(parents=True, exist_ok=True)
    space = root.parent / "tiny.toml"
    end = live([*arguments(space, root / "runs", job), "--json"], root)
    return digest(RunFolder(root / "runs" / name_of(end))) if end.code == 0 else f"failed: {end.said[-500:]}"


def name_of(end: Ended) -> str:
    """Return the name of a run that ended well, from its result."""
    line = next(line for line in end.said.splitlines() if line.startswith('  "run": '))
    return line.split('"')[3]


if __name__ == "__main__":
    sys.exit(main())
