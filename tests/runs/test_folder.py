from __future__ import annotations

import errno
import json
import os
import re
from contextlib import ExitStack
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.records import event as made

from fednas_core.base import files
from fednas_core.base.config import RunConfig
from fednas_core.base.errors import RunError
from fednas_core.base.settings import read
from fednas_core.base.values import State
from fednas_core.cli.runs import run_folder
from fednas_core.runs import creation
from fednas_core.runs import folder as module
from fednas_core.runs.creation import create
from fednas_core.runs.folder import RunFolder, all_runs, find, output_folder


def config(root: Path, **pairs: Any) -> RunConfig:
    return read({"output": str(root), **pairs})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create(config(tmp_path / "runs"))


def state(value: float) -> State:
    return State({"a": torch.full((2, 3), value), "b": torch.arange(3.0)}, {"sampler": {"n": {"c": 2}}})


# -- making and finding --------------------------------------------------------------------------------------------


def test_create_writes_settings_and_versions(tmp_path: Path) -> None:
    settings = config(tmp_path / "deep" / "runs", rounds=7, method="fedavg")
    run = create(settings)
    assert run.id.endswith("-fedavg") and run.config() == settings
    text = (run.path / "config.toml").read_text()
    assert "[versions]" in text and f'torch = "{version("torch")}"' in text and "numpy" in text
    assert run.events() == ()


def test_runs_of_one_second_have_names_of_their_own_in_the_order_of_their_start(tmp_path: Path) -> None:
    here, there = ([create(config(tmp_path / name)) for _ in range(5)] for name in ("here", "there"))
    assert len({run.id for run in here + there}) == 10
    assert all_runs(tmp_path / "here") == here and find(tmp_path / "here", "latest") == here[-1]


def test_names_differ_even_at_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Stopped:
            return cls(2026, 3, 4, 5, 6, 7, 250_000)

    monkeypatch.setattr(creation, "datetime", Stopped)
    ids = {create(config(tmp_path / str(number), method="fedper")).id for number in range(5)}
    assert len(ids) == 5 and all(re.fullmatch(r"20260304-050607-400[0-9a-f]{8}-fedper", name) for name in ids)


def test_latest_is_no_other_run_where_it_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(config(tmp_path))

    def full(self: Path, target: object, target_is_directory: bool = False) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "symlink_to", full)
    create(config(tmp_path))
    with pytest.raises(RunError, match="no run 'latest'"):
        find(tmp_path, "latest")


def test_latest_is_the_last_run_and_no_run_of_its_own(tmp_path: Path) -> None:
    first, second = create(config(tmp_path)), create(config(tmp_path))
    assert find(tmp_path, "latest").id == second.id
    assert (tmp_path / "latest").is_symlink() and os.readlink(tmp_path / "latest") == second.id
    assert len(all_runs(tmp_path)) == 2
    assert find(tmp_path, first.id) == first


def test_a_file_system_without_links_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: object, target_is_directory: bool = False) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    run = create(config(tmp_path))
    assert not (tmp_path / "latest").exists() and find(tmp_path, run.id) == run


def test_a_disk_that_takes_no_link_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    creation.point_latest(tmp_path / "run")


def test_folders_that_are_no_runs_are_passed_over(tmp_path: Path) -> None:
    assert all_runs(tmp_path / "nowhere") == []
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("x")
    run = create(config(tmp_path))
    assert all_runs(tmp_path) == [run]


def test_a_run_on_another_disk_is_listed_by_its_link_and_leftovers_are_not(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    here, there = create(config(runs)), create(config(tmp_path / "big"))
    (runs / there.id).symlink_to(there.path)
    (runs / "best").symlink_to(here.id)
    (runs / f".{here.id}.part").mkdir()
    (runs / f".{here.id}.part" / "config.toml").write_text("[settings]\n")
    assert {run.id for run in all_runs(runs)} == {here.id, there.id}
    (runs / "latest").unlink()
    (runs / "latest").symlink_to(there.id)
    assert run_folder(runs, "latest") == run_folder(runs, there.id) == runs / there.id


@pytest.mark.parametrize("step", ["fsync", "pwrite"])
def test_a_disk_that_is_full_at_the_start_is_left_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, ExitStack() as stack:
        patch.setattr(os, step, full)
        with pytest.raises(RunError, match=r"^setting 'output': runs .*No space left on device") as told:
            create(config(tmp_path), stack)
        assert "resume" not in str(told.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("run_id", ["nothing", "", ".", "..", "../runs", "a/b", "/etc", "-x", "x" * 101, "a\n", "ü"])
def test_an_id_that_is_no_run_is_refused_naming_those_there_are(tmp_path: Path, run_id: str) -> None:
    run = create(config(tmp_path / "runs"))
    create(config(tmp_path / "a"))
    with pytest.raises(RunError, match=f"(?s)there is no run .* the latest there: {run.id}"):
        find(tmp_path / "runs", run_id)


def test_a_path_out_of_the_folder_is_refused_even_if_a_run_is_there(tmp_path: Path) -> None:
    other = create(config(tmp_path / "other"))
    (tmp_path / "runs").mkdir()
    with pytest.raises(RunError, match="the latest there: none"):
        find(tmp_path / "runs", f"../other/{other.id}")


def test_a_latest_that_dangles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("gone")
    with pytest.raises(RunError, match="there is no run 'latest'"):
        find(tmp_path, "latest")


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="setting 'output': runs cannot be written to .*file"):
        create(config(tmp_path / "file"))
    with pytest.raises(RunError, match="setting 'output': runs cannot be written to .*file/runs"):
        create(config(tmp_path / "file" / "runs"))


def test_output_is_runs_here_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert output_folder(RunConfig()) == tmp_path / "runs"
    assert output_folder(read({"output": "~/there"})) == tmp_path / "home" / "there"


@pytest.mark.parametrize("text", ["", "settings = 3", "[settings]\nrounds = ", "\x00", "[other]\n"])
def test_damaged_settings_are_refused_naming_the_file(run: RunFolder, text: str) -> None:
    (run.path / "config.toml").write_text(text)
    with pytest.raises(RunError, match=r"its settings cannot be read from .*config\.toml"):
        run.config()


# -- events --------------------------------------------------------------------------------------------------------


def test_events_are_appended_and_read_in_order(run: RunFolder) -> None:
    events = tuple(made({"round": i, "loss": 1 / i, "clients": [{"client": "ü\u2028"}]}) for i in range(1, 4))
    for event in events:
        run.append_event(event)
    assert run.events() == events
    assert len((run.path / "events.jsonl").read_bytes().split(b"\n")) == 4


# -- checkpoints ---------------------------------------------------------------------------------------------------


def same(one: State, two: State) -> bool:
    return (
        list(one.tensors) == list(two.tensors)
        and all(torch.equal(one.tensors[n], two.tensors[n]) for n in one.tensors)
        and one.data == two.data
    )


def test_a_checkpoint_comes_back_as_it_was(run: RunFolder) -> None:
    for round in (1, 2, 3):
        run.save_checkpoint(round, state(round / 3))
    done, found = run.load_checkpoint()
    assert done == 3 and same(found, state(1.0))
    names = sorted(path.name for path in (run.path / "checkpoint").iterdir())
    assert names == ["state.json", "supernet-000003.safetensors"]


def test_views_and_channels_last_tensors_are_saved_by_value(run: RunFolder) -> None:
    whole = torch.arange(24.0).reshape(1, 2, 3, 4)
    tensors = {"view": whole[..., ::2], "last": whole.to(memory_format=torch.channels_last), "whole": whole}
    run.save_checkpoint(1, State(tensors))
    assert all(torch.equal(run.load_checkpoint()[1].tensors[n], t) for n, t in tensors.items())


@pytest.mark.parametrize("killed_at", ["tensors", "state", "rename"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_a_kill_while_saving_leaves_the_checkpoint_before(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, killed_at: str, kind: type[BaseException]
) -> None:
    run.save_checkpoint(1, state(1.0))

    def killed(*_: object, **__: object) -> None:
        raise kind("killed")

    def torn(tensors: object, path: str) -> None:
        Path(path).write_bytes(b"\x10\x00")
        raise kind("killed")

    with monkeypatch.context() as patch:
        if killed_at == "tensors":
            patch.setattr("safetensors.torch.save_file", torn)
        elif killed_at == "state":
            patch.setattr(module.json, "dumps", killed)
        else:
            patch.setattr(files.os, "replace", killed)
        with pytest.raises((KeyboardInterrupt, RunError), match="killed"):
            run.save_checkpoint(2, state(2.0))
    done, found = run.load_checkpoint()
    assert done == 1 and same(found, state(1.0))
    run.save_checkpoint(2, state(2.0))
    assert run.load_checkpoint()[0] == 2
    assert len(list((run.path / "checkpoint").glob("*.safetensors"))) == 1


def test_a_kill_before_the_old_tensors_are_removed_is_harmless(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException] = KeyboardInterrupt
) -> None:
    run.save_checkpoint(1, state(1.0))

    def killed(self: Path, missing_ok: bool = False) -> None:
        raise kind("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises((KeyboardInterrupt, RunError), match="killed"):
            run.save_checkpoint(2, state(2.0))
    done, found = run.load_checkpoint()
    assert done == 2 and same(found, state(2.0))


def test_what_a_kill_left_unfinished_is_cleared_on_the_way_back(run: RunFolder) -> None:
    run.append_event(made({"round": 1}))
    run.save_checkpoint(1, state(1.0))
    kept = {path for path in run.path.rglob("*") if path.is_file()}
    (run.path / "models" / ".export-x1" / "phone").mkdir(parents=True)
    for name in (".result.json.0a1b.part", "checkpoint/.tmpAbC", "checkpoint/supernet-000002.safetensors"):
        (run.path / name).write_text("half")
    run.rewind()
    assert {path for path in run.path.rglob("*") if path.is_file()} == kept
    assert not list((run.path / "models").iterdir()) and run.load_checkpoint()[0] == 1


def test_no_checkpoint_is_said_so(run: RunFolder) -> None:
    with pytest.raises(RunError, match=f"run '{run.id}' has no checkpoint to continue from .*start it anew"):
        run.load_checkpoint()


def test_missing_tensors_are_said_so(run: RunFolder) -> None:
    run.save_checkpoint(1, state(1.0))
    (run.path / "checkpoint" / "supernet-000001.safetensors").unlink()
    with pytest.raises(RunError, match=r"is damaged .*supernet-000001\.safetensors"):
        run.load_checkpoint()


@pytest.mark.parametrize("keep", [0, 4, 30, -5])
def test_truncated_tensors_are_said_so(run: RunFolder, keep: int) -> None:
    run.save_checkpoint(1, state(1.0))
    path = run.path / "checkpoint" / "supernet-000001.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match="checkpoint in .* is damaged"):
        run.load_checkpoint()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"round": 1, "tensors": "x"}',
        '{"round": 1, "tensors": "supernet-000001.safetensors", "data": {}}',
    ],
)
def test_a_damaged_state_is_said_so(run: RunFolder, text: str) -> None:
    run.save_checkpoint(1, state(1.0))
    (run.path / "checkpoint" / "state.json").write_text(text)
    with pytest.raises(RunError, match="checkpoint in .* is damaged"):
        run.load_checkpoint()


@pytest.mark.parametrize("text", ["[]", "{}", '{"round": null}', "3", "null", "{"])
def test_a_damaged_state_is_said_so_by_all_that_read_it(run: RunFolder, text: str) -> None:
    assert run.done() == 0
    run.save_checkpoint(2, state(1.0))
    assert run.done() == 2
    (run.path / "checkpoint" / "state.json").write_text(text)
    for reading in (run.done, run.rewind):
        with pytest.raises(RunError, match="checkpoint in .* is damaged"):
            reading()


@pytest.mark.parametrize("wrong", [{"round": "one"}, {"round": -1}, {"data": []}, {"sha256": None}, {"tensors": "x"}])
def test_a_state_with_one_wrong_value_is_said_so(run: RunFolder, wrong: dict[str, Any]) -> None:
    run.save_checkpoint(1, state(1.0))
    path = run.path / "checkpoint" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(RunError, match="checkpoint in .* is damaged"):
        run.load_checkpoint()


@pytest.mark.parametrize("mark", [None, [], {}, {"bytes": "x", "sha256": ""}, {"bytes": 0}])
def test_a_damaged_end_of_the_record_is_said_so(run: RunFolder, mark: object) -> None:
    run.save_checkpoint(1, state(1.0))
    path = run.path / "checkpoint" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"events": mark}))
    with pytest.raises(RunError, match="checkpoint in .* is damaged"):
        run.rewind()


def test_tensors_that_are_not_those_of_the_state_are_refused(run: RunFolder) -> None:
    """They may be whole, and of the right names and shapes."""
    other = create(config(run.path.parent))
    other.save_checkpoint(1, state(2.0))
    run.save_checkpoint(1, state(1.0))
    path = run.path / "checkpoint" / "supernet-000001.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-1] ^= 0b11
    for content in (bytes(flipped), (other.path / "checkpoint" / path.name).read_bytes()):
        path.write_bytes(content)
        with pytest.raises(RunError, match=rf"damaged \({path.name} is not what it was when state\.json was saved\)"):
            run.load_checkpoint()


def test_a_state_cannot_name_tensors_elsewhere(run: RunFolder, tmp_path: Path) -> None:
    run.save_checkpoint(1, state(1.0))
    outside = tmp_path / "supernet.safetensors"
    (run.path / "checkpoint" / "supernet-000001.safetensors").rename(outside)
    noted = json.loads((run.path / "checkpoint" / "state.json").read_text())
    (run.path / "checkpoint" / "state.json").write_text(json.dumps(noted | {"tensors": str(outside)}))
    with pytest.raises(RunError, match="is damaged"):
        run.load_checkpoint()


# -- images --------------------------------------------------------------------------------------------------------


def test_the_digest_of_the_images_comes_back(run: RunFolder) -> None:
    assert run.images() == ""
    run.note_images("ab12")
    assert run.images() == "ab12"


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"sha256": 3}'])
def test_a_damaged_digest_of_the_images_is_said_so(run: RunFolder, text: str) -> None:
    (run.path / "images.json").write_text(text)
    with pytest.raises(RunError, match=r"images\.json does not hold the digest .* delete it"):
        run.images()


# -- results -------------------------------------------------------------------------------------------------------


def test_results_come_back(run: RunFolder) -> None:
    run.write_json("result.json", {"models": [1.5, "ü"]})
    assert run.read_json("result.json") == {"models": [1.5, "ü"]}


def test_missing_and_damaged_results_are_said_so(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"has no result\.json: the run did not finish; resume it"):
        run.read_json("result.json")
    (run.path / "result.json").write_text("{")
    with pytest.raises(RunError, match=r"result\.json is damaged"):
        run.read_json("result.json")


def test_a_full_disk_is_said_so(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    words = r"cannot be written to .*No space left on device.*make room .* then resume the run"
    with pytest.raises(RunError, match=words):
        run.save_checkpoint(1, state(1.0))
    with pytest.raises(RunError, match=words):
        run.write_json("result.json", {})
    (run.path / "events.jsonl").mkdir()
    with pytest.raises(RunError, match="cannot be written to .*resume the run"):
        run.append_event(made({"round": 1}))
