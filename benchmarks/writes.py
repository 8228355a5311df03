"""What does a run say, and leave, when it cannot write? A full and a read-only disk, at every place where it writes.

    python benchmarks/writes.py

The places are those of the system calls of an undisturbed run, as strace tells them, each once and where a run comes
back to it, once more. There the disk becomes full, or read-only: by mounts in a namespace of their own, since root
ignores permissions (`unshare -m`; without it, or without root or strace, nothing is done). Then there is room again,
and the run is resumed; if it had no checkpoint yet, it is started anew.

Exit status 1 unless each run ends with a message that names the disk, without a traceback, or does without what it
could not write; and in the end has the digest of the undisturbed one (see `one_history.py`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common import options
from killed import outcome, started
from watched import live, place, resumed

DISKS = ("runs", "home", "tmp")
SIZE = "32m"
CALLS = "openat,mkdir,rename,renameat,renameat2,symlink,truncate,write"
LINE = re.compile(r'^\d+ +(\w+)\((?:AT_FDCWD, )?"(.*?)"(.*)')
NUMBERED = re.compile(r'^\d+ +write\(\d+, "[\d.]+ (?:open|os\.\w+) ')
FULL = "cat /dev/zero > {disk}/filler; cat /dev/zero >> {disk}/filler; true"
READ_ONLY = "mount --bind {disk} {disk} && mount -o remount,bind,ro {disk}"
"""A disk with files open for writing cannot be made read-only: another view of it hides it instead."""
CURES = {FULL: "rm {disk}/filler", READ_ONLY: "umount {disk}"}


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder that a run writes: its name, the number of the last write before it, and the disk it is on."""

    name: str
    number: int
    disk: str


def main() -> int:
    given = options(
        __doc__,
        only={"default": "", "metavar": "TEXT", "help": "places whose name contains it"},
        inside={"action": "store_true", "help": "the mounts may be changed"},
    )
    if os.geteuid() or not shutil.which("strace") or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        print("skipped: needs root, strace and mount namespaces")
        return 0
    if not given.inside:
        command = ["unshare", "-m", sys.executable, __file__, "--inside", *sys.argv[1:]]
        return subprocess.run(command, check=False).returncode
    with tempfile.TemporaryDirectory(prefix="fednas-writes-") as folder:
        root = Path(folder)
        for name in DISKS:
            (root / name).mkdir()
            shell(f"mount -t tmpfs -o size={SIZE} tmpfs {root / name}")
        os.environ["TMPDIR"] = str(root / "tmp")
        try:
            return disturb(root, given.only, 5 if given.quick else 1)
        finally:
            for name in DISKS:
                shell(f"umount -l {root / name}")


def disturb(root: Path, only: str, step: int) -> int:
    """Disturb a run at each `step`-th place whose name contains `only`; return 1 if one fails the test."""
    output = root / "runs" / "job"
    whole = live(started(output), root)
    wanted = outcome(output, whole)
    shutil.rmtree(output)
    places = [one for one in traced(root, output) if only in one.name]
    shutil.rmtree(output)
    print(f"undisturbed: {wanted}, {whole.seconds:.1f} s; {len(places)} places", flush=True)
    verdicts = Counter[str]()
    for one in places[::step]:
        for action in (FULL, READ_ONLY):
            verdict = verdict_of(root, output, one, action, wanted)
            verdicts[verdict.partition(":")[0]] += 1
            print(f"{'full' if action is FULL else 'read-only':10} {one.name:60} {verdict}", flush=True)
    print(dict(verdicts))
    return int("WRONG" in verdicts or whole.code != 0)


def verdict_of(root: Path, output: Path, at: Place, action: str, wanted: str) -> str:
    """Return what came of a run whose disk fails at a place, and how it ended once there was room."""
    disk = root / at.disk
    end = live(started(output), root, at.number, action.format(disk=disk))
    shell(CURES[action].format(disk=disk))
    words = next((line for line in end.said.splitlines() if line.startswith("error:")), "")
    if "Traceback" in end.said or (end.code and not (end.code == 2 and str(disk) in words)):
        found = f"WRONG: code {end.code}, {end.said[-1500:]}"
    elif end.code == 0:
        found = "went on" if outcome(output, end) == wanted else "WRONG: went on to another digest"
    else:
        how = "resumed" if resumed(output) else "started anew"
        if not resumed(output):
            shutil.rmtree(output, ignore_errors=True)
        again = live(resumed(output) or started(output), root)
        found = how if outcome(output, again) == wanted else f"WRONG: {how}: {outcome(output, again)}"
    shutil.rmtree(output, ignore_errors=True)
    return found


def traced(root: Path, output: Path) -> list[Place]:
    """Return the places where a run writes, in order, each where it is written first and where it is again."""
    trace = root / "trace"
    script = Path(__file__).with_name("watched.py")
    with (root / "log-traced").open("w") as log:
        command = ["strace", "-f", "-e", f"trace={CALLS}", "-s", "400", "-o", str(trace), sys.executable, str(script)]
        environment = {**os.environ, "HOME": str(root / "home"), "OMP_NUM_THREADS": "1"}
        command += [log.name, str(root), "0", "-", *started(output)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    number, seen, found = 0, Counter[str](), list[Place]()
    for line in trace.read_text(errors="replace").splitlines():
        number += bool(NUMBERED.match(line))
        call = LINE.match(line)
        if not call or call[1] == "write" or " = -1" in line or (call[1] == "openat" and not writing(call[3])):
            continue
        path = re.findall(r'"(.*?)"', line)[-1] if "rename" in call[1] or call[1] == "symlink" else call[2]
        disk = Path(path).relative_to(root).parts[0] if path.startswith(f"{root}/") else ""
        if disk not in DISKS:
            continue
        name = f"{call[1]} {place(path, root)}"
        seen[name] += 1
        if seen[name] <= 2:
            found.append(Place(name, number, disk))
    return found


def writing(flags: str) -> bool:
    """Whether a file that is opened with these flags may be written."""
    return any(flag in flags for flag in ("O_WRONLY", "O_RDWR", "O_CREAT"))


def shell(command: str) -> None:
    subprocess.run(command, shell=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
