"""What commands print: JSON for programs or a table for people on stdout, messages and errors on stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Annotated, Any, ParamSpec

import typer

from fednas_core.errors import FednasError

Arguments = ParamSpec("Arguments")
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

REFUSED, INTERRUPTED = 2, 130
"""Exit codes: a `FednasError`, as for a wrong option; and Ctrl-C."""
NUMBER = re.compile(r"[\d.,/]+(e[+-]?\d+)?( ?[A-Za-z%]{1,2})?|-?")
PLAIN_WIDTH = 200
"""Columns of a table that goes to a file or pipe."""


def guard(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Return the command such that a `FednasError` becomes one message and exit code 2, without a traceback."""

    @wraps(command)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except FednasError as error:
            refuse(str(error), as_json=bool(kwargs.get("as_json")))

    return guarded


def refuse(message: str, as_json: bool, **more: Any) -> None:
    """Show an error and leave with exit code 2; with `as_json` also as an object on stdout, `more` beside it."""
    if as_json:
        print_json({"error": message, **more})
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise typer.Exit(REFUSED)


def note(message: str) -> None:
    """Print a message that is not a result."""
    print(message, file=sys.stderr, flush=True)


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


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; a column whose cells are all numbers, with or without a unit, is set flush right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        numeric = bool(rows) and all(NUMBER.fullmatch(row[i]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(table)


def millions(number: float) -> str:
    """Return a count in millions, e.g. ``458.24 M``."""
    return f"{number / 1e6:,.2f} M"
