from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fednas_core.base.config import RunConfig
from fednas_core.base.settings import flatten

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for key, value in table.items():
        pairs.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return pairs


def required(specifiers: list[str]) -> set[str]:
    return {re.split(r"[\[<>=]", text)[0].lower() for text in specifiers}


def test_flower_offers_every_setting_with_its_default() -> None:
    listed, defined = flat(PROJECT["tool"]["flwr"]["app"]["config"]), flatten(RunConfig())
    assert listed == defined
    assert {key: type(value) for key, value in listed.items()} == {key: type(v) for key, v in defined.items()}


def test_a_run_installs_nothing_anew() -> None:
    project = PROJECT["project"]
    wanted = required(project["dependencies"]).union(*map(required, project["optional-dependencies"].values()))
    assert wanted - {"fednas"} == set(PROJECT["tool"]["uv"]["exclude-dependencies"])


def test_the_constraints_pin_every_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.lower().split("==") for line in lines)
    project = PROJECT["project"]
    wanted = required(project["dependencies"]).union(*map(required, project["optional-dependencies"].values()))
    assert {name.replace("_", "-") for name in pinned} >= wanted - {"fednas"}


def test_there_is_no_table_that_makes_flower_rewrite_this_file() -> None:
    assert "federations" not in PROJECT["tool"]["flwr"]


@pytest.mark.parametrize("package", ["client_app", "server_app"])
def test_the_command_line_imports_packages_that_are_empty(package: str) -> None:
    assert (ROOT / package / "__init__.py").read_text() == ""


def test_every_source_file_travels_in_the_bundle() -> None:
    from flwr.cli.build import build_fab_from_disk, get_filtered_fab_paths  # noqa: F401
    from flwr.cli.utils import collect_files, filter_paths_for_publish

    travelling = set(get_filtered_fab_paths(filter_paths_for_publish(collect_files(ROOT)), PROJECT))
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("client_app", "fednas_core", "server_app")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= travelling
