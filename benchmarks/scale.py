"""Many clients in one run: what a thousand of them cost to gather, to train in cohorts and to hand a model each.

    python benchmarks/scale.py [--quick] [--clients 1000] [--nodes 16,1000,0] [--cohort 20] [--rounds 5] [--data PATH]

Each row is a run of its own through Flower's simulation (`nodes`: of how many SuperNodes), or in process (`nodes` 0,
as `fednas run`). Data is genuine Fashion-MNIST (torchvision's files in --data), or scikit-learn's digits with --quick.

gather s: from the start of the command to the run's greeting: processes come up, every node is asked for its profile.
round s: median of the rounds; search s: from the last round until models are handed over; hand over s: a model to every
client, tested and timed there; server MB, actors MB: peak of resident memory of the process that holds the ServerApp,
and of all client processes together; KB: sizes of files of the run folder. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import options, show

from fednas_core.base.settings import flatten, read
from fednas_core.cli.simulate import flwr_run, played_by
from fednas_core.cli.superlink import descendants, end_tree, superlink

GREETING, HANDOVER, SEARCH, END = "run ", "handing each client", "searching:", "run folder:"
FILES = ("devices.json", "events.jsonl", "result.json", "report.html")
HERE = (sys.executable, "-c", "from fednas_core.cli import main; main()", "run")
SERVER = re.compile(r"flwr-simulation|fednas_core\.cli")
ACTOR = re.compile(r"ray::ClientAppActor|multiprocessing\.spawn")


class Memory(threading.Thread):
    """Looks twice a second at what the descendants of a process hold; peaks in bytes."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root, self.ended = root, threading.Event()
        self.server = self.actors = self.count = 0

    def run(self) -> None:
        while not self.ended.wait(0.5):
            held: dict[str, list[int]] = {"server": [], "actor": []}
            for pid in [self._root, *descendants(self._root)]:
                name, resident = _process(pid)
                kind = "actor" if ACTOR.search(name) else "server" if SERVER.search(name) else ""
                if kind:
                    held[kind].append(resident)
            self.server = max(self.server, max(held["server"], default=0))
            self.actors = max(self.actors, sum(held["actor"]))
            self.count = max(self.count, len(held["actor"]))


def _process(pid: int) -> tuple[str, int]:
    """Return command line and resident bytes of a process; nothing if it has ended."""
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return "", 0
    return name, 1024 * next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)


@contextmanager
def command(pairs: dict[str, Any], nodes: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a run; yield the process whose lines tell of it, and the process whose descendants do the work."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    if not nodes:
        arguments = [part for key, value in pairs.items() for part in ("--set", f"{key}={value}")]
        with subprocess.Popen([*HERE, *arguments], **pipes) as process:
            yield process, process.pid
        return
    with superlink(keep=False) as link:
        line = flwr_run(link, flatten(read(pairs)))
        line += played_by(nodes)
        with subprocess.Popen(line, cwd=link.home, env=link.environment, **pipes) as process:
            try:
                yield process, link.process.pid
            finally:
                end_tree(process)


def measure(pairs: dict[str, Any], nodes: int, loud: bool) -> dict[str, Any]:
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        start, times = time.monotonic(), dict[str, float]()
        with command(pairs | {"output": folder}, nodes) as (process, root):
            memory = Memory(root)
            memory.start()
            for line in process.stdout or ():
                if loud:
                    print(f"{time.monotonic() - start:7.1f}  {line}", end="", file=sys.stderr, flush=True)
                for mark in (GREETING, SEARCH, HANDOVER, END):
                    if line.startswith(mark):
                        times.setdefault(mark, time.monotonic() - start)
            memory.ended.set()
            memory.join()
        if END not in times:
            raise SystemExit(f"the run with {nodes} nodes did not end well")
        run = Path(folder) / "latest"
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        result = json.loads((run / "result.json").read_text())
        return {
            "clients": pairs["data.clients"],
            "nodes": nodes,
            "gather_s": times[GREETING],
            "round_s": statistics.median(event["seconds"] for event in events),
            "first_round_s": events[0]["seconds"],
            "search_s": times[HANDOVER] - times[SEARCH],
            "hand_over_s": times[END] - times[HANDOVER],
            "server_mb": memory.server / 1e6,
            "actors_mb": memory.actors / 1e6,
            "actors": memory.count,
            "failures": sum(len(event["failures"]) for event in events),
            "handed": sum(not row["reason"] for row in result["clients"]),
            "kb": {name: (run / name).stat().st_size / 1e3 for name in FILES},
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows for the terminal."""
    heads = ("clients", "nodes", "gather_s", "round_s", "search_s", "hand_over_s", "server_mb", "actors_mb")
    lines = ["  ".join(f"{head.replace('_', ' '):>11}" for head in heads)]
    lines += ["  ".join(f"{row[head]:11.4g}" for head in heads) for row in rows]
    return "\n".join(lines)


def main() -> None:
    chosen = options(
        __doc__,
        clients={"type": int, "default": 1000},
        nodes={"default": "16,1000,0"},
        cohort={"type": int, "default": 20},
        rounds={"type": int, "default": 5},
        data={"default": str(Path("~/.cache/fednas-data").expanduser()), "help": "folder of Fashion-MNIST"},
        loud={"action": "store_true", "help": "show the lines of the runs"},
    )
    pairs: dict[str, Any] = {
        "rounds": 2 if chosen.quick else chosen.rounds,
        "cohort": chosen.cohort,
        "evaluate-every": 2,
        "budgets": "phone=30%,tablet=60%,workstation=max",
        "client-budgets": "phone,tablet,workstation",
        "data.clients": chosen.clients,
        "data.validation": 0.02,
        "data.holdout": 0.0,
        "train.epochs": 1,
    }
    if chosen.quick:
        pairs |= {"data.partition": "iid", "data.image-size": 4}
    else:
        pairs |= {"data.source": "fashion-mnist", "data.path": chosen.data, "data.image-size": 14}
    rows = [measure(pairs, int(nodes), chosen.loud) for nodes in chosen.nodes.split(",")]
    print(table(rows))
    data = "digits" if chosen.quick else "fashion-mnist"
    show({"benchmark": "scale", "data": data, "cohort": chosen.cohort, "rows": rows})


if __name__ == "__main__":
    main()
