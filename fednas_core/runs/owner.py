"""Who writes to a run: one process at a time, by a lock of the operating system that ends with it however it ends.

The lock holds for all processes that see the folder on one machine, in containers too, and over network file systems
that pass `flock` on. File ``owner.lock`` says who holds it, or did last.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from fednas_core.base.errors import RunError
from fednas_core.base.files import naming

FILE = "owner.lock"
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""How a file system says that it knows no locks: a run there has no guard."""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own the run in `folder` until the end of the block; raise `RunError`, naming the owner, if another process does.

    What a dead process owned is free. Raises `RunError` as well if the folder cannot be written.
    """
    try:
        with naming(folder / FILE):
            handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunError(
            f"run '{folder.name}' cannot be written to {folder} ({error}): what is there is safe; make the folder "
            "writable, then resume the run"
        ) from error
    try:
        _lock(handle, folder)
        _sign(handle, folder)
        yield
    finally:
        os.close(handle)


def original(folder: Path) -> Path | None:
    """Return where the run in `folder` was worked on last, if that is another folder which is still there.

    Then one is a copy of the other. To be asked before `owned`, which notes the new place.
    """
    try:
        there = Path(json.loads((folder / FILE).read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never worked on, or killed while it noted where
    if not (there / "config.toml").is_file() or there.samefile(folder):
        return None
    return there


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(
            f"run '{folder.name}' in {folder.parent} is going on: {_owner(handle)}. Wait for it, or end that process, "
            "then resume the run"
        ) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise RunError(f"run '{folder.name}': {folder / FILE} cannot be locked ({error})") from error


def _owner(handle: int) -> str:
    try:
        told = json.loads(os.pread(handle, 100_000, 0))
        return f"process {told['pid']} on '{told['host']}' has owned it since {told['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process owns it"


def _sign(handle: int, folder: Path) -> None:
    told = {
        "host": platform.node(),
        "pid": os.getpid(),
        "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        "folder": str(folder),
    }
    try:
        with naming(folder / FILE):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(told).encode(), 0)
    except OSError as error:
        raise RunError(
            f"run '{folder.name}' cannot be written to {folder} ({error}): what is there is safe; make room or mend "
            "the disk, then resume the run"
        ) from error
