"""The one way that anything is sent to clients and their answers are collected.

Whatever is asked of whom goes through `collect`: the first answer to an order counts, it is checked against its order,
and whoever is missing at the end is said to be. What is more than a check of one answer (norms, directions, the order
of a sum) is the caller's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from fednas_core.base.config import COMPETING, RunConfig
from fednas_core.base.errors import ReplyError
from fednas_core.base.seeding import derive
from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.orders import WEIGHTS, Answer, Failure, Fleet, Order, Scalars, Tensors
from fednas_core.exchange.schema import credible
from fednas_core.exchange.wire import form_of
from fednas_core.tasks.bench import is_personal
from fednas_core.tasks.install import Handover
from fednas_core.tasks.personal import Adaptation
from fednas_core.tasks.registry import FORMS
from fednas_core.tasks.task import NoParams
from fednas_core.training.settings import train_settings

NO_ANSWER = "gave no answer"
"""Why a client that has an order appears among the failures, if the fleet says nothing of it."""
Outcome = Answer | Failure
Accept = Callable[[Answer, Order], None]
"""A further test of an answer, which raises `ReplyError` unless it can be used."""


def _as_it_is(answer: Answer, order: Order) -> None:
    """What is credible can be used."""


def collect(
    fleet: Fleet,
    orders: Iterable[Order],
    clients: Mapping[ClientId, ClientInfo],
    accept: Accept = _as_it_is,
    limit: Callable[[], float] = lambda: math.inf,
    more: deque[Order] | None = None,
) -> Iterator[tuple[Order, Outcome]]:
    """Carry out orders and yield each with its answer, or with why there is none that can be used, as they arrive.

    They begin in their order; a client with several does one after the other. `clients` says what is known of them,
    `limit` tells the largest absolute value that an answer's tensors may hold now, and `accept` may refuse an answer
    that is credible. Orders that the caller puts into `more` while it takes answers are carried out as well.
    """
    queues: dict[ClientId, deque[Order]] = {}
    coming = deque(orders)
    more = deque() if more is None else more

    def begin() -> list[Order]:
        """Return the orders that can begin now: those of clients that have none in hand."""
        coming.extend(more)
        more.clear()
        first = []
        while coming:
            order = coming.popleft()
            queue = queues.setdefault(order.client, deque())
            queue.append(order)
            if len(queue) == 1:
                first.append(order)
        return first

    while first := begin():
        following = deque[Order]()
        for answer in fleet.train({order.client: order for order in first}, following):
            queue = queues.get(answer.client)
            if not queue or any(queue[0] is order for order in following):
                continue  # nobody asked, or it has answered, or its next order has not left yet
            order = queue.popleft()
            outcome = [_checked(answer, order, clients[order.client], accept, limit())]
            del answer  # nothing here holds an answer when the next one comes
            yield order, outcome.pop()
            if queue:
                following.append(queue[0])
            following.extend(begin())
        for queue in queues.values():
            while queue:
                yield queue[0], Failure(queue.popleft().client, NO_ANSWER)


def _checked(answer: Outcome, order: Order, client: ClientInfo, accept: Accept, limit: float) -> Outcome:
    if isinstance(answer, Failure):
        return answer
    try:
        credible(answer, order, client, form_of(FORMS, order.task), limit)
        accept(answer, order)
    except ReplyError as error:
        return Failure(order.client, why(error, order.client))
    return answer


def why(error: ReplyError, client: ClientId) -> str:
    """Return why a client's answer was refused, without its name, which stands beside it."""
    return str(error).removeprefix(f"client {client}: ")


def answered(
    config: RunConfig,
    fleet: Fleet,
    requests: Sequence[Order],
    model: Callable[[Arch], Tensors],
    run: str,
) -> tuple[list[Answer], list[Failure]]:
    """Carry out requests; return the credible answers, in the requests' order, and why others are missing.

    `model` returns what a network is used with: its tensors and its batch statistics.
    """
    if not requests:
        return [], []
    clients = {client.name: client for client in fleet.clients()}
    tensors = {arch: model(arch) for arch in dict.fromkeys(request.arch for request in requests)}
    there = [request for request in requests if request.client in clients]
    orders = [completed(r, config, clients[r.client], tensors[r.arch], run) for r in there]
    found: dict[tuple[ClientId, str, Arch], Outcome] = {}
    for order, outcome in collect(fleet, orders, clients):
        found[order.client, order.task, order.arch] = outcome
    answers, failures = list[Answer](), list[Failure]()
    for request in requests:
        outcome = found.get((request.client, request.task, request.arch), Failure(request.client, NO_ANSWER))
        if isinstance(outcome, Failure):
            failures.append(outcome)
        else:
            answers.append(outcome)
    return answers, failures


def completed(request: Order, config: RunConfig, client: ClientInfo, tensors: Tensors, run: str) -> Order:
    """Return a request as an order: about a network that holds `tensors` as it is used, with its task's parameters."""
    return replace(
        request,
        channels={WEIGHTS: tensors},
        params=_params(request.task, config),
        seed=derive(config.seed, request.round, request.client, request.task),
        budget=client.budget,
        run=run,
        trains=client.trains,
        trained=client.trained,
    )


def _params(task: str, config: RunConfig) -> Scalars:
    """Return the parameters of a request's task, as the settings say."""
    fit = replace(train_settings(config.train), epochs=config.personal.epochs)
    adapt = Adaptation(fit, config.calibrate == "client")
    if task == "install":
        keeps = config.wire.up == "topk" or config.method in COMPETING  # residuals and teachers are of training alone
        return Handover(adapt, keeps and not is_personal(config), f"{config.method}, {config.rounds} rounds")
    return adapt if task == "trial" else NoParams()
