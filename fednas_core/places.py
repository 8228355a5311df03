"""Paths that users type: absolute before anything starts, since processes of a run work in folders of their own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from fednas_core.config import RunConfig
from fednas_core.errors import ConfigError


def anchored(config: RunConfig, folder: Path) -> RunConfig:
    """Return the settings with absolute paths: relative ones are below `folder`, the one where they were typed.

    Raises `ConfigError` for a path whose name is not UTF-8, which no settings file could hold.
    """
    data, space = config.data, config.space
    if data.path:
        data = replace(data, path=_absolute("data.path", data.path, folder))
    if space.name.endswith(".toml"):
        space = replace(space, name=_absolute("space.name", space.name, folder))
    output = _absolute("output", config.output, folder) if config.output else ""
    return replace(config, data=data, space=space, output=output)


def _absolute(key: str, path: str, folder: Path) -> str:
    found = os.path.abspath(folder / Path(path).expanduser())
    if not found.isascii() and found != found.encode("utf-8", "replace").decode("utf-8"):
        plain = os.fsencode(found).decode("utf-8", "backslashreplace")
        raise ConfigError(f"setting '{key}': the path {plain} is not UTF-8, so that no file could hold it: rename it")
    return found
