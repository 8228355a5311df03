"""How a run's record is to be read, which stands in its ``config.toml``: the version of its format among it.

The version stands there once, and not in every event, for a run has one from its first round on: whoever resumes it
goes on in the format that it was begun in. A run that names none is of format 1, which `fednas_core.runs.older` brings
to the present one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import RunError
from fednas_core.base.metrics import ACCURACY, Metric
from fednas_core.base.typed import FieldError, from_json, object_of
from fednas_core.methods.catalogue import METHODS
from fednas_core.methods.story import Story
from fednas_core.runs import older
from fednas_core.runs.record import Point, Result, RoundEvent

FORMAT = 2
"""Version of what is written; raised when an older reader could no longer understand it."""
READS = (1, 2)
SETTINGS = "config.toml"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Head:
    """How a run's record is to be read: its format, the run's metrics, the first of which decides, and its search.

    `search` is the kind by which candidates that compete are found, '' where nothing competes.
    """

    format: int
    metrics: tuple[Metric, ...]
    search: str

    @property
    def metric(self) -> Metric:
        """The metric that networks are chosen by."""
        return self.metrics[0]

    def to_json(self) -> dict[str, object]:
        """Return what stands in the run's ``config.toml``."""
        return object_of(self)

    def event(self, found: object, where: str) -> RoundEvent:
        """Return an event from a line of ``events.jsonl``; raise `RunError`, naming `where` and the field."""

        def read(value: Mapping[str, object]) -> RoundEvent:
            event = from_json(RoundEvent, value, self._names)
            if not value.get("search"):
                return event
            try:
                return replace(event, search=Story.from_json(value["search"], self.search, self._names))
            except FieldError as error:
                raise error.within("search") from None

        return self._read(read, older.event, found, where)

    def point(self, found: object, where: str) -> Point:
        """Return a row of ``frontier.json``; raise `RunError`, naming `where` and the field."""
        return self._read(lambda value: from_json(Point, value, self._names), older.point, found, where)

    def result(self, found: object, where: str) -> Result:
        """Return the content of ``result.json``; raise `RunError`, naming `where` and the field."""
        return self._read(lambda value: from_json(Result, value, self._names), older.result, found, where)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(metric.name for metric in self.metrics)

    def _read(self, read: Callable[[Mapping[str, object]], T], upgrade: older.Upgrade, found: object, where: str) -> T:
        if not isinstance(found, Mapping):
            raise RunError(f"{where}: holds {found!r}, needed is an object")
        try:
            return read(upgrade(found) if self.format == 1 else found)
        except FieldError as error:
            raise RunError(f"{where}: {error}") from error


def head_of(config: RunConfig) -> Head:
    """Return the head of the record of a run with these settings."""
    return Head(FORMAT, (ACCURACY,), METHODS[config.method].search_of(config))


def head_in(table: Mapping[str, object], where: Path) -> Head:
    """Return the head in the content of a run's ``config.toml``; raise `RunError` for a format that is not known."""
    found = table.get("format", 1)
    if found not in READS:
        allowed = " and ".join(map(str, READS))
        raise RunError(
            f"{where}: the run is recorded in format {found!r}, this fednas reads {allowed}: read it with the fednas "
            "that recorded it (table 'versions' there names it), or with a newer one"
        )
    if found == 1:
        return Head(1, (ACCURACY,), older.search(table))
    try:
        head = from_json(Head, table)
        if not head.metrics:
            raise FieldError("names none", "metrics")
    except FieldError as error:
        raise RunError(f"{where}: {error}: restore the file from a copy") from error
    return head


def head_of_folder(folder: Path) -> Head:
    """Return the head of the record in a run's folder, as `head_in` does; without settings that of format 1."""
    path = folder / SETTINGS
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        table = {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RunError(f"run '{folder.name}': its settings cannot be read from {path} ({error})") from error
    return head_in(table, path)
