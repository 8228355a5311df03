"""The record of a run, ``events.jsonl``: one line a round, numbered from 1 without a gap and only ever appended to.

A last line without its end was being written when the run was killed; it belongs to a round that no checkpoint
follows. Any other damage is an error that names the line.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from fednas_core.base.errors import RunError
from fednas_core.base.files import append, cut
from fednas_core.runs.format import Head, head_of_folder
from fednas_core.runs.record import RoundEvent

FILE = "events.jsonl"
LOST = "events.lost.jsonl"
"""What a user renames a damaged record to, to go on without it: the new one begins with any round."""


@dataclass(frozen=True, slots=True)
class Events:
    """The events of a run, oldest first.

    `torn` says whether an incomplete last line was left out, `unrecorded` how many rounds before the first are in a
    record that was given up.
    """

    rounds: tuple[RoundEvent, ...]
    torn: bool = False
    unrecorded: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the record: its length in bytes until there, and the SHA-256 digest of those bytes."""

    bytes: int
    sha256: str


def read_events(folder: Path) -> Events:
    """Return the events of a run's folder; raise `RunError`, naming the line, where the record is damaged."""
    return _parsed(folder, _content(folder), head_of_folder(folder))


def append_event(folder: Path, event: RoundEvent) -> None:
    """Add the event of one round; raise `OSError` if it cannot be written."""
    append(folder / FILE, json.dumps(event.to_json()).encode() + b"\n")


def mark(folder: Path) -> Mark:
    """Return the place where the record ends now."""
    return _mark(_content(folder))


def rewind(folder: Path, to: Mark, done: int) -> None:
    """Drop what was recorded after a place, which the checkpoint after `done` rounds notes.

    Those rounds are lived again. Raises `RunError` if the record until there is not what it was then, `OSError` if it
    cannot be written.
    """
    content = _content(folder)
    kept = content[: to.bytes]
    if _mark(kept) != to:
        there = len(_parsed(folder, kept, head_of_folder(folder)).rounds)  # raises for a line that cannot be read
        short = f"ends after {there} rounds" if len(content) < to.bytes else "is not what it was"
        raise _damaged(folder, f"{folder / FILE}: {short} when the checkpoint after round {done} was saved")
    if len(content) > to.bytes:
        cut(folder / FILE, to.bytes)


def _content(folder: Path) -> bytes:
    try:
        return (folder / FILE).read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RunError(f"the record of the rounds cannot be read: {error}") from error


def _mark(content: bytes) -> Mark:
    return Mark(len(content), hashlib.sha256(content).hexdigest())


def _parsed(folder: Path, content: bytes, head: Head) -> Events:
    *lines, rest = content.split(b"\n")
    given_up, first = (folder / LOST).exists(), 1
    events: list[RoundEvent] = []
    for number, line in enumerate(lines, start=1):
        where = f"{folder / FILE}, line {number}"
        try:
            event = json.loads(line)
        except ValueError as error:
            raise _damaged(folder, f"{where}: is not JSON ({error})") from error
        found = event.get("round") if isinstance(event, dict) else None
        if type(found) is not int:
            raise _damaged(folder, f"{where}: holds {line[:50].decode(errors='replace')}, which is no event of a round")
        first = found if given_up and not events else first
        if found != first + len(events):
            raise _damaged(folder, f"{where}: holds round {found}, where round {first + len(events)} belongs")
        try:
            events.append(head.event(event, where))
        except RunError as error:
            raise _damaged(folder, str(error)) from error
    return Events(tuple(events), bool(rest), first - 1)


def _damaged(folder: Path, what: str) -> RunError:
    return RunError(
        f"{what}: the record of the rounds is damaged. The checkpoint and the models beside it are safe, and `fednas "
        f"export` reads them. Restore {FILE} from a copy; or, to go on without a record of the rounds so far, rename "
        f"it:  mv {folder / FILE} {folder / LOST}"
    )
