"""Where the time of a run goes: wall-clock seconds of its phases, over all processes that worked on it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fednas_core.base.errors import RunError
from fednas_core.runs.folder import RunFolder

FILE = "seconds.json"
PHASES = ("start", "training", "evaluation", "search", "export", "hand-over", "report")
"""Start: until the first round; training: rounds and all that is asked in them; evaluation: of what is followed;
search: judging candidates; export: each kind of device's model, tested and verified; hand-over: each client's own."""


class Clock:
    """Adds up the seconds of each phase and notes them in the run's ``seconds.json``.

    A resumed run goes on from what is noted there. What a process spent after its last note, before it was killed, is
    not known to anybody and not counted.
    """

    def __init__(self, began: float | None = None) -> None:
        """Begin with the start, at `began` on the clock of `time.monotonic` (None: now)."""
        self._since = time.monotonic() if began is None else began
        self._phase = PHASES[0]
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def resume(self, run: RunFolder) -> None:
        """Add what earlier processes noted in the folder of `run`; raise `RunError` if it is damaged."""
        if (run.path / FILE).is_file():
            noted = run.read_json(FILE)
            try:
                self._seconds = {phase: seconds + float(noted[phase]) for phase, seconds in self._seconds.items()}
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(
                    f"run '{run.id}': {run.path / FILE} does not hold the seconds of each phase ({error!r}): delete "
                    "it, and only the time until now is forgotten"
                ) from error

    def enter(self, phase: str) -> None:
        """End the phase that goes on, and begin this one."""
        now = time.monotonic()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def spent(self, *phases: str) -> float:
        """Return the seconds of some phases so far, in all processes that worked on the run."""
        self.enter(self._phase)
        return sum(self._seconds[phase] for phase in phases)

    def note(self, run: RunFolder) -> Mapping[str, float]:
        """Write the seconds of each phase so far into the folder of `run`, and return them."""
        self.enter(self._phase)
        run.write_json(FILE, self._seconds)
        return dict(self._seconds)
