"""Where results go: a server process runs from Flower's copy of the app, so relative folders mean the project's."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

from fednas_core.config import RunConfig


def with_output(config: RunConfig) -> RunConfig:
    """Return the settings with an absolute `output`: ``runs/`` in the project unless another folder is named."""
    output = Path(config.output or "runs").expanduser()
    return replace(config, output=str(output if output.is_absolute() else project_folder() / output))


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
