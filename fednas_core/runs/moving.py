"""A run goes on in another folder: it moves there whole, or stays where it is."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from fednas_core.errors import RunError
from fednas_core.files import PART, sync
from fednas_core.runs.folder import RunFolder
from fednas_core.runs.owner import owned


def move(run: RunFolder, root: Path) -> RunFolder:
    """Move a run into the folder `root` and return it there.

    On another file system it is copied, and removed where it was once the copy is whole. Raises `RunError` if a process
    works on it, or if it cannot be written there: then it still is where it was.
    """
    there, aside = root / run.id, root / f".{run.id}{PART}"
    with owned(run.path):
        try:
            root.mkdir(parents=True, exist_ok=True)
            try:
                run.path.rename(there)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                shutil.rmtree(aside, ignore_errors=True)  # of a copy that was killed
                shutil.copytree(run.path, aside, symlinks=True)
                aside.rename(there)
                shutil.rmtree(run.path)
            sync(root)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise RunError(
                f"run '{run.id}' cannot move from {run.path.parent} to {root} ({error}): make room or mend the folder, "
                "or go on with the run where it is"
            ) from error
    return RunFolder(there)
