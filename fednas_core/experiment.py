"""One run from settings to models: the round loop that every backend shares, then search, export and report.

A `Fleet` carries the orders; everything else happens here, so that a run in process and a run through Flower are the
same run. After each round the event is written and the state saved: a run killed at any moment can be resumed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fednas_core.config import RunConfig
from fednas_core.devices.budgets import Budget, parse_budgets
from fednas_core.errors import InfeasibleError, ReplyError, RunError
from fednas_core.methods.registry import METHODS, make, path_of
from fednas_core.protocol import ClientId, ClientInfo, Failure, Fleet, Method, TrainOrder, TrainReport
from fednas_core.report.write import write as write_report
from fednas_core.runs.folder import RunFolder, create, find, output_folder, versions
from fednas_core.runs.ordering import in_order
from fednas_core.runs.tensorboard import write_scalars
from fednas_core.search.path import PathRow
from fednas_core.seeding import derive, stream
from fednas_core.selection import Judge, best_within, candidates, deliver, frontier, judge_all, trained_archs
from fednas_core.spaces.modules import initial_weights
from fednas_core.subnets.merge import check_tensors, largest_allowed
from fednas_core.tasks.bench import dataset_of, space_of, split_of
from fednas_core.values import Arch

Announce = Callable[[str], None]


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
    path = path_of(config, space, budgets[0].macs)
    references = _references(config, budgets, path)
    method = make(config, space, path, supernet)
    fleet.clients()  # data that cannot be split, or clients that do not come, are noticed before there is a folder
    done = 0
    if run is None:
        run = create(config)
    else:
        done, state = run.load_checkpoint()
        method.restore(state)
        run.forget_events_after(done)
    announce(_greeting(config, run, done))
    judge = Judge(config, method.weights())
    while not method.done(done):
        event = run_round(config, method, fleet, done)
        done += 1
        last = method.done(done)
        if done % config.evaluate_every == 0 or last:
            event["evaluation"] = _evaluate(judge, references)
        run.append_event(event)
        if config.tensorboard:
            write_scalars(run.path, event)
        run.save_checkpoint(done, method.state())
        announce(_line(config, event))
    return _finish(config, run, judge, budgets, path, announce)


# -- one round -----------------------------------------------------------------------------------------------------


def run_round(config: RunConfig, method: Method, fleet: Fleet, index: int) -> dict[str, Any]:
    """Conduct round number `index` (from 0) and return its event."""
    start = time.monotonic()
    everyone = sorted(fleet.clients(), key=lambda client: client.name)
    cohort = _cohort(config, everyone, index)
    orders = method.plan(index, cohort, stream(config.seed, index, "plan"))
    space = space_of(config)
    examples = {client.name: client.examples for client in cohort}
    longest_first = sorted(
        orders.values(), key=lambda order: (-space.cost(order.arch).macs * examples[order.client], order.client)
    )
    orders = {order.client: order for order in longest_first}
    failures: list[Failure] = []
    summary = method.absorb(index, _accepted(config, method, fleet, orders, failures))
    if not summary.clients:
        reasons = "; ".join(sorted({failure.reason for failure in failures})[:3])
        raise RunError(
            f"round {index + 1}: none of the {len(orders)} clients gave a usable answer ({reasons}). The rounds before "
            "are safe: mend the cause, then resume the run"
        )
    return {
        "round": index + 1,
        "loss": summary.loss,
        "accuracy": summary.accuracy,
        "bytes_up": summary.bytes_up,
        "bytes_down": summary.bytes_down,
        "client_macs": summary.client_macs,
        "seconds": time.monotonic() - start,
        "clients": [dict(row) for row in summary.clients],
        "failures": [{"client": f.client, "reason": f.reason} for f in sorted(failures, key=lambda f: f.client)],
        "evaluation": None,
    }


def _cohort(config: RunConfig, everyone: Sequence[ClientInfo], index: int) -> list[ClientInfo]:
    if not everyone:
        raise RunError("no client can be reached: start clients, then resume the run")
    if not config.cohort or config.cohort >= len(everyone):
        return list(everyone)
    chosen = stream(config.seed, index, "cohort").choice(len(everyone), config.cohort, replace=False)
    return [everyone[i] for i in sorted(chosen)]


def _accepted(
    config: RunConfig,
    method: Method,
    fleet: Fleet,
    orders: Mapping[ClientId, TrainOrder],
    failures: list[Failure],
) -> Iterator[TrainReport]:
    """Yield the usable reports in the order of `orders`; note every other client in `failures`."""
    space, limit = space_of(config), largest_allowed(method.weights())
    for answer in in_order(fleet.train(orders), list(orders)):
        if isinstance(answer, TrainReport):
            try:
                _check_report(answer, orders[answer.client])
                check_tensors(answer.client, space.plan(answer.arch), answer.tensors, limit)
                yield answer
                continue
            except ReplyError as error:
                answer = Failure(answer.client, str(error))
        failures.append(answer)


def _check_report(report: TrainReport, order: TrainOrder) -> None:
    """Raise `ReplyError` unless the report answers the order with plausible numbers."""
    if report.arch != order.arch or report.round != order.round:
        raise ReplyError(f"client {report.client}: answered for another architecture or round")
    for name in ("loss", "accuracy", "seconds"):
        value = getattr(report, name)
        if not math.isfinite(value) or value < 0:
            raise ReplyError(f"client {report.client}: {name}: found {value}, allowed a finite number from 0")


# -- evaluation and the end ----------------------------------------------------------------------------------------


def _references(config: RunConfig, budgets: Sequence[Budget], path: Sequence[PathRow]) -> dict[str, Arch]:
    """Return the architecture per device whose validation accuracy is followed over the rounds."""
    space = space_of(config)
    only = trained_archs(config, space)
    if only:
        macs = space.cost(only[0]).macs
        if macs > budgets[-1].macs:
            raise InfeasibleError(
                f"method '{config.method}' trains one network of {macs:,} MACs, and no budget allows that many: raise "
                "a budget, or set sample.arch to a smaller network"
            )
        return {"network": only[0]}
    chosen = {}
    for budget in budgets:
        fitting = candidates(config, [budget], [row for row in path if row.cost.macs <= budget.macs] or path[:1])
        chosen[budget.device] = max(
            (arch for arch in fitting if space.cost(arch).macs <= budget.macs), key=lambda arch: space.cost(arch).macs
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
    judge: Judge,
    budgets: Sequence[Budget],
    path: Sequence[PathRow],
    announce: Announce,
) -> RunFolder:
    announce("searching: judging candidates on the validation images")
    archs = trained_archs(config, space_of(config)) or candidates(config, budgets, path)
    judged = judge_all(config, judge, archs)
    run.write_json("frontier.json", frontier(judged))
    models = []
    for budget in budgets:
        chosen = best_within(judged, budget.macs)
        if chosen is None:
            cheapest = min(row.macs for row in judged)
            announce(f"{budget.device}: no trained network fits {budget.macs:,} MACs; the cheapest takes {cheapest:,}")
            continue
        models.append(deliver(config, judge, budget, chosen, run.path / "models"))
    run.write_json("result.json", _result(config, run, models))
    write_report(run.path)
    announce(table(models))
    announce(f"run folder: {run.path}\nreport:     {run.path / 'report.html'}")
    return run


def _result(config: RunConfig, run: RunFolder, models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    events = run.events()

    def total(key: str) -> Any:
        return sum(event[key] for event in events)

    space = space_of(config)
    return {
        "run": run.id,
        "method": config.method,
        "rounds": len(events),
        "models": list(models),
        "bytes_up": total("bytes_up"),
        "bytes_down": total("bytes_down"),
        "client_macs": total("client_macs"),
        "seconds": total("seconds"),
        "failures": sum(len(event["failures"]) for event in events),
        "supernet": {"space": space.name, "norm": space.norm, **space.cost(space.largest).to_json()},
        "versions": versions(),
    }


# -- what the terminal shows ---------------------------------------------------------------------------------------


def _greeting(config: RunConfig, run: RunFolder, done: int) -> str:
    data, space, parts = dataset_of(config), space_of(config), split_of(config)
    cost = space.cost(space.largest)
    sizes = [len(part) for part in parts.clients]
    spread = {
        "dirichlet": f"Dirichlet α = {config.data.alpha:g}",
        "classes": f"{config.data.classes_per_client} classes each",
    }
    lines = [
        f"run {run.id}" + (f", resumed after round {done}" if done else ""),
        f"method    {config.method}: {METHODS[config.method].title} ({METHODS[config.method].source})",
        f"space     {space.name}: up to {cost.macs / 1e6:.1f} M MACs, {cost.params / 1e6:.2f} M parameters, "
        f"normalisation '{space.norm}'",
        f"data      {data.name}: {sum(sizes)} training images over {len(sizes)} clients "
        f"({spread.get(config.data.partition, config.data.partition)}; {min(sizes)} to {max(sizes)} each), "
        f"{len(parts.validation)} to validate, {len(data.test.y)} to test",
        f"training  {config.rounds} rounds, {config.train.epochs} local epochs, seed {config.seed}",
    ]
    return "\n".join(lines)


def _line(config: RunConfig, event: Mapping[str, Any]) -> str:
    text = (
        f"round {event['round']:>3}/{config.rounds}  loss {event['loss']:.3f}  accuracy {event['accuracy']:6.1%}  "
        f"up {event['bytes_up'] / 1e6:.1f} MB  {event['seconds']:.1f} s"
    )
    for row in event["evaluation"] or []:
        text += f"  {row['name']} {row['accuracy']:.1%}"
    if event["failures"]:
        text += "  failed: " + ", ".join(failure["client"] for failure in event["failures"])
    return text


def table(models: Sequence[Mapping[str, Any]]) -> str:
    """Return the chosen models as a table for the terminal."""
    head = ("device", "budget MACs", "MACs", "parameters", "size", "latency", "validation", "test", "export error")
    rows = [
        (
            str(m["device"]),
            f"{m['budget'] / 1e6:.2f} M",
            f"{m['macs'] / 1e6:.2f} M",
            f"{m['params'] / 1e6:.3f} M",
            f"{m['bytes'] / 1e6:.2f} MB",
            f"{m['latency_ms']:.2f} ms",
            f"{m['validation_accuracy']:.1%}",
            f"{m['test_accuracy']:.1%}",
            f"{m['export_max_abs_error']:.0e}",
        )
        for m in models
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n" + "\n".join(lines)
