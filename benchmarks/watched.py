"""The `fednas` command under `strace`: each change that it makes to a disk, and what happens if it is cut off at one.

A moment is a system call, named by how many of that name the same thread has done: what the command does is the same
each time, so a moment can be come back to. Between two calls that change something a process leaves nothing else on a
disk than at the second, so the calls are all the moments there are. `killed.py`, `writes.py` and `side_by_side.py` use
it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    "fednas.rounds-max": 1, "ddc.rounds": 1, "search.population": 4, "search.generations": 1,
}  # fmt: skip
"""A run of a second or two, besides the imports and the report."""
TRAINED_AND_EXPORTED: Mapping[str, Any] = {
    "method": "deepfednas", "wire.up": "topk", "sample.fitness-lambda": 0.0, "search.by": "accuracy",
}  # fmt: skip
"""A run that passes through all phases: clients with private state, a search that measures, models exported and handed
over, a report."""

PROGRAM = "from fednas_core.cli import main; main()"
WRITES = ("write", "writev", "pwrite64", "pwritev")
ON_FILES = (*WRITES, "ftruncate", "fallocate", "fsync", "fdatasync")
"""Calls on an open file; what it is comes from strace's option -y."""
ON_PATHS = (
    "openat", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "symlink", "symlinkat", "link", "linkat",
    "truncate", "unlink", "unlinkat", "rmdir",
)  # fmt: skip
TO_THE_SECOND = ("rename", "renameat", "renameat2", "symlink", "symlinkat", "link", "linkat")
MAKING = re.compile(r"\bO_(CREAT|TRUNC|TMPFILE)\b")
LINE = re.compile(r"^(?:(\d+) +)?(\w+)\((.*)$")
RESUMED = re.compile(r"^(?:(\d+) +)?<\.\.\. (\w+) resumed>(.*)$")
RESULT = re.compile(r"\) += (-?\d+|\?)(?:<[^>]*>)?(?: (E[A-Z]+))?")
NAMED = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
OPEN = re.compile(r"^(\d+)<([^>]*)>(?:\(deleted\))?(?:, \"((?:[^\"\\]|\\.)*)\")?")

RUN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8,20}-\w+?(-[0-9a-f]{16})?(?=[/.]|$)")
RANDOM = re.compile(r"(?<=\.)([0-9a-f]{8}(?=\.part)|tmp\w+$)|(?<=\.export-)\w+|-[0-9a-f]{16}|\d{10}\..*|#\d+.*")
"""What differs from run to run in the name of a file."""


@dataclass(frozen=True, slots=True)
class Call:
    """A system call: its thread, name and number among those of the name in the thread (from 1); what it is done to.

    `path` is the file or folder, `text` the beginning of what is written, `bytes` how much; `error` is the name of the
    error with which it ended, ``KILLED`` if it did not end, '' if it was done; `makes` whether it may change a disk.
    """

    thread: int
    name: str
    number: int
    path: str
    text: str
    bytes: int
    error: str
    makes: bool

    def place(self, root: Path) -> str:
        """Return the call with its path below `root`, without what differs from run to run."""
        return f"{self.name} {place(self.path, root)}"

    def below(self, root: Path) -> bool:
        """Whether the call changes something below a folder."""
        return self.makes and self.path.startswith(f"{root}/")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its code (negative: the signal that killed it), what it said, its calls, and its seconds."""

    code: int
    said: str
    calls: tuple[Call, ...]
    seconds: float

    def run(self) -> str:
        """Return the name of a run that ended well, from the result that it told with ``--json``."""
        return next(line for line in self.said.splitlines() if line.startswith('  "run": ')).split('"')[3]

    def error(self) -> str:
        """Return the message with which the command refused, '' if there is none."""
        at = self.said.find("error: ")
        return "" if at < 0 else self.said[at:]


def place(path: str, root: Path) -> str:
    """Return a path below `root` without what differs from run to run."""
    return RANDOM.sub("", RUN.sub("RUN", path.removeprefix(f"{root}/")))


def arguments(space: Path, output: Path, pairs: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a run in folder `output`; `space` is the file of its search space, which is written."""
    space.write_text(SPACE)
    given = {**SETTINGS, "space.name": str(space), "output": str(output), **pairs}
    unread = {setting.key for setting in idle(read(given), given)}
    return ["run", "--json", *(f"--set={key}={value}" for key, value in given.items() if key not in unread)]


def resumed(output: Path) -> list[str]:
    """Return the arguments that resume the newest run in a folder, none if it has no checkpoint."""
    runs = sorted(output.glob("2*"))
    if not runs or not (runs[-1] / "checkpoint" / "state.json").is_file():
        return []
    return ["resume", runs[-1].name, "--output", str(output), "--json"]


def refused() -> str:
    """Return why nothing can be watched here, '' if it can."""
    return "" if shutil.which("strace") else "strace is not installed"


def live(
    given: Sequence[str],
    root: Path,
    inject: str = "",
    at: Call | None = None,
    stopped: Callable[[], None] | None = None,
    traced: bool = True,
) -> Ended:
    """Let the command live with these arguments; its home folder, private state and temporary files are in `root`.

    At the call `at` happens what `inject` says in the words of ``strace -e inject``: ``signal=KILL`` just before it is
    done (then all of its processes are killed), ``error=ENOSPC`` instead of it, ``signal=STOP`` just after it: then
    `stopped` is called, and the process goes on.
    """
    for name in ("home", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", PROGRAM, *given]
    environment = {**os.environ, "HOME": str(root / "home"), "TMPDIR": str(root / "tmp"), "OMP_NUM_THREADS": "1"}
    with tempfile.NamedTemporaryFile(prefix="trace-") as trace, tempfile.TemporaryFile() as said:
        if traced:
            command = [*strace(Path(trace.name), inject, at), *command]
        start = time.monotonic()
        process = subprocess.Popen(
            command, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        attend(process, Path(trace.name), stopped)
        said.seek(0)
        words = said.read().decode(errors="replace")
        calls = tuple(calls_of(trace.read().decode(errors="replace").splitlines()))
        return Ended(process.returncode, words, calls, time.monotonic() - start)


def strace(trace: Path, inject: str, at: Call | None) -> list[str]:
    """Return the command that traces what follows it: for a call of the first thread only that one.

    Others may do a call of its name and number before it.
    """
    command = ["strace", "-y", "-s", "40", "-e", f"trace={','.join(ON_FILES + ON_PATHS)}", "-o", str(trace)]
    if at is not None:
        command += ["-e", f"inject={at.name}:{inject}:when={at.number}"]
    if at is None or at.thread:
        command.insert(1, "-f")
    if at is None:  # with it strace forgets to send signals
        command.insert(2, "--seccomp-bpf")
    return command


def attend(process: subprocess.Popen[bytes], trace: Path, stopped: Callable[[], None] | None) -> None:
    """Wait for the end of a traced process; kill all of its processes once one is killed, wake it where it stops."""
    with trace.open("rb") as file:
        while process.poll() is None:
            time.sleep(0.02)
            news = file.read()
            if b"+++ killed by SIGKILL +++" in news:
                os.killpg(process.pid, signal.SIGKILL)
            if stopped is not None and b"--- stopped by SIGSTOP ---" in news:
                stopped()
                os.killpg(process.pid, signal.SIGCONT)
                stopped = None
    process.wait()


def calls_of(lines: Iterable[str]) -> Iterator[Call]:
    """Yield the calls of a trace in the order in which they were begun; lines about signals and ends are left out."""
    begun: dict[str, int] = {}
    whole: list[tuple[str, str, str]] = []
    for line in lines:
        if ended := RESUMED.match(line):
            thread, name, rest = ended.groups()
            at = begun.pop(thread)
            whole[at] = (thread, name, whole[at][2] + rest)
        elif called := LINE.match(line):
            thread, name, rest = called.groups()
            if rest.endswith("<unfinished ...>"):
                begun[thread] = len(whole)
                rest = rest.removesuffix("<unfinished ...>").rstrip()
            whole.append((thread, name, rest))
    numbers, threads = Counter[tuple[str, str]](), dict[str, int]()
    for thread, name, rest in whole:
        numbers[thread, name] += 1
        yield call_of(threads.setdefault(thread, len(threads)), name, numbers[thread, name], rest)


def call_of(thread: int, name: str, number: int, rest: str) -> Call:
    """Return a call from the rest of its line; raise `ValueError` for one that is none of a trace."""
    ended = RESULT.search(rest)
    value, error = ended.groups() if ended else ("?", None)
    error = "KILLED" if value == "?" else (error or "") if value.startswith("-") else ""
    text, count = "", 0
    if name in ON_FILES:
        file = OPEN.match(rest)
        if not file:
            raise ValueError(f"no file in {name}({rest}")
        path = ("stdout", "stderr")[int(file[1]) - 1] if file[1] in ("1", "2") else file[2]
        text, count = file[3] or "", int(value) if name in WRITES and not error else 0
        makes = not path.startswith(("pipe:", "socket:", "anon_inode:", "/dev/"))
    else:
        named = NAMED.findall(rest)
        if not named:
            raise ValueError(f"no path in {name}({rest}")
        path = os.path.normpath(os.path.join(*named[-1 if name in TO_THE_SECOND else 0]))
        makes = name != "openat" or bool(MAKING.search(rest))
    return Call(thread, name, number, path, text, count, error, makes)
