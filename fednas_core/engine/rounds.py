"""One round: the method asks, the clients answer, and what comes back is judged and told, until the round is over."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ReplyError, RunError
from fednas_core.base.seeding import stream
from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.collect import answered, collect, why
from fednas_core.engine.waiting import WaitingRoom
from fednas_core.exchange.orders import Answer, Failure, Fleet, Order, Tensors
from fednas_core.exchange.processors.directions import Update, alignments, check_direction, to_direction
from fednas_core.exchange.processors.norms import ENOUGH, check_norm, clip_share, shorten, update_norm, usual_norm
from fednas_core.methods.method import Ask, Method
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.merge import largest_allowed
from fednas_core.tasks.bench import space_of

Event = dict[str, Any]
"""One line of the event log."""


Model = Callable[[Arch], Tensors]
"""What a network is used with: its tensors and its batch statistics."""


def rounds(
    config: RunConfig,
    method: Method,
    fleet: Fleet,
    start: int,
    usual: float | None = None,
    run: str = "",
    model: Model | None = None,
) -> Iterator[Event]:
    """Conduct rounds from number `start` (from 0) on until the method is done, and yield the event of each.

    `usual` is the last event's `update_norm`, if there was one; `run` the run's id, which the orders carry, and `model`
    what networks are used with (None: the method's own tensors). The next round begins when the next event is asked
    for.
    """
    index = start
    while not method.done(index):
        event = run_round(config, method, fleet, index, usual, run, model)
        index, usual = index + 1, event["update_norm"]
        yield event


def run_round(
    config: RunConfig,
    method: Method,
    fleet: Fleet,
    index: int,
    usual: float | None = None,
    run: str = "",
    model: Model | None = None,
) -> Event:
    """Conduct round number `index` (from 0) and return its event (see `rounds`).

    Raises `RunError` if clients were asked and none gave a usable answer.
    """
    start, everyone = time.monotonic(), everyone_of(fleet)
    event: Event | None = None
    turn = 0
    while ask := method.ask(index, turn, everyone, stream(config.seed, index, "plan", *([turn] if turn else []))):
        if ask.requests:
            told = _requested(config, method, fleet, ask, model or method.network, run)
        else:
            told = _updated(config, method, fleet, ask, everyone, usual, run, start)
        event = told if event is None else joined(event, told)
        turn += 1
    if event is None:
        raise RunError(f"round {index + 1}: method '{config.method}' asked nobody for anything")
    return event


def _updated(
    config: RunConfig,
    method: Method,
    fleet: Fleet,
    ask: Ask,
    everyone: Sequence[ClientInfo],
    usual: float | None,
    run: str,
    start: float,
) -> Event:
    """Have clients train; return the event of it.

    Replies wait until the last one is in: only then can it be seen which is far from the cohort's median.
    """
    space, weights = space_of(config), method.weights()
    orders = {order.client: order for order in longest_first(ask.orders, everyone, space, run)}
    infos = {client.name: client for client in everyone}
    failures, norms, most = dict(ask.left_out), dict[ClientId, float](), largest_allowed(weights)
    with closing(WaitingRoom(weights)) as room:

        def admit(answer: Answer, order: Order) -> None:
            norms[order.client] = update_norm(answer.weights, order.weights)
            room.admit(answer)

        for order, outcome in collect(fleet, orders.values(), infos, admit, lambda: most):
            if isinstance(outcome, Failure):
                failures[order.client] = outcome.reason
            del outcome  # nothing here holds a reply when the next one comes
        norms = {client: norms[client] for client in orders if client in norms}
        judged = _judged(norms, usual_norm(norms.values(), usual), config.merge.outlier, failures)
        if config.merge.opposed < 1:
            judged = _agreeing(judged, room, orders, config, method, failures)
        typical = usual_norm(judged.values(), usual)

        def accepted() -> Iterator[Answer]:
            for answer in room.called(client for client in orders if client in judged):
                share = clip_share(config.merge.clip, norms[answer.client], typical)
                if share < 1:
                    shorten(answer.weights, orders[answer.client].weights, share)
                yield answer

        told = method.tell(ask, accepted())
    ranked = sorted(told.rows, key=lambda row: str(row["client"]))
    rows = [{**row, "update_norm": norms[row["client"]]} for row in ranked]
    typical = typical or (statistics.median_low(judged.values()) if judged else None)
    event = event_of(ask.round, rows, list(failures.items()), time.monotonic() - start)
    return event | {"update_norm": typical} | dict(told.story)


def _requested(config: RunConfig, method: Method, fleet: Fleet, ask: Ask, model: Model, run: str) -> Event:
    """Have clients do what a method requests of them; return what the round's event tells of it."""
    answers, failures = answered(config, fleet, ask.orders, model, run)
    if ask.orders and not answers:
        reasons = "; ".join(sorted({failure.reason for failure in failures})[:3])
        raise RunError(
            f"round {ask.round + 1}: none of {len(ask.orders)} requests was met ({reasons}), so nobody tested a "
            "network or got the teacher. The rounds before are safe: mend the cause, then resume the run"
        )
    event = {
        "bytes_down": sum(answer.bytes_down for answer in answers),
        "client_macs": sum(answer.macs for answer in answers),
        "failures": [{"client": failure.client, "reason": failure.reason} for failure in failures],
    }
    return event | dict(method.tell(ask, answers).story)


def joined(event: Event, more: Event) -> Event:
    """Return the event of a round with what a further ask of it adds: bytes, MACs and failures, and its story."""
    added = {key: event[key] + more[key] for key in ("bytes_down", "client_macs", "failures")}
    return event | more | added


def everyone_of(fleet: Fleet) -> list[ClientInfo]:
    """Return the clients that can be called on now, sorted by name; raise `RunError` if there are none."""
    everyone = sorted(fleet.clients(), key=lambda client: client.name)
    if not everyone:
        raise RunError("no client can be reached: start clients, then resume the run")
    return everyone


def longest_first(orders: Iterable[Order], clients: Sequence[ClientInfo], space: Elastic, run: str) -> list[Order]:
    """Return the orders, as those of `run`, so that the largest job is the first to start."""
    infos = {client.name: client for client in clients}
    ranked = sorted(orders, key=lambda o: (-space.cost(o.arch).macs * infos[o.client].examples, o.client))
    return [replace(order, run=run, trained=infos[order.client].trained) for order in ranked]


def event_of(
    index: int, rows: Sequence[Mapping[str, Any]], failures: Sequence[tuple[ClientId, str]], seconds: float
) -> Event:
    """Return the event of round number `index` (from 0), given the rows of the clients whose update was merged.

    Raises `RunError` if clients were asked and none gave a usable answer.
    """
    if failures and not rows:
        reasons = "; ".join(sorted({reason for _, reason in failures})[:3])
        raise RunError(
            f"round {index + 1}: none of the {len(failures)} clients gave a usable answer ({reasons}). The "
            "rounds before are safe: mend the cause, then resume the run"
        )
    return {
        "round": index + 1,
        "loss": mean_of(rows, "loss"),
        "accuracy": mean_of(rows, "accuracy"),
        "bytes_up": sum(row["bytes_up"] for row in rows),
        "bytes_down": sum(row["bytes_down"] for row in rows),
        "client_macs": sum(row["client_macs"] for row in rows),
        "seconds": seconds,
        "clients": [dict(row) for row in rows],
        "failures": [{"client": client, "reason": reason} for client, reason in sorted(failures)],
        "evaluation": None,
    }


def mean_of(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean of one figure over the rows of a round's clients, weighted by examples; None without any."""
    examples = sum(row["examples"] for row in rows)
    return float(sum(row[key] * row["examples"] for row in rows)) / examples if examples else None


def _agreeing(
    norms: Mapping[ClientId, float],
    room: WaitingRoom,
    orders: Mapping[ClientId, Order],
    config: RunConfig,
    method: Method,
    failures: dict[ClientId, str],
) -> dict[ClientId, float]:
    """Return the norms of the replies that do not point against the others; note the other clients in `failures`.

    Whoever is refused has no say in the direction of the rest: it is taken again without them.
    """
    agreeing = {client: norm for client, norm in norms.items() if norm}

    def updates() -> Iterator[Update]:
        for answer in room.seen(agreeing):
            to_direction(answer.weights, orders[answer.client].weights, agreeing[answer.client])
            yield answer.client, space_of(config).plan(answer.arch), answer.weights

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
