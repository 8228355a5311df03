"""One round: a cohort is drawn, the method plans, the fleet carries out, and what comes back is judged and absorbed."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ReplyError, RunError
from fednas_core.base.seeding import stream
from fednas_core.base.values import ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.waiting import WaitingRoom
from fednas_core.exchange.orders import Failure, Fleet, TrainOrder, TrainReport
from fednas_core.exchange.processors.directions import Update, alignments, check_direction, to_direction
from fednas_core.exchange.processors.norms import ENOUGH, check_norm, clip_share, shorten, update_norm, usual_norm
from fednas_core.methods.method import Method, RoundSummary
from fednas_core.methods.story import ClientRow
from fednas_core.runs.record import Failed, RoundEvent
from fednas_core.spaces.space import SearchSpace
from fednas_core.subnets.merge import check_tensors, largest_allowed
from fednas_core.tasks.bench import space_of

NO_ROOM = "no network is small enough for its budget"
"""Why a client of the cohort has no order."""
NO_ANSWER = "gave no answer"
"""Why a client that has an order appears among the failures, if the fleet says nothing of it."""


def rounds(
    config: RunConfig, method: Method, fleet: Fleet, start: int, usual: float | None = None, run: str = ""
) -> Iterator[RoundEvent]:
    """Conduct rounds from number `start` (from 0) on until the method is done, and yield the event of each.

    `usual` is the last event's `update_norm`, if there was one; `run` the run's id, which the orders carry. The next
    round begins when the next event is asked for.
    """
    index = start
    while not method.done(index):
        event = run_round(config, method, fleet, index, usual, run)
        index, usual = index + 1, event.update_norm
        yield event


def run_round(
    config: RunConfig, method: Method, fleet: Fleet, index: int, usual: float | None = None, run: str = ""
) -> RoundEvent:
    """Conduct round number `index` (from 0) and return its event (see `rounds`).

    Replies wait until the last one is in: only then can it be seen which is far from the cohort's median. Raises
    `RunError` if no reply can be used.
    """
    start = time.monotonic()
    everyone = everyone_of(fleet)
    cohort = everyone if method.networks else _cohort(config, everyone, index)  # else it draws those that train
    planned = method.plan(index, cohort, stream(config.seed, index, "plan"))
    orders = longest_first(planned, cohort, space_of(config), run)
    infos, limit = {client.name: client for client in cohort}, largest_allowed(method.weights())

    def norm(report: TrainReport) -> float:
        return checked_norm(report, orders[report.client], infos[report.client], space_of(config), limit)

    failures = {
        client.name: NO_ROOM for client in cohort if client.name not in orders and _lacks(client, method, orders)
    }
    with closing(WaitingRoom(method.weights())) as room:
        norms = _received(fleet, orders, norm, room, failures)
        judged = _judged(norms, usual_norm(norms.values(), usual), config.merge.outlier, failures)
        if config.merge.opposed < 1:
            judged = _agreeing(judged, room, orders, config, method, failures)
        typical = usual_norm(judged.values(), usual)

        def accepted() -> Iterator[TrainReport]:
            for report in room.called(client for client in orders if client in judged):
                share = clip_share(config.merge.clip, norms[report.client], typical)
                if share < 1:
                    shorten(report.tensors, orders[report.client].tensors, share)
                yield report

        summary = method.absorb(index, accepted())
    rows = [replace(row, update_norm=norms[row.client]) for row in summary.clients]
    typical = typical or (statistics.median_low(judged.values()) if judged else None)
    return event_of(summary, rows, list(failures.items()), time.monotonic() - start, typical)


def everyone_of(fleet: Fleet) -> list[ClientInfo]:
    """Return the clients that can be called on now, sorted by name; raise `RunError` if there are none."""
    everyone = sorted(fleet.clients(), key=lambda client: client.name)
    if not everyone:
        raise RunError("no client can be reached: start clients, then resume the run")
    return everyone


def checked_norm(report: TrainReport, order: TrainOrder, client: ClientInfo, space: SearchSpace, limit: float) -> float:
    """Return the norm of a reply's update; raise `ReplyError` unless it answers the order and can be merged.

    `limit` is the largest absolute value that it may hold.
    """
    if report.arch != order.arch or report.round != order.round:
        raise ReplyError("answered for another architecture or round")
    check_figures(report, client)
    check_tensors(report.client, space.plan(order.arch), report.tensors, limit)
    return update_norm(report.tensors, order.tensors)


def check_figures(report: TrainReport, client: ClientInfo) -> None:
    """Raise `ReplyError`, naming the field, unless a report's numbers are such as the client can have found."""
    for name in ("loss", "seconds", "macs"):
        value = getattr(report, name)
        if not math.isfinite(value) or value < 0:
            raise ReplyError(f"{name}: found {value}, allowed a finite number from 0")
    if not 0 <= report.accuracy <= 1:
        raise ReplyError(f"accuracy: found {report.accuracy}, allowed a number from 0 to 1")
    if not report.figures.get("tested", 0) >= 0:
        raise ReplyError(f"tested: found {report.figures['tested']:g} images, allowed a number from 0")
    most = client.examples + (0 if client.trains else client.held_out)
    if not 0 <= report.examples <= most:
        raise ReplyError(f"examples: found {report.examples}, allowed up to the {most} that it said it has")


def longest_first(
    orders: Mapping[ClientId, TrainOrder], clients: Sequence[ClientInfo], space: SearchSpace, run: str
) -> dict[ClientId, TrainOrder]:
    """Return the orders, as those of `run`, so that the largest job is the first to start."""
    examples = {client.name: client.examples for client in clients}
    trained = {client.name for client in clients if client.trained}
    ranked = sorted(
        orders.values(), key=lambda order: (-space.cost(order.arch).macs * examples[order.client], order.client)
    )
    return {order.client: replace(order, run=run, trained=order.client in trained) for order in ranked}


def why(error: ReplyError, client: ClientId) -> str:
    """Return why a client's reply was refused, without its name, which stands beside it."""
    return str(error).removeprefix(f"client {client}: ")


def event_of(
    summary: RoundSummary,
    rows: Sequence[ClientRow],
    failures: Sequence[tuple[ClientId, str]],
    seconds: float,
    norm: float | None,
) -> RoundEvent:
    """Return the event of a round; raise `RunError` if clients were asked and none gave a usable answer."""
    if failures and not rows:
        reasons = "; ".join(sorted({reason for _, reason in failures})[:3])
        raise RunError(
            f"round {summary.round + 1}: none of the {len(failures)} clients gave a usable answer ({reasons}). The "
            "rounds before are safe: mend the cause, then resume the run"
        )
    return RoundEvent(
        round=summary.round + 1,
        loss=summary.loss,
        metrics=summary.metrics,
        bytes_up=summary.bytes_up,
        bytes_down=summary.bytes_down,
        client_macs=summary.client_macs,
        seconds=seconds,
        clients=tuple(rows),
        failures=tuple(Failed(client=client, reason=reason) for client, reason in sorted(failures)),
        evaluation=None,
        update_norm=norm,
    )


def _lacks(client: ClientInfo, method: Method, orders: Mapping[ClientId, TrainOrder]) -> bool:
    """Whether a client has no order for lack of room; where networks compete it may be left out for other reasons."""
    if method.networks is None or client.limit is None or not orders:
        return method.networks is None
    return not any(client.limit.allows(order.arch) for order in orders.values())


def _cohort(config: RunConfig, everyone: Sequence[ClientInfo], index: int) -> list[ClientInfo]:
    if not config.cohort or config.cohort >= len(everyone):
        return list(everyone)
    chosen = stream(config.seed, index, "cohort").choice(len(everyone), config.cohort, replace=False)
    return [everyone[i] for i in sorted(chosen)]


def _received(
    fleet: Fleet,
    orders: Mapping[ClientId, TrainOrder],
    norm: Callable[[TrainReport], float],
    room: WaitingRoom,
    failures: dict[ClientId, str],
) -> dict[ClientId, float]:
    """Let the usable replies wait and return the norms of their updates; note every other client in `failures`.

    A client's first answer counts; answers of clients that were not asked are lost.
    """
    norms: dict[ClientId, float] = {}
    awaited = set(orders)

    def take(answer: TrainReport | Failure) -> None:
        """Let one answer wait, or note why not."""
        if answer.client not in awaited:
            return
        awaited.discard(answer.client)
        if isinstance(answer, Failure):
            failures[answer.client] = answer.reason
            return
        try:
            norms[answer.client] = norm(answer)
            room.admit(answer)
        except ReplyError as error:
            failures[answer.client] = why(error, answer.client)

    deque(map(take, fleet.train(orders)), maxlen=0)  # nothing here holds a reply when the next one comes
    failures.update(dict.fromkeys(awaited, NO_ANSWER))
    return {client: norms[client] for client in orders if client in norms}


def _agreeing(
    norms: Mapping[ClientId, float],
    room: WaitingRoom,
    orders: Mapping[ClientId, TrainOrder],
    config: RunConfig,
    method: Method,
    failures: dict[ClientId, str],
) -> dict[ClientId, float]:
    """Return the norms of the replies that do not point against the others; note the other clients in `failures`.

    Whoever is refused has no say in the direction of the rest: it is taken again without them.
    """
    agreeing = {client: norm for client, norm in norms.items() if norm}

    def updates() -> Iterator[Update]:
        for report in room.seen(agreeing):
            to_direction(report.tensors, orders[report.client].tensors, agreeing[report.client])
            yield report.client, space_of(config).plan(report.arch), report.tensors

    while len(agreeing) >= ENOUGH:
        cosines = alignments(updates, method.weights())
        before = len(agreeing)
        for client, cosine in cosines.items():
            try:
                check_direction(client, cosine, config.merge.opposed)
            except ReplyError as error:
                failures[client] = why(error, client)
                del agreeing[client]
        if len(agreeing) == before:
            break
    return {client: norm for client, norm in norms.items() if client not in failures}


def _judged(
    norms: Mapping[ClientId, float], usual: float | None, outlier: float, failures: dict[ClientId, str]
) -> dict[ClientId, float]:
    """Return the norms that are not far out; note the other clients in `failures`."""
    judged = {}
    for client, norm in norms.items():
        try:
            check_norm(client, norm, usual, outlier)
            judged[client] = norm
        except ReplyError as error:
            failures[client] = why(error, client)
    return judged
