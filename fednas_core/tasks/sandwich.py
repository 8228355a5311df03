"""Task ``sandwich`` (FedSup): train the received network and the networks inside it together, and return its tensors.

The received network is the supernet, or for a device with a budget the largest network that fits; what is drawn is
reduced to that, gene by gene.
"""

from __future__ import annotations

import numpy as np

from fednas_core.base.seeding import stream
from fednas_core.base.values import TRAINING_FACTOR, Arch
from fednas_core.exchange.orders import WEIGHTS, Order
from fednas_core.exchange.results import Trained
from fednas_core.exchange.schema import Schema, trained_weights, weights_of
from fednas_core.search.shrinking import places
from fednas_core.spaces.space import Elastic, Ints
from fednas_core.tasks.bench import precision_of
from fednas_core.tasks.images import epochs_of
from fednas_core.tasks.memory import to_train
from fednas_core.tasks.personal import completed, keep
from fednas_core.tasks.site import Site
from fednas_core.tasks.subnet import shared
from fednas_core.tasks.task import Task, Work
from fednas_core.training.sandwich import Draw, Sandwich
from fednas_core.training.settings import SandwichSettings


def train_sandwich(order: Order, params: SandwichSettings, site: Site, until: float) -> Work[Trained]:
    """Train the order's network by the sandwich rule; loss and accuracy are those of the largest (see `Task`)."""
    tensors, own = completed(order, site)
    sandwich = Sandwich(site.space, order.arch, tensors, site.device, params.distill, params.ends)
    precision = precision_of(params.train.precision, site.device)
    draw, epochs = draws(order, params, site.space), epochs_of(params.train, order.seed, site)
    outcome = sandwich.train(epochs, draw, params.train, precision, until)
    trained = dict(sandwich.largest.named_parameters())
    keep(own, trained, order, site)
    macs = TRAINING_FACTOR * sandwich.forward_macs
    return Work(Trained(outcome.loss, outcome.accuracy), macs, shared(trained, order))


def draws(order: Order, params: SandwichSettings, space: Elastic) -> Draw:
    """Return how each batch draws its networks: `inner` random ones, then the smallest, from the order's seed.

    They are raised to the floor of progressive shrinking. All lie within the order's network.
    """
    rng = stream(order.seed, "sandwich")
    top, smallest = space.encode(order.arch), space.encode(space.smallest)
    floor = np.array(params.floor or (0,) * len(top), dtype=np.int64)
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
        inner = [fitted(rng.integers(0, space.gene_choices)) for _ in range(params.inner)]
        return inner + [fitted(smallest)] if params.ends else inner

    return draw


TASK = Task(
    Schema(SandwichSettings, Trained, weights_of, trained_weights, updates=(WEIGHTS,)),
    train_sandwich,
    lambda order, params, site: to_train(order, params.train.batch, site),
    personal=True,
)
