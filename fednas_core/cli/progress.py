"""The live view of a run: a bar over its rounds and the latest of them; plain lines where there is no terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fednas_core.base.progress import LEFT, SAID
from fednas_core.base.terminal import say
from fednas_core.base.units import cross_entropy, share
from fednas_core.show.search import going_on
from fednas_core.show.tested import brief

if TYPE_CHECKING:
    from rich.table import Table

Event = Mapping[str, Any]

SHOWN = 8
"""Rounds that stay in view."""
COLUMNS = (
    "round",
    "training loss",
    "training accuracy",
    "up",
    "seconds",
    "networks' accuracy",
    "search",
    "failed clients",
)
SEARCH = COLUMNS.index("search")


@dataclass(frozen=True, slots=True)
class View:
    """What shows a run: call it with the event of each finished round, and `now` with what goes on (see `going_by`)."""

    event: Callable[[Event], None]
    now: Callable[[str], None]

    def __call__(self, event: Event) -> None:
        """Show a round."""
        self.event(event)


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
            lambda event: say("  ".join(filter(None, line(event))), to_stderr),
            lambda text: None if text.startswith("training") else say(text, to_stderr),
        )
        return
    text = TextColumn("{task.description}")
    bar = Progress(SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
    task = bar.add_task("starting Flower", total=rounds)
    latest: deque[Event] = deque(maxlen=SHOWN)
    with Live(bar, console=console, refresh_per_second=4) as live:

        def show(event: Event) -> None:
            latest.append(event)
            done = rounds is not None and event["round"] >= rounds
            if search := event.get("search"):
                bar.tasks[0].total, done = None, search["over"]
            bar.update(task, completed=event["round"], description="choosing models" if done else "training")
            live.update(Group(_table(latest), bar))

        yield View(show, lambda text: bar.update(task, description=text))


def _table(events: deque[Event]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = [i for i in range(len(COLUMNS)) if i != SEARCH or any(map(going_on, events))]
    table = Table(*(COLUMNS[i] for i in shown), box=SIMPLE_HEAD, pad_edge=False)
    for event in events:
        row = cells(event)
        table.add_row(*(row[i] for i in shown))
    return table


def line(event: Event) -> list[str]:
    """Return the cells of a round with their names, for a plain line; empty ones stay empty."""
    return [f"{name} {cell}" if cell else "" for name, cell in zip(COLUMNS, cells(event), strict=True)]


def cells(event: Event) -> list[str]:
    """Return the cells of a round, in the order of `COLUMNS`."""
    return [
        str(event["round"]),
        cross_entropy(event["loss"]),
        share(event["accuracy"]),
        f"{event['bytes_up'] / 1e6:.1f} MB",
        f"{event['seconds']:.1f}",
        ", ".join(brief(event["evaluation"] or ())),
        going_on(event),
        ", ".join(str(failure["client"]) for failure in event["failures"]),
    ]
