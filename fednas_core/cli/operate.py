"""The SuperLink of a deployment as its operator reaches it: with `flwr`, from the server's folder."""

from __future__ import annotations

import shlex
import ssl
import subprocess
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

from fednas_core.base.errors import RunError
from fednas_core.cli.programs import address
from fednas_core.cli.show import note
from fednas_core.cli.simulate import Stream
from fednas_core.cli.superlink import CONNECTION, Connection, connection, environment

STATUS_S, PATIENCE_S = 2.0, 120.0
"""Pause between two questions after a run whose log broke off, and for how long nobody may answer them."""


def connect(root: Path, server: str | None, insecure: bool = False) -> Connection:
    """Return the connection to the SuperLink at `server`: as last time if None is given, or else on this machine.

    Raises `RunError`, saying what to do, unless it answers.
    """
    link = told(root, server, insecure)
    table = tomllib.loads((link.home / "config.toml").read_text(encoding="utf-8"))["superlink"][CONNECTION]
    plain = table.get("insecure", False)
    try:
        trust = None if plain else ssl.create_default_context(cafile=table["root-certificates"])
        url = f"http{'' if plain else 's'}://{table['address']}/health"
        with urllib.request.urlopen(url, timeout=10, context=trust):
            return link
    except (urllib.error.URLError, OSError) as error:
        raise RunError(
            f"no SuperLink answers at {table['address']} ({getattr(error, 'reason', error)}): start it with  "
            f"fednas deploy server {root}   or name another with --server HOST:PORT"
        ) from error


def told(root: Path, server: str | None, insecure: bool = False) -> Connection:
    """Return the same without asking whether it answers, and keep it in the deployment's folder for next time."""
    home = root / "server" / "flower"
    if server is None and not insecure and (home / "config.toml").is_file():
        return Connection(home, environment(home))
    trust = "insecure = true" if insecure else f"root-certificates = '{root / 'server' / 'ca.crt'}'"
    try:
        return connection(home, f'address = "{address(server or "127.0.0.1:8000")}"\n{trust}\n')
    except OSError as error:
        raise RunError(f"cannot write Flower's configuration to {home}: {error.strerror}") from error


def flwr(link: Connection, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Show a command of `flwr` and run it to its end."""
    command = link.command(*arguments)
    say(command, link)
    return subprocess.run(
        command,
        env=link.environment,
        cwd=link.home,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def say(command: list[str], link: Connection) -> None:
    """Show a command of `flwr` as one would type it."""
    note(f"$ FLWR_HOME={shlex.quote(str(link.home))} {shlex.join(['flwr', *command[1:]])}")


class Watch:
    """Whether a run goes on: for as long as its log streams, and after that until Flower says that it has ended.

    The log breaks off when the SuperLink is started anew; the run does not. `told` is its status with details.
    """

    def __init__(self, stream: Stream, link: Connection) -> None:
        self.told = ("not started", "")
        self._stream, self._link = stream, link
        self._answered = time.monotonic()

    def running(self) -> bool:
        """Ask; once the log has broken off, this takes seconds."""
        if self._stream.running():
            self._answered = time.monotonic()
            return True
        if self._stream.flower_id is None:
            return False
        self.told = self._link.status(self._stream.flower_id)
        if self.told[0].startswith("finished"):
            return False
        if self.told[0] != "unknown":
            self._answered = time.monotonic()
        time.sleep(STATUS_S)
        return time.monotonic() - self._answered < PATIENCE_S

    def leave(self) -> None:
        """Say that the run goes on although nobody watches, and how to watch it again or end it."""
        if self._stream.flower_id is None:
            note("\nstopped before the run had started")
            return
        note("\nthe run goes on; to watch it again or to end it:")
        for verb in ("log", "stop"):
            say(self._link.command(verb, self._stream.flower_id, CONNECTION), self._link)
