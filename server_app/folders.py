"""Where results go: a server process runs from Flower's copy of the app, so relative folders mean the project's."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError
from fednas_core.base.paths import anchored


def placed(config: RunConfig) -> RunConfig:
    """Return the settings with absolute paths, ``runs/`` being the output unless another folder is named.

    Nobody tells a server process in which folder `flwr run` was typed. Raises `ConfigError`, which says so, where a
    relative path is not below the project.
    """
    project = project_folder()
    found = anchored(replace(config, output=config.output or "runs"), project)
    for key, typed, path in (
        ("data.path", config.data.path, found.data.path),
        ("space.name", config.space.name, found.space.name),
    ):
        if typed != path and not Path(path).exists():
            raise ConfigError(
                f"setting '{key}' = '{typed}': a relative path is the project's here, and there is no {path}: give the "
                "absolute path, or start the run with  fednas simulate"
            )
    return found


def project_folder() -> Path:
    """Return the folder of the project.

    That is the working directory if it is a fednas project, else where fednas is installed from in editable mode,
    else the working directory.
    """
    here = Path.cwd()
    return here if _is_project(here) else _editable() or here


def _is_project(folder: Path) -> bool:
    try:
        table = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False
    return bool(table.get("project", {}).get("name") == "fednas")


def _editable() -> Path | None:
    try:
        told = distribution("fednas").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    origin = json.loads(told or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    folder = Path(unquote(urlparse(origin["url"]).path))
    return folder if folder.is_dir() else None
