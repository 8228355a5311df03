"""Which folders are runs: light enough to list them without importing torch."""

from __future__ import annotations

from pathlib import Path


def run_folders(root: Path) -> list[Path]:
    """Return the folders of the runs in `root`, oldest first; a link that leads out of `root` is one.

    Hidden ones are what is left of a move, and links within `root`, as ``latest`` is, name runs that are there anyway.
    """
    if not root.is_dir():
        return []
    found = []
    for path in sorted(root.iterdir()):
        within = path.is_symlink() and (root / path.readlink()).parent == root
        if not within and not path.name.startswith(".") and (path / "config.toml").is_file():
            found.append(path)
    return found
