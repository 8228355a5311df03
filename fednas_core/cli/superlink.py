"""A SuperLink of one's own for one simulation: neutral folder, free port, ended afterwards.

Flower's managed SuperLink outlives the run that started it and keeps that run's folder and environment, so that a
second checkout would silently run the first one's code. This one belongs to a single command.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednas_core.base.environment import ENVIRONMENT
from fednas_core.base.errors import RunError
from fednas_core.base.fingerprint import PACKAGES, SOURCES, package_folder
from fednas_core.base.patience import Patience, cpu_seconds

STARTUP_S, ENDING_S = 60.0, 10.0
"""How long the SuperLink may get on with nothing before it has come up, and its processes may take to end."""
CONNECTION = "fednas"
UTF_8 = {"PYTHONIOENCODING": "utf-8"}
"""What Flower's programs say is read as UTF-8, whatever the terminal of this one takes."""
QUIET = {"FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_TELEMETRY_ENABLED": "0"}
"""What keeps Flower from asking the network for anything but the run."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A SuperLink as `flwr` reaches it: the FLWR_HOME that names its address and the environment to run `flwr` in."""

    home: Path
    environment: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of `flwr` with these arguments."""
        return [script("flwr"), *arguments]

    def status(self, run_id: str) -> tuple[str, str]:
        """Return status, e.g. ``finished:completed``, and its details of a run, as Flower tells them."""
        listing = subprocess.run(
            self.command("ls", CONNECTION, "--run-id", run_id, "--format", "json"),
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        try:
            told = json.loads(listing.stdout[listing.stdout.index("{") :])["runs"][0]
            return str(told["status"]), str(told["status-details"] or "")
        except (ValueError, KeyError, IndexError):
            return "unknown", (listing.stderr or listing.stdout).strip()[-500:]


@dataclass(frozen=True, slots=True)
class SuperLink(Connection):
    """A SuperLink that runs here as a process."""

    process: subprocess.Popen[bytes]


def connection(home: Path, table: str) -> Connection:
    """Return the connection to the SuperLink that the lines `table` of Flower's configuration describe, in a home."""
    home.mkdir(parents=True, exist_ok=True)
    file = home / "config.toml"
    file.write_text(f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n{table}', encoding="utf-8")
    return Connection(home, environment(home))


def environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's processes that keep their files in `home`."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    return {**os.environ, **ENVIRONMENT, **QUIET, **UTF_8, "FLWR_HOME": str(home), "PATH": path}


@contextmanager
def superlink(keep: bool) -> Iterator[SuperLink]:
    """Start a SuperLink for simulations and end it with all its processes afterwards, unless it is to be kept."""
    home = Path(tempfile.mkdtemp(prefix="fednas-simulate-"))
    process: subprocess.Popen[bytes] | None = None
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that `finally` is reached
    try:
        port = free_port()
        link = connection(home, f'address = "127.0.0.1:{port}"\ninsecure = true\n')
        process = _start(home, port, link.environment)
        yield SuperLink(home, link.environment, process)
    finally:
        signal.signal(signal.SIGTERM, before)
        if process is not None and not keep:
            end_tree(process)
        if not keep:
            shutil.rmtree(home, ignore_errors=True)


def _start(home: Path, port: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    from urllib.request import urlopen

    log = home / "superlink.log"
    command = [script("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    patience = Patience(STARTUP_S, lambda: cpu_seconds(process.pid))
    while process.poll() is None and not patience.over():
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return process
        except OSError:
            time.sleep(0.1)
    end_tree(process)
    told = log.read_text(encoding="utf-8", errors="replace")[-1000:]
    raise RunError(f"Flower's SuperLink did not start on port {port}; it said:\n{told}")


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and all its descendants, by their process ids: first a request, then by force."""
    family = [process.pid, *descendants(process.pid)]
    process.terminate()
    end = time.monotonic() + ENDING_S
    while time.monotonic() < end and (process.poll() is None or any(_alive(pid) for pid in family[1:])):
        time.sleep(0.1)
        for pid in family[1:]:
            _signal(pid, signal.SIGTERM)
    for pid in family:
        _signal(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """Return the process ids of all descendants (Linux; elsewhere none, and Flower's own ending must do)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, front = [], [pid]
    while front:
        front = [child for parent in front for child in children.get(parent, [])]
        found += front
    return found


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _signal(pid: int, number: int) -> None:
    if _alive(pid):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return


def free_port() -> int:
    """Return a TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def script(name: str) -> str:
    """Return the path of a command that was installed beside this Python; raise `RunError` if it was not."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        raise RunError(
            f"the command '{name}' is missing: install Flower into this environment with  pip install fednas"
        )
    return path


def app_folder(link: Connection) -> Path:
    """Return a folder in the home of `link` that holds the Flower app of the code that runs here, and nothing else.

    It is made of the packages themselves, so that it is the same from a checkout and from an installed wheel. The app
    has no dependencies that Flower would install: they are those of this environment.
    """
    from importlib.metadata import metadata

    import tomli_w

    from fednas_core.base.config import RunConfig
    from fednas_core.base.settings import flatten

    folder = link.home / "app"
    shutil.rmtree(folder, ignore_errors=True)
    for name in PACKAGES:
        source = package_folder(name)
        if source is None:
            raise RunError(f"the package '{name}' of fednas is missing: install fednas anew")
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    kinds = [(name, suffix) for name in PACKAGES for suffix in SOURCES]
    include = [f"{name}/**/*{suffix}" for name, suffix in kinds if any((folder / name).rglob(f"*{suffix}"))]
    config: dict[str, Any] = {}
    for key, value in flatten(RunConfig()).items():
        section, _, name = key.rpartition(".")
        (config.setdefault(section, {}) if section else config)[name] = value
    app = {
        "publisher": "fednas",
        "fab-include": include,
        "components": {"serverapp": "server_app.app:app", "clientapp": "client_app.front:app"},
        "config": config,
    }
    told = metadata("fednas")
    project = {"name": "fednas", "version": told["Version"], "description": told["Summary"], "dependencies": []}
    table = {"project": project, "tool": {"flwr": {"app": app}}}
    (folder / "pyproject.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    return folder
