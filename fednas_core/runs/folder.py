"""A run on disk: settings, events, checkpoints, results. Everything is JSON, TOML or safetensors; nothing is pickled.

A checkpoint becomes valid by one atomic rename of ``state.json``, which names its tensor file, so that a run killed at
any moment resumes from the last round that was completely written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError

from fednas_core.config import RunConfig
from fednas_core.errors import RunError
from fednas_core.protocol import State
from fednas_core.settings import Scalar, flatten, read

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
            with self._writing():
                write_atomically(path, tomli_w.dumps(table))
        return changed

    # -- events ----------------------------------------------------------------------------------------------------

    def events(self) -> list[dict[str, Any]]:
        """Return the events of all complete lines of ``events.jsonl``, oldest first."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return []
        events = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                break  # a line cut short by a kill: it and whatever follows belong to no finished round
            if not isinstance(event, dict) or not isinstance(event.get("round"), int):
                break
            events.append(event)
        return events

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add one line to ``events.jsonl``; raise `RunError` if it cannot be written."""
        with self._writing(), (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()

    def forget_events_after(self, round: int) -> None:
        """Drop the events of rounds later than `round`: they will be lived again."""
        kept = [event for event in self.events() if event["round"] <= round]
        write_atomically(self.path / "events.jsonl", "".join(json.dumps(event) + "\n" for event in kept))

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save_checkpoint(self, round: int, state: State) -> None:
        """Save the state after `round` rounds; the one before it stays valid until this one is complete.

        Raises `RunError` if it cannot be written.
        """
        from safetensors.torch import save_file  # with torch, which whoever only looks at runs does without

        folder = self.path / "checkpoint"
        tensors = folder / f"supernet-{round:06d}.safetensors"
        content = {"round": round, "tensors": tensors.name, "data": state.data}
        with self._writing():
            folder.mkdir(exist_ok=True)
            save_file({n: tensor.detach().cpu().contiguous() for n, tensor in state.tensors.items()}, str(tensors))
            _sync(tensors)
            write_atomically(folder / "state.json", json.dumps(content) + "\n")
            for old in folder.glob("supernet-*.safetensors"):
                if old != tensors:
                    old.unlink()

    def load_checkpoint(self) -> tuple[int, State]:
        """Return the number of rounds done and the state after them.

        Raises `RunError`, naming the file, if there is none or it is damaged.
        """
        from safetensors.torch import load_file

        path = self.path / "checkpoint" / "state.json"
        if not path.is_file():
            raise RunError(f"run '{self.id}' has no checkpoint to continue from ({path} is missing): start it anew")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tensors = path.parent / Path(str(content["tensors"])).name
            done, data = int(content["round"]), content["data"]
            if done < 0 or not isinstance(data, dict):
                raise ValueError(f"{path.name} holds round {done} and data of type {type(data).__name__}")
            return done, State(load_file(str(tensors)), data)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damage = f"run '{self.id}': its checkpoint in {path.parent} is damaged ({error}): start it anew"
            raise RunError(damage) from error

    # -- images ----------------------------------------------------------------------------------------------------

    def note_images(self, digest: str) -> None:
        """Note which images the run's clients share, for runs that start from this one."""
        self.write_json(IMAGES, {"sha256": digest})

    def images(self) -> str:
        """Return the digest of the images that the run's clients share, '' if it was not noted."""
        return str(self.read_json(IMAGES)["sha256"]) if (self.path / IMAGES).is_file() else ""

    # -- results ---------------------------------------------------------------------------------------------------

    def write_json(self, name: str, content: object) -> None:
        """Write a result file such as ``result.json``, atomically; raise `RunError` if it cannot be written."""
        with self._writing():
            write_atomically(self.path / name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Return the content of a result file; raise `RunError` if it is missing or damaged."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"run '{self.id}' has no {name}: the run did not finish; resume it") from error
        except (OSError, ValueError) as error:
            raise RunError(f"run '{self.id}': {name} is damaged ({error})") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"run '{self.id}' cannot be written to {self.path} ({error}): the rounds before are safe; make room or "
                "mend the disk, then resume the run"
            ) from error


def output_folder(config: RunConfig) -> Path:
    """Return the folder that receives the runs, as an absolute path."""
    return Path(config.output or "runs").expanduser().resolve()


def create(config: RunConfig) -> RunFolder:
    """Make the folder of a new run, with its settings in ``config.toml``, and point ``latest`` at it."""
    root = output_folder(config)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{config.method}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for attempt in range(1000):
            path = root / (stem if not attempt else f"{stem}-{attempt}")
            try:
                path.mkdir()
                break
            except FileExistsError:
                continue
        write_atomically(path / "config.toml", tomli_w.dumps({"settings": flatten(config), "versions": versions()}))
    except OSError as error:
        raise RunError(f"setting 'output': runs cannot be written to {root} ({error.strerror or error})") from error
    _point_latest(path)
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
    if not root.is_dir():
        return []
    return [RunFolder(p) for p in sorted(root.iterdir()) if not p.is_symlink() and (p / "config.toml").is_file()]


def versions() -> dict[str, str]:
    """Return the versions of what computed a run."""
    found = {}
    for package in ("fednas", "flwr", "torch", "torchvision", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new content, never a part."""
    aside = path.with_name(path.name + ".part")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _point_latest(path: Path) -> None:
    link = path.parent / "latest"
    aside = path.parent / f".latest-{path.name}"
    try:
        aside.symlink_to(path.name)
        aside.replace(link)
    except OSError:
        aside.unlink(missing_ok=True)  # a file system without links: the run itself is not affected
