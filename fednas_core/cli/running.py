"""Commands that train in this process, without Flower: run and resume."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednas_core.base.errors import ConfigError, FednasError
from fednas_core.base.terminal import say
from fednas_core.cli.runs import Output, runs_folder
from fednas_core.cli.settings import Config, Pairs, check_space, gather
from fednas_core.cli.show import INTERRUPTED, Json, guard, leave_if_lacking, note, print_json

if TYPE_CHECKING:
    from fednas_core.base.config import RunConfig


@guard
def run(config: Config = None, pairs: Pairs = None, as_json: Json = False) -> None:
    """Train, search and export in this process: the same run as `flwr run`, without Flower."""
    from fednas_core.base.settings import read

    given = gather(config, pairs)
    conduct_here(read(given), given, as_json)


@guard
def resume(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="A run of `fednas runs`, or latest.")],
    output: Output = Path("runs"),
    pairs: Pairs = None,
    as_json: Json = False,
) -> None:
    """Continue a run after its last complete round; the rounds to come are those it would have had.

    Settings that leave the rounds done as they are may change: --set rounds=60 adds some, also to a finished run;
    with --set output=FOLDER the run moves there from --output.
    """
    from fednas_core.base.settings import read

    given = gather(None, pairs)
    if "resume" in given:
        raise ConfigError(f"setting 'resume' = {given['resume']!r}: the argument ID says that here")
    lies = runs_folder(output)
    conduct_here(read({"output": str(lies), **given, "resume": run_id}), given, as_json, lies)


def conduct_here(config: RunConfig, given: Collection[str], as_json: bool, usual: Path = Path("runs")) -> None:
    """Conduct a run with the in-process backend; on Ctrl-C say how to resume and leave with code 130.

    `given` are the settings that were given, defaults too; for them and `usual` see `engine.resuming.resumed`.
    """
    began = time.monotonic()  # importing torch is part of the start
    from fednas_core.base.paths import anchored
    from fednas_core.base.settings import refuse_idle
    from fednas_core.engine.resuming import resumed
    from fednas_core.runs.folder import RunFolder, output_folder

    # before torch is imported: what cannot run is refused at once
    config = resumed(anchored(config, Path.cwd()), given, usual)
    refuse_idle(config, given)
    check_space(config)
    from fednas_core.engine.local import LocalFleet
    from fednas_core.engine.run import conduct, settle

    announce = note if as_json else say
    config = settle(config, given, announce)
    root = output_folder(config)
    begun: list[RunFolder] = []

    def run_id() -> str | None:
        return begun[0].id if begun else config.resume or None

    try:
        with closing(LocalFleet(config)) as fleet:
            folder = conduct(config, fleet, announce, began, begun.append)
    except KeyboardInterrupt:
        stopped(root, run_id())
        raise typer.Exit(INTERRUPTED) from None
    except FednasError:
        if begun and (hint := _continuation(root, begun[0].id)):
            note(hint)
        raise
    if as_json:
        print_json(folder.read_json("result.json"))
    leave_if_lacking(folder.result())


def stopped(root: Path, run_id: str | None) -> None:
    """Say how to go on with a run that was interrupted."""
    hint = _continuation(root, run_id)
    note("\nstopped: " + (hint or "before the first round was finished, so there is nothing to resume"))


def _continuation(root: Path, run_id: str | None) -> str | None:
    """Return how to continue a run, None if it has no checkpoint."""
    if not run_id or not (root / run_id / "checkpoint" / "state.json").is_file():
        return None
    where = "" if root == runs_folder(Path("runs")) else f" --output {root}"
    return f"every finished round is safe; continue with  fednas resume {run_id}{where}"
