"""Where runs lie, for commands that read them: light enough to list runs without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednas_core.errors import RunError
from fednas_core.places import real

Output = Annotated[Path, typer.Option("--output", "-o", help="The folder that holds the runs.")]
RunId = Annotated[str, typer.Argument(metavar="ID", help="A run of `fednas runs`, or latest.")]


def runs_folder(output: Path) -> Path:
    """Return the folder of the runs as an absolute path."""
    return real(output)


def run_folders(root: Path) -> list[Path]:
    """Return the folders of the runs below `root`, oldest first; link ``latest`` is none of them."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if not p.is_symlink() and (p / "config.toml").is_file())


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
    folders = run_folders(root)
    return link.resolve().name if (link / "config.toml").is_file() else (folders[-1].name if folders else None)
