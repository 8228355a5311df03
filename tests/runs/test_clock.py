from __future__ import annotations

import time
from pathlib import Path

import pytest

from fednas_core.base.errors import RunError
from fednas_core.runs.clock import PHASES, Clock
from fednas_core.runs.folder import RunFolder


def test_phases_add_up_to_the_time_since_the_start_and_over_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, now = RunFolder(tmp_path), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(began=90.0)
    for later, phase in ((105.0, "training"), (125.0, "evaluation"), (126.0, "training")):
        now[0] = later
        clock.enter(phase)
    now[0] = 136.0
    told = clock.note(run)
    assert told == run.read_json("seconds.json")
    assert {phase: told[phase] for phase in PHASES if told[phase]} == {"start": 15, "training": 30, "evaluation": 1}
    now[0] = 200.0  # the process is killed here: nobody knows what it did since its last note
    now[0] = 7.0  # another process, and another clock
    clock = Clock()
    clock.resume(run)
    now[0] = 9.0
    clock.enter("training")
    now[0] = 12.0
    told = clock.note(run)
    assert (told["start"], told["training"], sum(told.values())) == (17, 33, 51)


@pytest.mark.parametrize("text", ["[]", "{}", '{"start": "long"}', "null"])
def test_damaged_seconds_are_refused_naming_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "seconds.json").write_text(text)
    with pytest.raises(RunError, match=r"seconds\.json does not hold the seconds of each phase .*delete it"):
        Clock().resume(RunFolder(tmp_path))


def test_a_run_that_noted_nothing_is_resumed_from_nothing(tmp_path: Path) -> None:
    clock = Clock()
    clock.resume(RunFolder(tmp_path))
    assert 0 <= sum(clock.note(RunFolder(tmp_path)).values()) < 60
