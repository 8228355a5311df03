"""A run goes on in another folder: it moves there whole, or stays where it is."""

from __future__ import annotations

import contextlib
import errno
import shutil
from pathlib import Path

from fednas_core.base.errors import RunError
from fednas_core.base.files import PART, sync
from fednas_core.runs.creation import point_latest
from fednas_core.runs.folder import RunFolder, all_runs
from fednas_core.runs.owner import owned


def move(run: RunFolder, root: Path, usual: Path) -> RunFolder:
    """Move a run that was found in the folder `usual` into the folder `root` and return it there.

    On another file system it is copied, and removed where it was once the copy is on the disk. ``latest`` in `root`
    points at it then, in `usual` at the newest that is left. Raises `RunError` if a process works on it, or if it
    cannot be moved: then it still is where it was.
    """
    there = root / run.id
    with owned(run.path):
        try:
            root.mkdir(parents=True, exist_ok=True)
            try:
                run.path.rename(there)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _move_over(run.path, there)
            sync(root)
        except (OSError, shutil.Error) as error:
            raise RunError(
                f"run '{run.id}' cannot move from {run.path.parent} to {root} ({error}): make room or mend the folder, "
                "or go on with the run where it is"
            ) from error
    point_latest(there)
    _mend_latest(usual)
    return RunFolder(there)


def _move_over(here: Path, there: Path) -> None:
    """Move a folder to another file system; raise `OSError` or `shutil.Error` after which it still is `here` only."""
    copy, old = (path.with_name(f".{path.name}{PART}") for path in (there, here))
    try:
        shutil.rmtree(copy, ignore_errors=True)  # of a move that was killed
        shutil.copytree(here, copy, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                sync(path)
        copy.rename(there)
        sync(there.parent)
        try:
            here.rename(old)
        except OSError:  # two of the same run would be there
            there.rename(copy)
            raise
    except (OSError, shutil.Error):
        shutil.rmtree(copy, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)  # it has moved, whatever is left of this


def _mend_latest(root: Path) -> None:
    latest, left = root / "latest", all_runs(root)
    if not latest.is_symlink() or latest.exists():
        return
    if left:
        point_latest(left[-1].path)
    else:
        with contextlib.suppress(OSError):  # a link to nothing names no run
            latest.unlink()
