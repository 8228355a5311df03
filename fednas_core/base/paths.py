"""Paths that users type: absolute before anything starts, since processes of a run work in folders of their own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError


def anchored(config: RunConfig, folder: Path) -> RunConfig:
    """Return the settings with absolute paths: relative ones are below `folder`, the one where they were typed.

    Raises `ConfigError` for a home folder that there is not, and for a path that is not UTF-8, which no settings file
    could hold.
    """
    data, space = config.data, config.space
    if data.path:
        data = replace(data, path=_absolute("data.path", data.path, folder))
    if space.name.endswith(".toml"):
        space = replace(space, name=_absolute("space.name", space.name, folder))
    output = _absolute("output", config.output, folder) if config.output else ""
    return replace(config, data=data, space=space, output=output)


def expanded(path: str | Path) -> Path:
    """Return a path whose ``~`` or ``~user`` is a home folder; raise `ConfigError` if this machine knows none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        whose = Path(path).parts[0]
        raise ConfigError(
            f"the path {path} begins with {whose}, a home folder that this machine does not know: name the folder"
        ) from error


def real(path: str | Path) -> Path:
    """Return a path as `expanded` does, absolute and without links; links in a circle stay for others to complain."""
    return Path(os.path.realpath(expanded(path)))


def _absolute(key: str, path: str, folder: Path) -> str:
    try:
        found = os.path.abspath(folder / expanded(path))
    except ConfigError as error:
        raise ConfigError(f"setting '{key}': {error}") from error
    if not found.isascii() and found != found.encode("utf-8", "replace").decode("utf-8"):
        plain = os.fsencode(found).decode("utf-8", "backslashreplace")
        raise ConfigError(f"setting '{key}': the path {plain} is not UTF-8, so that no file could hold it: rename it")
    return found
