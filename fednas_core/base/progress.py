"""How far a phase of a run is, and how long the rest of it takes at the pace that was measured so far."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from fednas_core.base.units import duration

EVERY_S, SHARE = 5.0, 0.1
"""Two lines of one phase are at least these seconds apart, and this share of the time that it has taken."""
SAID = re.compile(r"^(?:search|export|hand-over|report): \S.*")
"""A line on a phase after training."""
LEFT = re.compile(r"about [^,]+ left$")
"""The end of a line that knows how long the rest takes."""


class Progress:
    """Says now and then how many of a phase's items are done."""

    def __init__(
        self,
        announce: Callable[[str], None],
        phase: str,
        items: str,
        total: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin a phase of `total` items, e.g. ``search`` and ``networks judged``; `clock` counts seconds."""
        self._announce, self._phase, self._items, self._total = announce, phase, items, total
        self._clock = clock
        self._began = self._told = clock()
        self._done = 0

    def step(self) -> None:
        """Count one more item."""
        self._done += 1
        now = self._clock()
        if now - self._told < max(EVERY_S, SHARE * (now - self._began)):
            return
        self._told = now
        rest = left(now - self._began, self._done, self._total)
        self._announce(f"{self._phase}: {self._done} of {self._total} {self._items}{rest}")


def left(seconds: float, done: int, total: int | None) -> str:
    """Return how long the rest of `total` items takes if `done` took so many seconds, as the end of a line.

    It is '' if nobody knows, or if none is left.
    """
    if not done or total is None or total <= done:
        return ""
    return f", about {duration(seconds / done * (total - done))} left"
