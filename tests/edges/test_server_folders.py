from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import server_app.folders as folders
from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError
from fednas_core.base.settings import read


class Installed:
    def __init__(self, origin: str | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.origin


def test_the_working_directory_if_it_is_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "fednas"\n')
    monkeypatch.chdir(tmp_path)
    assert folders.project_folder() == tmp_path
    assert folders.placed(RunConfig()).output == str(tmp_path / "runs")
    assert folders.placed(replace(RunConfig(), output="here")).output == str(tmp_path / "here")
    assert folders.placed(replace(RunConfig(), output="/abs/x")).output == "/abs/x"
    assert folders.placed(replace(RunConfig(), output="~/x")).output == str(Path.home() / "x")


def test_relative_paths_are_the_projects_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "fednas"\n')
    (tmp_path / "images").mkdir()
    (tmp_path / "own.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    found = folders.placed(read({"data.path": "images", "space.name": "own.toml"}))
    assert found.data.path == str(tmp_path / "images") and found.space.name == str(tmp_path / "own.toml")
    for key, value in (("data.path", "absent"), ("space.name", "absent.toml")):
        with pytest.raises(ConfigError, match=f"'{key}' = '{value}': .* there is no {tmp_path}/{value}: give the abs"):
            folders.placed(read({key: value}))
    assert folders.placed(read({"space.name": "small"})).space.name == "small"


@pytest.mark.parametrize("text", ['[project]\nname = "another"\n', "no toml [", None])
def test_elsewhere_the_folder_of_an_editable_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    project = tmp_path / "my project"
    project.mkdir()
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    origin = f'{{"url": "{project.as_uri()}", "dir_info": {{"editable": true}}}}'
    monkeypatch.setattr(folders, "distribution", lambda name: Installed(origin))
    assert folders.project_folder() == project


@pytest.mark.parametrize("origin", [None, '{"url": "https://x.org/f.zip"}', '{"url": "file:///x", "dir_info": {}}'])
def test_the_working_directory_if_nothing_else_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folders, "distribution", lambda name: Installed(origin))
    assert folders.project_folder() == tmp_path
