"""The folder of a new run, and which one of a folder's runs is the latest."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import tomli_w

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import RunError
from fednas_core.base.files import sync, write
from fednas_core.base.settings import flatten
from fednas_core.runs import owner
from fednas_core.runs.folder import RunFolder, output_folder, versions
from fednas_core.runs.format import SETTINGS, head_of


def create(config: RunConfig, held: ExitStack | None = None, server: Mapping[str, str] | None = None) -> RunFolder:
    """Make the folder of a new run, with its settings in ``config.toml``, and point ``latest`` at it.

    `server` is what settings that each machine decides for itself came to on this one. This process owns the run until
    `held` is closed (None: nobody does). Its id begins with the time to the second and three hexadecimal digits that
    go on with the time, so that ids sort by it; then come 32 random bits, for clients keep private state under it: two
    runs that began within a quarter of a millisecond, on whichever machines, share an id once in four thousand million
    times.
    """
    root, now = output_folder(config), datetime.now()
    fraction = now.microsecond * 4096 // 1_000_000
    path = root / f"{now:%Y%m%d-%H%M%S}-{fraction:03x}{secrets.token_hex(4)}-{config.method}"
    table = {"id": path.name, **head_of(config).to_json()}
    table |= {"settings": flatten(config), "server": dict(server or {}), "versions": versions()}
    try:
        root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undone:
            path.mkdir()
            undone.callback(shutil.rmtree, path, ignore_errors=True)
            if held is not None:
                held.enter_context(owner.owned(path))
            write(path / SETTINGS, tomli_w.dumps(table).encode())
            sync(root)
            undone.pop_all()
    except (OSError, RunError) as error:
        why = error.__cause__ if isinstance(error, RunError) else error  # `owned` tells how to resume what is no run
        raise RunError(
            f"setting 'output': runs cannot be written to {root} ({why}): make room or mend the folder, or name another"
        ) from error
    point_latest(path)
    return RunFolder(path)


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
