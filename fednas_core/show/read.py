"""The files of a run folder, read and checked: what a report is made of."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fednas_core.base.errors import RunError
from fednas_core.base.metrics import Metric
from fednas_core.methods.tiers import FEW
from fednas_core.runs.clock import FILE
from fednas_core.runs.events import LOST, read_events
from fednas_core.runs.format import SETTINGS, Head, head_in
from fednas_core.runs.record import ModelRow, Point, Result, RoundEvent
from fednas_core.show.tested import in_order


@dataclass(frozen=True, slots=True)
class RunData:
    """A run as its folder tells it; `frontier` and `result` are None while it has not finished.

    `settings` and `versions` are flat; `rounds` are the lines of events.jsonl, one a round, in order; `seconds` are
    those of the run's phases (see `fednas_core.runs.clock`), of its rounds alone where no others are noted; `notes`
    says for people what is missing, and what they should know of the run.
    """

    folder: Path
    head: Head
    settings: Mapping[str, object]
    versions: Mapping[str, object]
    rounds: tuple[RoundEvent, ...]
    seconds: Mapping[str, float]
    frontier: tuple[Point, ...] | None
    result: Result | None
    notes: tuple[str, ...]

    @property
    def metric(self) -> Metric:
        """The metric that the run's networks are chosen by."""
        return self.head.metric

    @property
    def done(self) -> int:
        """The number of rounds that were done, recorded or not."""
        return self.rounds[-1].round if self.rounds else 0

    @property
    def models(self) -> tuple[ModelRow, ...]:
        """The chosen models, one a device; none while the run has not finished."""
        return self.result.models if self.result else ()

    @property
    def failures(self) -> list[tuple[int, str, str]]:
        """Every failure as (round, client, reason)."""
        found = []
        for event in self.rounds:
            found += [(event.round, one.client, one.reason) for one in event.failures]
        return found


def read_run(folder: Path) -> RunData:
    """Read a run folder; raise `RunError` naming file, line and field where it is no run or is damaged."""
    path = folder / SETTINGS
    if not path.is_file():
        raise RunError(f"{folder}: no run lies here (config.toml is missing); give a folder like runs/<id>")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: is not valid TOML ({error})") from error
    head = head_in(table, path)
    versions, settings = table.pop("versions", {}), table.get("settings", table)
    notes: list[str] = []
    rounds = _rounds(folder, notes)
    result = _result(folder, head)
    points = _points(folder, head)
    if result is None:
        notes.append("This run has not finished: there is no result.json yet, so no models have been chosen.")
    else:
        notes += _sparse_tiers(rounds)
    if points is None:
        notes.append("There is no frontier.json yet: what the run trained has not been compared.")
    seconds = _seconds(folder, rounds)
    return RunData(folder, head, _flat(settings), _flat(versions), rounds, seconds, points, result, tuple(notes))


def _rounds(folder: Path, notes: list[str]) -> tuple[RoundEvent, ...]:
    """Return one event a round, and note what of the record is not there."""
    record = read_events(folder)
    if not record.rounds:
        notes.append("There is no events.jsonl yet: no round has finished.")
    if record.torn:
        notes.append("The last line of events.jsonl is incomplete (the run was stopped there) and left out.")
    if record.unrecorded:
        notes.append(
            f"Rounds 1 to {record.unrecorded} are not recorded: their record was damaged and given up ({LOST}), and "
            f"figures count from round {record.unrecorded + 1}."
        )
    return record.rounds


def _result(folder: Path, head: Head) -> Result | None:
    path = folder / "result.json"
    found = _json(path)
    return None if found is None else head.result(found, str(path))


def _points(folder: Path, head: Head) -> tuple[Point, ...] | None:
    path = folder / "frontier.json"
    found = _json(path)
    if found is None:
        return None
    if not isinstance(found, list):
        raise RunError(f"{path}: holds a {type(found).__name__}, needed is a list")
    return tuple(head.point(row, f"{path}, row {number}") for number, row in enumerate(found, start=1))


def _seconds(folder: Path, rounds: Sequence[RoundEvent]) -> Mapping[str, float]:
    """Return the seconds of the run's phases, of its rounds alone where no others are noted."""
    path = folder / FILE
    found = _json(path)
    if found is None:
        return {"training": sum(event.seconds for event in rounds)}
    if not isinstance(found, dict) or not all(type(value) in (int, float) for value in found.values()):
        raise RunError(f"{path}: does not hold the seconds of each phase; delete it to see the rest of the run")
    return found


def _sparse_tiers(rounds: Sequence[RoundEvent]) -> list[str]:
    """Return a note for each tier that fewer than `FEW` of the clients trained."""
    trainers: dict[str, set[str]] = {}
    everyone: set[str] = set()
    for event in rounds:
        for row in event.clients:
            everyone.add(row.client)
            if row.tier:
                trainers.setdefault(row.tier, set()).add(row.client)
    return [
        f"Tier {tier} was trained by {len(trainers[tier])} of {len(everyone)} clients: what its networks do not share "
        "with those of other tiers learnt from no other images."
        for tier in in_order(trainers)
        if len(trainers[tier]) < min(FEW, len(everyone))
    ]


def _json(path: Path) -> object:
    """Return the content of a JSON file, None if there is no such file."""
    if not path.is_file():
        return None
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: is not JSON ({error}); delete it to see the rest of the run") from error
    return found


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return a nested table as ``section.key`` pairs."""
    pairs: dict[str, object] = {}
    for key, value in table.items():
        pairs.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return pairs
