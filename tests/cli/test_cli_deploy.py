"""Keys, command lines and refusals of `fednas deploy`; no program of Flower is started here."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner, Result

from fednas_core.base.errors import ConfigError, FednasError, RunError
from fednas_core.cli import app, deploy, keys, operate, programs, simulate, supervise
from fednas_core.cli.superlink import Connection, environment


def fednas(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["deploy", *map(str, words)])


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A deployment for two devices."""
    root = tmp_path / "site"
    keys.make(root, ["192.168.1.10", "server.example"], ["phone", "tablet"])
    return root


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- keys ----------------------------------------------------------------------------------------------------------


def test_the_servers_certificate_is_signed_by_the_authority_and_holds_for_every_address(site: Path) -> None:
    authority, server = certificate(site / "server/ca.crt"), certificate(site / "server/server.crt")
    server.verify_directly_issued_by(authority)
    authority.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["server.example", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ip_address("192.168.1.10"), ip_address("127.0.0.1"), ip_address("::1"),
    ]  # fmt: skip
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    for found in (authority, server):
        assert found.not_valid_before_utc < datetime.now(UTC) - timedelta(hours=23)
        assert found.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3000)


@pytest.mark.parametrize(("host", "welcome"), [("127.0.0.1", True), ("localhost", True), ("10.0.0.1", False)])
def test_a_client_that_trusts_the_authority_accepts_the_server_at_its_addresses_only(
    site: Path, host: str, welcome: bool
) -> None:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(site / "server/server.crt", site / "server/server.key")
    trusting = ssl.create_default_context(cafile=str(site / "nodes/phone/ca.crt"))
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    near, far = socket.socketpair()

    def serve() -> None:
        with far, pytest.MonkeyPatch.context():
            try:
                serving.wrap_socket(far, server_side=True).close()
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        if welcome:
            trusting.wrap_socket(near, server_hostname=host).close()
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                trusting.wrap_socket(near, server_hostname=host)
    finally:
        near.close()
        thread.join(10)


def test_every_node_has_a_p384_key_of_its_own_in_openssh_format(site: Path) -> None:
    publics = []
    for name in ("phone", "tablet"):
        private = serialization.load_ssh_private_key((site / f"nodes/{name}/node.key").read_bytes(), None)
        public = serialization.load_ssh_public_key((site / f"server/nodes/{name}.pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name == "secp384r1"
        assert private.public_key() == public
        publics.append(public)
    assert publics[0] != publics[1]


def test_secrets_are_for_their_owner_only_and_stay_where_they_belong(site: Path) -> None:
    for path in (site / "server", site / "nodes/phone", site / "nodes/tablet"):
        assert mode(path) == 0o700
    for name in ("server/ca.key", "server/server.key", "server/superexec.secret", "nodes/phone/node.key"):
        assert mode(site / name) == 0o600
    bundle = {path.name for path in (site / "nodes/phone").iterdir()}
    assert bundle == {"ca.crt", "node.key", "node.toml", "README.md"}
    assert len((site / "server/superexec.secret").read_bytes()) == 64
    key = (site / "server/ca.key").read_bytes()
    assert all(key not in path.read_bytes() for path in (site / "nodes").rglob("*") if path.is_file())


def test_file_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keys.make(tmp_path / "open", ["localhost"], ["phone"])
    finally:
        os.umask(before)
    assert mode(tmp_path / "open/server/ca.key") == mode(tmp_path / "open/nodes/phone/node.key") == 0o600


def test_a_bundle_says_who_it_is_and_how_to_start(site: Path) -> None:
    bundle = keys.read_bundle(site / "nodes/tablet")
    assert (bundle.name, bundle.part, bundle.server) == ("tablet", 1, "192.168.1.10:8000")
    assert "fednas deploy node . --server 192.168.1.10:8000" in (bundle.path / "README.md").read_text()


def test_a_node_can_be_added_later(site: Path) -> None:
    found = fednas("keys", site, "--add-node", "camera", "--json")
    assert found.exit_code == 0 and json.loads(found.stdout)["nodes"] == {"camera": str(site / "nodes/camera")}
    bundle = keys.read_bundle(site / "nodes/camera")
    assert (bundle.part, bundle.server) == (2, "192.168.1.10:8000")
    assert list(keys.public_keys(site)) == ["camera", "phone", "tablet"]


def test_the_command_makes_keys_and_says_what_goes_where(tmp_path: Path) -> None:
    found = fednas("keys", tmp_path / "new", "--address", "::1, fednas.local", "--nodes", "phone, tablet")
    assert found.exit_code == 0, found.output
    assert str(tmp_path / "new/nodes/tablet") in found.stdout
    assert keys.read_bundle(tmp_path / "new/nodes/phone").server == "[::1]:8000"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "10.0.0.1"], "--nodes is missing"),
        (["--nodes", "phone"], "--address is missing"),
        (["--address", "10.0.0.1:8000", "--nodes", "phone"], "without a port"),
        (["--address", "https://x", "--nodes", "phone"], "--address 'https://x'"),
        (["--address", "10.0.0.256", "--nodes", "phone"], "--address '10.0.0.256'"),
        (["--address", ",", "--nodes", "phone"], "at least one name"),
        (["--address", "x", "--nodes", "phone,../up"], "node '../up'"),
        (["--address", "x", "--nodes", "phone,phone"], "named twice"),
        (["--address", "x", "--nodes", "a" * 33], "up to 32"),
        (["--add-node", "phone", "--nodes", "x"], "--add-node"),
        (["--add-node", "phone"], "is not the folder of a deployment"),
    ],
)
def test_bad_keys_are_refused_and_nothing_is_written(tmp_path: Path, words: list[str], said: str) -> None:
    found = fednas("keys", tmp_path / "new", *words)
    assert found.exit_code == 2 and said in " ".join(found.stderr.split())
    assert not (tmp_path / "new").exists()


def test_existing_keys_are_never_overwritten(site: Path) -> None:
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    again = fednas("keys", site, "--address", "x", "--nodes", "other")
    assert again.exit_code == 2 and "holds keys already" in again.stderr
    twice = fednas("keys", site, "--add-node", "phone")
    assert twice.exit_code == 2 and "a node 'phone' already" in twice.stderr
    assert before == {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write the keys"):
        keys.make(tmp_path / "file" / "site", ["x"], ["phone"])


# -- command lines -------------------------------------------------------------------------------------------------


def test_the_server_is_encrypted_authenticates_nodes_and_outlives_restarts(site: Path) -> None:
    superlink, superexec = programs.server_commands(site / "server", "0.0.0.0", 9000)
    assert Path(superlink[0]).name == "flower-superlink" and Path(superexec[0]).name == "flower-superexec"
    told = " ".join(superlink)
    for words in (
        "--host 0.0.0.0 --port 9000",
        "--enable-supernode-auth",
        "--isolation process",
        "--database",
        "--ssl-",
    ):
        assert words in told
    assert "--insecure" not in told + " ".join(superexec)
    assert "--runtime-api-address 127.0.0.1:9000" in " ".join(superexec)
    secret = ["--superexec-auth-secret-file", str(site / "server/superexec.secret")]
    assert all(secret == [c[i], c[i + 1]] for c in (superlink, superexec) for i in [c.index(secret[0])])


def test_a_node_is_started_with_its_key_and_what_is_true_of_its_device(
    site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(supervise, "supervise", lambda commands, folder, env: started.append((commands, folder, env)))
    images = tmp_path / "own images"
    images.mkdir()
    words = ["--server", "10.1.1.1:443", "--budget", "20ms+8MB", "--threads", "3", "--data", images, "--warm", "60"]
    words += ["--no-disclose"]
    found = fednas("node", site, "phone", *words)
    assert found.exit_code == 0, found.output
    (command,), folder, env = started[0]
    told = dict(zip(command[1::2], command[2::2], strict=True))
    assert told["--superlink"] == "10.1.1.1:443"
    assert told["--root-certificates"] == str(site / "nodes/phone/ca.crt")
    assert told["--auth-supernode-private-key"] == str(site / "nodes/phone/node.key")
    assert told["--node-config"] == (
        f'partition-id=0 name="phone" threads=3 budget="20ms+8MB" data="{images}" warm=60 disclose=false '
        f'models="{site}/nodes/phone/models" state="{site}/nodes/phone/state"'
    )
    assert folder == site / "nodes/phone" and env["FLWR_HOME"] == str(site / "nodes/phone/flower")
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"


def test_flower_reads_the_configuration_of_a_node_as_it_was_meant(
    site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flwr.common.config import parse_config_args

    started: list[Any] = []
    monkeypatch.setattr(supervise, "supervise", lambda commands, folder, env: started.append(commands[0]))
    moved = (site / "nodes/tablet").rename(tmp_path / "its own place")
    fednas("node", moved, "--partition-id", "1", "--num-partitions", "4", "--state", tmp_path / "s p a c e")
    command = started[0]
    read = parse_config_args([command[command.index("--node-config") + 1]])
    cores = len(os.sched_getaffinity(0))
    state = str(tmp_path / "s p a c e")
    assert read == {
        "partition-id": 1, "num-partitions": 4, "threads": cores, "models": str(moved / "models"), "state": state,
    }  # fmt: skip
    assert command[command.index("--superlink") + 1] == "192.168.1.10:8000"
    ports = {c[c.index("--port") + 1] for c in (command, programs.node_command(keys.read_bundle(moved), "x:1", {}))}
    assert len(ports) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--server", "https://10.0.0.1:8000"], "--server 'https://10.0.0.1:8000'"),
        (["--server", "10.0.0.1"], "allowed is HOST:PORT"),
        (["--server", "10.0.0.1:70000"], "allowed is HOST:PORT"),
        (["--budget", "20 seconds"], "budget '20 seconds'"),
        (["--data", "/no/such/place"], "--data /no/such/place"),
        (["--num-partitions", "1", "--partition-id", "1"], "--num-partitions 1"),
        (["--data", "/", "--num-partitions", "4"], "leave out --num-partitions"),
        (["--state", 'quo"te'], "without quotes"),
    ],
)
def test_bad_options_of_a_node_are_refused(site: Path, words: list[str], said: str) -> None:
    found = fednas("node", site, "phone", *words)
    assert found.exit_code == 2 and said in " ".join(found.stderr.split())


def test_a_folder_that_is_no_node_is_refused(site: Path) -> None:
    for words in ([site, "watch"], [site]):
        found = fednas("node", *words)
        assert found.exit_code == 2 and "is not the folder of a node" in found.stderr
    (site / "nodes/phone/node.toml").write_text('name = "phone"')
    found = fednas("node", site, "phone")
    assert found.exit_code == 2 and "partition-id" in found.stderr


def test_a_server_refuses_addresses_it_cannot_serve(site: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds for 192.168.1.10, server.example, localhost, 127.0.0.1, ::1 only"):
        programs.check_certified(site / "server/server.crt", "10.9.9.9")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        found = fednas("server", site, "--port", busy.getsockname()[1])
    assert found.exit_code == 2 and "cannot listen on 127.0.0.1" in found.stderr
    assert fednas("server", tmp_path / "nothing").exit_code == 2


# -- the operator --------------------------------------------------------------------------------------------------


def test_the_operators_connection_is_kept_for_next_time(site: Path) -> None:
    link = operate.told(site, "server.example:8443")
    text = (link.home / "config.toml").read_text()
    assert 'address = "server.example:8443"' in text and str(site / "server/ca.crt") in text
    assert operate.told(site, None).home == link.home and (link.home / "config.toml").read_text() == text
    operate.told(site, "superlink:8000", insecure=True)
    assert "insecure = true" in (link.home / "config.toml").read_text()


@pytest.mark.parametrize("command", ["register", "run"])
def test_a_server_that_is_not_there_is_named(site: Path, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    found = fednas(command, site, "--server", f"127.0.0.1:{port}")
    assert found.exit_code == 2 and f"no SuperLink answers at 127.0.0.1:{port}" in found.stderr


def test_a_run_refuses_wrong_settings_before_it_asks_anybody(site: Path, tmp_path: Path) -> None:
    found = fednas("run", site, "--set", "round=3")
    assert found.exit_code == 2 and "did you mean 'rounds'" in found.stderr
    assert "is not the folder of a deployment" in fednas("run", tmp_path).stderr


class Log(simulate.Stream):
    """A log that breaks off when told to."""

    def __init__(self, flower_id: str | None) -> None:
        self.flower_id, self.streaming = flower_id, True

    def running(self) -> bool:
        return self.streaming


class Answers(Connection):
    """A SuperLink that gives answers from a list."""

    def status(self, run_id: str) -> tuple[str, str]:
        return ANSWERS.pop(0)


ANSWERS: list[tuple[str, str]] = []


def test_a_run_is_watched_beyond_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "STATUS_S", 0.0)
    ANSWERS[:] = [("unknown", ""), ("running", ""), ("finished:failed", "why")]
    log = Log("17")
    watch = operate.Watch(log, Answers(tmp_path, {}))
    assert watch.running() and len(ANSWERS) == 3
    log.streaming = False
    assert [watch.running() for _ in range(3)] == [True, True, False] and watch.told == ("finished:failed", "why")
    monkeypatch.setattr(operate, "PATIENCE_S", -1.0)
    ANSWERS[:] = [("unknown", "nobody answers")]
    assert not watch.running() and watch.told[0] == "unknown"
    log.flower_id = None
    assert not watch.running()


def test_who_stops_watching_is_told_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    link = Connection(tmp_path, environment(tmp_path))
    operate.Watch(Log("17"), link).leave()
    told = capsys.readouterr().err
    assert f"FLWR_HOME={tmp_path} flwr log 17 fednas" in told and "flwr stop 17 fednas" in told
    operate.Watch(Log(None), link).leave()
    assert "before the run had started" in capsys.readouterr().err


def test_a_result_that_lies_elsewhere_is_named(tmp_path: Path) -> None:
    log = Log("17")
    log.run_name, log.lines = "20260101-000000-fedavg", []
    with pytest.raises(RunError, match="was completed, but its folder cannot be read here"):
        simulate.conclude(log, ("finished:completed", ""), tmp_path, False)


# -- supervision ---------------------------------------------------------------------------------------------------


def test_what_fails_is_started_again_and_all_end_together(tmp_path: Path) -> None:
    count = "open('count', 'a').write('x'); import sys; sys.exit(len(open('count').read()) < 3)"
    forever = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    commands = [[sys.executable, "-c", forever], [sys.executable, "-c", count]]
    supervise.supervise(commands, tmp_path, dict(os.environ), pause_s=0.3)
    assert (tmp_path / "count").read_text() == "xxx"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_always_fails_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervise, "ATTEMPTS", 2)
    monkeypatch.setattr(supervise, "POLL_S", 0.01)
    with pytest.raises(RunError, match="failed 2 times in a row"):
        supervise.supervise([[sys.executable, "-c", "raise SystemExit(7)"]], tmp_path, dict(os.environ), pause_s=0)
    assert "ended with code 7" in capsys.readouterr().err


def test_a_request_to_end_ends_everything(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from fednas_core.cli.supervise import supervise; "
        "supervise([[sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(600)']], "
        "Path.cwd(), dict(os.environ))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None and process.stdout.readline() == b"1\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert process.stdout.read() == b""
    process.stdout.close()


def test_refusals_are_for_people() -> None:
    assert issubclass(ConfigError, FednasError) and issubclass(RunError, FednasError)


def test_the_commands_of_a_deployment_are_these() -> None:
    named = {command.callback.__name__ for command in deploy.app.registered_commands if command.callback}
    assert named == {"keys", "server", "register", "node", "run"}
