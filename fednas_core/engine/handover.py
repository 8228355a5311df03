"""After training: every device is handed a model of its own, within its own budget, and reports how it does there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fednas_core.base.config import RunConfig
from fednas_core.base.metrics import ACCURACY
from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.budgets import Allowance
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.calibration import settle_statistics
from fednas_core.engine.cohort import Crew
from fednas_core.engine.collect import answered, collect, completed
from fednas_core.engine.evaluation import Judge, Judged, preference
from fednas_core.exchange.orders import Answer, Failure, Order, Tensors
from fednas_core.exchange.results import Installed, Tested
from fednas_core.methods.method import request
from fednas_core.runs.record import HandedOver, OwnModel
from fednas_core.tasks.bench import space_of

ATTEMPTS = 3
"""Models that one device is offered: a latency model may err, and what is too slow is followed by a smaller one."""


def hand_over(
    config: RunConfig,
    crew: Crew,
    judge: Judge,
    judged: Sequence[Judged],
    run_id: str,
    own: Mapping[ClientId, Arch] | None = None,
    settled: Callable[[], None] = lambda: None,
) -> list[HandedOver]:
    """Give each client the best judged network that its limit allows (`preference`); return a row for each, by name.

    A client that is in `own` gets the network named there if it can.
    A device that measures more milliseconds than its budget allows keeps nothing and is offered the best of the
    cheaper ones. ``reason`` says why a client has no model, '' if it has one; ``failed`` whether it should have one:
    whoever has no room for any network, or is too slow for each, is without one and nothing has failed.
    ``larger_accuracy`` is that of the best larger network that its limit allows, None if there is none. `settled` is
    called for each client to which nothing more is offered.
    """
    clients = {client.name: client for client in crew.clients()}
    ranked = {_kind(client): _ranked(judged, client) for client in clients.values()}
    choices = {name: _first(ranked[_kind(client)], (own or {}).get(name)) for name, client in clients.items()}
    rows = {name: _without(client, "no judged network keeps its limits") for name, client in clients.items()}
    tensors: dict[Arch, Tensors] = {}
    waiting = [name for name in clients if choices[name]]
    for _ in range(ATTEMPTS):
        orders: list[Order] = []
        for name in waiting:
            arch = choices[name][0].arch
            if arch not in tensors:
                settle_statistics(config, crew, judge, arch, run_id)
                tensors[arch] = judge.model(arch)
            asked = request(config.rounds, name, "install", arch)
            orders.append(completed(asked, config, clients[name], tensors[arch], run_id))
        waiting = []
        for order, outcome in collect(crew, orders, clients):
            client, chosen = clients[order.client], choices[order.client][0]
            rows[client.name] = _row(client, chosen, outcome, ranked[_kind(client)])
            if isinstance(outcome, Answer) and isinstance(outcome.result, Installed) and not outcome.result.fits:
                choices[client.name] = [row for row in choices[client.name] if row.macs < chosen.macs]
                waiting += [client.name] if choices[client.name] else []
            if client.name not in waiting:
                settled()
    return [rows[name] for name in sorted(rows)]


def smallest_without_loss(
    config: RunConfig, crew: Crew, judge: Judge, archs: Sequence[Arch], run_id: str
) -> dict[ClientId, Arch]:
    """Return for each client the smallest network that is at most ``contest.loss`` behind the best on its own images.

    What a client sees decides: one that sees few classes may need no more than a small network (DDC, question two). It
    tests every network that its limit allows on half of the images that it holds out (on all its images, if it never
    trains), and tells nobody its classes. A client that has none to test on is not among them.
    """
    clients = [(c, [a for a in archs if c.limit is None or c.limit.allows(a)]) for c in crew.clients()]
    trials = [request(config.rounds, client.name, "trial", arch) for client, allowed in clients for arch in allowed]
    answers, _ = answered(config, crew, trials, judge.model, run_id)
    cost = space_of(config).cost
    found: dict[ClientId, dict[Arch, float]] = {}
    for answer in answers:
        if isinstance(answer.result, Tested) and answer.result.tested:
            found.setdefault(answer.client, {})[answer.arch] = answer.result.accuracy

    def cheapest(accuracies: Mapping[Arch, float]) -> Arch:
        least = max(accuracies.values()) - config.contest.loss
        enough = [arch for arch, accuracy in accuracies.items() if accuracy >= least]
        return min(enough, key=lambda arch: (cost(arch), -accuracies[arch]))

    return {name: cheapest(found[name]) for name in sorted(found)}


def _kind(client: ClientInfo) -> object:
    """Return what clients share that are offered the same networks."""
    return client.limit.kind if isinstance(client.limit, Allowance) else client.limit


def _first(ranked: list[Judged], own: Arch | None) -> list[Judged]:
    """Return the ranking with a client's own architecture in front."""
    return sorted(ranked, key=lambda row: row.arch != own)


def _ranked(judged: Sequence[Judged], client: ClientInfo) -> list[Judged]:
    fitting = [row for row in judged if client.limit is None or client.limit.allows(row.arch)]
    return sorted(fitting, key=preference)


def _without(client: ClientInfo, reason: str, failed: bool = False) -> HandedOver:
    budget = client.limit.budget if isinstance(client.limit, Allowance) else None
    told = str(budget) if budget else "no limit"
    return HandedOver(client=client.name, budget=told, reason=reason, failed=failed)


def _row(client: ClientInfo, chosen: Judged, outcome: Answer | Failure, allowed: Sequence[Judged]) -> HandedOver:
    if isinstance(outcome, Failure):
        return _without(client, outcome.reason, failed=True)
    found = outcome.result
    assert isinstance(found, Installed)
    if not found.fits:
        return _without(client, f"the smallest network offered takes {found.latency_ms:.2f} ms there")
    larger = max((row.validation_accuracy for row in allowed if row.macs > chosen.macs), default=None)
    model = OwnModel(
        arch=chosen.arch.to_json(),
        macs=chosen.macs,
        params=chosen.params,
        bytes=chosen.bytes,
        validation={ACCURACY.name: chosen.validation_accuracy},
        larger={ACCURACY.name: larger},
        metrics={ACCURACY.name: found.accuracy if found.tested else None},
        tested=found.tested,
        held_out=found.held_out,
        latency_ms=found.latency_ms,
        stored=found.stored,
    )
    return replace(_without(client, ""), model=model)
