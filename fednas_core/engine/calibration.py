"""Federated batch statistics of a finished network: passes over all clients' images, combined as if they were in one.

A layer's statistics depend on those of the layers before it, so a pass makes one more layer in sequence exact, and
after as many passes as there are norm layers every layer is. Until then the later layers are an approximation: what
the server's own images see of a change in earlier layers is applied to them, which leaves about a tenth of the error
after each pass. Of exact statistics nothing is the server's images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ReplyError
from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.cohort import Crew
from fednas_core.engine.collect import collect, completed, why
from fednas_core.engine.evaluation import Judge
from fednas_core.exchange.orders import Answer, Failure, Order, Tensors
from fednas_core.exchange.processors.norms import check_norm, usual_norm
from fednas_core.exchange.results import Summed
from fednas_core.methods.method import request
from fednas_core.subnets.moments import distance, foreseen, norms_of, statistics
from fednas_core.subnets.networks import network
from fednas_core.tasks.bench import device_of, is_personal, preprocessing_of, space_of, validation_images
from fednas_core.tasks.moments import MOMENTS

GUIDES = 128
"""Images of the server that show what a change of earlier layers does to later ones."""


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """A network whose batch statistics are those of its clients' images.

    `tensors` are all that the network consists of, its statistics included; `passes` is how many there were, `images`
    how many the last one saw (0: nobody answered, and the statistics are those of before), and `failures` says why a
    client's answer is missing from any of them.
    """

    tensors: Mapping[str, Tensor]
    passes: int
    images: int
    failures: tuple[Failure, ...]


def recalibrated(config: RunConfig, crew: Crew, arch: Arch, tensors: Mapping[str, Tensor], run_id: str) -> Recalibrated:
    """Return the network of `arch` with the batch statistics of all images of the clients that may hold it.

    `tensors` are its weights and its statistics to start from, float32 on the CPU (see `networks.shapes_of`). It takes
    ``calibration_passes``, or until nothing moves any more. Clients that do not answer, or not credibly, are left out
    of a pass.
    """
    able = [client for client in crew.clients() if client.limit is None or client.limit.allows(arch)]
    failures, passes, images = dict[ClientId, str](), 0, 0
    enough = len(norms_of(tensors))
    for index in range(min(config.calibration_passes or enough, enough)):
        round = config.rounds + index  # a pass counts as a round: no late answer is taken for another's
        answers = _answers(config, crew, _orders(config, able, arch, tensors, round, run_id), able, failures)
        if not answers:
            break
        module = network(space_of(config), arch, tensors, device_of(config))
        found = foreseen(module, statistics(tensors, answers), _guides(config))
        final = all(torch.equal(tensors[name], tensor) for name, tensor in found.items())
        tensors, passes, images = {**tensors, **found}, index + 1, sum(count for _, count in answers)
        if final:
            break
    return Recalibrated(tensors, passes, images, tuple(Failure(*item) for item in sorted(failures.items())))


def settle_statistics(config: RunConfig, crew: Crew, judge: Judge, arch: Arch, run_id: str) -> tuple[Failure, ...]:
    """Give the judge's network of `arch` its clients' statistics, once, if the run wants those; return what failed."""
    wanted = config.calibrate == "federated" and config.space.norm == "batch" and not is_personal(config)
    if not wanted or arch in judge.settled:
        return ()
    found = recalibrated(config, crew, arch, judge.model(arch), run_id)
    judge.settled[arch] = found.tensors
    return found.failures


def _guides(config: RunConfig) -> Tensor:
    """Return up to `GUIDES` of the server's images, evenly from all of them."""
    images = validation_images(config).x
    return preprocessing_of(config)(images[:: -(-len(images) // GUIDES)])


def _orders(
    config: RunConfig, clients: Sequence[ClientInfo], arch: Arch, tensors: Tensors, round: int, run_id: str
) -> list[Order]:
    """Return the orders of a pass: over the images that a client may train on, whether it does or only tests."""
    asked = [(request(round, client.name, "moments", arch), client) for client in clients]
    return [replace(completed(order, config, client, tensors, run_id), trains=True) for order, client in asked]


def _answers(
    config: RunConfig,
    crew: Crew,
    orders: Sequence[Order],
    clients: Sequence[ClientInfo],
    failures: dict[ClientId, str],
) -> list[tuple[Tensors, int]]:
    """Return the moments and numbers of images of the credible answers, sorted by client; note why others are not."""
    found, norms = dict[ClientId, tuple[Tensors, int]](), dict[ClientId, float]()

    def accept(answer: Answer, order: Order) -> None:
        assert isinstance(answer.result, Summed)
        norms[order.client] = distance(answer.channels[MOMENTS], order.weights, answer.result.images)
        found[order.client] = answer.channels[MOMENTS], answer.result.images

    for _, outcome in collect(crew, orders, {client.name: client for client in clients}, accept):
        if isinstance(outcome, Failure):
            failures[outcome.client] = outcome.reason
    usual, agreed = usual_norm(norms.values(), None), []
    for client in sorted(found):
        try:
            check_norm(client, norms[client], usual, config.merge.outlier)
            agreed.append(found[client])
        except ReplyError as error:
            failures[client] = why(error, client)
    return agreed
