"""Task ``moments``: one pass of a finished network over the client's images, for the batch statistics of everybody's.

The server combines what clients send (`fednas_core.engine.calibration`); no image leaves the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import DeadlineError
from fednas_core.exchange.orders import TrainOrder
from fednas_core.subnets.moments import moments
from fednas_core.subnets.networks import network
from fednas_core.tasks.bench import Ground, device_of, ground_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.images import prepared
from fednas_core.tasks.subnet import Work


def send_moments(order: TrainOrder, config: RunConfig, index: int, home: Home, until: float) -> Work:
    """Return the moments of every batch norm's input over all training images, not augmented, in float32.

    The order's network comes with the statistics that it normalises with. Figure: ``images``, their number. Nothing
    is trained or tested: loss and accuracy are 0. `until` is the deadline on the clock of `time.monotonic`.
    """
    ground, device = ground_of(config, index, home), device_of(config)
    module = network(ground.space, order.arch, order.tensors, device)
    found, images = moments(module, _in_time(ground, until))
    macs = images * ground.space.cost(order.arch).macs
    return Work(tensors=found, loss=0.0, accuracy=0.0, macs=macs, figures={"images": float(images)})


def _in_time(ground: Ground, until: float) -> Iterator[Tensor]:
    for number, (x, _) in enumerate(prepared(ground.train, ground.prepare)):
        if time.monotonic() > until:
            raise DeadlineError(f"batch statistics were not done by their deadline, after {number} batches")
        yield x
