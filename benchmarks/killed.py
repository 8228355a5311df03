"""Does a run that is killed at any moment end as it would have ended? `kill -9` of all its processes, then a resume.

    python benchmarks/killed.py --count 100 --seed 0
    python benchmarks/killed.py --count 100 --seed 0 --only 17        # one of them again

Of every run the phase is drawn in which it is killed (start, training, private state of clients, search, export,
hand-over, report), then the moment: one of the system calls with which an undisturbed run changed its disk there, or
told something. It is killed just before that call, or in the middle of it: of a write only the first bytes are there.
A third of the runs are killed a second time while they go on. A run that has no checkpoint yet is started anew beside
what is left of it. Most are of one method in one worker; others of a second method, or with two workers.

What a run leaves in the end is compared with what the undisturbed one left: all files of its folder but clocks and
names, nothing missing, nothing unfinished, no private state (see `left.py`). Needs strace; exit status 77 without.

Exit status 1 if a run does not end, ends otherwise, fails before it is killed, or if nothing happens in a phase.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import options
from left import digest, faults
from watched import TRAINED_AND_EXPORTED, Call, Ended, arguments, live, refused, resumed

from fednas_core.runs.folder import RunFolder

SKIPPED = 77
AGAIN = 1 / 3
"""Share of the runs that are killed twice."""
TRIES = 3
"""How often a moment is drawn for a run: what a thread does first, another may do the next time."""
JOBS: Mapping[str, tuple[float, Mapping[str, Any]]] = {
    "one worker": (0.7, TRAINED_AND_EXPORTED),
    "two workers": (0.15, {**TRAINED_AND_EXPORTED, "workers": 2}),
    "fednas": (0.15, {"method": "fednas"}),
}
"""The settings of each job, and its share of the runs."""
PHASES = ("start", "training", "private state", "search", "export", "hand-over", "report")
TOLD = {
    "training ": "training", "round ": "training", "search": "search", "export: ": "export", "handing ": "hand-over",
    "report: ": "report",
}  # fmt: skip
"""How what a run says begins, and the phase that this begins."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run is killed: just before a call, or if `torn`, with only a part of the write before it."""

    phase: str
    call: Call
    torn: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A job: its settings, what its undisturbed run left, and its moments by phase."""

    name: str
    pairs: Mapping[str, Any]
    wanted: str
    moments: Mapping[str, Sequence[Moment]]


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a run: what it left or said, where it was killed, and whether it was resumed or started anew."""

    outcome: str
    places: tuple[str, ...]
    anew: bool


def main() -> int:
    given = options(
        __doc__,
        count={"type": int, "default": 100, "help": "number of runs"},
        seed={"type": int, "default": 0, "help": "of the moments"},
        only={"type": int, "help": "number of the only run, from 1"},
        processes={"type": int, "default": 2, "help": "runs side by side"},
    )
    if why := refused():
        print(f"skipped: {why}")
        return SKIPPED
    numbers = [given.only] if given.only else range(1, (4 if given.quick else given.count) + 1)
    chosen = {number: job_of(f"{given.seed}-{number}") for number in numbers}
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fednas-killed-") as folder:
        root = Path(folder)
        jobs = {name: undisturbed(root, name) for name in JOBS if name in chosen.values()}
        with ThreadPoolExecutor(given.processes) as pool:
            runs = {
                number: pool.submit(killed, root / f"run-{number}", jobs[name], f"{given.seed}-{number}")
                for number, name in chosen.items()
            }
            found = {number: show(number, jobs[chosen[number]], run.result()) for number, run in runs.items()}
    same = sum(one.outcome == jobs[chosen[number]].wanted for number, one in found.items())
    anew = sum(one.anew for one in found.values())
    kills = Counter(place.split(":")[0] for one in found.values() for place in one.places)
    print(
        f"seed {given.seed}: {same} of {len(found)} end as undisturbed; {len(found) - anew} resumed, {anew} started "
        f"anew; {kills.total()} kills: {dict(kills)}; {time.monotonic() - start:.0f} s"
    )
    return int(same < len(found))


def job_of(seed: str) -> str:
    """Return the name of the job that is killed in the run of this seed."""
    shares = [share for share, _ in JOBS.values()]
    return random.Random(f"job-{seed}").choices([*JOBS], shares)[0]


def started(output: Path, pairs: Mapping[str, Any] = TRAINED_AND_EXPORTED) -> list[str]:
    """Return the arguments of a new run; its search space has one name, whichever the folder."""
    output.mkdir(parents=True, exist_ok=True)
    return arguments(output.parent / "tiny.toml", output, pairs)


def undisturbed(root: Path, name: str) -> Job:
    """Let a job run to its end, and return it; raise `SystemExit` if it fails, or has no moment in a phase."""
    pairs, output = JOBS[name][1], root / f"whole-{name.replace(' ', '-')}"
    live(started(output, pairs), root, traced=False)  # leaves what libraries cache in a home folder
    end = live(started(output, pairs), root)
    wanted = outcome(output, root, end)
    moments = moments_of(end.calls, root)
    counts = ", ".join(f"{phase} {len(found)}" for phase, found in moments.items())
    print(f"{name}: {wanted}, {end.seconds:.1f} s; moments: {counts}", flush=True)
    empty = [phase for phase in PHASES if not moments[phase]] if pairs is TRAINED_AND_EXPORTED else []
    if " " in wanted or empty:
        raise SystemExit(f"{name}: the undisturbed run failed, or does nothing in a phase: {empty}")
    return Job(name, pairs, wanted, moments)


def moments_of(calls: Sequence[Call], root: Path) -> dict[str, list[Moment]]:
    """Return the moments of a run by their phase.

    Of calls that several threads do as the n-th of their name, that of the first thread, and else only the earliest:
    there the command is cut off.
    """
    moments: dict[str, list[Moment]] = {phase: [] for phase in PHASES}
    seen, phase = set[tuple[str, int]](), PHASES[0]
    before: dict[int, Call] = {}
    for call in calls:
        if call.path == "stderr":
            phase = next((named for words, named in TOLD.items() if call.text.startswith(words)), phase)
        written = before.get(call.thread)
        before[call.thread] = call
        if (call.thread and (call.name, call.number) in seen) or call.error:
            continue
        seen.add((call.name, call.number))
        private = f"{root}/home/.cache/fednas/state/"
        if call.below(root) or call.path == "stderr":
            there = "private state" if call.path.startswith(private) else phase
            moments[there].append(Moment(there, call))
        if written is not None and written.below(root) and written.bytes > 1:
            there = "private state" if written.path.startswith(private) else phase
            moments[there].append(Moment(there, call, torn=True))
    return moments


def killed(output: Path, job: Job, seed: str) -> Found:
    """Kill a run at moments drawn from `seed`, resume it until it ends, and return what became of it."""
    root, chance = output.parent, random.Random(seed)
    kills, places, anew = 2 if chance.random() < AGAIN else 1, list[str](), False
    for number in range(TRIES):
        moment, output = drawn(job, chance), output.with_name(f"{output.name}-{number}")
        end = live(started(output, job.pairs), root, "signal=KILL", moment.call)
        if end.code:
            break
    if end.code == 0:
        return Found(f"not killed: no call was number {moment.call.number} of {moment.call.name}", (), False)
    if end.code != -signal.SIGKILL:
        return Found(f"failed before it was killed: {end.said[-1000:]}", (), False)
    while end.code == -signal.SIGKILL:
        places.append(f"{moment.phase}: {tear(end, moment, root, chance.random())}")
        kills -= 1
        anew |= not resumed(output)
        given = resumed(output) or started(output, job.pairs)
        moment = drawn(job, chance, again=True)
        end = live(given, root, "signal=KILL", moment.call) if kills else live(given, root, traced=False)
    return Found(outcome(output, root, end), tuple(places), anew)


def drawn(job: Job, chance: random.Random, again: bool = False) -> Moment:
    """Draw a phase in which something happens, then a moment.

    `again`: of a run that goes on, which opens other files to read, so that the numbers of those calls mean nothing.
    """
    moments = {
        phase: [one for one in found if not again or one.call.name != "openat"] for phase, found in job.moments.items()
    }
    return chance.choice(moments[chance.choice([phase for phase in PHASES if moments[phase]])])


def tear(end: Ended, moment: Moment, root: Path, share: float) -> str:
    """Leave only a share of the last write of a killed process if its moment says so; return where it was killed.

    What a file holds after the bytes that were written is nothing, or zeros if it had been made as large before.
    """
    last = next(
        (call for call in reversed(end.calls) if call.error == "KILLED" and call.name == moment.call.name), None
    )
    if last is None:
        return "not in the trace"
    calls = [call for call in end.calls if call.thread == last.thread]
    written = calls[calls.index(last) - 1]
    if not moment.torn or written.bytes < 2 or not written.below(root):
        return f"before {last.place(root)}"
    with Path(written.path).open("r+b") as file:
        size = file.seek(0, 2)
        file.truncate(size - written.bytes + int(share * written.bytes))
        if any(call.name == "ftruncate" and call.path == written.path for call in calls):
            file.truncate(size)
    return f"within {written.place(root)}"


def outcome(output: Path, root: Path, end: Ended) -> str:
    """Return the digest of what a run left, or its last words if it failed, or what is wrong with what it left."""
    if end.code:
        return f"ended with {end.code}: {end.said[-1000:]}"
    run = RunFolder(output / end.run())
    wrong = faults(run, root / "home" / ".cache" / "fednas" / "state")
    return "; ".join(wrong) or digest(run)


def show(number: int, job: Job, found: Found) -> Found:
    """Print a line for a run, and return it."""
    same = "same" if found.outcome == job.wanted else f"OTHER: {found.outcome}"
    how = "started anew" if found.anew else "resumed"
    print(f"{number:4}  {same}  {job.name}, {how}  {'; '.join(found.places)}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
