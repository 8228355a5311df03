from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from contracts.records import event

from fednas_core.base.errors import RunError
from fednas_core.base.values import State
from fednas_core.runs.events import read_events
from fednas_core.runs.folder import RunFolder

STATE = State({"a": torch.zeros(2)}, {})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of six rounds whose last checkpoint follows the fifth."""
    run = RunFolder(tmp_path / "20260101-120000-0123abcd-fedavg")
    run.path.mkdir()
    for round in range(1, 7):
        run.append_event(event({"round": round, "loss": 1 / round}))
        if round < 6:
            run.save_checkpoint(round, STATE)
    return run


def record(run: RunFolder) -> Path:
    return run.path / "events.jsonl"


def rounds(run: RunFolder) -> list[int]:
    return [one.round for one in run.events()]


@pytest.mark.parametrize("torn", [b'{"round": 7, "lo', b"{", b"5", b'{"round": 7}', b"\xff\xfe"])
def test_a_last_line_without_its_end_was_cut_short_by_a_kill(run: RunFolder, torn: bytes) -> None:
    with record(run).open("ab") as file:
        file.write(torn)
    assert read_events(run.path).torn and rounds(run) == [1, 2, 3, 4, 5, 6]
    run.rewind()
    run.append_event(event({"round": 6}))
    assert rounds(run) == [1, 2, 3, 4, 5, 6] and not read_events(run.path).torn


def test_going_back_drops_what_follows_the_checkpoint_and_nothing_else(run: RunFolder) -> None:
    before = record(run).read_bytes()
    run.rewind()
    assert rounds(run) == [1, 2, 3, 4, 5] and before.startswith(record(run).read_bytes())
    run.rewind()
    assert rounds(run) == [1, 2, 3, 4, 5]


def test_damage_after_the_checkpoint_is_dropped_with_it(run: RunFolder) -> None:
    with record(run).open("ab") as file:
        file.write(b"\0\0\0\n{}\n")
    run.rewind()
    assert rounds(run) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"{", "line 3: is not JSON"),
        (b"\0" * 20, "line 3: is not JSON"),
        (b"\xff", "line 3: is not JSON"),
        (b"", "line 3: is not JSON"),
        (b"5", "line 3: holds 5, which is no event of a round"),
        (b'{"loss": 1}', "line 3: holds .*, which is no event of a round"),
        (b'{"round": "3"}', "line 3: holds .*, which is no event of a round"),
        (b'{"round": true}', "line 3: holds .*, which is no event of a round"),
        (b'{"round": 4}', "line 3: holds round 4, where round 3 belongs"),
        (b'{"round": 3}', "line 3: field 'loss' is missing"),
        (None, "line 3: holds round 4, where round 3 belongs"),
    ],
)
def test_a_damaged_line_is_an_error_that_names_it_and_changes_nothing(
    run: RunFolder, line: bytes | None, found: str
) -> None:
    lines = record(run).read_bytes().splitlines()
    lines[2:3] = [] if line is None else [line]
    damaged = b"\n".join(lines) + b"\n"
    record(run).write_bytes(damaged)
    for read in (run.events, run.rewind):
        with pytest.raises(RunError, match=found) as caught:
            read()
        for word in (str(record(run)), "checkpoint and the models beside it are safe", "events.lost.jsonl"):
            assert word in str(caught.value)
    assert record(run).read_bytes() == damaged and run.load_checkpoint()[0] == 5


def test_a_record_that_was_changed_does_not_belong_to_the_checkpoint(run: RunFolder) -> None:
    record(run).write_bytes(record(run).read_bytes().replace(b"0.5", b"0.6"))
    with pytest.raises(RunError, match=r"is not what it was when the checkpoint after round 5 was saved"):
        run.rewind()


@pytest.mark.parametrize("left", [0, 2])
def test_a_record_that_ends_before_the_checkpoint_is_an_error(run: RunFolder, left: int) -> None:
    record(run).write_bytes(b"".join(record(run).read_bytes().splitlines(keepends=True)[:left]))
    if not left:
        record(run).unlink()
    with pytest.raises(RunError, match=f"ends after {left} rounds when the checkpoint after round 5 was saved"):
        run.rewind()


def test_a_run_goes_on_without_a_record_that_the_user_gave_up(run: RunFolder) -> None:
    record(run).rename(run.path / "events.lost.jsonl")
    run.rewind()
    for round in (6, 7):
        run.append_event(event({"round": round}))
        run.rewind() if round == 6 else run.save_checkpoint(round, STATE)
        if round == 6:
            run.append_event(event({"round": 6}))
    found = run.record()
    assert [one.round for one in found.rounds] == [6, 7] and found.unrecorded == 5
    run.rewind()
    assert run.record() == found
    record(run).write_text(json.dumps(event({"round": 6}).to_json()) + "\n" + json.dumps({"round": 8}) + "\n")
    with pytest.raises(RunError, match="line 2: holds round 8, where round 7 belongs"):
        run.record()
