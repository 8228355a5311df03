"""The `fednas` command: a thin layer of Typer over the rooms below. Heavy packages are imported inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from fednas_core.base.terminal import lenient, silence
from fednas_core.cli import catalogue, deploy, history, profiling, running, scoring, simulate
from fednas_core.cli.show import REFUSED, note

app = typer.Typer(
    name="fednas",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Train": (running.run, simulate.simulate, running.resume),
    "Look": (history.runs, history.report, history.export),
    "Search without training": (scoring.score, scoring.search, scoring.path),
    "What there is": (profiling.profile, catalogue.methods, catalogue.spaces, catalogue.presets, catalogue.settings),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(deploy.app, rich_help_panel="Train")


def _version(wanted: bool) -> None:
    if wanted:
        from fednas_core.runs.folder import versions

        for package, version in versions().items():
            print(f"{package} {version}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say what is installed, and leave.")
    ] = False,
) -> None:
    """Search, train and export neural networks across devices that keep their data."""


def main() -> None:
    """Run the command line: the entry point of the script `fednas`."""
    lenient()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        silence(sys.stdout)
        note(f"error: what was to be printed cannot be written ({error.strerror})")
        sys.exit(REFUSED)
