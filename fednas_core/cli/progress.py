"""The live view of a run: a bar over its rounds and the latest of them; plain lines where there is no terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fednas_core.base.progress import LEFT, SAID
from fednas_core.base.terminal import say
from fednas_core.base.units import cross_entropy
from fednas_core.show.stage import going_on
from fednas_core.show.tested import brief

if TYPE_CHECKING:
    from rich.table import Table

    from fednas_core.base.metrics import Metric
    from fednas_core.runs.record import RoundEvent

SHOWN = 8
"""Rounds that stay in view."""
SEARCH = "search"
"""The column of rounds of a search."""


@dataclass(frozen=True, slots=True)
class View:
    """What shows a run.

    Call it with the event of each finished round and the run's metric, and `now` with what goes on (see `going_by`).
    """

    event: Callable[[RoundEvent, Metric], None]
    now: Callable[[str], None]

    def __call__(self, event: RoundEvent, metric: Metric) -> None:
        """Show a round."""
        self.event(event, metric)


def going_by(line: str) -> str:
    """Return what a line that a run said tells of the time to come: how far a phase is, or how long training takes."""
    if said := SAID.match(line):
        return said[0]
    found = LEFT.search(line)
    return f"training, {found[0]}" if found else ""


@contextmanager
def display(rounds: int | None, to_stderr: bool = False) -> Iterator[View]:
    """Show progress over `rounds` rounds; the view that is yielded is to be told of it.

    Where networks compete nobody knows how many rounds it will take: None, or an event that tells so, shows no total.
    """
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=to_stderr, soft_wrap=True)
    if not console.is_terminal:
        yield View(
            lambda event, metric: say("  ".join(filter(None, line(event, metric))), to_stderr),
            lambda text: None if text.startswith("training") else say(text, to_stderr),
        )
        return
    text = TextColumn("{task.description}")
    bar = Progress(SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
    task = bar.add_task("starting Flower", total=rounds)
    latest: deque[RoundEvent] = deque(maxlen=SHOWN)
    with Live(bar, console=console, refresh_per_second=4) as live:

        def show(event: RoundEvent, metric: Metric) -> None:
            latest.append(event)
            done = rounds is not None and event.round >= rounds
            if event.search:
                bar.tasks[0].total, done = None, event.search.over
            bar.update(task, completed=event.round, description="choosing models" if done else "training")
            live.update(Group(_table(latest, metric), bar))

        yield View(show, lambda text: bar.update(task, description=text))


def _table(events: deque[RoundEvent], metric: Metric) -> Table:
    """Return the latest rounds, with a column for the search if any tells of one."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = [cells(event, metric) for event in events]
    searching = any(row[SEARCH] for row in shown)
    names = [name for name in shown[-1] if searching or name != SEARCH]
    table = Table(*names, box=SIMPLE_HEAD, pad_edge=False)
    for row in shown:
        table.add_row(*(row[name] for name in names))
    return table


def line(event: RoundEvent, metric: Metric) -> list[str]:
    """Return the cells of a round with their names, for a plain line; empty ones stay empty."""
    return [f"{name} {cell}" if cell else "" for name, cell in cells(event, metric).items()]


def cells(event: RoundEvent, metric: Metric) -> dict[str, str]:
    """Return the cells of a round by the names of their columns."""
    name = metric.title.lower()
    return {
        "round": str(event.round),
        "training loss": cross_entropy(event.loss),
        f"training {name}": metric.brief(metric.of(event.metrics)),
        "up": f"{event.bytes_up / 1e6:.1f} MB",
        "seconds": f"{event.seconds:.1f}",
        f"networks' {name}": ", ".join(brief(event.evaluation or (), metric)),
        SEARCH: going_on(event, metric),
        "failed clients": ", ".join(failure.client for failure in event.failures),
    }
