"""Federated batch statistics of a finished network: passes over all clients' images, combined as if they were in one.

A layer's statistics depend on those of the layers before it, so a pass makes one more layer in sequence exact, and
after as many passes as there are norm layers every layer is. Until then the later layers are an approximation: what
the server's own images see of a change in earlier layers is applied to them, which leaves about a tenth of the error
after each pass. Of exact statistics nothing is the server's images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ReplyError
from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.cohort import Crew
from fednas_core.engine.errands import order_of
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.rounds import NO_ANSWER, why
from fednas_core.exchange.orders import Errand, Failure, TrainOrder, TrainReport
from fednas_core.exchange.processors.norms import check_norm, usual_norm
from fednas_core.subnets.moments import (
    EPSILON,
    SQUARES,
    SUM,
    VARIANCE,
    foreseen,
    moment_shapes,
    norms_of,
    statistics,
    whole,
)
from fednas_core.subnets.networks import network
from fednas_core.tasks.bench import device_of, is_personal, preprocessing_of, space_of, validation_images

ROUNDING = 1e-9
"""By what share S² may exceed n·Q, which no images make it do: of what is sent, 48 bits are right."""
TINY = torch.finfo(torch.float32).tiny
"""What a float32 may be rounded to nothing from."""
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
        errands = {client: Errand(client.name, "moments", arch) for client in able}
        orders = {c.name: order_of(config, c, e, tensors, round, run_id, "moments") for c, e in errands.items()}
        answers = _answers(config, crew, {client.name: client for client in able}, orders, failures)
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


def _answers(
    config: RunConfig,
    crew: Crew,
    clients: Mapping[ClientId, ClientInfo],
    orders: Mapping[ClientId, TrainOrder],
    failures: dict[ClientId, str],
) -> list[tuple[Mapping[str, Tensor], int]]:
    """Return the moments and numbers of images of the credible answers, sorted by client; note why others are not."""
    found, norms = dict[ClientId, TrainReport](), dict[ClientId, float]()
    awaited = set(orders)
    for answer in crew.train(orders) if orders else ():
        if answer.client not in awaited:
            continue
        awaited.discard(answer.client)
        if isinstance(answer, Failure):
            failures[answer.client] = answer.reason
            continue
        try:
            norms[answer.client] = checked(answer, orders[answer.client], clients[answer.client])
            found[answer.client] = answer
        except ReplyError as error:
            failures[answer.client] = why(error, answer.client)
    failures |= dict.fromkeys(awaited, NO_ANSWER)
    usual, credible = usual_norm(norms.values(), None), []
    for client in sorted(found):
        try:
            check_norm(client, norms[client], usual, config.merge.outlier)
            credible.append((found[client].tensors, int(found[client].figures["images"])))
        except ReplyError as error:
            failures[client] = why(error, client)
    return credible


def checked(answer: TrainReport, order: TrainOrder, client: ClientInfo) -> float:
    """Return how far an image is from the order's means, in the order's standard deviations (root mean square).

    Raises `ReplyError` unless the answer is one to `order` that images can have made, no more than the client has.
    """
    if answer.arch != order.arch or answer.round != order.round:
        raise ReplyError("answered for another architecture or pass")
    images = answer.figures.get("images", 0.0)
    if not 1 <= images <= client.examples or images % 1:
        raise ReplyError(f"images: found {images:g}, allowed 1 to the {client.examples} that it said it has")
    wanted = moment_shapes({name: tuple(tensor.shape) for name, tensor in order.tensors.items()})
    shapes = {name: tuple(tensor.shape) for name, tensor in answer.tensors.items()}
    if shapes != wanted:
        name = min(name for name, _ in shapes.items() ^ wanted.items())
        raise ReplyError(f"moment '{name[:80]}': found {shapes.get(name)}, allowed {wanted.get(name)}")
    far = [_distance(answer.tensors, norm, order.tensors, images) for norm in norms_of(order.tensors)]
    return float(torch.cat(far).mean().sqrt())


def _distance(found: Mapping[str, Tensor], norm: str, sent: Mapping[str, Tensor], images: float) -> Tensor:
    """Return the mean square of (x − m) / σ, float64 (channels,); raise `ReplyError` if no images can have made it."""

    def refuse(what: str, allowed: str) -> None:
        raise ReplyError(f"moments of '{norm}': found {what}, allowed {allowed}")

    sums, squares = whole(found[f"{norm}{SUM}"]), whole(found[f"{norm}{SQUARES}"])
    if not bool((sums.isfinite() & squares.isfinite()).all()):
        refuse("values that are not finite", "finite values")
    if bool((squares < 0).any()):
        refuse(f"a sum of squares of {float(squares.min()):.3g}", "0 and more")
    if bool((sums**2 > images * (squares * (1 + ROUNDING) + TINY)).any()):
        refuse("sums larger than their sums of squares permit", "what images make")
    return squares / (images * (sent[f"{norm}{VARIANCE}"].double() + EPSILON))
