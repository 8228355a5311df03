"""What commands print: JSON for programs or a table for people on stdout, messages and errors on stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

from fednas_core.base.errors import FednasError
from fednas_core.base.terminal import say

if TYPE_CHECKING:
    from rich.table import Table

    from fednas_core.runs.record import Result

Arguments = ParamSpec("Arguments")
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

INCOMPLETE, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit codes: a run that left a client without its model; a `FednasError`, as for a wrong option; and Ctrl-C."""
NUMBER = re.compile(r"[\d.,/]+(e[+-]?\d+)?( ?[A-Za-z%]{1,2})?|-?")
PLAIN_WIDTH = 200
"""Columns of a table that goes to a file or pipe."""
GAP = 3
"""Columns that a cell takes besides its text, at most."""


def guard(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Return the command such that a `FednasError` becomes one message and exit code 2, without a traceback."""

    @wraps(command)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except FednasError as error:
            refuse(str(error), as_json=bool(kwargs.get("as_json")))

    return guarded


def refuse(message: str, as_json: bool, **more: object) -> None:
    """Show an error and leave with exit code 2; with `as_json` also as an object on stdout, `more` beside it."""
    if as_json:
        print_json({"error": message, **more})
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise typer.Exit(REFUSED)


def leave_if_lacking(result: Result) -> None:
    """Leave with exit code 1 if a client of a finished run has no model that it should have, and say so."""
    from fednas_core.show.ending import lacking

    if told := lacking(result):
        typer.secho(f"error: {told}; resume the run to hand models out again", fg=typer.colors.RED, err=True)
        raise typer.Exit(INCOMPLETE)


def note(message: str) -> None:
    """Print a message that is not a result."""
    say(message, to_stderr=True)


def print_json(value: object) -> None:
    """Print a result for programs: one JSON value, a line for each row of a list or key of an object."""

    def text(part: object) -> str:
        return json.dumps(part, ensure_ascii=False, allow_nan=False)

    if isinstance(value, Mapping):
        print("{\n" + ",\n".join(f"  {text(key)}: {text(part)}" for key, part in value.items()) + "\n}")
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        print("[\n" + ",\n".join(f"  {text(part)}" for part in value) + "\n]")
    else:
        print(text(value))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], whole: bool = False) -> None:
    """Print a table; a column whose cells are all numbers, with or without a unit, is set flush right.

    If it is `whole` no cell is broken: where the terminal is too narrow for all columns, the last ones are left out,
    and a note says which.
    """
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    shown = len(head)
    if whole:
        widths = [max(map(len, column)) + GAP for column in zip(head, *rows, strict=True)]
        shown = max(1, sum(end <= console.width for end in accumulate(widths)))
    console.print(_table(head[:shown], rows, whole), crop=False)
    if shown < len(head):
        note(f"no room here for: {', '.join(head[shown:])} (a wider terminal and --json show them)")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], whole: bool) -> Table:
    """Return the columns that the head names, the first of each row."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        cells = [row[i] for row in rows]
        numeric = bool(rows) and all(map(NUMBER.fullmatch, cells))
        least = max(map(len, [name, *cells])) if whole else None
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*map(Text, row[: len(head)]))
    return table


def millions(number: float) -> str:
    """Return a count in millions, e.g. ``458.24 M``."""
    return f"{number / 1e6:,.2f} M"
