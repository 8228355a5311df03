"""Paths that users type."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError
from fednas_core.base.paths import anchored, expanded, real
from fednas_core.base.settings import read
from fednas_core.cli import app
from fednas_core.data.own import read_own
from fednas_core.data.sources import Facts
from fednas_core.runs.folder import output_folder

NOBODY = "~nobody-of-this-name/x"


@pytest.mark.parametrize("key", ["output", "data.path", "space.name"])
def test_a_home_folder_that_nobody_has_is_refused_by_the_name_of_the_setting(key: str, tmp_path: Path) -> None:
    path = f"{NOBODY}.toml"
    with pytest.raises(ConfigError, match=rf"^setting '{key}': the path {path} begins with ~nobody-of-this-name, "):
        anchored(read({key: path}), tmp_path)


def test_whoever_expands_a_path_refuses_a_home_folder_that_nobody_has() -> None:
    for use in (expanded, real, lambda path: read_own(path, Facts("x", 1, 1, ("a",), (0.0,), (1.0,)))):
        with pytest.raises(ConfigError, match="a home folder that this machine does not know"):
            use(NOBODY)
    assert expanded("~/x") == Path.home() / "x"


@pytest.mark.parametrize(
    "command",
    [
        ["runs", "--output", NOBODY],
        ["run", "--config", f"{NOBODY}.toml"],
        ["deploy", "keys", NOBODY, "--address", "127.0.0.1", "--nodes", "a"],
    ],
)
def test_no_command_ends_in_a_traceback_for_it(command: list[str]) -> None:
    end = CliRunner().invoke(app, command)
    assert end.exit_code == 2 and "begins with ~nobody-of-this-name" in end.stderr


def test_links_in_a_circle_are_no_reason_for_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    assert output_folder(RunConfig(output=str(tmp_path / "circle"))) == tmp_path / "circle"
