from __future__ import annotations

from pathlib import Path

import fednas_core
from fednas_core.base.fingerprint import PACKAGES, digest_of, fingerprint, package_folder


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_the_fingerprint_is_that_of_the_imported_packages() -> None:
    fingerprint.cache_clear()
    found = fingerprint()
    assert found.folder == str(Path(fednas_core.__file__).parents[1])
    assert found.digest == digest_of({name: package_folder(name) for name in PACKAGES})


def test_only_names_and_contents_of_sources_count(tmp_path: Path) -> None:
    one = digest_of({"a": write(tmp_path / "one", x__py="1", y__toml="2", z__pyc="3")})
    same = digest_of({"a": write(tmp_path / "two", x__py="1", y__toml="2", notes__md="4")})
    assert one == same and len(one) == 64
    assert digest_of({"a": write(tmp_path / "three", x__py="1", y__toml="3")}) != one
    assert digest_of({"a": write(tmp_path / "four", w__py="1", y__toml="2")}) != one
    assert digest_of({"b": tmp_path / "one"}) != one


def test_a_missing_package_differs_from_one_that_is_there(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", x__py="1")
    assert digest_of({"a": None}) != digest_of({"a": folder})
    assert package_folder("no_such_package_anywhere") is None
