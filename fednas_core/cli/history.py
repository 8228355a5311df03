"""Commands that look at runs on disk: list them, write their report, export a model from their checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fednas_core.base.errors import ArchError, ConfigError, InfeasibleError, RunError
from fednas_core.base.paths import real
from fednas_core.cli.runs import Output, RunId, run_folder, runs_folder
from fednas_core.cli.show import Json, guard, note, print_json, print_table
from fednas_core.methods.catalogue import METHODS
from fednas_core.runs.listing import run_folders

if TYPE_CHECKING:
    from fednas_core.base.config import RunConfig
    from fednas_core.base.values import Arch
    from fednas_core.devices.budgets import Allowance
    from fednas_core.engine.evaluation import Judge, Judged


SHOWN = ("start", "training")
"""Phases whose seconds have a column of their own."""


@guard
def runs(
    output: Output = Path("runs"),
    method: Annotated[str | None, typer.Option(help="Only those of one method.")] = None,
    state: Annotated[
        Literal["finished", "unfinished", "damaged"] | None, typer.Option(help="Only those in this state.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="Only those started since then.")
    ] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Only the last so many of them.")] = None,
    as_json: Json = False,
) -> None:
    """List the runs, oldest first."""
    root = runs_folder(output)
    if method is not None and method not in METHODS:
        raise ConfigError(f"--method {method}: allowed are {', '.join(METHODS)}")
    there = [path for path in run_folders(root) if since is None or _started(path) >= since]
    rows = [row for row in map(_summary, there) if method in (None, row["method"]) and state in (None, row["state"])]
    rows = rows[-last:] if last else rows
    if as_json:
        print_json(rows)
    elif not rows:
        kind = "such runs" if method or state or since else "runs"
        note(f"no {kind} in {root}: start one with  fednas run")
    else:
        head = ("run", "rounds", "state", "accuracy", "seconds", "tested by", "worst tenth", *SHOWN, "rest", "method")
        print_table(head, [_cells(row) for row in rows], whole=True)


def _started(path: Path) -> datetime:
    """Return when a run was started: its id says so, or else the age of its settings."""
    try:
        return datetime.strptime(path.name[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return datetime.fromtimestamp((path / "config.toml").stat().st_mtime)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one run, the most telling ones first."""
    whole, *phases = _times(row["seconds"], row["phases"])
    return (
        row["id"],
        f"{row['rounds_done']}" + (f"/{row['rounds']}" if row["rounds"] else ""),
        row["state"],
        _share(row["best_accuracy"]),
        f"{whole:.1f}",
        row["tested_by"] or "-",
        _share(row["worst_decile"]),
        *(f"{value:.1f}" for value in phases),
        row["method"] or "-",
    )


def _times(whole: float, phases: Mapping[str, float]) -> list[float]:
    """Return a run's seconds, those of the phases that have a column, and all others."""
    shown = [phases.get(phase, 0.0) for phase in SHOWN]
    return [whole, *shown, whole - sum(shown)]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _summary(path: Path) -> dict[str, Any]:
    """Return the row of one run.

    `best_accuracy` is the highest on the server's validation images; where only clients could test, of their means.
    `worst_decile` is the highest accuracy over a worst tenth of the clients, None if they tested nothing. `seconds` are
    all of the run's, `phases` where they went.
    """
    from fednas_core.base.config import COMPETING
    from fednas_core.show.read import read_run
    from fednas_core.show.tested import TRAINED_ON, by_clients

    try:
        data = read_run(path)
    except RunError as error:
        note(str(error))
        nothing = dict.fromkeys(("method", "best_accuracy", "tested_by", "worst_decile"))
        unknown = {"rounds": 0, "rounds_done": 0, "seconds": 0.0, "phases": {}}
        return {"id": path.name, "state": "damaged", **unknown, **nothing}
    rows = [row for event in data.rounds for row in event.get("evaluation") or ()]
    server = [row["accuracy"] for row in rows if not by_clients(row)]
    server += [model["validation_accuracy"] for model in data.models]
    clients = [row["accuracy"] for row in rows if by_clients(row)]
    held_out = all(row["clients"].get("held_out", True) for row in rows if row.get("clients"))
    whole = data.result is not None and data.result.get("rounds", 0) + data.result.get("unrecorded", 0) == data.done
    by = "clients" if held_out else f"clients {TRAINED_ON}"
    return {
        "id": path.name,
        "method": data.settings.get("method"),
        "rounds_done": data.done,
        "rounds": None if data.settings.get("method") in COMPETING else data.settings.get("rounds", 0),
        "state": "finished" if whole else "unfinished",
        "best_accuracy": max(server or clients, default=None),
        "tested_by": "server" if server else by if clients else None,
        "worst_decile": max((row["clients"]["worst_decile"] for row in rows if row.get("clients")), default=None),
        "seconds": sum(data.seconds.values()),
        "phases": dict(data.seconds),
    }


@guard
def report(
    run_id: RunId = "latest",
    output: Output = Path("runs"),
    open_: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write a run's report anew: report.html and report.md in its folder."""
    folder = run_folder(output, run_id)
    from fednas_core.show.write import write

    page = write(folder)
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
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "--max-macs",
            help="Take the most accurate network within 500M (MACs), 30%, 8MB, 1.5Mparams, 20ms here, max.",
        ),
    ] = None,
    arch: Annotated[str | None, typer.Option("--arch", help='Take this one: {"d":[…],"e":[…],"w":[…]}.')] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the model's folder; default: the run's.")] = None,
    output: Output = Path("runs"),
    as_json: Json = False,
) -> None:
    """Extract a network from a run's checkpoint, test it and export it as a verified model."""
    if budget is not None and arch is not None:
        raise ConfigError("give --budget or --arch, not both")
    from fednas_core.runs.folder import RunFolder

    run = RunFolder(run_folder(output, run_id))
    config = run.config()
    from fednas_core.devices.budgets import Budget
    from fednas_core.engine.evaluation import Judge, deliver
    from fednas_core.engine.starts import trained
    from fednas_core.show.ending import kept, table
    from fednas_core.tasks.bench import space_of

    if parts := space_of(config).personal:
        raise RunError(f"run '{run.id}' cannot be exported: {kept(parts)}")
    done, method = trained(run)
    judge = Judge(config, method.network)
    if arch is not None:
        chosen = _judged(config, judge, arch, method.catalogue.these)
        limit = Budget(device, macs=space_of(config).cost(chosen.arch).macs)
    else:
        allowance = _allowance(config, device, budget or "max")
        chosen, limit = _best(config, judge, allowance, method.catalogue.these), allowance.budget
    folder = real(to) if to else run.path / "models"
    model = deliver(replace(config, rounds=done), judge, limit, chosen, folder)
    if as_json:
        print_json({**model, "run": run.id, "folder": str(folder / device)})
        return
    print(f"{table([model])}\n\n{folder / device}")


def _allowance(config: RunConfig, device: str, text: str) -> Allowance:
    """Return what a budget allows; milliseconds are predicted from measurements on this machine."""
    from fednas_core.devices.budgets import Allowance, parse_budget
    from fednas_core.devices.latency_model import LatencyModel
    from fednas_core.devices.profile import profile
    from fednas_core.tasks.bench import device_of, space_of

    space = space_of(config)
    budget = parse_budget(text, space.cost(space.supernet).macs, device)
    if not budget.timed:
        return Allowance(budget, space)
    return Allowance(budget, space, LatencyModel.fit(space, profile(space, device_of(config)).probes).upper_ms)


def _judged(config: RunConfig, judge: Judge, text: str, networks: Sequence[Arch] | None) -> Judged:
    """Judge the one architecture that a JSON text names; raise `ArchError` if the run did not train it.

    `networks` are those that the run has, None if it trained a supernet.
    """
    from fednas_core.engine.evaluation import judge_all, trained_archs
    from fednas_core.tasks.bench import space_of

    space = space_of(config)
    try:
        arch = space.arch(json.loads(text))
    except ValueError as error:
        raise ArchError(f"--arch: is not JSON ({error}); an example: {space.smallest}") from error
    only = networks or trained_archs(config, space)
    if only and arch not in only:
        which = "one network only" if len(only) == 1 else "these networks only"
        raise ArchError(f"--arch: method '{config.method}' trained {which}: {', '.join(map(str, only))}")
    return judge_all(config, judge, [arch])[0]


def _best(config: RunConfig, judge: Judge, allowance: Allowance, networks: Sequence[Arch] | None) -> Judged:
    """Judge what fits the budget and return the most accurate; raise `InfeasibleError` if nothing does."""
    from fednas_core.engine.evaluation import best_within, candidates, judge_all, measured, trained_archs
    from fednas_core.methods.registry import path_of, searched_by
    from fednas_core.tasks.bench import space_of

    space = space_of(config)
    poorest = int(min(allowance.budget.macs, space.cost(space.supernet).macs))
    archs = networks or trained_archs(config, space)
    if archs is None:
        if searched_by(config, space) == "accuracy":
            archs = measured(config, judge, [allowance])
        else:
            archs = candidates(config, [allowance], path_of(config, space, poorest))
    fitting = [arch for arch in archs if allowance.allows(arch)]
    chosen = best_within(judge_all(config, judge, fitting), allowance.allows) if fitting else None
    if chosen is None:
        cheapest = min((space.cost(arch) for arch in archs), key=lambda cost: cost.macs)
        raise InfeasibleError(
            f"no trained network keeps a budget of {allowance.budget}; the cheapest takes {cheapest.macs:,} MACs, "
            f"{cheapest.params:,} parameters, {cheapest.bytes:,} bytes"
        )
    return chosen
