"""What is said while a run goes on, which is never a reason to end it.

Terminals lack characters, whoever read a pipe has left, the disk behind a log is full: the run is in its folder.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


def lenient() -> None:
    """Show characters that the terminal's encoding lacks as escapes, and take a closed output for one to nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str, to_stderr: bool = False) -> None:
    """Print a line at once, if it can be written."""
    stream = sys.stderr if to_stderr else sys.stdout
    with dispensable(stream):
        print(text, file=stream, flush=True)


@contextmanager
def dispensable(stream: TextIO) -> Iterator[None]:
    """Let writing to a stream fail; what follows goes nowhere."""
    try:
        yield
    except OSError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Send what is written to a stream from now on, and what still waits there, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
