"""A run on disk: settings, events, checkpoints, results. Everything is JSON, TOML or safetensors; nothing is pickled.

A checkpoint becomes valid by one atomic rename of ``state.json``, which names its tensor file, with its digest, and the
end of the record that it belongs to, so that a run killed at any moment resumes from the last round that was completely
written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import RunError
from fednas_core.base.files import PART, sync, write
from fednas_core.base.paths import real
from fednas_core.base.settings import Scalar, flatten, read
from fednas_core.base.values import State
from fednas_core.runs import events, owner
from fednas_core.runs.events import Events, Mark
from fednas_core.runs.listing import run_folders

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
IMAGES = "images.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder ``runs/<id>/`` and how it is read and written."""

    path: Path

    @property
    def id(self) -> str:
        """The run's name."""
        return self.path.name

    def created_as(self) -> str:
        """Return the name under which the run was created and its clients keep private state, its own if unknown."""
        try:
            table = tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RunError(f"run '{self.id}': its settings cannot be read from {self.path} ({error})") from error
        return str(table.get("id", self.id))

    # -- settings --------------------------------------------------------------------------------------------------

    def config(self) -> RunConfig:
        """Return the settings that the run was started with."""
        path = self.path / "config.toml"
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            return read(table["settings"])
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
            raise RunError(f"run '{self.id}': its settings cannot be read from {path} ({error})") from error

    def revise(self, config: RunConfig, done: int) -> dict[str, tuple[Scalar, Scalar]]:
        """Note the settings that change after `done` rounds; return the value before and the new one of each.

        Table ``settings`` holds what is true from now on; an entry of ``changed`` keeps what was true until then.
        Raises `RunError` if they cannot be written.
        """
        old, new = flatten(self.config()), flatten(config)
        changed = {key: (old[key], new[key]) for key in new if key not in ("resume", "output") and old[key] != new[key]}
        if changed:
            path = self.path / "config.toml"
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            before = {key: pair[0] for key, pair in changed.items()}
            after = {key: pair[1] for key, pair in changed.items()}
            table["settings"] |= after
            table.setdefault("changed", []).append({"after-round": done, "before": before, "after": after})
            with self.writing():
                write(path, tomli_w.dumps(table).encode())
        return changed

    def compute_on(self, server: Mapping[str, str], done: int) -> dict[str, tuple[str, str]]:
        """Note what computes the run after `done` rounds, as `create` did; return before and now of what differs.

        An entry of ``changed`` keeps what was true until then. Raises `RunError` if it cannot be written.
        """
        path = self.path / "config.toml"
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        before, after = {**table.get("server", {}), **table.get("versions", {})}, {**server, **versions()}
        changed = {key: (str(before[key]), after[key]) for key in after if before.get(key, after[key]) != after[key]}
        if changed:
            entry = {"before": {k: pair[0] for k, pair in changed.items()}}
            entry["after"] = {k: pair[1] for k, pair in changed.items()}
            table |= {"server": dict(server), "versions": versions()}
            table.setdefault("changed", []).append({"after-round": done, **entry})
            with self.writing():
                write(path, tomli_w.dumps(table).encode())
        return changed

    # -- events ----------------------------------------------------------------------------------------------------

    def record(self) -> Events:
        """Return the events of ``events.jsonl``; raise `RunError`, naming the line, where it is damaged."""
        return events.read_events(self.path)

    def events(self) -> list[dict[str, Any]]:
        """Return the events of `record`, oldest first."""
        return list(self.record().rounds)

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add one line to ``events.jsonl``; raise `RunError` if it cannot be written."""
        with self.writing():
            events.append_event(self.path, event)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save_checkpoint(self, round: int, state: State) -> None:
        """Save the state after `round` rounds; the one before it stays valid until this one is complete.

        It belongs to the events that are recorded by then. Raises `RunError` if it cannot be written.
        """
        from safetensors.torch import save_file  # with torch, which whoever only looks at runs does without

        folder = self.path / "checkpoint"
        tensors = folder / f"supernet-{round:06d}.safetensors"
        with self.writing():
            folder.mkdir(exist_ok=True)
            save_file({n: tensor.detach().cpu().contiguous() for n, tensor in state.tensors.items()}, str(tensors))
            sync(tensors)
            content = {"round": round, "tensors": tensors.name, "sha256": _digest(tensors), "data": state.data}
            self._save_state({**content, "events": asdict(events.mark(self.path))})
            for old in folder.glob("supernet-*.safetensors"):
                if old != tensors:
                    old.unlink()

    def load_checkpoint(self) -> tuple[int, State]:
        """Return the number of rounds done and the state after them.

        Raises `RunError`, naming the file, if there is none or it is damaged.
        """
        from safetensors.torch import load_file

        with self._reading_checkpoint() as content:
            tensors = self.path / "checkpoint" / Path(str(content["tensors"])).name
            done, data = int(content["round"]), content["data"]
            if done < 0 or not isinstance(data, dict):
                raise ValueError(f"state.json holds round {done} and data of type {type(data).__name__}")
            if _digest(tensors) != content["sha256"]:
                raise ValueError(f"{tensors.name} is not what it was when state.json was saved")
            return done, State(load_file(str(tensors)), data)

    def done(self) -> int:
        """Return the number of rounds that the checkpoint holds, 0 without one; raise `RunError` if it is damaged."""
        if not (self.path / "checkpoint" / "state.json").is_file():
            return 0
        with self._reading_checkpoint() as content:
            return int(content["round"])

    def rewind(self) -> None:
        """Go back to the checkpoint: drop events after it, whose rounds are lived again, and files left unfinished.

        Raises `RunError` if the events until there are not those that it belongs to, or if the folder cannot be
        written.
        """
        with self._reading_checkpoint() as content:
            done, tensors, noted = int(content["round"]), str(content["tensors"]), content["events"]
            mark = Mark(int(noted["bytes"]), str(noted["sha256"]))
        with self.writing():
            if not (self.path / events.FILE).exists() and (self.path / events.LOST).exists():
                mark = events.mark(self.path)  # the user gave the record up
                self._save_state({**content, "events": asdict(mark)})
            events.rewind(self.path, mark, done)
            for rest in self.path.rglob(f".*{PART}"):
                rest.unlink(missing_ok=True)
            for rest in (self.path / "checkpoint").iterdir():
                if rest.name not in ("state.json", tensors):
                    rest.unlink(missing_ok=True)
            for rest in (self.path / "models").glob(".export-*"):
                shutil.rmtree(rest)

    def _save_state(self, content: Mapping[str, Any]) -> None:
        write(self.path / "checkpoint" / "state.json", json.dumps(content).encode() + b"\n")

    @contextlib.contextmanager
    def _reading_checkpoint(self) -> Iterator[dict[str, Any]]:
        path = self.path / "checkpoint" / "state.json"
        if not path.is_file():
            raise RunError(f"run '{self.id}' has no checkpoint to continue from ({path} is missing): start it anew")
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damage = f"run '{self.id}': its checkpoint in {path.parent} is damaged ({error}): start it anew"
            raise RunError(damage) from error

    # -- images ----------------------------------------------------------------------------------------------------

    def note_images(self, digest: str) -> None:
        """Note which images the run's clients share, for runs that start from this one."""
        self.write_json(IMAGES, {"sha256": digest})

    def images(self) -> str:
        """Return the digest of the images that the run's clients share, '' if it was not noted.

        Raises `RunError`, naming the file, if it is damaged.
        """
        if not (self.path / IMAGES).is_file():
            return ""
        noted = self.read_json(IMAGES)
        if not isinstance(noted, dict) or not isinstance(noted.get("sha256"), str):
            raise RunError(
                f"run '{self.id}': {self.path / IMAGES} does not hold the digest of the images: restore it from a "
                "copy; or delete it, and nobody checks that the images are those that the run was started with"
            )
        return str(noted["sha256"])

    # -- results ---------------------------------------------------------------------------------------------------

    def write_json(self, name: str, content: object) -> None:
        """Write a result file such as ``result.json``, atomically; raise `RunError` if it cannot be written."""
        with self.writing():
            write(self.path / name, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")

    def read_json(self, name: str) -> Any:
        """Return the content of a result file; raise `RunError` if it is missing or damaged."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"run '{self.id}' has no {name}: the run did not finish; resume it") from error
        except (OSError, ValueError) as error:
            raise RunError(f"run '{self.id}': {name} is damaged ({error})") from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Have what fails to be written in the block raise `RunError`, which says that it can go on later."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"run '{self.id}' cannot be written to {self.path} ({error}): the rounds before are safe; make room or "
                "mend the disk, then resume the run"
            ) from error


def output_folder(config: RunConfig) -> Path:
    """Return the folder that receives the runs, as an absolute path."""
    return real(config.output or "runs")


def create(config: RunConfig, held: ExitStack | None = None, server: Mapping[str, str] | None = None) -> RunFolder:
    """Make the folder of a new run, with its settings in ``config.toml``, and point ``latest`` at it.

    `server` is what settings that each machine decides for itself came to on this one. This process owns the run until
    `held` is closed (None: nobody does). Its id begins with the time to the second and three hexadecimal digits that
    go on with the time, so that ids sort by it; then come 64 random bits. No two runs have one id, on whichever
    machine, and clients may keep private state under it.
    """
    root, now = output_folder(config), datetime.now()
    fraction = now.microsecond * 4096 // 1_000_000
    path = root / f"{now:%Y%m%d-%H%M%S}-{fraction:03x}{secrets.token_hex(8)}-{config.method}"
    table = {"id": path.name, "settings": flatten(config), "server": dict(server or {}), "versions": versions()}
    try:
        root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undone:
            path.mkdir()
            undone.callback(shutil.rmtree, path, ignore_errors=True)
            if held is not None:
                held.enter_context(owner.owned(path))
            write(path / "config.toml", tomli_w.dumps(table).encode())
            sync(root)
            undone.pop_all()
    except (OSError, RunError) as error:
        why = error.__cause__ if isinstance(error, RunError) else error  # `owned` tells how to resume what is no run
        raise RunError(
            f"setting 'output': runs cannot be written to {root} ({why}): make room or mend the folder, or name another"
        ) from error
    point_latest(path)
    return RunFolder(path)


def find(root: Path, run_id: str) -> RunFolder:
    """Return the run of that id (or ``latest``) below `root`; raise `RunError` naming the runs there are."""
    path = root / run_id
    if ID.fullmatch(run_id) and (path / "config.toml").is_file():
        return RunFolder(path.resolve())
    there = ", ".join(run.id for run in all_runs(root)[-5:]) or "none"
    raise RunError(f"there is no run '{run_id}' in {root}; the latest there: {there}")


def all_runs(root: Path) -> list[RunFolder]:
    """Return the runs below `root`, oldest first."""
    return [RunFolder(path) for path in run_folders(root)]


def versions() -> dict[str, str]:
    """Return the versions of what computed a run."""
    found = {}
    for package in ("fednas", "flwr", "torch", "torchvision", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def point_latest(path: Path) -> None:
    """Have link ``latest`` beside a run's folder point at it, or at nothing where it cannot: never at another run."""
    link = path.parent / "latest"
    aside = path.parent / f".latest-{path.name}"
    try:
        aside.symlink_to(path.name)
        aside.replace(link)
    except OSError:  # a file system without links, or nothing more can be written: the run itself is not affected
        for rest in (aside, link):
            with contextlib.suppress(OSError):
                rest.unlink(missing_ok=True)
