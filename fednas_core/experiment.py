"""One run from settings to models: the round loop that every backend shares, then search, export and report.

A `Fleet` carries the orders; everything else happens here, so that a run in process and a run through Flower are the
same run. After each round the event is written and the state saved: a run killed at any moment can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fednas_core import asynchronous, rounds
from fednas_core.config import RunConfig
from fednas_core.console import clients_table, greeting, line, table
from fednas_core.crew import Crew
from fednas_core.devices.budgets import Allowance, parse_budgets
from fednas_core.errors import InfeasibleError
from fednas_core.handover import hand_over
from fednas_core.methods.registry import make, path_of
from fednas_core.protocol import Fleet
from fednas_core.report.write import write as write_report
from fednas_core.runs.folder import RunFolder, create, find, output_folder, versions
from fednas_core.runs.tensorboard import write_scalars
from fednas_core.search.path import PathRow
from fednas_core.seeding import derive
from fednas_core.selection import Judge, best_within, candidates, deliver, frontier, judge_all, trained_archs
from fednas_core.spaces.modules import initial_weights
from fednas_core.tasks.bench import space_of
from fednas_core.values import Arch

Announce = Callable[[str], None]

LOOPS = {"sync": rounds.rounds, "async": asynchronous.rounds}
"""How a run goes from event to event."""


def settle(config: RunConfig) -> RunConfig:
    """Return the settings that will really run: those of the stored run when one is to be resumed."""
    if not config.resume:
        return config
    stored = find(output_folder(config), config.resume)
    return replace(stored.config(), resume=stored.id, output=str(stored.path.parent))


def conduct(config: RunConfig, fleet: Fleet, announce: Announce = print) -> RunFolder:
    """Run an experiment whose settings `settle` returned, on a fleet made for them; return its folder.

    Raises `FednasError` when it cannot start or go on; whatever was done by then is safe in the folder.
    """
    run = find(output_folder(config), config.resume) if config.resume else None
    space, supernet = space_of(config), initial_weights(space_of(config), derive(config.seed, "weights"))
    budgets = parse_budgets(config.budgets, space.cost(space.largest).macs)
    path = path_of(config, space, int(min(budgets[0].macs, space.cost(space.largest).macs)))
    crew = Crew(fleet, config, trained_archs(config, space) or (space.smallest,), announce, run)
    allowances = crew.allowances(budgets)
    references = _references(config, allowances, path)
    method = make(config, space, path, supernet)
    crew.clients()  # data that cannot be split, or clients that do not come, are noticed before there is a folder
    done = 0
    if run is None:
        run = create(config)
    else:
        done, state = run.load_checkpoint()
        method.restore(state)
        run.forget_events_after(done)
    crew.aboard(run)
    announce(greeting(config, run, done))
    judge = Judge(config, method.weights())
    before = run.events()
    usual = before[-1].get("update_norm") if before else None
    for event in LOOPS[config.loop](config, method, crew, done, usual, run.id):
        done = event["round"]
        last = method.done(done)
        if done % config.evaluate_every == 0 or last:
            event["evaluation"] = _evaluate(judge, references)
        run.append_event(event)
        if config.tensorboard:
            write_scalars(run.path, event)
        run.save_checkpoint(done, method.state())
        announce(line(config, event))
    return _finish(config, run, crew, judge, path, announce)


# -- evaluation and the end ----------------------------------------------------------------------------------------


def _references(config: RunConfig, allowances: Sequence[Allowance], path: Sequence[PathRow]) -> dict[str, Arch]:
    """Return the architecture per device whose validation accuracy is followed over the rounds."""
    space = space_of(config)
    only = trained_archs(config, space)
    if only:
        if not any(allowance.allows(only[0]) for allowance in allowances):
            cost = space.cost(only[0])
            raise InfeasibleError(
                f"method '{config.method}' trains one network of {cost.macs:,} MACs, {cost.params:,} parameters, and "
                "no budget allows it: raise a budget, or set sample.arch to a smaller network"
            )
        return {"network": only[0]}
    chosen = {}
    for allowance in allowances:
        fitting = candidates(config, [allowance], [row for row in path if allowance.allows(row.arch)] or path[:1])
        chosen[allowance.budget.device] = max(
            (arch for arch in fitting if allowance.allows(arch)), key=lambda arch: space.cost(arch).macs
        )
    return chosen


def _evaluate(judge: Judge, references: Mapping[str, Arch]) -> list[dict[str, Any]]:
    rows = []
    for name, arch in references.items():
        found = judge.validate(arch)
        rows.append({"name": name, "macs": judge.macs(arch), "accuracy": found.accuracy, "loss": found.loss})
    return rows


def _finish(
    config: RunConfig,
    run: RunFolder,
    crew: Crew,
    judge: Judge,
    path: Sequence[PathRow],
    announce: Announce,
) -> RunFolder:
    announce("searching: judging candidates on the validation images")
    space = space_of(config)
    allowances = crew.allowances(parse_budgets(config.budgets, space.cost(space.largest).macs))
    own = {client.limit.kind: client.limit for client in crew.clients() if isinstance(client.limit, Allowance)}
    archs = trained_archs(config, space) or candidates(config, [*allowances, *own.values()], path)
    judged = judge_all(config, judge, archs)
    run.write_json("frontier.json", frontier(judged))
    models = []
    for allowance in allowances:
        budget, chosen = allowance.budget, best_within(judged, allowance.allows)
        if chosen is None:
            cheapest = min(judged, key=lambda row: row.macs)
            announce(f"{budget.device}: no trained network keeps {budget}; the cheapest takes {cheapest.macs:,} MACs")
            continue
        models.append(deliver(config, judge, budget, chosen, run.path / "models"))
    clients = []
    if config.install:
        announce("handing each client a model of its own")
        clients = hand_over(config, crew, judge, judged, run.id)
    run.write_json("result.json", _result(config, run, models, clients))
    write_report(run.path)
    announce(table(models))
    if clients:
        announce(clients_table(clients))
    announce(f"run folder: {run.path}\nreport:     {run.path / 'report.html'}")
    return run


def _result(
    config: RunConfig, run: RunFolder, models: Sequence[Mapping[str, Any]], clients: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    events = run.events()

    def total(key: str) -> Any:
        return sum(event[key] for event in events)

    space = space_of(config)
    return {
        "run": run.id,
        "method": config.method,
        "rounds": len(events),
        "models": list(models),
        "clients": list(clients),
        "bytes_up": total("bytes_up"),
        "bytes_down": total("bytes_down"),
        "client_macs": total("client_macs"),
        "seconds": total("seconds"),
        "failures": sum(len(event["failures"]) for event in events),
        "supernet": {"space": space.name, "norm": space.norm, **space.cost(space.largest).to_json()},
        "versions": versions(),
    }
