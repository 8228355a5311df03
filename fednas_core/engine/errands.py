"""What clients do besides training, with a network as it is used: test it, keep it, take it over, sum its statistics.

One order and one way to send clients on errands: every caller says what it wants of whom and gets the answers in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ReplyError
from fednas_core.base.seeding import derive
from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.cohort import Crew
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.rounds import NO_ANSWER, check_figures, why
from fednas_core.exchange.orders import Errand, Failure, TrainOrder, TrainReport
from fednas_core.training.settings import train_settings


def order_of(
    config: RunConfig,
    client: ClientInfo,
    errand: Errand,
    tensors: Mapping[str, Tensor],
    round: int,
    run: str,
    returns: str = "figures",
) -> TrainOrder:
    """Return the order of an errand, whose network holds `tensors` as it is used (see `TrainOrder`)."""
    return TrainOrder(
        client=client.name,
        round=round,
        task=errand.task,
        arch=errand.arch,
        tensors=tensors,
        settings=train_settings(config.train),
        seed=derive(config.seed, round, client.name, errand.task),
        budget=client.budget,
        returns=returns,
        run=run,
        trains=client.trains,
        trained=client.trained,
    )


def run_errands(
    config: RunConfig, crew: Crew, judge: Judge, errands: Sequence[Errand], round: int, run: str
) -> tuple[list[TrainReport], list[Failure]]:
    """Send clients on errands and return the credible answers, in the errands' order, and why others are missing.

    A client with several does one after the other; all clients are at work together. `judge` holds the networks.
    """
    if not errands:
        return [], []
    infos = {client.name: client for client in crew.clients()}
    tensors: dict[Arch, Mapping[str, Tensor]] = {arch: judge.model(arch) for arch in {e.arch for e in errands}}
    queues: dict[ClientId, deque[Errand]] = {}
    for errand in errands:
        if errand.client in infos:
            queues.setdefault(errand.client, deque()).append(errand)

    def order(client: ClientId) -> TrainOrder:
        errand = queues[client][0]
        return order_of(config, infos[client], errand, tensors[errand.arch], round, run)

    found: dict[Errand, TrainReport | Failure] = {}
    more: deque[TrainOrder] = deque()
    for answer in crew.train({client: order(client) for client in queues}, more) if queues else ():
        queue = queues.get(answer.client)
        if not queue:
            continue
        errand = queue.popleft()
        found[errand] = credible(answer, infos[answer.client], errand, round)
        if queue:
            more.append(order(answer.client))
    answers = [found.get(errand) or Failure(errand.client, NO_ANSWER) for errand in errands]
    return [a for a in answers if isinstance(a, TrainReport)], [a for a in answers if isinstance(a, Failure)]


def credible(answer: TrainReport | Failure, client: ClientInfo, errand: Errand, round: int) -> TrainReport | Failure:
    """Return an answer, or why it is none that a client can have given."""
    if isinstance(answer, TrainReport):
        try:
            if answer.arch != errand.arch or answer.round != round:
                raise ReplyError("answered for another architecture or round")
            check_figures(answer, client)
        except ReplyError as error:
            return Failure(client.name, why(error, client.name))
    return answer
