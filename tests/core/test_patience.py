"""Waiting ends when nothing moves, however long it took in all."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time

from fednas_core.base.patience import Patience, cpu_seconds


def test_it_lasts_as_long_as_something_moves() -> None:
    steps = itertools.count()
    patience = Patience(0.2, lambda: next(steps))
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert not patience.over()
        time.sleep(0.01)


def test_it_ends_when_nothing_moves() -> None:
    patience, start = Patience(0.2, lambda: "the same"), time.monotonic()
    while not patience.over():
        time.sleep(0.01)
    assert time.monotonic() - start >= 0.2


def test_a_process_that_computes_moves_and_one_that_waits_does_not() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    idle = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    try:
        while cpu_seconds(busy.pid) < 2:  # as long as it takes beside other work
            time.sleep(0.1)
        assert cpu_seconds(idle.pid) < 2
    finally:
        for process in (busy, idle):
            process.kill()
            process.wait()
    assert cpu_seconds(busy.pid) == 0, "it is gone"
