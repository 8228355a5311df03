"""Commands that look at runs on disk: list them, write their report, export a model from their checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednas_core.cli.runs import Output, RunId, run_folder, run_folders, runs_folder
from fednas_core.cli.show import Json, guard, note, print_json, print_models, print_table
from fednas_core.errors import ArchError, ConfigError, InfeasibleError, RunError

if TYPE_CHECKING:
    from fednas_core.config import RunConfig
    from fednas_core.devices.budgets import Budget
    from fednas_core.selection import Judge, Judged


@guard
def runs(output: Output = Path("runs"), as_json: Json = False) -> None:
    """List the runs, oldest first."""
    root = runs_folder(output)
    rows = [_summary(path) for path in run_folders(root)]
    if as_json:
        print_json(rows)
    elif not rows:
        note(f"no runs in {root}: start one with  fednas run")
    else:
        print_table(
            ("run", "method", "rounds", "state", "best accuracy", "seconds"),
            [
                (
                    row["id"],
                    row["method"] or "-",
                    f"{row['rounds_done']}/{row['rounds']}",
                    row["state"],
                    "-" if row["best_accuracy"] is None else f"{row['best_accuracy']:.1%}",
                    f"{row['seconds']:.1f}",
                )
                for row in rows
            ],
        )


def _summary(path: Path) -> dict[str, Any]:
    """Return the row of one run; `best_accuracy` is the highest on the validation images."""
    from fednas_core.report.read import read_run

    try:
        data = read_run(path)
    except RunError as error:
        note(str(error))
        unknown = {"method": None, "rounds": 0, "rounds_done": 0, "best_accuracy": None, "seconds": 0.0}
        return {"id": path.name, "state": "damaged", **unknown}
    accuracies = [row["accuracy"] for event in data.rounds for row in event.get("evaluation") or ()]
    accuracies += [model["validation_accuracy"] for model in data.models]
    return {
        "id": path.name,
        "method": data.settings.get("settings.method"),
        "rounds_done": len(data.rounds),
        "rounds": data.settings.get("settings.rounds", 0),
        "state": "finished" if data.result else "unfinished",
        "best_accuracy": max(accuracies, default=None),
        "seconds": data.total("seconds"),
    }


@guard
def report(
    run_id: RunId = "latest",
    output: Output = Path("runs"),
    open_: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write a run's report anew: report.html and report.md in its folder."""
    from fednas_core.report.write import write

    page = write(run_folder(output, run_id))
    if as_json:
        print_json({"html": str(page), "markdown": str(page.with_suffix(".md"))})
    else:
        print(f"{page}\n{page.with_suffix('.md')}")
    if open_:
        import webbrowser

        webbrowser.open(page.as_uri())


@guard
def export(
    device: Annotated[str, typer.Option("--device", help="Name of the model's folder.")],
    run_id: RunId = "latest",
    max_macs: Annotated[
        str | None, typer.Option(help="Take the network of best validation accuracy within 500M, 30% or max.")
    ] = None,
    arch: Annotated[str | None, typer.Option("--arch", help='Take this one: {"d":[…],"e":[…],"w":[…]}.')] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the model's folder; default: the run's.")] = None,
    output: Output = Path("runs"),
    as_json: Json = False,
) -> None:
    """Extract a network from a run's checkpoint, test it and export it as a verified model."""
    from fednas_core.runs.folder import RunFolder
    from fednas_core.selection import Judge, deliver
    from fednas_core.tasks.bench import space_of

    if max_macs is not None and arch is not None:
        raise ConfigError("give --max-macs or --arch, not both")
    run = RunFolder(run_folder(output, run_id))
    config = run.config()
    done, state = run.load_checkpoint()
    budget = _budget(config, device, max_macs or "max")
    judge = Judge(config, state.tensors)
    chosen = _judged(config, judge, arch) if arch is not None else _best(config, judge, budget)
    if arch is not None:
        budget = replace(budget, macs=space_of(config).cost(chosen.arch).macs)
    folder = to.expanduser().resolve() if to else run.path / "models"
    model = deliver(replace(config, rounds=done), judge, budget, chosen, folder)
    if as_json:
        print_json({**model, "run": run.id, "folder": str(folder / device)})
        return
    print_models([model])
    print(folder / device)


def _budget(config: RunConfig, device: str, macs: str) -> Budget:
    from fednas_core.devices.budgets import Budget, parse_macs
    from fednas_core.tasks.bench import space_of

    space = space_of(config)
    return Budget(device, parse_macs(macs, space.cost(space.largest).macs))


def _judged(config: RunConfig, judge: Judge, text: str) -> Judged:
    """Judge the one architecture that a JSON text names; raise `ArchError` if the run did not train it."""
    from fednas_core.selection import judge_all, trained_archs
    from fednas_core.tasks.bench import space_of

    space = space_of(config)
    try:
        arch = space.arch(json.loads(text))
    except ValueError as error:
        raise ArchError(f"--arch: is not JSON ({error}); an example: {space.smallest}") from error
    only = trained_archs(config, space)
    if only and arch not in only:
        raise ArchError(f"--arch: method '{config.method}' trained one network only: {only[0]}")
    return judge_all(config, judge, [arch])[0]


def _best(config: RunConfig, judge: Judge, budget: Budget) -> Judged:
    """Judge what fits the budget and return the most accurate; raise `InfeasibleError` if nothing does."""
    from fednas_core.methods.registry import path_of
    from fednas_core.selection import best_within, candidates, judge_all, trained_archs
    from fednas_core.tasks.bench import space_of

    space = space_of(config)
    archs = trained_archs(config, space) or candidates(config, [budget], path_of(config, space, budget.macs))
    fitting = [arch for arch in archs if space.cost(arch).macs <= budget.macs]
    chosen = best_within(judge_all(config, judge, fitting), budget.macs) if fitting else None
    if chosen is None:
        cheapest = min(space.cost(arch).macs for arch in archs)
        raise InfeasibleError(
            f"--max-macs: no trained network has at most {budget.macs:,} MACs; the cheapest has {cheapest:,}"
        )
    return chosen
