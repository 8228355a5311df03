"""Where runs lie, for commands that read them: light enough to list runs without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednas_core.base.errors import RunError
from fednas_core.base.paths import real
from fednas_core.runs.listing import run_folders

Output = Annotated[Path, typer.Option("--output", "-o", help="The folder that holds the runs.")]
RunId = Annotated[str, typer.Argument(metavar="ID", help="A run of `fednas runs`, or latest.")]


def runs_folder(output: Path) -> Path:
    """Return the folder of the runs as an absolute path."""
    return real(output)


def run_folder(output: Path, run_id: str) -> Path:
    """Return the folder of a run, or of the newest for ``latest``; raise `RunError` naming the runs there are."""
    root = runs_folder(output)
    there = {path.name: path for path in run_folders(root)}
    wanted = newest(root) if run_id == "latest" else run_id
    if wanted in there:
        return there[wanted]
    names = ", ".join(list(there)[-5:]) or "none"
    raise RunError(f"there is no run '{run_id}' in {root}; the latest there: {names} (--output names another folder)")


def newest(root: Path) -> str | None:
    """Return the id that link ``latest`` points at (without links: the last by name)."""
    link = root / "latest"
    if link.is_symlink() and (link / "config.toml").is_file():
        return link.readlink().name
    folders = run_folders(root)
    return folders[-1].name if folders else None
