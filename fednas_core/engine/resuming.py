"""Settings beside `resume`: a run goes on with those that it has, but for what leaves its past as it is."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from fednas_core.base.config import COMPETING, RunConfig
from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.paths import real
from fednas_core.base.settings import Scalar, describe, flatten, read
from fednas_core.runs.folder import RunFolder, find, output_folder
from fednas_core.runs.moving import move

Changes = Mapping[str, tuple[Scalar, Scalar]]
"""The value before and the new one of each setting that a run has anew."""


def resumed(config: RunConfig, given: Collection[str] | None = None, usual: Path = Path("runs")) -> RunConfig:
    """Return the settings that will really run.

    Those of a new run are its `config`. A run to be resumed has those of its folder, but for the keys that were `given`
    beside `resume` (None: those of `config` that differ from the defaults). A value ``auto`` asks for nothing else than
    what the run came to. If there is no such run in `output` but one in the folder `usual`, it moves there.

    Raises `ConfigError`, naming them, for settings with which rounds that are done would have been others.
    """
    if not config.resume:
        return config
    root = output_folder(config)
    run, moves = _found(config.resume, root, real(usual))
    stored, asked, default = flatten(run.config()), flatten(config), flatten(RunConfig())
    keys = {key for key in asked if asked[key] != default[key]} if given is None else {*given}
    changes = {
        key: (stored[key], asked[key])
        for key in asked
        if key in keys - {"resume", "output"} and asked[key] not in (stored[key], "auto")
    }
    _refuse_another_past(run, changes)
    new = {key: value for key, (_, value) in changes.items()}
    if moves:
        run = move(run, root, real(usual))
    return replace(read({**stored, **new}), resume=run.id, output=str(run.path.parent))


def _found(name: str, root: Path, usual: Path) -> tuple[RunFolder, bool]:
    """Return the run of that id (or ``latest``) in `root`, else in the folder `usual`, and whether it is the latter.

    Where it is found may hold a link to it only: a run may lie on another disk.
    """
    try:
        return find(root, name), False
    except RunError as error:
        if usual == root:
            raise
        try:
            return find(usual, name), True
        except RunError:
            raise RunError(f"{error}, and none in {usual}") from error


def told(changes: Changes, done: int) -> str:
    """Return what to say of settings that hold from now on, after `done` rounds."""
    text = ", ".join(f"{key} {_shown(before)} → {_shown(after)}" for key, (before, after) in changes.items())
    text = f"from round {done + 1} on: {text}"
    if "rounds" in changes:
        text += " (what follows a schedule over all rounds follows the new one; rounds that are done stay as they are)"
    return text


def _refuse_another_past(run: RunFolder, changes: Changes) -> None:
    stored = run.config()
    later = {setting.key for setting in describe() if setting.later}
    if stored.method in COMPETING or stored.sample.shrink:
        later -= {"rounds"}  # candidates are made of the trained start; opened genes would close again
    past = [key for key in changes if key not in later]
    if past:
        differ = ", ".join(f"{key} = {_shown(changes[key][1])} instead of {_shown(changes[key][0])}" for key in past)
        anew = " ".join(f"--set {shlex.quote(f'{key}={_shown(changes[key][1])}')}" for key in past)
        raise ConfigError(
            f"run '{run.id}' would have another past with {differ}: leave that out to go on with the run's own, or "
            f"start a new one with  fednas run --config {shlex.quote(str(run.path / 'config.toml'))} {anew}"
        )
    if "rounds" in changes and int(changes["rounds"][1]) < (done := run.done()):
        raise ConfigError(
            f"setting 'rounds' = {changes['rounds'][1]}: run '{run.id}' has done {done}; allowed are more"
        )


def _shown(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
