"""A round through Flower: its seconds against its floor, the clients' training alone spread perfectly over the cores.

    python benchmarks/flower_round.py [--quick] [--norm group] [--examples 400] [--rounds 8] [--cores 2]

`fednas simulate` runs the cohort of engine.py: 20 clients of about one second each, on as many processes as there are
cores. A round is everything from planning to the merged supernet; the floor is the sum of what the clients say their
training took, divided by the cores. Both come from the run's events.jsonl; the first two rounds, in which processes
start and read the data, do not count. Prints one line of JSON with the median ratio over the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import CLIENTS, cohort, npz, options, show

WARM_UP = 2
COMMAND = (sys.executable, "-c", "from fednas_core.cli import main; main()", "simulate", "--json")


def main() -> None:
    chosen = options(
        __doc__,
        norm={"default": "group"},
        examples={"type": int, "default": 400, "help": "images of a client"},
        rounds={"type": int, "default": 8, "help": "rounds that count"},
        cores={"type": int, "default": len(os.sched_getaffinity(0))},
    )
    rounds = WARM_UP + (2 if chosen.quick else chosen.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, source = npz(folder)
        pairs = cohort(data, chosen.norm, chosen.examples) | {
            "rounds": rounds,
            "evaluate-every": rounds,
            "budgets": "any=max",
            "output": str(folder / "runs"),
        }
        arguments = [part for key, value in pairs.items() for part in ("--set", f"{key}={value}")]
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        (run,) = (path for path in (folder / "runs").iterdir() if path.is_dir() and not path.is_symlink())
        lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines][WARM_UP:]
    floors = [sum(row["seconds"] for row in event["clients"]) / chosen.cores for event in events]
    ratios = [event["seconds"] / floor for event, floor in zip(events, floors, strict=True)]
    show(
        {
            "benchmark": "flower_round",
            "data": source,
            "cores": chosen.cores,
            "round_s": statistics.median(event["seconds"] for event in events),
            "floor_s": statistics.median(floors),
            "seconds_per_client": statistics.median(floors) * chosen.cores / CLIENTS,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "failures": sum(len(event["failures"]) for event in events),
        }
    )


if __name__ == "__main__":
    main()
