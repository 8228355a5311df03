from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fednas_core.base.errors import RunError
from fednas_core.base.values import State
from fednas_core.tasks import store as store_module
from fednas_core.tasks.home import Home
from fednas_core.tasks.store import Store, store_of

ODD = [
    "",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "c\0d",
    "\n",
    "Ü 漢",
    "con",
    "x" * 5000,
    "\ud800",
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "state")


def state(value: float, data: Mapping[str, Any] | None = None) -> State:
    return State({"a.weight": torch.full((2, 3), value), "b": torch.tensor([value])}, data or {"seen": value})


def value_of(found: State | None) -> float | None:
    return None if found is None else float(found.tensors["b"])


def files(store: Store) -> list[Path]:
    return sorted(path for path in store.root.rglob("*") if path.is_file())


def test_a_state_comes_back_as_it_went(store: Store) -> None:
    whole = torch.arange(12.0).view(3, 4)
    sent = State({"view": whole[:, 1:3], "half": torch.ones(2, dtype=torch.bfloat16)}, {"list": [1, "ü", None]})
    store.save("run", "client", "head", 4, sent)
    back = store.load("run", "client", "head", 5)
    assert back is not None and back.data == sent.data and set(back.tensors) == set(sent.tensors)
    assert all(torch.equal(back.tensors[n], t) and back.tensors[n].dtype == t.dtype for n, t in sent.tensors.items())
    store.save("run", "client", "empty", 0, State({}))
    assert store.load("run", "client", "empty", 1) == State({}, {})


def test_there_is_nothing_before_the_first_save(store: Store) -> None:
    assert store.load("run", "client", "residual", 10**9) is None
    assert not store.root.exists()
    store.forget("run")


def test_a_round_that_is_repeated_finds_the_state_from_before_it(store: Store) -> None:
    for round in (0, 3, 7):
        assert value_of(store.load("run", "c", "r", round)) == {0: None, 3: 0.0, 7: 3.0}[round]
        store.save("run", "c", "r", round, state(float(round)))
    assert value_of(store.load("run", "c", "r", 8)) == 7.0
    assert value_of(store.load("run", "c", "r", 7)) == 3.0  # the server was killed in round 7 and resumes it
    store.save("run", "c", "r", 7, state(7.5))
    assert value_of(store.load("run", "c", "r", 8)) == 7.5


def test_the_two_newest_rounds_are_kept(store: Store) -> None:
    for round in range(12):
        store.save("run", "c", "r", round, state(float(round)))
    assert [path.name.split(".")[1] for path in files(store)] == ["10", "11"]
    assert value_of(store.load("run", "c", "r", 10)) is None
    store.save("run", "c", "r", 5, state(5.0))  # an older checkpoint was resumed: what came after it never happened
    assert [path.name.split(".")[1] for path in files(store)] == ["5"]


def test_runs_clients_and_purposes_are_apart(store: Store) -> None:
    keys = [("run", "c", "r"), ("run2", "c", "r"), ("run", "c2", "r"), ("run", "c", "r2"), ("run", "C", "r")]
    for index, key in enumerate(keys):
        store.save(*key, 1, state(float(index)))
    assert [value_of(store.load(*key, 2)) for key in keys] == [0.0, 1.0, 2.0, 3.0, 4.0]
    store.forget("run")
    assert [value_of(store.load(*key, 2)) for key in keys] == [None, 1.0, None, None, None]


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "no data", "gone"])
def test_a_damaged_file_counts_as_absent(store: Store, damage: str) -> None:
    store.save("run", "c", "r", 1, state(1.0))
    store.save("run", "c", "r", 2, state(2.0))
    newest = files(store)[-1]
    content = newest.read_bytes()
    if damage == "gone":
        newest.unlink()
    elif damage == "no data":
        from safetensors.torch import save

        newest.write_bytes(save({"b": torch.zeros(1)}))
    else:
        newest.write_bytes({"truncated": content[:-5], "empty": b"", "garbage": b"{" * 500}[damage])
    assert value_of(store.load("run", "c", "r", 3)) == 1.0
    store.save("run", "c", "r", 3, state(3.0))
    assert value_of(store.load("run", "c", "r", 4)) == 3.0


def test_foreign_files_are_passed_over(store: Store) -> None:
    store.save("run", "c", "r", 1, state(1.0))
    folder = files(store)[0].parent
    (folder / files(store)[0].name.replace(".1.", ".one.")).write_bytes(b"x")
    (folder / "notes.txt").write_text("mine")
    assert value_of(store.load("run", "c", "r", 9)) == 1.0
    store.save("run", "c", "r", 2, state(2.0))
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("name", ODD)
def test_no_name_leaves_the_folder(store: Store, name: str) -> None:
    store.save(name, name, name, 0, state(1.0))
    assert value_of(store.load(name, name, name, 1)) == 1.0
    (path,) = files(store)
    assert path.resolve().is_relative_to(store.root.resolve()) and len(path.relative_to(store.root).parts) == 3
    assert all(part.isprintable() and len(part) < 100 for part in path.relative_to(store.root).parts)
    assert not [other for other in store.root.parent.iterdir() if other != store.root]
    store.forget(name)
    assert not files(store) and store.root.is_dir()


def test_odd_names_are_apart(store: Store) -> None:
    for index, name in enumerate(ODD):
        store.save("run", name, "r", 0, state(float(index)))
    assert [value_of(store.load("run", name, "r", 1)) for name in ODD] == [float(i) for i in range(len(ODD))]


def test_only_the_owner_can_read(store: Store) -> None:
    store.save("run", "c", "r", 0, state(1.0))
    (path,) = files(store)
    folders = [store.root, path.parent.parent, path.parent]
    assert [oct(folder.stat().st_mode & 0o777) for folder in folders] == ["0o700"] * 3
    assert path.stat().st_mode & 0o077 == 0


def test_a_save_that_fails_leaves_the_old_state_and_no_rubbish(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save("run", "c", "r", 1, state(1.0))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_module.os, "fsync", full)
        with pytest.raises(RunError, match="private state cannot be kept in .*No space left on device.*make room"):
            store.save("run", "c", "r", 2, state(2.0))
    assert len(files(store)) == 1 and value_of(store.load("run", "c", "r", 3)) == 1.0


def test_rubbish_of_a_process_that_was_killed_is_cleared(store: Store) -> None:
    store.save("run", "c", "r", 1, state(1.0))
    (path,) = files(store)
    old, young = (path.with_name(f".{path.name}.{name}.part") for name in ("old", "young"))
    for rest in (old, young):
        rest.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert value_of(store.load("run", "c", "r", 2)) == 1.0
    store.save("run", "c", "r", 2, state(2.0))
    assert not old.exists() and young.exists()  # somebody may be writing that one now


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="private state cannot be kept in .*name another folder with --node-config"):
        Store(tmp_path / "file" / "state").save("run", "c", "r", 0, state(1.0))


def test_a_state_that_may_not_be_read_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save("run", "c", "r", 1, state(1.0))

    def closed(path: str, framework: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store_module, "safe_open", closed)
    with pytest.raises(RunError, match="Permission denied"):
        store.load("run", "c", "r", 2)
    monkeypatch.setattr(store_module.shutil, "rmtree", lambda path: closed(path, "pt"))
    with pytest.raises(RunError, match="Permission denied"):
        store.forget("run")


def test_a_state_survives_its_process(store: Store) -> None:
    program = """
import sys, torch, os
from pathlib import Path
from fednas_core.base.values import State
from fednas_core.tasks.store import Store
Store(Path(sys.argv[1])).save("run", "client-01", "residual", 6, State({"b": torch.tensor([6.5])}, {"a": 1}))
os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", program, str(store.root)], check=False, timeout=120)
    assert done.returncode == 9
    found = store.load("run", "client-01", "residual", 7)
    assert value_of(found) == 6.5 and found is not None and found.data == {"a": 1}


def test_where_the_state_of_a_node_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEDNAS_STATE", raising=False)
    assert store_of(Home()).root == Path.home() / ".cache" / "fednas" / "state"
    monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "state"))
    assert store_of(Home()).root == tmp_path / "state"
    with pytest.raises(RunError, match="belongs in ~nobody-here/x, and there is no home folder: name another"):
        store_of(Home(state="~nobody-here/x"))
    assert store_of(replace(Home(), state="~/mine")).root == Path(os.path.expanduser("~/mine"))
