"""Task ``moments``: one pass of a finished network over the client's images, for the batch statistics of everybody's.

The server combines what clients send (`fednas_core.engine.calibration`); no image leaves the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch import Tensor

from fednas_core.base.errors import DeadlineError
from fednas_core.exchange.orders import Answer, Order
from fednas_core.exchange.results import Summed
from fednas_core.exchange.schema import Channels, Schema, network_of
from fednas_core.subnets.moments import check_moments, moment_shapes, moments
from fednas_core.subnets.networks import network
from fednas_core.tasks.images import prepared
from fednas_core.tasks.memory import to_use
from fednas_core.tasks.site import Site
from fednas_core.tasks.task import NoParams, Task, Work

MOMENTS = "moments"
"""The channel of sums of batch statistics."""


def send_moments(order: Order, params: NoParams, site: Site, until: float) -> Work[Summed]:
    """Return the moments of every batch norm's input over all training images, not augmented, in float32.

    The order's network comes with the statistics that it normalises with. Nothing is trained or tested (see `Task`).
    """
    module = network(site.space, order.arch, order.weights, site.device)
    found, images = moments(module, _in_time(site, until))
    return Work(Summed(images), images * site.space.cost(order.arch).macs, {MOMENTS: found})


def _in_time(site: Site, until: float) -> Iterator[Tensor]:
    for number, (x, _) in enumerate(prepared(site.train, site.prepare)):
        if time.monotonic() > until:
            raise DeadlineError(f"batch statistics were not done by their deadline, after {number} batches")
        yield x


def _returned(order: Order) -> Channels:
    return {MOMENTS: moment_shapes({name: tuple(tensor.shape) for name, tensor in order.weights.items()})}


def _check(answer: Answer, order: Order) -> None:
    assert isinstance(answer.result, Summed)
    check_moments(answer.channels[MOMENTS], answer.result.images)


TASK = Task(Schema(NoParams, Summed, network_of, _returned, check=_check), send_moments, to_use)
