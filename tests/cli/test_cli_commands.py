from __future__ import annotations

import json

import pytest
import typer

from fednas_core.base.errors import RunError
from fednas_core.cli import app, history, running, show


def test_every_command_is_there_and_says_what_it_does() -> None:
    commands = {command.callback for command in app.registered_commands}
    expected = {history.runs, history.report, history.export, running.run, running.resume}
    assert expected <= commands
    for command in commands:
        assert command is not None and command.__doc__, command


@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_for_people_ends_a_command_with_2_and_no_traceback(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    @show.guard
    def command(as_json: bool = False) -> None:
        raise RunError("there is no run 'x'")

    with pytest.raises(typer.Exit) as ended:
        command(as_json=as_json)
    out, err = capsys.readouterr()
    assert ended.value.exit_code == 2
    assert "there is no run 'x'" in err and "Traceback" not in err
    assert (json.loads(out) if out else None) == ({"error": "there is no run 'x'"} if as_json else None)
