"""How soon does a command begin? Every command of `fednas` that computes no network, and how it refuses.

    python benchmarks/start_up.py

The commands are those that are registered, each with ``--help``; those that compute no network with arguments, README's
own lines among them; the others with something that they refuse. Each is started five times in a folder with one run.

A line for each: seconds of the clock and of the CPU, and the most memory that it had, in MB (10⁶ bytes); medians. Below
them the same of a bare `python -c "import numpy"`. Exit status 1 if one is above 0.4 s or 60 MB, or ends otherwise than
it should. On a busy machine the clock says how busy it is; the CPU's seconds say less of that.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import typer

from fednas_core.base.settings import read
from fednas_core.cli import app
from fednas_core.runs.creation import create

ROOT = Path(__file__).parents[1]
PROGRAM = "from fednas_core.cli import main; main()"
TELLING = """
import atexit, os
atexit.register(lambda: open(os.environ["TOLD"], "w").write(open("/proc/self/status").read()))
"""
"""What notes the most memory of a process as it ends: what its parent is told of it begins with the parent's own."""
MOST_S, MOST_MB = 0.4, 60
LINES: dict[str, tuple[str, ...]] = {
    "methods": ("",),
    "spaces": ("",),
    "presets": ("",),
    "settings": ("", "train --json"),
    "runs": ("",),
    "score": ("""--space small --arch '{"d":[0,0,0],"e":[1,1,1,1,1,1],"w":[0,0,0,0]}'""",),
    "path": ("--space small --budgets 3",),
    "search": ("--space small --max-macs 1M",),
    "deploy keys": ("site --address 127.0.0.1 --nodes phone",),
}
"""What follows the commands that compute no network."""
REFUSED = (
    "run --set runds=3", "run --set rounds=many", "run --set resume=nothing", "run --set stale.rate=0.1",
    "run --set space.name=smal", "simulate --set space.name=smal", "simulate --set resume=nothing",
    "simulate --set runds=3", "resume nothing", "report nothing", "export nothing --device phone",
    "profile --threads 9999", "profile --budget much", "deploy node site watch", "deploy register nowhere",
    "deploy run nowhere", "deploy server nowhere",
)  # fmt: skip
"""What the others refuse: those that compute a network, or start what does."""


@dataclass(frozen=True, slots=True)
class Line:
    """A command line without `fednas`, and the status with which it ends."""

    text: str
    code: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What a process took: seconds of the clock and of the CPU, the most memory in MB, and how it ended."""

    seconds: float
    cpu_s: float
    mb: float
    code: int


def commands() -> list[str]:
    """Return the names of all commands, those of groups after the name of the group."""
    names = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        names += [f"{name} {below}" for below in command.commands] if hasattr(command, "commands") else [name]
    return names


def lines() -> list[Line]:
    """Return the lines of commands that compute no network."""
    told = ["--help", "--version", *(f"{name} --help" for name in commands())]
    told += [f"{name} {more}".strip() for name in LINES for more in LINES[name]]
    readme = re.findall(r"^fednas ([^#\n]*[^#\s])", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    told += [line for line in readme if any(line == name or line.startswith(f"{name} ") for name in LINES)]
    return [*(Line(text, 0) for text in dict.fromkeys(told)), *(Line(text, 2) for text in REFUSED)]


def take(program: str, arguments: list[str], folder: Path) -> Taken:
    """Run a program of this Python in a folder, and return what it took."""
    told = folder / "told"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "TOLD": str(told)}
    command = [sys.executable, "-c", TELLING + program, *arguments]
    start, quiet = time.monotonic(), subprocess.DEVNULL
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=quiet, stderr=quiet) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    peak = next(line for line in told.read_text().splitlines() if line.startswith("VmHWM")).split()[1]
    return Taken(seconds, used.ru_utime + used.ru_stime, int(peak) * 1024 / 1e6, process.returncode)


def median(program: str, arguments: list[str], repeats: int) -> Taken:
    """Return the medians of what a program takes, each time in a new folder with one run, and its highest status."""
    every = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="fednas-start-up-") as folder:
            create(read({"output": f"{folder}/runs"}))
            every.append(take(program, arguments, Path(folder)))
    return Taken(
        statistics.median(one.seconds for one in every),
        statistics.median(one.cpu_s for one in every),
        statistics.median(one.mb for one in every),
        max(one.code for one in every),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    wrong = 0
    print("| command | seconds | CPU seconds | MB |\n|---|---:|---:|---:|")
    for line in lines():
        taken = median(PROGRAM, shlex.split(line.text), repeats)
        over = taken.seconds > MOST_S or taken.mb > MOST_MB or taken.code != line.code
        wrong += over
        print(f"| {line.text} | {row(taken)}{' **!**' if over else ''} |", flush=True)
    print(f'| bare `python -c "import numpy"` | {row(median("import numpy", [], repeats))} |')
    return int(wrong > 0)


def row(taken: Taken) -> str:
    """Return the figures of a line."""
    return f"{taken.seconds:.2f} | {taken.cpu_s:.2f} | {taken.mb:.1f}"


if __name__ == "__main__":
    sys.exit(main())
