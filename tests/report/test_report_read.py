from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fednas_core.base.errors import RunError
from fednas_core.show.read import read_run

WriteRun = Callable[..., Path]


def test_a_finished_run(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r1", rounds=6))
    assert [event.round for event in run.rounds] == [1, 2, 3, 4, 5, 6]
    assert run.settings["space.name"] == "small", "a flat key"
    assert run.settings["data.source"] == "digits", "a nested key"
    assert run.versions == {"fednas": "0.1.0", "flwr": "1.41.0", "torch": "2.14.1"}
    assert [model.device for model in run.models] == ["phone", "tablet", "workstation"]
    assert run.notes == ()
    assert run.seconds == {"start": 6.0, "training": 100.0, "report": 12.4}, "more than the rounds"


def test_an_unfinished_run_says_so(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r1", rounds=3, done=False))
    assert run.models == ()
    assert run.frontier is None
    assert run.seconds == {"training": pytest.approx(3 * 3.4)}, "nothing is noted"
    assert "not finished" in run.notes[0]
    assert "frontier.json" in run.notes[1]


def test_a_run_without_a_round(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r1", done=False)
    (folder / "events.jsonl").unlink()
    run = read_run(folder)
    assert run.rounds == ()
    assert any("no round has finished" in note for note in run.notes)


def test_a_line_cut_off_by_a_kill_is_left_out(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r1", rounds=4, done=False)
    text = (folder / "events.jsonl").read_text()
    (folder / "events.jsonl").write_text(text[:-50])
    run = read_run(folder)
    assert [event.round for event in run.rounds] == [1, 2, 3]
    assert any("incomplete" in note for note in run.notes)


def test_a_tier_that_few_clients_trained_is_noted(write_run: WriteRun, tmp_path: Path) -> None:
    """Eight clients trained the tier min, two max; clients that went round trained both."""

    def notes(name: str, tier_of: Callable[[int, int], str]) -> list[str]:
        folder = write_run(tmp_path / name, rounds=6, failing=False)
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        for event in events:
            for number, row in enumerate(event["clients"]):
                row["tier"] = tier_of(event["round"], number)
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        return list(read_run(folder).notes)

    (note,) = notes("bound", lambda round, number: "max" if number < 2 else "min")
    assert note.startswith("Tier max was trained by 2 of 10 clients")
    assert notes("rotating", lambda round, number: "max" if (round + number) % 5 == 0 else "min") == []
    assert notes("untiered", lambda round, number: "") == []


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([1, 2, 2, 3], "line 3: holds round 2, where round 3 belongs"),
        ([1, 3], "line 2: holds round 3, where round 2 belongs"),
        ([2, 3], "line 1: holds round 2, where round 1 belongs"),
    ],
)
def test_rounds_that_do_not_follow_each_other_are_an_error(
    write_run: WriteRun, tmp_path: Path, order: list[int], message: str
) -> None:
    folder = write_run(tmp_path / "r1", rounds=3, done=False)
    lines = (folder / "events.jsonl").read_text().splitlines()
    (folder / "events.jsonl").write_text("".join(lines[round - 1] + "\n" for round in order))
    with pytest.raises(RunError, match=message):
        read_run(folder)


def test_a_record_that_was_given_up_is_told(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r1", rounds=4, done=False)
    lines = (folder / "events.jsonl").read_text().splitlines()
    (folder / "events.lost.jsonl").write_text("".join(line + "\n" for line in (lines[0], "{")))
    (folder / "events.jsonl").write_text("".join(line + "\n" for line in lines[2:]))
    run = read_run(folder)
    assert [event.round for event in run.rounds] == [3, 4] and run.done == 4
    assert any(note.startswith("Rounds 1 to 2 are not recorded") for note in run.notes)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.toml", "a = = 1", "config.toml: is not valid TOML"),
        ("config.toml", None, "no run lies here"),
        ("events.jsonl", '{"round": 1\n{}\n', "events.jsonl, line 1: is not JSON"),
        ("events.jsonl", '{"round": 1}\n', "line 1: field 'loss' is missing"),
        ("events.jsonl", "[1]\n", r"line 1: holds \[1\], which is no event"),
        ("result.json", "{", "result.json: is not JSON"),
        ("result.json", "[]", r"result.json: holds \[\], needed is an object"),
        ("result.json", "{}", "result.json: field 'run' is missing"),
        ("frontier.json", '[{"macs": 1}]', "frontier.json, row 1: field 'params' is missing"),
        ("frontier.json", "{}", "frontier.json: holds a dict, needed is a list"),
        ("seconds.json", '{"start": "long"}', "seconds.json: does not hold the seconds of each phase"),
    ],
)
def test_damaged_files_are_named(
    write_run: WriteRun, file: str, content: str | None, message: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "r1", rounds=2)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(RunError, match=message):
        read_run(folder)


def test_a_wrong_value_is_named_with_its_field(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r1", rounds=2)
    events = (folder / "events.jsonl").read_text()
    (folder / "events.jsonl").write_text(events.replace('"macs": 400000', '"macs": "few"'))
    with pytest.raises(RunError, match=r"line 1: field 'clients.\d.macs' holds 'few', needed is a whole number"):
        read_run(folder)
    (folder / "events.jsonl").write_text(events)
    result = json.loads((folder / "result.json").read_text())
    del result["models"][1]["budget"]
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(RunError, match="result.json: field 'models.1.budget' is missing"):
        read_run(folder)
