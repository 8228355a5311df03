"""The keys of a deployment: a certificate authority, the server's certificate, and a bundle with a key for each node.

FOLDER/server/         stays on the server: ca.key, ca.crt, server.key, server.crt, superexec.secret, nodes/<name>.pub
FOLDER/nodes/<name>/   goes to the device: ca.crt, node.key, node.toml, README.md; nothing in it opens anything else
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fednas_core.base.errors import ConfigError, RunError

DAYS = 3650
"""Validity of certificates: devices in the field outlive short ones."""
PORT = 8000
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Where the server machine reaches itself: always among the names in its certificate."""
SECRET, OPEN = 0o600, 0o644
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
_README = """\
# {name}: a node of a fednas deployment

The key in this folder is this device's alone: keep it readable by its owner only. Copy the folder to the device,
install the same version of fednas there (in its project folder:  pip install -c constraints.txt -e .), and start it:

    fednas deploy node . --server {server} --budget 20ms

What it keeps goes to state/ here, models made for it to models/. The clock must be right within five minutes.
"""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a device needs to take part: a folder, the node's name, the number of its part and the server's address."""

    path: Path
    name: str
    part: int
    server: str

    @property
    def authority(self) -> Path:
        """The certificate by which the device knows the server."""
        return self.path / "ca.crt"

    @property
    def key(self) -> Path:
        """The private key by which the server knows the device."""
        return self.path / "node.key"


def make(root: Path, addresses: Sequence[str], names: Sequence[str]) -> tuple[Bundle, ...]:
    """Create the authority, the server's certificate for `addresses` and localhost, and a bundle for each name.

    Raises `ConfigError` for an address or name that cannot be used and `RunError` if there are keys in `root` already.
    """
    hosts = [_host(address) for address in addresses]
    _check_names(names)
    server = root / "server"
    if any((server / name).exists() for name in ("ca.key", "ca.crt", "server.key")):
        raise RunError(
            f"{server} holds keys already, and devices rely on them: name another folder, or add a node with --add-node"
        )
    for name in names:
        _check_free(root, name)
    ca_key, ca = _authority()
    key, certificate = _server_certificate(ca_key, ca, hosts)
    try:
        (server / "nodes").mkdir(mode=0o700, parents=True, exist_ok=True)
        server.chmod(0o700)
        _write(server / "ca.key", _private_pem(ca_key), SECRET)
        _write(server / "ca.crt", _pem(ca), OPEN)
        _write(server / "server.key", _private_pem(key), SECRET)
        _write(server / "server.crt", _pem(certificate), OPEN)
        _write(server / "superexec.secret", secrets.token_hex(32).encode(), SECRET)
        return tuple(_bundle(root, name, part, join(hosts[0], PORT)) for part, name in enumerate(names))
    except OSError as error:
        raise RunError(f"cannot write the keys to {root}: {error.strerror or error} ({error.filename})") from error


def add(root: Path, name: str) -> Bundle:
    """Create the bundle of one more node; raise `ConfigError` or `RunError` as `make` does."""
    server = server_folder(root)
    _check_names([name])
    _check_free(root, name)
    try:
        certificate = x509.load_pem_x509_certificate((server / "server.crt").read_bytes())
        host = names_of(certificate)[0]
        return _bundle(root, name, len(public_keys(root)), join(host, PORT))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot add a node to {root}: {error}") from error


def server_folder(root: Path) -> Path:
    """Return the server's folder of a deployment; raise `RunError`, saying how to make one, if there is none."""
    server = root / "server"
    needed = ("ca.crt", "server.crt", "server.key", "superexec.secret")
    missing = [name for name in needed if not (server / name).is_file()]
    if missing:
        raise RunError(
            f"{root} is not the folder of a deployment (no {', '.join(missing)} in {server}): create one with  "
            f"fednas deploy keys {root} --address HOST --nodes phone,tablet"
        )
    return server


def public_keys(root: Path) -> dict[str, Path]:
    """Return the nodes' public keys by name, sorted."""
    return {path.stem: path for path in sorted((root / "server" / "nodes").glob("*.pub"))}


def read_bundle(path: Path) -> Bundle:
    """Return the bundle in a folder; raise `RunError` naming what is missing or wrong."""
    for name in ("ca.crt", "node.key", "node.toml"):
        if not (path / name).is_file():
            raise RunError(
                f"{path} is not the folder of a node (no {name}): name FOLDER/nodes/<name>, or FOLDER and NAME"
            )
    try:
        told = tomllib.loads((path / "node.toml").read_text(encoding="utf-8"))
        return Bundle(path, str(told["name"]), int(told["partition-id"]), str(told["server"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path / 'node.toml'} cannot be read ({error!r}): it needs name, partition-id, server"
        ) from error


def names_of(certificate: x509.Certificate) -> list[str]:
    """Return the host names and addresses for which a certificate holds."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def join(host: str, port: int) -> str:
    """Return ``host:port``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host(text: str) -> str:
    bare = text.strip().removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        if _HOST.fullmatch(bare) and not bare.replace(".", "").isdigit():
            return bare
    raise ConfigError(f"--address {text!r}: allowed are host names and IP addresses, without a port, e.g. 192.168.1.10")


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"node {name!r}: allowed are names of up to 32 letters, digits, - and _, e.g. phone")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"node '{twice[0]}' is named twice: each node needs a name of its own")


def _check_free(root: Path, name: str) -> None:
    folder = root / "nodes" / name
    if name in public_keys(root) or (folder.is_dir() and any(folder.iterdir())):
        raise RunError(f"there is a node '{name}' already in {root}: its key is not overwritten; choose another name")


def _bundle(root: Path, name: str, part: int, server: str) -> Bundle:
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    bundle = Bundle(root / "nodes" / name, name, part, server)
    bundle.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    bundle.path.chmod(0o700)
    _write(bundle.key, private, SECRET)
    _write(bundle.authority, (root / "server" / "ca.crt").read_bytes(), OPEN)
    told = f'name = "{name}"\npartition-id = {part}\nserver = "{server}"\n'
    _write(bundle.path / "node.toml", told.encode(), OPEN)
    _write(bundle.path / "README.md", _README.format(name=name, server=server).encode(), OPEN)
    _write(root / "server" / "nodes" / f"{name}.pub", public + f" {name}\n".encode(), OPEN)
    return bundle


def _authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("fednas deployment")
    only_signs = _usage(signs_certificates=True)
    builder = _certificate(name, name, key, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    return key, _signed(builder.add_extension(only_signs, True), key)


def _server_certificate(
    ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, hosts: Sequence[str]
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Return key and certificate of the server at `hosts`, at localhost and at 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP384R1())
    alternatives = x509.SubjectAlternativeName([_alternative(host) for host in dict.fromkeys((*hosts, *LOCAL))])
    builder = _certificate(_name("fednas SuperLink"), ca.subject, key, ca_key)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(signs_certificates=False), True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    return key, _signed(builder.add_extension(alternatives, False), ca_key)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    since = datetime.now(UTC) - timedelta(days=1)  # for devices whose clock is behind
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(since + timedelta(days=DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(authority, False)
    )


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return builder.sign(key, hashes.SHA384())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that does not exist yet, readable from its first byte on only by those whom `mode` allows."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
