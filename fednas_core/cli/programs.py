"""Command lines of the programs of a deployment: SuperLink and SuperExec on the server, SuperNode on a device."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509

from fednas_core.base.errors import ConfigError, RunError
from fednas_core.cli.keys import Bundle, join, names_of
from fednas_core.cli.superlink import free_port, script

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that mean every interface, and how the same machine is reached then."""
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]\"']+):(\d{1,5})")


def server_commands(place: Path, host: str, port: int) -> list[list[str]]:
    """Return the command lines of SuperLink and SuperExec for the server's folder of a deployment."""
    secret = ["--superexec-auth-secret-file", str(place / "superexec.secret")]
    superlink = [script("flower-superlink"), "--host", host, "--port", str(port)]
    superlink += ["--ssl-ca-certfile", str(place / "ca.crt")]
    superlink += ["--ssl-certfile", str(place / "server.crt"), "--ssl-keyfile", str(place / "server.key")]
    superlink += ["--enable-supernode-auth", "--database", str(place / "superlink.db")]
    superlink += ["--isolation", "process", *secret, "--disable-runtime-dependency-installation"]
    superexec = [script("flower-superexec"), "--runtime-api-address", join(EVERYWHERE.get(host, host), port)]
    return [superlink, [*superexec, "--root-certificates", str(place / "ca.crt"), *secret]]


def node_command(bundle: Bundle, server: str, settings: Mapping[str, str | int]) -> list[str]:
    """Return the command line of a SuperNode; settings that are '' are left out. Raises `ConfigError` for odd text."""
    command = [script("flower-supernode"), "--superlink", server, "--root-certificates", str(bundle.authority)]
    command += ["--auth-supernode-private-key", str(bundle.key), "--host", "127.0.0.1", "--port", str(free_port())]
    return [*command, "--node-config", " ".join(_pair(key, value) for key, value in settings.items() if value != "")]


def address(text: str) -> str:
    """Return ``HOST:PORT`` without the spaces around it; raise `ConfigError` for anything else."""
    found = _ADDRESS.fullmatch(text.strip())
    if not found or not 0 < int(found[2]) < 65536:
        raise ConfigError(f"--server {text!r}: allowed is HOST:PORT without https://, e.g. 192.168.1.10:8000")
    return text.strip()


def check_certified(certificate: Path, host: str) -> None:
    """Raise `ConfigError` if a certificate does not hold for the address that the server's own programs use."""
    names = names_of(x509.load_pem_x509_certificate(certificate.read_bytes()))
    if host not in names:
        raise ConfigError(
            f"--host {host}: the server's certificate holds for {', '.join(names)} only; listen on 0.0.0.0, or create "
            "keys for this address in another folder"
        )


def check_free(host: str, port: int) -> None:
    """Raise `RunError` if nobody can listen there now."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise RunError(
            f"cannot listen on {host} port {port} ({error.strerror}): choose others with --host and --port"
        ) from error


def _pair(key: str, value: str | int) -> str:
    if isinstance(value, int):
        return f"{key}={str(value).lower()}"
    if any(character in '"\\' or not character.isprintable() for character in value):
        raise ConfigError(f"{key} {value!r}: allowed is text without quotes, backslashes and control characters")
    return f'{key}="{value}"'
