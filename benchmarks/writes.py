"""What does a run say, and leave, when it cannot write? A disk that fails at every place where a run writes.

    python benchmarks/writes.py                        # --only result.json: places whose name contains that
    python benchmarks/writes.py --part 1/4             # the first quarter of the places

The places are the system calls with which an undisturbed run changes a disk, and those with which a resumed one begins,
each once and where a run comes back to it (for another round or client), once more. There the disk fails:

- full, read-only: by mounts in a namespace of their own, since root ignores permissions, made while the run is stopped
  just before the call;
- `EROFS`, `ENOSPC`, `EIO`: the call itself fails, and no other, where a mount does not reach it: on files that are open
  already, and when they are synced.

A run whose disk is read-only is also resumed while it is, and must refuse. Then there is room again, and the run is
resumed; if it had no checkpoint yet, it is started anew beside what is left of it.

Exit status 1 unless each run ends with a message, not a traceback, that names the path at which a call really failed,
or a folder above it on that disk, and says what to do; and in the end leaves what the undisturbed one left (see
`left.py`). It may go on only without caches of libraries, temporary files and the link `latest`. No place, or a trace
that cannot be read, is a failure too. Needs root, strace and mount namespaces; exit status 77 without.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import options
from killed import SKIPPED, outcome, started
from watched import ON_FILES, WRITES, Call, Ended, live, refused, resumed

DISKS = ("runs", "home", "tmp")
SIZE = "32m"
FULL, READ_ONLY = "full", "read-only"
MOUNTED = {
    FULL: ("cat /dev/zero > {disk}/filler; cat /dev/zero >> {disk}/filler; true", "rm -f {disk}/filler"),
    READ_ONLY: ("mount --bind {disk} {disk} && mount -o remount,bind,ro {disk}", "umount {disk}"),
}
"""How a disk is made to fail, and how it is cured. One with files open for writing cannot be made read-only: another
view of it hides it instead."""
REMOVALS = ("unlink", "unlinkat", "rmdir")
"""Calls that a full disk does not hinder."""
ERRORS = {"ENOSPC", "EROFS", "EIO"}
ADVICE = re.compile(r"make room|mend|another folder|writable|free some")
"""What a message says is to be done."""
DISPENSABLE = re.compile(r"^(tmp(/|$)|home/\.(cache|config)/(?!fednas)|runs/job/(latest|\.latest-[^/]*)$)")
"""Temporary files, what libraries keep in a home folder, and the link to the latest run, which then is missing: without
these a run may go on."""


@dataclass(frozen=True, slots=True)
class Place:
    """A call that changes a disk, the call of its thread before it, and whether it is one of a resumed run."""

    name: str
    call: Call
    before: Call
    disk: str
    resuming: bool

    def ways(self) -> tuple[str, ...]:
        """Return how the disk can fail here."""
        if self.call.name in WRITES:
            return (FULL, "EROFS")
        if self.call.name in ON_FILES:
            return ("EIO",) if "sync" in self.call.name else ("ENOSPC", "EROFS")
        return (READ_ONLY,) if self.call.name in REMOVALS else (FULL, READ_ONLY)


def main() -> int:
    given = options(
        __doc__,
        only={"default": "", "metavar": "TEXT", "help": "places whose name contains it"},
        part={"default": "1/1", "metavar": "K/N", "help": "the K-th of N parts of the places"},
        inside={"action": "store_true", "help": "the mounts may be changed"},
    )
    why = "not root" if os.geteuid() else refused()
    if why or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        print(f"skipped: {why or 'no mount namespaces'}")
        return SKIPPED
    if not given.inside:
        command = ["unshare", "-m", sys.executable, __file__, "--inside", *sys.argv[1:]]
        return subprocess.run(command, check=False).returncode
    part, parts = map(int, given.part.split("/"))
    with tempfile.TemporaryDirectory(prefix="fednas-writes-") as folder:
        root = Path(folder)
        for name in DISKS:
            (root / name).mkdir()
            shell(f"mount -t tmpfs -o size={SIZE} tmpfs {root / name}")
        try:
            return disturb(root, given.only, part, parts * (20 if given.quick else 1))
        finally:
            for name in DISKS:
                shell(f"umount -l {root / name}")


def disturb(root: Path, only: str, part: int, parts: int) -> int:
    """Disturb a run at each `parts`-th place whose name contains `only`; return 1 if one fails the test."""
    output, kept = root / "runs" / "job", root / "kept"
    live(started(output), root, traced=False)  # leaves what libraries cache in a home folder
    shutil.rmtree(output)
    end = live(started(output), root)
    wanted = outcome(output, root, end)
    places = places_of(end, root, resuming=False)
    shutil.rmtree(output)
    saved = next(call for call in end.calls if call.place(root) == "rename runs/job/RUN/checkpoint/state.json")
    live(started(output), root, "signal=KILL", after(end, saved))
    for name in ("runs", "home"):
        shutil.copytree(root / name, kept / name, symlinks=True)
    places += places_of(live(resumed(output), root), root, resuming=True)
    clear(root, kept, resuming=False)
    chosen = [one for one in places if only in one.name][part - 1 :: parts]
    print(f"undisturbed: {wanted}, {end.seconds:.1f} s; {len(chosen)} of {len(places)} places", flush=True)
    verdicts = Counter[str]()
    for one in chosen:
        for way in one.ways():
            verdict = verdict_of(root, one, way, wanted)
            clear(root, kept, resuming=False)
            verdicts[verdict.partition(":")[0]] += 1
            print(f"{way:10} {'resumed ' * one.resuming}{one.name:60} {verdict}", flush=True)
    print(dict(verdicts))
    return int("WRONG" in verdicts or not verdicts or " " in wanted)


def places_of(end: Ended, root: Path, resuming: bool) -> list[Place]:
    """Return the places where a run writes, in order; of one that is resumed, those before its next round ends.

    Calls that several threads do as the n-th of their name are places in the first thread, or else only the first time.
    """
    names, done, found = Counter[str](), set[tuple[str, int]](), list[Place]()
    before: dict[int, Call] = {}
    for call in end.calls:
        last = before.get(call.thread)
        before[call.thread] = call
        if resuming and call.name == "write" and call.path.endswith("events.jsonl"):
            break
        new = not call.thread or (call.name, call.number) not in done
        done.add((call.name, call.number))
        if not call.below(root) or call.error or last is None or not new:
            continue
        disk, name = Path(call.path).relative_to(root).parts[0], re.sub(r"\d+", "N", call.place(root))
        names[name] += 1
        if disk in DISKS and names[name] <= 2:
            found.append(Place(name, call, last, disk, resuming))
    return found


def after(end: Ended, call: Call) -> Call:
    """Return the call that a thread does after another."""
    calls = [one for one in end.calls if one.thread == call.thread]
    return calls[calls.index(call) + 1]


def clear(root: Path, kept: Path, resuming: bool) -> None:
    """Have the disks as they are before a new run, or before the one that is resumed; `kept` has a copy."""
    for path in (root / "runs" / "job", root / "home" / ".cache" / "fednas" / "state"):
        shutil.rmtree(path, ignore_errors=True)
    if resuming:
        for name in ("runs", "home"):
            shutil.copytree(kept / name, root / name, symlinks=True, dirs_exist_ok=True)


def verdict_of(root: Path, at: Place, way: str, wanted: str) -> str:
    """Return what came of a run whose disk fails at a place, and how it ended once there was room."""
    output, disk = root / "runs" / "job", root / at.disk
    clear(root, root / "kept", at.resuming)
    given = resumed(output) if at.resuming else started(output)
    if way in MOUNTED:
        make, cure = (command.format(disk=disk) for command in MOUNTED[way])
        end = live(given, root, "signal=STOP", at.before, stopped=lambda: shell(make))
    else:
        cure = "true"
        end = live(given, root, f"error={way}", at.call)
    failed = [call.path for call in end.calls if call.error in ERRORS]
    wrong = judged(end, disk, failed)
    if not wrong and end.code == 0:
        shell(cure)
        if not failed and (way in MOUNTED or DISPENSABLE.match(str(Path(at.call.path).relative_to(root)))):
            return "nothing failed"
        if not failed:
            return "WRONG: not reached"
        needed = [path for path in failed if not DISPENSABLE.match(str(Path(path).relative_to(root)))]
        if needed:
            return f"WRONG: went on without {needed[0]}"
        found = outcome(output, root, end)
        return "went on" if found == wanted else f"WRONG: went on to {found}"
    if not wrong and way == READ_ONLY and resumed(output):
        again = live(resumed(output), root)
        denied = [call.path for call in again.calls if call.error in ERRORS]
        wrong = judged(again, disk, denied) or ("" if again.code or at.disk != "runs" else "resumed while read-only")
    shell(cure)
    if wrong:
        return f"WRONG: {wrong}"
    how = "resumed" if resumed(output) else "started anew"
    found = outcome(output, root, live(resumed(output) or started(output), root, traced=False))
    return how if found == wanted else f"WRONG: {how}: {found}"


def judged(end: Ended, disk: Path, failed: Sequence[str]) -> str:
    """Return what is wrong with the end of a run that could not write, '' if it says what it should."""
    said, words = f"code {end.code}, {end.said[-1500:]}", end.error()
    if "Traceback" in end.said or end.code not in (0, 2):
        return said
    if end.code == 0:
        return ""
    named = [path.rstrip(".,:;)") for path in re.findall(rf"{re.escape(str(disk))}[^\s'\"”]*", words)]
    if not any(path == name or path.startswith(f"{name}/") for path in map(real_name, failed) for name in named):
        return f"does not name {failed[:3]}: {said}"
    return "" if ADVICE.search(words) else f"does not say what to do: {said}"


def real_name(path: str) -> str:
    """Return the name that a file aside will have: what is written aside and renamed is told by its name."""
    name = Path(path).name
    final = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.part", name)
    return str(Path(path).with_name(final[1])) if final else path


def shell(command: str) -> None:
    subprocess.run(command, shell=True, check=False, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
