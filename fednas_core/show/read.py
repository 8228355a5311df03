"""The files of a run folder, read and checked: what a report is made of."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednas_core.base.errors import RunError
from fednas_core.methods.tiers import FEW
from fednas_core.runs.clock import FILE
from fednas_core.runs.events import FILE as EVENTS
from fednas_core.runs.events import LOST, read_events
from fednas_core.show.tested import in_order

ROUND_KEYS = ("round", "loss", "accuracy", "bytes_up", "bytes_down", "client_macs", "seconds", "clients", "failures")
MODEL_KEYS = ("device", "budget", "arch", "validation_accuracy", "test_accuracy", "macs", "params", "bytes")
POINT_KEYS = ("macs", "params", "validation_accuracy", "on_frontier")


@dataclass(frozen=True, slots=True)
class RunData:
    """A run as its folder tells it; `frontier` and `result` are None while it has not finished.

    `settings` and `versions` are flat; `rounds` are the lines of events.jsonl, one a round, in order; `seconds` are
    those of the run's phases (see `fednas_core.runs.clock`), of its rounds alone where no others are noted; `notes`
    says for people what is missing, and what they should know of the run.
    """

    folder: Path
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    rounds: tuple[Mapping[str, Any], ...]
    seconds: Mapping[str, float]
    frontier: tuple[Mapping[str, Any], ...] | None
    result: Mapping[str, Any] | None
    notes: tuple[str, ...]

    @property
    def done(self) -> int:
        """The number of rounds that were done, recorded or not."""
        return int(self.rounds[-1]["round"]) if self.rounds else 0

    @property
    def models(self) -> tuple[Mapping[str, Any], ...]:
        """The chosen models, one a device; none while the run has not finished."""
        return tuple(self.result["models"]) if self.result else ()

    @property
    def failures(self) -> list[tuple[int, str, str]]:
        """Every failure as (round, client, reason)."""
        return [(e["round"], str(f["client"]), str(f["reason"])) for e in self.rounds for f in e["failures"]]

    def total(self, key: str) -> float:
        """Return a total over the run: from result.json, or summed over the rounds so far."""
        if self.result and self.result.get(key) is not None:
            return float(self.result[key])
        return float(sum(event[key] for event in self.rounds))


def read_run(folder: Path) -> RunData:
    """Read a run folder; raise `RunError` naming file and line where it is no run or is damaged."""
    if not (folder / "config.toml").is_file():
        raise RunError(f"{folder}: no run lies here (config.toml is missing); give a folder like runs/<id>")
    try:
        config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{folder / 'config.toml'}: is not valid TOML ({error})") from error
    versions, settings = config.pop("versions", {}), config.get("settings", config)
    notes: list[str] = []
    rounds = _rounds(folder, notes)
    result = _json(folder / "result.json", dict)
    frontier = _json(folder / "frontier.json", list)
    if result is None:
        notes.append("This run has not finished: there is no result.json yet, so no models have been chosen.")
    else:
        _need(result, ("models",), folder / "result.json")
        for model in result["models"]:
            _need(model, MODEL_KEYS, folder / "result.json")
        notes += _sparse_tiers(rounds)
    if frontier is None:
        notes.append("There is no frontier.json yet: what the run trained has not been compared.")
    for point in frontier or ():
        _need(point, POINT_KEYS, folder / "frontier.json")
    points = None if frontier is None else tuple(frontier)
    seconds = _json(folder / FILE, dict) or {"training": sum(event["seconds"] for event in rounds)}
    return RunData(folder, _flat(settings), _flat(versions), rounds, seconds, points, result, tuple(notes))


def _rounds(folder: Path, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    """Return one event a round, and note what of the record is not there."""
    record = read_events(folder)
    if not record.rounds:
        notes.append("There is no events.jsonl yet: no round has finished.")
    for number, event in enumerate(record.rounds, start=1):
        _need(event, ROUND_KEYS, f"{folder / EVENTS}, line {number}")
    if record.torn:
        notes.append("The last line of events.jsonl is incomplete (the run was stopped there) and left out.")
    if record.unrecorded:
        notes.append(
            f"Rounds 1 to {record.unrecorded} are not recorded: their record was damaged and given up ({LOST}), and "
            f"figures count from round {record.unrecorded + 1}."
        )
    return record.rounds


def _sparse_tiers(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a note for each tier that fewer than `FEW` of the clients trained."""
    trainers: dict[str, set[str]] = {}
    everyone: set[str] = set()
    for row in (row for event in rounds for row in event["clients"]):
        everyone.add(str(row.get("client")))
        if row.get("tier"):
            trainers.setdefault(str(row["tier"]), set()).add(str(row["client"]))
    return [
        f"Tier {tier} was trained by {len(trainers[tier])} of {len(everyone)} clients: what its networks do not share "
        "with those of other tiers learnt from no other images."
        for tier in in_order(trainers)
        if len(trainers[tier]) < min(FEW, len(everyone))
    ]


def _json(path: Path, kind: type) -> Any:
    """Return the content of a JSON file, None if there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: is not JSON ({error}); delete it to see the rest of the run") from error
    if not isinstance(value, kind):
        raise RunError(f"{path}: holds a {type(value).__name__}, needed is a {kind.__name__}")
    return value


def _need(value: object, keys: tuple[str, ...], where: Path | str) -> None:
    if not isinstance(value, dict):
        raise RunError(f"{where}: holds {value!r}, needed is an object with {', '.join(keys)}")
    for key in keys:
        if key not in value:
            raise RunError(f"{where}: lacks '{key}'; needed are {', '.join(keys)}")


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested table as ``section.key`` pairs."""
    pairs: dict[str, Any] = {}
    for key, value in table.items():
        pairs.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return pairs
