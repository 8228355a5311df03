"""The `fednas` command in a process that numbers its writes and, at one of them, is killed or loses its disk.

    python benchmarks/watched.py LOG ROOT NUMBER ACTION run --set rounds=2 …

A write is a file that is opened to be written, a rename, a removal, a new folder or a link below ROOT, seen by Python's
audit hook just before it is done; each becomes a line of LOG: seconds since the start, what is done, the path. Before
number NUMBER (from 1; 0: never) the ACTION is done: ``kill``, or a command of the shell. `killed.py`, `writes.py` and
`side_by_side.py` start it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednas_core.base.settings import idle, read

SPACE = """
stem = 8
stages = [8, 16]
strides = [1, 2]
widths = [0.5, 1.0, 2.0]
expansions = [0.5, 1.0]
extra_blocks = 1
image_size = 8
in_channels = 1
classes = 10
"""
SETTINGS: Mapping[str, Any] = {
    "rounds": 3, "workers": 1, "device": "cpu", "budgets": "phone=30%,server=max", "train.epochs": 1,
    "train.precision": "fp32", "data.examples": 200, "data.clients": 4, "sample.budgets": 5, "evaluate-every": 1,
    "contest.iterations": 1, "contest.candidates": 2, "contest.finish": 1, "fednas.rounds-min": 1,
    "fednas.rounds-max": 1, "ddc.rounds": 1,
}  # fmt: skip
"""A run of a second or two, besides the imports and the report."""
TRAINED_AND_EXPORTED: Mapping[str, Any] = {"method": "deepfednas", "wire.up": "topk", "sample.fitness-lambda": 0.0}
"""A run that passes through all phases: clients with private state, models exported and handed over, a report."""


RUN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}-\w+(-[0-9a-f]{16})?")
RANDOM = re.compile(r"(?<=\.)([0-9a-f]{8}(?=\.part)|tmp\w+$)|(?<=\.export-)\w+|-[0-9a-f]{16}|\d{10}\..*")
"""What differs from run to run in the name of a file."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write of a process: seconds since its start, what was done, and where."""

    seconds: float
    event: str
    path: str

    def place(self, root: Path) -> str:
        """Return the write with its path below `root`, without what differs from run to run."""
        return f"{self.event} {place(self.path, root)}"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its code (negative: the signal that killed it), what it said, and each of its writes."""

    code: int
    said: str
    writes: tuple[Write, ...]
    seconds: float


def place(path: str, root: Path) -> str:
    """Return a path below `root` without what differs from run to run."""
    return RANDOM.sub("", RUN.sub("RUN", path.removeprefix(f"{root}/")))


def arguments(space: Path, output: Path, pairs: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a run in folder `output`; `space` is the file of its search space, which is written."""
    space.write_text(SPACE)
    given = {**SETTINGS, "space.name": str(space), "output": str(output), **pairs}
    unread = {setting.key for setting in idle(read(given), given)}
    return ["run", *(f"--set={key}={value}" for key, value in given.items() if key not in unread)]


def resumed(output: Path) -> list[str]:
    """Return the arguments that resume the one run in a folder, none if it has no checkpoint."""
    states = [*output.glob("2*/checkpoint/state.json")]
    return ["resume", states[0].parts[-3], "--output", str(output)] if states else []


def live(
    given: Sequence[str], root: Path, number: int = 0, action: str = "kill", seconds: float | None = None
) -> Ended:
    """Let the command live with these arguments, at most so many seconds; then kill it and all of its processes.

    Its home folder and private state are in `root`.
    """
    with tempfile.NamedTemporaryFile(dir=root, prefix="log-") as log, tempfile.TemporaryFile() as said:
        command = [sys.executable, __file__, log.name, str(root), str(number), action, *given]
        environment = {**os.environ, "HOME": str(root / "home"), "OMP_NUM_THREADS": "1"}
        start = time.monotonic()
        process = subprocess.Popen(
            command, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        words = said.read().decode(errors="replace")
        lines = (line.split(" ", 2) for line in log.read().decode().splitlines())
        writes = tuple(Write(float(seconds), event, path) for seconds, event, path in lines)
        return Ended(process.returncode, words, writes, time.monotonic() - start)


# -- inside the process --------------------------------------------------------------------------------------------


def main() -> None:
    log, root, number, action, *given = sys.argv[1:]
    watch(os.open(log, os.O_WRONLY | os.O_APPEND), root, int(number), action)
    sys.argv = ["fednas", *given]
    from fednas_core.cli import main as fednas

    fednas()


def watch(log: int, root: str, number: int, action: str) -> None:
    """From now on note writes below `root` in the open file `log`, and do the action before the one of this number."""
    start, count, acting = time.monotonic(), 0, False

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count, acting
        path = None if acting else written(event, given)
        if path is None or not path.startswith(root) or path.startswith(f"{root}/log-"):
            return
        count += 1
        os.write(log, f"{time.monotonic() - start:.3f} {event} {path}\n".encode())
        if count != number:
            return
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        acting = True
        subprocess.run(action, shell=True, check=True)
        acting = False

    sys.addaudithook(hook)


def written(event: str, given: tuple[Any, ...]) -> str | None:
    """Return the path that an event of the audit hook is about to write, None if it writes none."""
    if event == "open":
        path, _, flags = given
        writes = isinstance(path, str | bytes | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return os.fsdecode(path) if writes else None
    if event in ("os.rename", "os.symlink"):
        return os.fsdecode(given[1])
    if event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate") and not isinstance(given[0], int):
        return os.fsdecode(given[0])
    return None


if __name__ == "__main__":
    main()
