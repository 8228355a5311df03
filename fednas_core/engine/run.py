"""One run from settings to models: the round loop that every backend shares, then search, export and report.

A `Fleet` carries the orders; everything else happens here, so that a run in process and a run through Flower are the
same run. After each round the event is written and the state saved: a run killed at any moment can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import InfeasibleError, RunError
from fednas_core.base.paths import anchored
from fednas_core.base.progress import Progress, left
from fednas_core.base.settings import rounds_known
from fednas_core.base.values import Arch
from fednas_core.devices.budgets import Allowance, parse_budgets
from fednas_core.engine import asynchronous, rounds
from fednas_core.engine.calibration import settle_statistics
from fednas_core.engine.cohort import Crew
from fednas_core.engine.collect import answered
from fednas_core.engine.console import greeting, line, searching
from fednas_core.engine.defaults import settled
from fednas_core.engine.evaluation import (
    Judge,
    Judged,
    best_within,
    candidates,
    deliver,
    frontier,
    judge_all,
    measured,
    trained_archs,
)
from fednas_core.engine.handover import hand_over, smallest_without_loss
from fednas_core.engine.resuming import resumed, told
from fednas_core.engine.starts import starting
from fednas_core.engine.trials import Jury, mean, spread
from fednas_core.exchange.orders import Fleet
from fednas_core.methods.method import Catalogue
from fednas_core.methods.registry import cautions, make, path_of, searched_by
from fednas_core.methods.setup import Setup
from fednas_core.runs import owner
from fednas_core.runs.clock import Clock
from fednas_core.runs.folder import RunFolder, create, find, output_folder, versions
from fednas_core.runs.tensorboard import write_scalars
from fednas_core.search.path import PathRow
from fednas_core.show.ending import ending
from fednas_core.show.search import tree
from fednas_core.show.write import write as write_report
from fednas_core.tasks.bench import (
    device_of,
    digest_of,
    is_personal,
    precision_of,
    refuse_batches_of_one,
    space_of,
    testers,
)

Announce = Callable[[str], None]

LOOPS = {"sync": rounds.rounds, "async": asynchronous.rounds}
"""How a run goes from event to event."""


def settle(
    config: RunConfig,
    given: Collection[str] | None = None,
    announce: Announce | None = None,
    usual: Path = Path("runs"),
) -> RunConfig:
    """Return the settings that will really run.

    Those of a run to be resumed are `resumed`, with the keys that were `given` and the folder `usual`. Of a new run
    what the user left open is what `defaults.settled` makes of it, of which `announce` is told. Paths are absolute,
    relative ones being below the working directory. Raises `FednasError`.
    """
    config = anchored(config, Path.cwd())
    if config.resume:
        return resumed(config, given, usual)
    found = settled(config)
    if announce and (lines := found.told()):
        announce(lines)
    return found.config


def conduct(
    config: RunConfig,
    fleet: Fleet,
    announce: Announce = print,
    began: float | None = None,
    aboard: Callable[[RunFolder], None] = lambda run: None,
) -> RunFolder:
    """Run an experiment whose settings `settle` returned, on a fleet made for them; return its folder.

    Its time counts from `began` on the clock of `time.monotonic` (None: from now). `aboard` is told the folder as soon
    as there is one, which this process owns until the end. Raises `FednasError` when the run cannot start or go on;
    whatever was done by then is safe in the folder.
    """
    with ExitStack() as held:
        return _conducted(config, fleet, announce, began, aboard, held)


def _conducted(
    config: RunConfig,
    fleet: Fleet,
    announce: Announce,
    began: float | None,
    aboard: Callable[[RunFolder], None],
    held: ExitStack,
) -> RunFolder:
    clock = Clock(began)
    run = _claimed(config, held) if config.resume else None
    space = space_of(config)
    refuse_batches_of_one(config)
    start = starting(config, space)
    if start.warning:
        announce(start.warning)
    budgets = parse_budgets(config.budgets, space.cost(space.largest).macs)
    path = path_of(config, space, int(min(budgets[0].macs, space.cost(space.largest).macs)))
    crew = Crew(fleet, config, trained_archs(config, space) or (space.smallest,), announce, run)
    allowances = crew.allowances(budgets)
    references = _references(config, allowances, path)
    method = make(Setup(config, space, path, start.weights, allowances, crew.latency_ms, start.policy, start.sides))
    judge = Judge(config, method.network)
    crew.settle(method.trains)
    there = crew.clients()  # data that cannot be split, or nobody who comes, is noticed before there is a folder
    done = 0
    if run is None:
        run = create(config, held, _here(config))
        run.note_images(digest_of(config))
    else:
        if run.images() not in ("", digest_of(config)):
            raise RunError(f"run '{run.id}' has trained on other images: give it those that it was started with")
        done, state = run.load_checkpoint()
        method.restore(state)
        run.rewind()
        clock.resume(run)
    aboard(run)
    crew.aboard(run)
    announce(greeting(config, run, done))
    if changes := run.revise(config, done) if config.resume else {}:
        announce(told(changes, done))
    if elsewhere := run.compute_on(_here(config), done) if config.resume else {}:
        text = ", ".join(f"{key} {before} → {now}" for key, (before, now) in elsewhere.items())
        announce(
            f"from round {done + 1} on, other than the rounds before: {text}. What follows differs from what the run "
            "would have come to there; to go on with the same history, resume it where it was begun"
        )
    for caution in cautions(config, space, there):
        announce(caution)
    jury = Jury(config, crew, judge, run.id, method.catalogue.own)
    if done:
        reminder = method.remind(done - 1, crew.clients()) if method.catalogue.these else None
        answered(config, crew, reminder.orders if reminder else (), judge.model, run.id)
    before = run.events()
    let_go = _handed_over(config, run)
    for event in before:
        if event["round"] > let_go:
            crew.note(event)
    if unrecorded := done - len(before):
        announce(f"rounds 1 to {unrecorded} are not recorded: figures count from round {unrecorded + 1}")
    for event in before:
        jury.note(event)
    usual = before[-1].get("update_norm") if before else None
    clock.enter("training")
    for event in LOOPS[config.loop](config, method, crew, done, usual, run.id, judge.model):
        done = event["round"]
        jury.note(event)
        if done % config.evaluate_every == 0 or method.done(done):
            these = method.catalogue.these
            followed = {"leader": these[0]} if these else references
            clock.enter("evaluation")
            event["evaluation"] = _evaluate(config, judge, jury, followed, done)
            event["failures"] += [{"client": one.client, "reason": one.reason} for one in jury.failures]
            jury.failures.clear()
            clock.enter("training")
        crew.note(event)
        run.append_event(event)
        if config.tensorboard:
            write_scalars(run, event)
        run.save_checkpoint(done, method.state())
        clock.note(run)
        spent = clock.spent("training", "evaluation")
        announce(line(config, event) + left(spent, done, rounds_known(config)))
    finished = replace(config, rounds=done)
    return _finish(_Finished(finished, run, crew, judge, jury, method.catalogue, clock), path, announce)


def _here(config: RunConfig) -> dict[str, str]:
    """Return what settings that each machine decides for itself come to on this one."""
    device = device_of(config)
    return {"device": device.type, "train.precision": precision_of(config.train.precision, device)}


def _claimed(config: RunConfig, held: ExitStack) -> RunFolder:
    """Return the run to be resumed, which this process owns until `held` is closed."""
    run = find(output_folder(config), config.resume)
    if is_personal(config) or config.wire.up == "topk":
        if (name := run.created_as()) != run.id:
            raise RunError(
                f"the run in {run.path} was created as '{name}', and its clients keep private state under that name: "
                f"rename the folder back to {name}, then resume it"
            )
        if there := owner.original(run.path):
            raise RunError(
                f"the run in {run.path} lies in {there} too. Clients keep one private state for both, so only one can "
                "go on: the one that was worked on last, for the private state is of its rounds. Resume it there; only "
                "if nobody has gone on with it since this copy was made, move it away and resume it here"
            )
    held.enter_context(owner.owned(run.path))
    return run


def _handed_over(config: RunConfig, run: RunFolder) -> int:
    """Return after how many rounds clients let their private state go, for they had been given their models."""
    if not config.install or is_personal(config) or not (run.path / "result.json").is_file():
        return 0
    return int(run.read_json("result.json")["rounds"])


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


def _evaluate(
    config: RunConfig, judge: Judge, jury: Jury, references: Mapping[str, Arch], done: int
) -> list[dict[str, Any]]:
    """Return a row for each network that is followed: how the server finds it, or its clients if only they can."""
    rows = []
    followed: Mapping[str, Arch | None] = {"own": None} if config.personal.arch else references
    for name, arch in followed.items():
        row: dict[str, Any] = {"name": name, "macs": judge.macs(arch) if arch else None}
        found = jury.hear(arch, done) if testers(config) else []
        if arch and not is_personal(config):
            seen = judge.validate(arch)
            row |= {"accuracy": seen.accuracy, "loss": seen.loss}
        elif found:
            seen = mean(found)
            row |= {"accuracy": seen.accuracy, "loss": seen.loss}
        if found:
            row["clients"] = spread(found)
        if "accuracy" in row:
            rows.append(row)
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class _Finished:
    """A run whose training is over."""

    config: RunConfig
    run: RunFolder
    crew: Crew
    judge: Judge
    jury: Jury
    catalogue: Catalogue
    clock: Clock


def _finish(done: _Finished, path: Sequence[PathRow], announce: Announce) -> RunFolder:
    config, run, crew, clock = done.config, done.run, done.crew, done.clock
    clock.enter("search")
    judged = _search(done, path, announce)
    run.write_json("frontier.json", frontier(judged))
    clock.enter("export")
    models = [] if is_personal(config) else _deliver(done, judged, announce)
    clients = []
    clock.enter("hand-over")
    if config.install:
        announce("handing each client a model of its own")
        progress = Progress(announce, "hand-over", "clients", len(crew.clients()))
        own = {name: mine.arch for name, mine in done.catalogue.own.items()}
        if config.contest.own and done.catalogue.these:
            own = smallest_without_loss(config, crew, done.judge, done.catalogue.these, run.id)
        clients = hand_over(config, crew, done.judge, judged, run.id, own, progress.step)
    if candidates := tree(run.events()):
        run.write_json("search.json", candidates)
    result = _result(config, run, models, clients)
    run.write_json("result.json", result | {"seconds": _whole(clock.note(run))})
    clock.enter("report")
    announce("report: writing it")
    write_report(run.path)
    result |= {"seconds": _whole(clock.note(run))}
    run.write_json("result.json", result)
    announce(ending(result))
    announce(f"run folder: {run.path}\nreport:     {run.path / 'report.html'}")
    return run


def _search(done: _Finished, path: Sequence[PathRow], announce: Announce) -> tuple[Judged, ...]:
    """Judge the architectures that the devices' models are chosen from: by the clients where layers are personal."""
    config, crew = done.config, done.crew
    space = space_of(config)
    archs: Sequence[Arch] | None = done.catalogue.these or trained_archs(config, space)
    if archs is None and config.personal.arch:
        archs = sorted({mine.arch for mine in done.catalogue.own.values()}, key=lambda arch: space.cost(arch).macs)
    if archs is None:
        allowances = crew.allowances(parse_budgets(config.budgets, space.cost(space.largest).macs))
        own = {client.limit.kind: client.limit for client in crew.clients() if isinstance(client.limit, Allowance)}
        limits = [*allowances, *own.values()]
        by = searched_by(config, space) or "fitness"
        announce(searching(config, by))
        if by == "accuracy":
            kinds, each = (
                len({limit.kind for limit in limits}),
                config.search.population * (config.search.generations + 1),
            )
            measuring = Progress(announce, "search", "networks measured at most", kinds * each)
            archs = measured(config, done.judge, limits, measuring.step)
        else:
            archs = candidates(config, limits, path)
    whose = "clients' own images" if is_personal(config) else "the validation images"
    announce(f"judging candidates on {whose}")
    judging = Progress(announce, "search", "networks judged", len(archs))
    return judge_all(config, done.jury if is_personal(config) else done.judge, archs, judging.step)


def _deliver(done: _Finished, judged: Sequence[Judged], announce: Announce) -> list[dict[str, Any]]:
    """Choose and export the model of each kind of device that the run's budgets name."""
    config, space, models = done.config, space_of(done.config), []
    allowances = done.crew.allowances(parse_budgets(config.budgets, space.cost(space.largest).macs))
    before = done.clock.spent("export")
    for number, allowance in enumerate(allowances):
        rest = left(done.clock.spent("export") - before, number, len(allowances))
        budget, chosen = allowance.budget, best_within(judged, allowance.allows)
        announce(f"export: device {number + 1} of {len(allowances)}, {budget.device}{rest}")
        if chosen is None:
            cheapest = min(judged, key=lambda row: row.macs)
            announce(f"{budget.device}: no trained network keeps {budget}; the cheapest takes {cheapest.macs:,} MACs")
            continue
        for failure in settle_statistics(config, done.crew, done.judge, chosen.arch, done.run.id):
            announce(f"{budget.device}: without the images of {failure.client}: {failure.reason}")
        models.append(deliver(config, done.judge, budget, chosen, done.run.path / "models"))
    return models


def _whole(seconds: Mapping[str, float]) -> dict[str, float]:
    return {"total": sum(seconds.values()), **seconds}


def _result(
    config: RunConfig, run: RunFolder, models: Sequence[Mapping[str, Any]], clients: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    record = run.record()
    events = record.rounds

    def total(key: str) -> Any:
        return sum(event[key] for event in events)

    space = space_of(config)
    return {
        "run": run.id,
        "method": config.method,
        "personal": list(space.personal),
        "search": searched_by(config, space),
        "rounds": config.rounds,
        "unrecorded": record.unrecorded,
        "models": list(models),
        "clients": list(clients),
        "bytes_up": total("bytes_up"),
        "bytes_down": total("bytes_down"),
        "client_macs": total("client_macs"),
        "failures": sum(len(event["failures"]) for event in events),
        "supernet": {"space": space.name, "norm": space.norm, **space.cost(space.supernet).to_json()},
        "versions": versions(),
    }
