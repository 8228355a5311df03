"""A federation of real processes on this machine: a SuperLink with TLS and node keys, SuperNodes, and what goes wrong.

Everything lies in one folder, listens on loopback only and is ended by its process group. A SuperNode can be started
with mischief: Python that its client processes run around every training message (`Site.start_node`).
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from contracts.records import recorded
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fednas_core.base.config import RunConfig
from fednas_core.base.patience import Patience, cpu_seconds
from fednas_core.base.settings import read
from fednas_core.cli.superlink import descendants, free_port, script
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import conduct, settle
from fednas_core.exchange.orders import Answer, Failure, Order
from fednas_core.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
LINK = "site"
STARTED = re.compile(r"[Ss]uccessfully started run (\d+)")
VARYING = ("seconds", "latency_ms")
"""What two runs of the same settings may differ in."""


# -- certificates and keys -----------------------------------------------------------------------------------------


def make_certificates(folder: Path, *names: str) -> None:
    """Write ``ca.crt``, ``server.pem`` and ``server.key`` for a server of these names, valid for a day."""
    folder.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP384R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    authority = _certificate(ca_name, ca_key, ca_name, ca_key, x509.BasicConstraints(ca=True, path_length=0))
    key = ec.generate_private_key(ec.SECP384R1())
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")), *map(x509.DNSName, names)]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    server = _certificate(name, key, ca_name, ca_key, x509.SubjectAlternativeName(hosts))
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    (folder / "ca.crt").write_bytes(authority.public_bytes(pem))
    (folder / "server.pem").write_bytes(server.public_bytes(pem))
    (folder / "server.key").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))


def _certificate(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(minutes=5)).not_valid_after(now + timedelta(days=1))
    return builder.add_extension(extension, critical=False).sign(issuer_key, hashes.SHA384())


def make_node_key(path: Path) -> None:
    """Write a node's private key to `path` and its public key beside it, as ``ssh-keygen -t ecdsa -b 384`` does."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.parent.mkdir(parents=True, exist_ok=True)
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.OpenSSH, none))
    path.chmod(0o600)
    encoding, public = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(encoding, public) + b"\n")


# -- processes -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Program:
    """A process with a group of its own, so that it ends together with whatever it started."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        """What it wrote so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """End it and all of its group at once, by SIGKILL."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def children(self, command: str) -> list[int]:
        """The process ids of its descendants whose command line holds `command`."""
        return [pid for pid in descendants(self.process.pid) if command in command_of(pid)]


def command_of(pid: int) -> str:
    """The command line of a process, '' if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


QUIET_S = 300.0
"""How long nothing may move before whoever waits gives up; beside other work everything takes longer, but goes on."""


def wait_for(what: str, found: Callable[[], Any], moved: Callable[[], object], pause: float = 0.1) -> Any:
    """Return the first true value of `found`; fail, saying what did not come, when `moved` has long been the same."""
    patience = Patience(QUIET_S, moved)
    while not (value := found()):
        assert not patience.over(), f"nothing has moved for {QUIET_S:g} seconds while waiting for {what}"
        time.sleep(pause)
    return value


def finished(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command, however long it takes as long as it gets on, and return what it said."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True, **options)
        try:
            wait_for(command[0], lambda: process.poll() is not None, lambda: cpu_seconds(process.pid), pause=0.02)
        finally:
            process.kill()
            process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(command, process.returncode, *texts)


def sizes(folder: Path) -> tuple[tuple[str, int], ...]:
    """The files below a folder with their sizes, but databases, which also grow while nothing happens."""
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file() and ".db" not in path.name:
                found.append((str(path), path.stat().st_size))
    return tuple(sorted(found))


# -- a network that can be cut and counts --------------------------------------------------------------------------


HEARD = 10_000


class Proxy:
    """A TCP proxy on loopback that counts bytes both ways and can be cut, as a cable can.

    `heard` is the first of what came from the near side.
    """

    def __init__(self, target: int) -> None:
        self.up = self.down = 0
        self.heard = b""
        self._target, self._cut = target, False
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections and let none through until `mend`."""
        self._cut = True
        for pair in list(self._pairs):
            _hang_up(*pair)

    def mend(self) -> None:
        """Let connections through again."""
        self._cut = False

    def close(self) -> None:
        """End the proxy."""
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if self._cut:
                near.close()
                continue
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            near.close()
            return
        pair = (near, far)
        self._pairs.add(pair)
        try:
            while not self._cut:
                for source in select.select(pair, [], [], 1.0)[0]:
                    data = source.recv(1 << 18)
                    if not data:
                        return
                    (far if source is near else near).sendall(data)
                    if source is near:
                        self.up += len(data)
                        self.heard = (self.heard + data)[:HEARD]
                    else:
                        self.down += len(data)
        except (OSError, ValueError):
            return
        finally:
            self._pairs.discard(pair)
            _hang_up(*pair)


def _hang_up(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


# -- mischief ------------------------------------------------------------------------------------------------------

MISCHIEF = '''
"""Runs in every Python process of one SuperNode; acts in those that carry out an order."""
import sys

if any(part.endswith("flwr-clientapp") for part in sys.orig_argv):
    import json
    from pathlib import Path

    from flwr.clientapp import ClientApp

    folder = Path({folder!r})
    plain, begun = ClientApp.__call__, []


    def head_of(message):
        return json.loads(message.content["fednas"]["head"])


    def before(message, round):
        pass


    def after(reply, round):
        return reply

{body}

    def call(self, message, context):
        if message.metadata.message_type != "train" or begun:
            return plain(self, message, context)
        begun.append(message)  # the app that Flower calls may call another
        round = head_of(message)["round"] + 1
        (folder / f"round-{{round}}").touch()
        before(message, round)
        return after(plain(self, message, context), round)


    ClientApp.__call__ = call
'''
"""`before(message, round)` and `after(reply, round)` are the test's; rounds count from 1 as in the events."""


# -- the site ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Site:
    """A SuperLink and SuperNodes as processes of this machine, with all they need in `folder`."""

    folder: Path
    nodes: int = 3
    isolation: str = "subprocess"
    tls: bool = True
    port: int = field(default_factory=free_port)
    running: dict[str, Program] = field(default_factory=dict)
    outputs: set[Path] = field(default_factory=set)

    # -- starting ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make certificates and keys, start the SuperLink and register the nodes' keys (the nodes are not started)."""
        make_certificates(self.folder)
        home = self.folder / "home"
        home.mkdir(parents=True)
        trust = f'root-certificates = "{self.folder}/ca.crt"' if self.tls else "insecure = true"
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{LINK}"\n\n[superlink.{LINK}]\naddress = "127.0.0.1:{self.port}"\n{trust}\n'
        )
        self.start_link()
        for number in range(self.nodes if self.tls else 0):
            make_node_key(self.key(number))
            public = str(self.key(number).with_suffix(".pub"))
            done = self.flwr("supernode", "register", public, LINK, "--name", f"node-{number}")
            assert done.returncode == 0, done.stdout + done.stderr

    def start_link(self) -> None:
        """Start the SuperLink (and with process isolation its SuperExec) and wait until it answers."""
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--database", str(self.folder / "state.db")]
        options += ["--isolation", self.isolation, "--disable-runtime-dependency-installation"]
        if self.tls:
            options += ["--ssl-ca-certfile", f"{self.folder}/ca.crt", "--ssl-certfile", f"{self.folder}/server.pem"]
            options += ["--ssl-keyfile", f"{self.folder}/server.key", "--enable-supernode-auth"]
        else:
            options += ["--insecure"]
        link = self.start("superlink", [script("flower-superlink"), *options])
        self.wait_for("the SuperLink", lambda: link.process.poll() is not None or self._healthy())
        assert link.process.poll() is None, link.said()
        if self.isolation == "process" and "superexec" not in self.running:
            command = [script("flower-superexec"), "--runtime-api-address", f"127.0.0.1:{self.port}"]
            command += ["--root-certificates", f"{self.folder}/ca.crt"] if self.tls else ["--insecure"]
            self.start("superexec", command)

    def start_node(
        self,
        number: int,
        config: str = "",
        mischief: str = "",
        port: int | None = None,
        trust: Sequence[str] | None = None,
    ) -> Program:
        """Start SuperNode `number`; `port` is that of a proxy, `config` is added to its node configuration.

        `mischief` defines ``before(message, round)`` or ``after(reply, round)``, see `MISCHIEF`; `trust` stands for
        the options that say whom the node trusts and who it is.
        """
        home = self.folder / f"node-{number}"
        home.mkdir(exist_ok=True)
        options = ["--superlink", f"127.0.0.1:{port or self.port}", "--host", "127.0.0.1"]
        options += ["--port", str(free_port())]
        options += ["--node-config", f"partition-id={number} num-partitions={self.nodes} {config}".strip()]
        options += self.trust(number) if trust is None else trust
        extra = {"FLWR_HOME": str(home)}
        if mischief:
            body = "".join(f"    {line}\n" if line else "\n" for line in mischief.strip("\n").splitlines())
            (home / "sitecustomize.py").write_text(MISCHIEF.format(folder=str(home), body=body))
            extra["PYTHONPATH"] = str(home)
        return self.start(f"node-{number}", [script("flower-supernode"), *options], extra)

    def start_nodes(self) -> None:
        """Start all SuperNodes."""
        for number in range(self.nodes):
            self.start_node(number)

    def trust(self, number: int, key: Path | None = None) -> list[str]:
        """The options by which a SuperNode knows the SuperLink and says who it is."""
        if not self.tls:
            return ["--insecure"]
        authority = ["--root-certificates", f"{self.folder}/ca.crt"]
        return [*authority, "--auth-supernode-private-key", str(key or self.key(number))]

    def start(self, name: str, command: list[str], extra: Mapping[str, str] | None = None) -> Program:
        """Start a process under a name, its output in ``<name>.log``."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment | dict(extra or {}),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.running[name] = Program(process, log)
        return self.running[name]

    def close(self) -> None:
        """End every process that was started here."""
        for name in sorted(self.running, key=lambda name: name.startswith("super")):
            self.running[name].kill()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of all processes: Flower's own folder, one thread, quick polling, no fednas but the app's."""
        scripts = sysconfig.get_path("scripts")
        mine = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return mine | {
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
        }

    def key(self, number: int) -> Path:
        """The path of a node's private key."""
        return self.folder / "keys" / f"node_{number}"

    def node(self, number: int) -> Program:
        """The SuperNode of a number."""
        return self.running[f"node-{number}"]

    # -- runs --------------------------------------------------------------------------------------------------

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command `flwr` against this site."""
        return finished([script("flwr"), *arguments], cwd=self.folder, env=self.environment)

    def submit(self, pairs: Mapping[str, Any]) -> str:
        """Start a run with these settings, ``output`` among them, and return Flower's id of it."""
        self.outputs.add(Path(str(pairs["output"])))
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in pairs.items())
        done = self.flwr("run", str(ROOT), LINK, "--run-config", given)
        found = STARTED.search(done.stdout + done.stderr)
        assert found, done.stdout + done.stderr
        return found[1]

    def status(self, run: str) -> tuple[str, str]:
        """Status and details of a run as Flower tells them."""
        done = self.flwr("ls", LINK, "--run-id", run, "--format", "json")
        assert "{" in done.stdout, done.stdout + done.stderr
        told = json.loads(done.stdout[done.stdout.index("{") :])["runs"][0]
        return str(told["status"]), str(told["status-details"] or "")

    def ended(self, run: str) -> tuple[str, str]:
        """Wait until a run has ended and return its status and details."""
        status: tuple[str, str] = ("unknown", "")

        def over() -> bool:
            nonlocal status
            status = self.status(run)
            return status[0].startswith("finished")

        self.wait_for(f"the end of run {run}", over, pause=1.0)
        return status

    def completed(self, run: str, output: Path) -> RunFolder:
        """Wait until a run has completed and return its folder."""
        status, details = self.ended(run)
        assert status == "finished:completed", f"{status}: {details}"
        return RunFolder((output / "latest").resolve())

    def wait_for(self, what: str, found: Callable[[], Any], pause: float = 0.1) -> Any:
        """Return the first true value of `found`; fail when nothing here has moved for `QUIET_S`."""
        return wait_for(what, found, self.moved, pause)

    def moved(self) -> object:
        """What changes while something happens: files of the site and its runs, processes, what those that work do."""
        alive = [pid for program in self.running.values() for pid in descendants(program.process.pid)]
        working = [pid for pid in alive if "clientapp" in command_of(pid) or "client_app" in command_of(pid)]
        work = [cpu_seconds(pid) for pid in (*working, *(p.process.pid for p in self.running.values()))]
        return sizes(self.folder), [sizes(output) for output in sorted(self.outputs)], alive, work

    def _healthy(self) -> bool:
        scheme = "https" if self.tls else "http"
        trusted = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        try:
            url = f"{scheme}://127.0.0.1:{self.port}/health"
            with urllib.request.urlopen(url, timeout=2, context=trusted if self.tls else None):
                return True
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def site(folder: Path, **options: Any) -> Iterator[Site]:
    """Open a site in `folder` and close it afterwards."""
    made = Site(folder, **options)
    try:
        made.open()
        yield made
    finally:
        made.close()


# -- what a run should have been -----------------------------------------------------------------------------------


def events_of(folder: RunFolder) -> list[dict[str, Any]]:
    """The events of a run without what varies from run to run (`VARYING`)."""
    return [without(event, VARYING) for event in recorded(folder.events())]


def without(value: Any, keys: tuple[str, ...]) -> Any:
    """A JSON value without these keys at any depth."""
    if isinstance(value, dict):
        return {key: without(item, keys) for key, item in value.items() if key not in keys}
    return [without(item, keys) for item in value] if isinstance(value, list) else value


class Rehearsal(LocalFleet):
    """The in-process fleet with clients that fail, or are absent, in given rounds (from 1): ``{round: {client}}``."""

    def __init__(
        self, config: RunConfig, failing: Mapping[int, set[str]], absent: Mapping[int, set[str]] | None = None
    ) -> None:
        super().__init__(config)
        self._failing, self._absent, self._calls = failing, absent or {}, 0

    def clients(self) -> list[ClientInfo]:
        """Whoever is there: the first call is before the first round, each other one begins a round."""
        missing = self._absent.get(self._calls, set())
        self._calls += 1
        return [client for client in super().clients() if client.name not in missing]

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Answer | Failure]:
        """Carry out the orders of all that do not fail."""
        bad = [name for name, order in orders.items() if name in self._failing.get(order.round + 1, ())]
        yield from (Failure(name, "rehearsed") for name in bad)
        yield from super().train({name: order for name, order in orders.items() if name not in bad}, more)


def rehearse(
    pairs: Mapping[str, Any],
    output: Path,
    failing: Mapping[int, set[str]] | None = None,
    absent: Mapping[int, set[str]] | None = None,
) -> RunFolder:
    """Conduct the run of these settings in this process, clients failing as told, and return its folder."""
    config = settle(read({**pairs, "output": str(output)}))
    fleet = Rehearsal(config, failing or {}, absent)
    try:
        return conduct(config, fleet, lambda text: None)
    finally:
        fleet.close()


def same_history(run: RunFolder, rehearsed: RunFolder) -> None:
    """Fail unless two runs had the same history, whatever the reasons of their failures were."""
    one, two = (without(events_of(folder), ("reason",)) for folder in (run, rehearsed))
    assert one == two
