"""After training: every device is handed a model of its own, within its own budget, and reports how it does there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.metrics import ACCURACY
from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.budgets import Allowance
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.calibration import settle_statistics
from fednas_core.engine.cohort import Crew
from fednas_core.engine.errands import credible, order_of, run_errands
from fednas_core.engine.evaluation import Judge, Judged, preference
from fednas_core.engine.rounds import NO_ANSWER
from fednas_core.exchange.orders import Errand, Failure, TrainReport
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
    tensors: dict[Arch, Mapping[str, Tensor]] = {}
    waiting = [name for name in clients if choices[name]]
    for _ in range(ATTEMPTS):
        orders = {}
        for name in waiting:
            arch = choices[name][0].arch
            if arch not in tensors:
                settle_statistics(config, crew, judge, arch, run_id)
                tensors[arch] = judge.model(arch)
            errand = Errand(name, "install", arch)
            orders[name] = order_of(config, clients[name], errand, tensors[arch], config.rounds, run_id)
        waiting = []
        awaited = set(orders)
        for answer in crew.train(orders) if orders else ():
            if answer.client not in awaited:
                continue
            awaited.discard(answer.client)
            client, chosen = clients[answer.client], choices[answer.client][0]
            answer = credible(answer, client, Errand(client.name, "install", chosen.arch), config.rounds)
            rows[client.name] = _row(client, chosen, answer, ranked[_kind(client)])
            if isinstance(answer, TrainReport) and not answer.figures.get("fits"):
                choices[answer.client] = [row for row in choices[answer.client] if row.macs < chosen.macs]
                waiting += [answer.client] if choices[answer.client] else []
            if answer.client not in waiting:
                settled()
        for name in awaited:
            rows[name] = _without(clients[name], NO_ANSWER, failed=True)
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
    errands = [Errand(client.name, "trial", arch) for client, allowed in clients for arch in allowed]
    reports, _ = run_errands(config, crew, judge, errands, config.rounds, run_id)
    cost = space_of(config).cost
    found: dict[ClientId, dict[Arch, float]] = {}
    for report in reports:
        if report.figures.get("tested"):
            found.setdefault(report.client, {})[report.arch] = report.accuracy

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


def _row(client: ClientInfo, chosen: Judged, answer: TrainReport | Failure, allowed: Sequence[Judged]) -> HandedOver:
    if isinstance(answer, Failure):
        return _without(client, answer.reason, failed=True)
    figures = answer.figures
    if not figures.get("fits"):
        return _without(client, f"the smallest network offered takes {figures.get('latency_ms', 0):.2f} ms there")
    larger = max((row.validation_accuracy for row in allowed if row.macs > chosen.macs), default=None)
    model = OwnModel(
        arch=chosen.arch.to_json(),
        macs=chosen.macs,
        params=chosen.params,
        bytes=chosen.bytes,
        validation={ACCURACY.name: chosen.validation_accuracy},
        larger={ACCURACY.name: larger},
        metrics={ACCURACY.name: answer.accuracy if figures.get("tested") else None},
        tested=int(figures.get("tested", 0)),
        held_out=bool(figures.get("held_out")),
        latency_ms=figures["latency_ms"],
        stored=bool(figures.get("stored")),
    )
    return replace(_without(client, ""), model=model)
