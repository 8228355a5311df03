"""Commands that train in this process, without Flower: run and resume."""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednas_core.cli.runs import Output, newest, runs_folder
from fednas_core.cli.settings import Config, Pairs, gather
from fednas_core.cli.show import INTERRUPTED, Json, guard, note, print_json
from fednas_core.errors import FednasError

if TYPE_CHECKING:
    from fednas_core.config import RunConfig


@guard
def run(config: Config = None, pairs: Pairs = None, as_json: Json = False) -> None:
    """Train, search and export in this process: the same run as `flwr run`, without Flower."""
    from fednas_core.settings import read

    conduct_here(read(gather(config, pairs)), as_json)


@guard
def resume(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="A run of `fednas runs`, or latest.")],
    output: Output = Path("runs"),
    as_json: Json = False,
) -> None:
    """Continue a run after its last complete round; the rounds to come are those it would have had."""
    from fednas_core.config import RunConfig

    conduct_here(RunConfig(resume=run_id, output=str(runs_folder(output))), as_json)


def conduct_here(config: RunConfig, as_json: bool) -> None:
    """Conduct a run with the in-process backend; on Ctrl-C say how to resume and leave with code 130."""
    began = time.monotonic()  # importing torch is part of the start
    from fednas_core.experiment import conduct, settle
    from fednas_core.local import LocalFleet
    from fednas_core.runs.folder import output_folder

    config = settle(config)
    announce = note if as_json else partial(print, flush=True)
    root = output_folder(config)
    known = newest(root)
    try:
        with closing(LocalFleet(config)) as fleet:
            folder = conduct(config, fleet, announce, began)
    except KeyboardInterrupt:
        stopped(root, config.resume or newest(root, other_than=known))
        raise typer.Exit(INTERRUPTED) from None
    except FednasError:
        if hint := _continuation(root, config.resume or newest(root, other_than=known)):
            note(hint)
        raise
    if as_json:
        print_json(folder.read_json("result.json"))


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
