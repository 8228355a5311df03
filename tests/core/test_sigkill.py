"""A run in a process of its own, killed without warning and resumed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.records import recorded

from fednas_core.base.settings import read
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct, settle
from fednas_core.runs.folder import RunFolder, find

ROUNDS = 8
PROGRAM = """
import json, sys
from fednas_core.engine import run as experiment
from fednas_core.base.settings import read
from fednas_core.engine.local import LocalFleet

config = read(json.loads(sys.argv[1]))
experiment.conduct(config, LocalFleet(config), lambda text: None)
"""


def metrics(run: RunFolder) -> list[dict[str, Any]]:
    events = recorded(run.events())
    for event in events:
        for row in [event, *event["clients"]]:
            del row["seconds"]
    return events


def killed_in_round(pairs: dict[str, Any], rounds: int, delay: float) -> RunFolder:
    """Start a run and kill its process some time after it wrote the event of round `rounds`."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, json.dumps(pairs)], cwd=Path(__file__).parents[2])
    try:
        events, end = Path(pairs["output"]) / "latest" / "events.jsonl", time.monotonic() + 120
        while not (events.exists() and events.read_bytes().count(b"\n") >= rounds):
            assert process.poll() is None and time.monotonic() < end, "the run ended before it could be killed"
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    return find(Path(pairs["output"]), "latest")


def test_killed_in_a_random_round_and_resumed(tiny_pairs: dict[str, Any], tmp_path: Path, light: None) -> None:
    pairs = {**tiny_pairs, "rounds": ROUNDS, "train.epochs": 5, "sample.range-share": 0.5, "budgets": "server=max"}
    chance = random.Random()
    after, delay = chance.randint(1, ROUNDS // 2), chance.uniform(0, 0.3)
    killed = killed_in_round(pairs, after, delay)
    assert not (killed.path / "result.json").exists()
    done = killed.load_checkpoint()[0]
    assert after - 1 <= done < ROUNDS, (after, delay)

    config = settle(read({"output": pairs["output"], "resume": "latest"}))
    resumed = conduct(config, LocalFleet(config), lambda text: None)
    config = read({**pairs, "output": str(tmp_path / "whole")})
    whole = conduct(config, LocalFleet(config), lambda text: None)

    assert metrics(resumed) == metrics(whole), f"killed {delay:.3f} s after event {after}"
    one, two = (run.load_checkpoint()[1].tensors for run in (resumed, whole))
    assert all(torch.equal(one[name], two[name]) for name in two)
    for key in ("models", "bytes_up", "bytes_down", "client_macs", "rounds"):
        assert resumed.read_json("result.json")[key] == whole.read_json("result.json")[key]


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tiny_pairs: dict[str, Any], tmp_path: Path) -> None:
    program = "import os\nfrom fednas_core.base.settings import read\nfrom fednas_core.engine.local import LocalFleet\n"
    program += "if __name__ == '__main__':\n    fleet = LocalFleet(read({'workers': 2}))\n"
    program += "    for process in fleet._pool._processes.values():\n        print(process.pid, flush=True)\n"
    program += "    fleet._pool.submit(os.getpid).result()\n    os.kill(os.getpid(), 9)\n"
    (tmp_path / "started.py").write_text(program)
    done = subprocess.run([sys.executable, tmp_path / "started.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    pids, end = [int(line) for line in done.stdout.split()], time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)
