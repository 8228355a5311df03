"""Does a run that is killed at any moment end as it would have ended? `kill -9` of all its processes, then a resume.

    python benchmarks/killed.py --count 100

Half of the kills are at random moments of the clock after its first write, half just before a random one of its writes:
between a file that is written aside and its rename, for instance. A third of the runs are killed a second time while
they are resumed. A run that has no checkpoint yet is started anew. Compared is a digest of all that a run leaves but
clocks and names (see `one_history.py`).

Exit status 1 if a run does not end, or with another digest.
"""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common import options
from one_history import digest
from watched import TRAINED_AND_EXPORTED, Ended, arguments, live, resumed

from fednas_core.runs.folder import all_runs

AGAIN = 1 / 3
"""Share of the runs that are killed twice."""


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a run: its digest, or the words with which it ended; where it was killed; how often started."""

    outcome: str
    places: tuple[str, ...]
    starts: int


def main() -> int:
    given = options(
        __doc__,
        count={"type": int, "default": 100, "help": "number of runs"},
        seed={"type": int, "default": 0, "help": "of the moments"},
        processes={"type": int, "default": 2, "help": "runs side by side"},
    )
    count = 4 if given.quick else given.count
    with tempfile.TemporaryDirectory(prefix="fednas-killed-") as folder:
        root = Path(folder)
        (root / "home").mkdir()
        live(started(root / "first"), root)  # leaves what libraries cache in a home folder
        whole = live(started(root / "whole"), root)
        wanted = outcome(root / "whole", whole)
        print(f"undisturbed: {wanted}, {whole.seconds:.1f} s, {len(whole.writes)} writes", flush=True)
        with ThreadPoolExecutor(given.processes) as pool:
            jobs = [pool.submit(killed, root / f"run-{i}", whole, f"{given.seed}-{i}") for i in range(count)]
            found = [show(number, job.result(), wanted) for number, job in enumerate(jobs, start=1)]
    same = sum(one.outcome == wanted for one in found)
    kills = Counter(place.partition(" ")[0] for one in found for place in one.places)
    anew = sum(one.starts > 1 for one in found)
    print(f"{same} of {count} end as undisturbed; kills: {dict(kills)} a write; {anew} runs started anew")
    return int(same < count or whole.code != 0)


def started(output: Path) -> list[str]:
    """Return the arguments of a new run; its search space has one name, whichever the folder."""
    output.mkdir(exist_ok=True)
    return arguments(output.parent / "tiny.toml", output, TRAINED_AND_EXPORTED)


def killed(output: Path, whole: Ended, seed: str) -> Found:
    """Kill a run at moments drawn from `seed`, resume it until it ends, and return what became of it."""
    chance = random.Random(seed)
    kills, starts, places = 2 if chance.random() < AGAIN else 1, 1, list[str]()
    given = started(output)
    while True:
        number, seconds = 0, None
        if kills and chance.random() < 0.5:
            number = chance.randint(1, len(whole.writes))
        elif kills:
            seconds = chance.uniform(whole.writes[0].seconds, whole.seconds)
        end = live(given, output.parent, number, seconds=seconds)
        if end.code == -signal.SIGKILL:
            last = end.writes[-1].place(output.parent) if end.writes else "the start"
            places.append(f"before {last}" if number else f"after {last}")
            kills -= 1
        elif places:
            break
        if end.code != -signal.SIGKILL or not resumed(output):  # it ended before its moment, or has no checkpoint
            starts += end.code == -signal.SIGKILL
            shutil.rmtree(output)
        given = resumed(output) or started(output)
    found = Found(outcome(output, end), tuple(places), starts)
    shutil.rmtree(output)
    return found


def outcome(output: Path, end: Ended) -> str:
    """Return the digest of the one run in a folder, or if it failed, its last words."""
    return digest(all_runs(output)[0]) if end.code == 0 else end.said[-500:]


def show(number: int, found: Found, wanted: str) -> Found:
    """Print a line for a run, and return it."""
    same = "same" if found.outcome == wanted else f"OTHER: {found.outcome}"
    print(f"{number:4}  {same}  {'; '.join(found.places)}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
