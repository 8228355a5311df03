"""Files that appear whole or not at all and are still there after a power failure. Every error names the file."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

PART = ".part"
"""How the name of a file ends that is not complete yet; it begins with a dot."""


def write(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file aside and rename it into place: readers see the old or the new content, never a part.

    A new file has the permissions `mode` less the umask. Raises `OSError`, naming `path`; the old content then stays.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    with naming(path):
        try:
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)  # it is there only if something went wrong
        sync(path.parent)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file; raise `OSError`, naming `path`, after which a part of the content may be there."""
    with naming(path):
        new = not path.exists()
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(path.parent)


def cut(path: Path, size: int) -> None:
    """Drop what a file holds after its first `size` bytes; raise `OSError`, naming `path`."""
    with naming(path):
        os.truncate(path, size)
        sync(path)


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, written to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an `OSError` name `path`: that of a write to an open file names nothing, others name a file aside."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else its text is all there is
            error.filename = str(path)
            del error.filename2  # were it None, the text would end in “-> None”
        raise
