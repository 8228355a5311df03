"""Task ``sandwich`` (FedSup): train the received network and the networks inside it together, and return its tensors.

The received network is the supernet, or for a device with a budget the largest network that fits; what is drawn is
reduced to that, gene by gene.
"""

from __future__ import annotations

import numpy as np

from fednas_core.base.config import RunConfig
from fednas_core.base.seeding import stream
from fednas_core.base.values import TRAINING_FACTOR, Arch
from fednas_core.exchange.orders import TrainOrder
from fednas_core.methods.setup import growing
from fednas_core.search.shrinking import places
from fednas_core.spaces.space import Elastic, Ints
from fednas_core.tasks.bench import device_of, ground_of, precision_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.images import epochs_of
from fednas_core.tasks.personal import completed, keep
from fednas_core.tasks.subnet import Work, shared
from fednas_core.training.sandwich import Draw, Sandwich


def train_sandwich(order: TrainOrder, config: RunConfig, index: int, home: Home, until: float) -> Work:
    """Train the order's network by the sandwich rule for its epochs; loss and accuracy are those of the largest.

    `until` is the deadline on the clock of `time.monotonic`.
    """
    ground, device = ground_of(config, index, home), device_of(config)
    tensors, own = completed(order, config, ground.space, home)
    sandwich = Sandwich(ground.space, order.arch, tensors, device, config.sample.distill, config.sample.sandwich)
    precision = precision_of(order.settings.precision, device)
    draw = draws(order, config, ground.space)
    outcome = sandwich.train(epochs_of(order, ground, device), draw, order.settings, precision, until)
    trained = dict(sandwich.largest.named_parameters())
    keep(own, trained, order, ground.space, home)
    return Work(
        tensors=shared(trained, order),
        loss=outcome.loss,
        accuracy=outcome.accuracy,
        macs=TRAINING_FACTOR * sandwich.forward_macs,
    )


def draws(order: TrainOrder, config: RunConfig, space: Elastic) -> Draw:
    """Return how each batch draws its networks: ``sample.inner`` random ones, then the smallest, from the order's seed.

    With progressive shrinking they are raised to the round's floor. All lie within the order's network.
    """
    rng = stream(order.seed, "sandwich")
    top, smallest = space.encode(order.arch), space.encode(space.smallest)
    floor = growing(config, space).floor(order.round)
    owned = space.whole(order.arch).keys()
    lacking = places(space).values() if order.arch != space.largest else ()

    def fitted(row: Ints) -> Arch:
        row = np.minimum(np.maximum(row, floor), top)
        for place in lacking:
            if owned >= space.whole(space.decode(row)).keys():
                break
            row[place] = top[place]  # a smaller kernel may own transforms that the order's network lacks
        return space.decode(row)

    def draw() -> list[Arch]:
        inner = [fitted(rng.integers(0, space.gene_choices)) for _ in range(config.sample.inner)]
        return inner + [fitted(smallest)] if config.sample.sandwich else inner

    return draw
