"""Settings beside `resume`: obeyed if no round that is done would have been another, else refused by name."""

from __future__ import annotations

import errno
import re
import shutil
import tomllib
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from contracts.fleets import Stopping
from contracts.records import recorded

from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.settings import describe, flatten, read
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct, settle
from fednas_core.runs.folder import RunFolder, all_runs
from fednas_core.runs.owner import owned

LATER = {setting.key for setting in describe() if setting.later}


def run(
    pairs: dict[str, Any], stopped: int | None = None, given: Collection[str] | None = None
) -> tuple[RunFolder, list[str]]:
    """Conduct a run to its end or until it is stopped after so many rounds; return its folder and what it said."""
    config = settle(read(pairs), given)
    said: list[str] = []
    fleet = LocalFleet(config)
    if stopped is None:
        return conduct(config, fleet, said.append), said
    with pytest.raises(KeyboardInterrupt):
        conduct(config, Stopping(fleet, stopped), said.append)
    return RunFolder((Path(config.output) / "latest").resolve()), said


def losses(folder: RunFolder) -> list[float]:
    return [event["loss"] for event in recorded(folder.events())]


@pytest.fixture
def begun(tiny_pairs: dict[str, Any], light: None) -> dict[str, Any]:
    """What resumes a run of four rounds that was stopped after two."""
    run({**tiny_pairs, "rounds": 4}, stopped=2)
    return {"output": tiny_pairs["output"], "resume": "latest"}


def test_more_rounds_are_trained_and_those_done_stay_as_they_are(
    begun: dict[str, Any], tiny_pairs: dict[str, Any]
) -> None:
    folder = RunFolder((Path(begun["output"]) / "latest").resolve())
    before = losses(folder)
    assert len(before) == 2
    resumed, said = run({**begun, "rounds": 6})
    assert resumed.path == folder.path and losses(resumed)[:2] == before and len(losses(resumed)) == 6
    assert "from round 3 on: rounds 4 → 6" in "\n".join(said) and "rounds that are done stay as they are" in said[1]


def test_a_finished_run_goes_on_with_more_rounds(begun: dict[str, Any]) -> None:
    finished, _ = run(begun)
    assert len(losses(finished)) == finished.read_json("result.json")["rounds"] == 4
    longer, _ = run({**begun, "rounds": 5})
    assert longer.path == finished.path and longer.read_json("result.json")["rounds"] == 5


def test_a_run_that_names_no_format_goes_on_in_that_which_it_was_begun_in(begun: dict[str, Any]) -> None:
    path = Path(begun["output"]) / "latest" / "config.toml"
    table = tomllib.loads(path.read_text())
    assert table["format"] == 2 and [one["name"] for one in table["metrics"]] == ["accuracy"]
    older = {key: value for key, value in table.items() if key not in ("format", "metrics", "search")}
    path.write_text(tomli_w.dumps(older))
    finished, _ = run({**begun, "rounds": 3})
    assert finished.head().format == 1 and [event.round for event in finished.events()] == [1, 2, 3]
    assert finished.result().rounds == 3 and "format" not in tomllib.loads(path.read_text())


def test_a_run_of_a_format_that_is_not_known_does_not_go_on(begun: dict[str, Any]) -> None:
    path = Path(begun["output"]) / "latest" / "config.toml"
    path.write_text(path.read_text().replace("format = 2", "format = 9"))
    with pytest.raises(RunError, match="recorded in format 9, this fednas reads 1 and 2"):
        run(begun)


def test_what_changes_is_noted_beside_what_was(begun: dict[str, Any]) -> None:
    folder, _ = run({**begun, "rounds": 5, "evaluate-every": 2, "deadline": 50.0}, stopped=3)
    run({**begun, "rounds": 3})
    table = tomllib.loads((folder.path / "config.toml").read_text())
    assert [table["settings"][key] for key in ("rounds", "evaluate-every", "deadline")] == [3, 2, 50.0]
    assert table["changed"] == [
        {
            "after-round": 2,
            "before": {"rounds": 4, "evaluate-every": 1, "deadline": 600.0},
            "after": {"rounds": 5, "evaluate-every": 2, "deadline": 50.0},
        },
        {"after-round": 3, "before": {"rounds": 5}, "after": {"rounds": 3}},
    ]
    assert table["versions"] and len(folder.events()) == 3


def test_a_run_that_other_arithmetic_goes_on_with_says_so_and_notes_it(begun: dict[str, Any]) -> None:
    path = Path(begun["output"]) / "latest" / "config.toml"
    here = tomllib.loads(path.read_text())
    there = tomllib.loads(path.read_text())
    there["server"]["train.precision"], there["versions"]["torch"] = "fp8", "1.0"
    path.write_text(tomli_w.dumps(there))
    _, said = run({**begun, "rounds": 2}, given={"rounds"})
    precision, torch = here["server"]["train.precision"], here["versions"]["torch"]
    told = (
        f"from round 3 on, other than the rounds before: train.precision fp8 → {precision}, torch 1.0 → {torch}. What"
    )
    assert sum(told in text for text in said) == 1
    table = tomllib.loads(path.read_text())
    assert (table["server"], table["versions"]) == (here["server"], here["versions"])
    before, after = {"train.precision": "fp8", "torch": "1.0"}, {"train.precision": precision, "torch": torch}
    assert table["changed"][-1] == {"after-round": 2, "before": before, "after": after}


def test_a_run_resumed_without_settings_keeps_its_file(begun: dict[str, Any]) -> None:
    path = Path(begun["output"]) / "latest" / "config.toml"
    before = path.read_bytes()
    run(begun)
    assert path.read_bytes() == before


def another(key: str) -> tuple[Any, Any]:
    """Two values that a setting may have."""
    setting = next(setting for setting in describe() if setting.key == key)
    if setting.choices:
        return setting.choices[0], setting.choices[-1]
    if isinstance(setting.default, str):
        return setting.default, "x"
    if isinstance(setting.default, bool):
        return setting.default, not setting.default
    between = (setting.low or 0) + 1 if setting.high is None else setting.high
    return setting.low, type(setting.default)(between)


@pytest.mark.parametrize("key", [key for key in flatten(read({})) if key not in LATER | {"resume"}])
def test_what_would_have_made_another_past_is_refused_by_name(key: str, tmp_path: Path) -> None:
    before, after = another(key)
    folder = tmp_path / "a-run"
    folder.mkdir()
    (folder / "config.toml").write_text(tomli_w.dumps({"settings": {key: before}}))
    given = {"output": str(tmp_path), "resume": "a-run", key: after, "deadline": 50.0}
    with pytest.raises(ConfigError) as refused:
        settle(read(given), given)
    told = str(refused.value)
    assert re.search(rf"{re.escape(key)} = \S+ instead of", told) and "deadline" not in told
    assert f"fednas run --config {folder / 'config.toml'} --set" in told


@pytest.mark.parametrize("key", sorted(LATER - {"rounds", "output"}))
def test_what_leaves_the_past_as_it_is_may_change(key: str, tmp_path: Path) -> None:
    before, after = another(key)
    if key == "data.path":
        after = str(tmp_path / "images")
    (tmp_path / "a-run").mkdir()
    (tmp_path / "a-run" / "config.toml").write_text(tomli_w.dumps({"settings": {key: before}}))
    given = {"output": str(tmp_path), "resume": "a-run", key: after}
    assert flatten(settle(read(given), given))[key] == after != before


def test_the_same_value_again_and_auto_are_no_change(begun: dict[str, Any], tiny_pairs: dict[str, Any]) -> None:
    again = settle(read({**begun, "train.epochs": tiny_pairs["train.epochs"], "space.name": "auto"}), ["space.name"])
    assert again.rounds == 4 and again.space.name == tiny_pairs["space.name"]


def test_a_default_that_was_given_is_obeyed_and_one_that_was_not_is_none(begun: dict[str, Any]) -> None:
    assert settle(read(begun)).evaluate_every == 1
    assert settle(read({**begun, "evaluate-every": 5}), ["resume", "evaluate-every"]).evaluate_every == 5
    with pytest.raises(ConfigError, match=r"train\.epochs = 5 instead of 1"):
        settle(read({**begun, "train.epochs": 5}), ["resume", "train.epochs"])


def test_fewer_rounds_than_are_done_are_refused(begun: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"'rounds' = 1: run '.*' has done 2"):
        settle(read({**begun, "rounds": 1}))
    assert settle(read({**begun, "rounds": 2})).rounds == 2


def test_more_rounds_than_a_damaged_checkpoint_holds_are_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "a-run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "a-run" / "config.toml").write_text("[settings]\n")
    (tmp_path / "a-run" / "checkpoint" / "state.json").write_text('{"round": null}')
    with pytest.raises(RunError, match="its checkpoint in .* is damaged"):
        settle(read({"output": str(tmp_path), "resume": "a-run", "rounds": 9}))


@pytest.mark.parametrize("more", [{"method": "ddc"}, {"sample.shrink": "d"}])
def test_rounds_are_refused_where_later_rounds_build_on_their_number(tmp_path: Path, more: dict[str, str]) -> None:
    (tmp_path / "a-run").mkdir()
    lines = "".join(f'"{key}" = "{value}"\n' for key, value in more.items())
    (tmp_path / "a-run" / "config.toml").write_text("[settings]\n" + lines)
    with pytest.raises(ConfigError, match="rounds = 50 instead of 40"):
        settle(read({"output": str(tmp_path), "resume": "a-run", "rounds": 50}))


def test_images_may_move_but_not_change(tiny_pairs: dict[str, Any], light: None, tmp_path: Path) -> None:
    import numpy as np

    def images(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        x, y = rng.integers(0, 255, (200, 8, 8, 1), dtype=np.uint8), np.arange(200) % 10
        return {"x_train": x, "y_train": y, "x_test": x[:20], "y_test": y[:20]}

    for name, seed in (("here", 1), ("there", 1), ("other", 2)):
        np.savez(tmp_path / f"{name}.npz", **images(seed))
    pairs = {**tiny_pairs, "data.source": "npz", "data.path": str(tmp_path / "here.npz")}
    run(pairs, stopped=1)
    shutil.move(tmp_path / "here.npz", tmp_path / "gone.npz")
    again = {"output": pairs["output"], "resume": "latest"}
    with pytest.raises(RunError, match="has trained on other images"):
        run({**again, "data.path": str(tmp_path / "other.npz")})
    assert len(run({**again, "data.path": str(tmp_path / "there.npz")})[0].events()) == 2


@pytest.mark.parametrize("other_disk", [False, True])
def test_a_run_goes_on_in_another_output(
    begun: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_disk: bool
) -> None:
    """Its folder moves there; on another file system (renaming between them fails) it is copied first."""
    folder, elsewhere, rename = (Path(begun["output"]) / "latest").resolve(), tmp_path / "elsewhere", Path.rename

    def renamed(path: Path, target: Path) -> Path:
        if other_disk and path.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(RunError, match=f"no run '{folder.name}' in {elsewhere}.*and none in"):
        settle(read({"output": str(elsewhere), "resume": folder.name}))
    with owned(folder), pytest.raises(RunError, match="is going on"):
        settle(read({"output": str(elsewhere), "resume": folder.name}), usual=folder.parent)
    config = settle(read({"output": str(elsewhere), "resume": folder.name}), usual=folder.parent)
    assert config.output == str(elsewhere) and not folder.exists()
    assert (elsewhere / "latest").resolve() == elsewhere / folder.name
    assert not list(folder.parent.iterdir()), "link latest too would lead to nothing"
    with closing(LocalFleet(config)) as fleet:
        resumed = conduct(config, fleet, lambda text: None)
    assert resumed.path == elsewhere / folder.name and len(resumed.events()) == 4


def stub(folder: Path) -> Path:
    """Make what passes for a run that may be moved."""
    (folder / "models").mkdir(parents=True)
    (folder / "config.toml").write_text("[settings]\n")
    (folder / "models" / "link").symlink_to("nowhere")
    return folder


@pytest.fixture
def two_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have renaming from one folder into another fail, as it does between file systems."""
    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        if path.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)


def test_a_run_on_another_disk_with_a_link_in_output_stays_there(tmp_path: Path, two_disks: None) -> None:
    big, runs = stub(tmp_path / "big" / "a-run"), tmp_path / "runs"
    runs.mkdir()
    (runs / "a-run").symlink_to(big)
    (runs / "latest").symlink_to("a-run")
    for name in ("a-run", "latest"):
        config = settle(read({"output": str(runs), "resume": name}), usual=runs)
        assert (Path(config.output) / config.resume).samefile(big) and (runs / "a-run").is_symlink()
    moved = settle(read({"output": str(tmp_path / "new"), "resume": "a-run"}), usual=runs)
    assert moved.output == str(tmp_path / "new") and not big.exists() and not (runs / "latest").is_symlink()


def test_latest_is_the_newest_run_that_is_left(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        stub(tmp_path / name)
    (tmp_path / "latest").symlink_to("c")
    settle(read({"output": str(tmp_path / "new"), "resume": "a"}), usual=tmp_path)
    assert (tmp_path / "latest").resolve() == tmp_path / "c"
    settle(read({"output": str(tmp_path / "new"), "resume": "c"}), usual=tmp_path)
    assert (tmp_path / "latest").resolve() == tmp_path / "b" and (tmp_path / "new" / "latest").resolve().name == "c"


def test_a_copy_is_on_the_disk_before_the_run_is_removed_where_it_was(
    tmp_path: Path, two_disks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, new, synced = stub(tmp_path / "runs" / "a-run"), tmp_path / "new", set[Path]()

    def noted(path: Path) -> None:
        assert (folder / "config.toml").is_file() or path == new
        synced.add(path.relative_to(new))

    monkeypatch.setattr("fednas_core.runs.moving.sync", noted)
    settle(read({"output": str(new), "resume": "a-run"}), usual=folder.parent)
    copy = Path(".a-run.part")
    assert {Path(), copy, copy / "config.toml", copy / "models"} <= synced and not folder.exists()


def test_what_cannot_be_removed_after_a_move_is_no_run(
    tmp_path: Path, two_disks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, unlink = stub(tmp_path / "runs" / "a-run"), shutil.os.unlink  # type: ignore[attr-defined]

    def refused(path: Any, *, dir_fd: int | None = None) -> None:
        if path == "config.toml":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(shutil.os, "unlink", refused)  # type: ignore[attr-defined]
    config = settle(read({"output": str(tmp_path / "new"), "resume": "a-run"}), usual=folder.parent)
    assert config.output == str(tmp_path / "new") and all_runs(tmp_path / "new") == [RunFolder(tmp_path / "new/a-run")]
    assert (folder.parent / ".a-run.part" / "config.toml").is_file() and not all_runs(folder.parent)


def test_a_run_whose_folder_cannot_be_taken_away_is_not_there_twice(
    tmp_path: Path, two_disks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, new, rename = stub(tmp_path / "runs" / "a-run"), tmp_path / "new", Path.rename

    def renamed(path: Path, target: Path) -> Path:
        if path == folder and target.parent == folder.parent:
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(RunError, match=r"cannot move from .*Permission denied"):
        settle(read({"output": str(new), "resume": "a-run"}), usual=folder.parent)
    assert (folder / "config.toml").is_file() and not list(new.iterdir())


def test_a_run_stays_where_it_is_if_it_cannot_move(
    begun: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, wanted = (Path(begun["output"]) / "latest").resolve(), tmp_path / "a file"
    wanted.write_text("")
    with pytest.raises(RunError, match=f"cannot move from {folder.parent} to {wanted}"):
        settle(read({"output": str(wanted), "resume": folder.name}), usual=folder.parent)
    assert (folder / "config.toml").is_file() and len(run({**begun, "resume": folder.name})[0].events()) == 4
