"""Task ``trial``: a client tests a network on images of its own, with its own layers if it has any."""

from __future__ import annotations

from fednas_core.base.config import RunConfig
from fednas_core.exchange.orders import TrainOrder
from fednas_core.tasks.bench import ground_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.images import tested
from fednas_core.tasks.personal import ready
from fednas_core.tasks.subnet import Work


def trial(order: TrainOrder, config: RunConfig, index: int, home: Home, until: float) -> Work:
    """Test the order's network on the client's validation images: what networks are followed and chosen by.

    They are all its images if it never trains in the run. Figures: ``tested`` (number of images, 0 if it has none to
    spare), ``held_out`` (1.0 if it never trained on them).
    """
    ground = ground_of(config, index, home, order.trains)
    module = ready(order, config, ground, home, until)
    found = tested(module, ground.validation, ground.prepare)
    return Work(
        tensors={},
        loss=found.loss,
        accuracy=found.accuracy,
        macs=found.images * ground.space.cost(order.arch).macs,
        figures={"tested": float(found.images), "held_out": float(ground.held_out)},
    )
