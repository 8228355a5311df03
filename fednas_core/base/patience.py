"""Waiting for a process that may be slow: as long as it gets on, however long that takes beside other work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


class Patience:
    """Ends when what `moved` returns has been the same for `quiet_s` seconds."""

    def __init__(self, quiet_s: float, moved: Callable[[], object]) -> None:
        """Begin to wait."""
        self._quiet_s, self._moved = quiet_s, moved
        self._last, self._since = moved(), time.monotonic()
        self._look = self._since

    def over(self) -> bool:
        """Whether nothing has moved for too long."""
        now = time.monotonic()
        if now < self._look:
            return False
        self._look = now + min(1.0, self._quiet_s / 20)  # looking is work too
        if (found := self._moved()) != self._last:
            self._last, self._since = found, now
        return now - self._since > self._quiet_s


def cpu_seconds(pid: int) -> int:
    """Return the whole seconds that a process has computed (Linux; elsewhere, and if it is gone, 0).

    Whoever only polls and waits gets through less than one in a minute.
    """
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    user, system = told.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) // os.sysconf("SC_CLK_TCK")
