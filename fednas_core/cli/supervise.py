"""Keeps Flower's long-running processes alive: starts them, starts again what fails, and ends all of them in order."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fednas_core.base.errors import RunError
from fednas_core.cli.show import note
from fednas_core.cli.superlink import end_tree

POLL_S = 0.2
PAUSE_S = 5.0
"""Time between an end and the next start."""
SHORT_S = 60.0
"""A process that lived longer than this had started well."""
ATTEMPTS = 20
"""Failed starts in a row after which to give up: a node that was killed is let in again within a minute."""


@dataclass(slots=True)
class Service:
    """A program to keep running, its current process and how often in a row it ended soon after its start."""

    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    failures: int = 0

    @property
    def name(self) -> str:
        """The program's name."""
        return Path(self.command[0]).name

    def start(self, folder: Path, environment: Mapping[str, str]) -> None:
        """Start it in a session of its own, so that Ctrl-C is for the supervisor only."""
        self.process = subprocess.Popen(self.command, cwd=folder, env=environment, start_new_session=True)
        self.since = time.monotonic()


def supervise(
    commands: Sequence[Sequence[str]], folder: Path, environment: Mapping[str, str], pause_s: float = PAUSE_S
) -> None:
    """Run the commands side by side in `folder` until one ends by itself with code 0, or Ctrl-C or SIGTERM ends all.

    Whatever fails is started again after `pause_s` seconds. Raises `RunError` when one fails `ATTEMPTS` times in a row.
    """
    services = [Service(command) for command in commands]
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # so that `finally` is reached
    try:
        for service in services:
            note(f"$ {shlex.join(service.command)}")
            service.start(folder, environment)
        while all(_attend(service, folder, environment, pause_s) for service in services):
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        note("stopping")
    finally:
        signal.signal(signal.SIGTERM, before)
        for service in reversed(services):
            if service.process is not None:
                end_tree(service.process)


def _attend(service: Service, folder: Path, environment: Mapping[str, str], pause_s: float) -> bool:
    """Start a service again if it failed, once its pause is over; return False if it ended in peace."""
    code = service.process.poll() if service.process else None
    if service.process is None:
        if time.monotonic() > service.since:
            service.start(folder, environment)
        return True
    if code is None:
        return True
    if code == 0:
        return False
    service.failures = 1 if time.monotonic() - service.since > SHORT_S else service.failures + 1
    if service.failures >= ATTEMPTS:
        raise RunError(f"{service.name} failed {ATTEMPTS} times in a row; its last words are above")
    note(f"{service.name} ended with code {code}: starting it again in {pause_s:g} seconds")
    service.process, service.since = None, time.monotonic() + pause_s
    return True
