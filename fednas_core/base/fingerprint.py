"""Which code is running: a hash of the sources of the three packages as this process finds them.

Server and device compare their fingerprints, so that another checkout that happens to be first on a search path is
refused instead of silently taking part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("client_app", "fednas_core", "server_app")
SOURCES = (".py", ".toml")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A SHA-256 digest (64 hexadecimal digits) of the sources, and the folder that holds `fednas_core`."""

    digest: str
    folder: str


@lru_cache(maxsize=1)
def fingerprint() -> Fingerprint:
    """Return the fingerprint of the packages beside the modules that this process imports."""
    folders = {name: package_folder(name) for name in PACKAGES}
    core = folders["fednas_core"]
    return Fingerprint(digest_of(folders), str(core.parent) if core else "")


def package_folder(name: str) -> Path | None:
    """Return the folder of an importable package without importing it; None if there is none."""
    spec = find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def digest_of(folders: dict[str, Path | None]) -> str:
    """Return one digest of the names and contents of all source files in these package folders."""
    import hashlib  # with OpenSSL, 4 MB: most commands do without

    digest = hashlib.sha256()
    for name, folder in sorted(folders.items()):
        paths = sorted(folder.rglob("*")) if folder else []
        for path in paths:
            if path.suffix in SOURCES and path.is_file():
                digest.update(f"{name}/{path.relative_to(folder).as_posix()}\0".encode())  # type: ignore[arg-type]
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
