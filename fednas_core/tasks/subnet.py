"""Task ``subnet``: train the received network on the client's own images and return its tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fednas_core.base.values import TRAINING_FACTOR
from fednas_core.exchange.orders import WEIGHTS, Order, Tensors
from fednas_core.exchange.results import Trained
from fednas_core.exchange.schema import Schema, trained_weights, weights_of
from fednas_core.subnets.networks import network
from fednas_core.subnets.packing import pack, unpack
from fednas_core.tasks.bench import precision_of
from fednas_core.tasks.images import epochs_of
from fednas_core.tasks.memory import to_train
from fednas_core.tasks.personal import completed, keep
from fednas_core.tasks.site import Site
from fednas_core.tasks.task import Task, Work
from fednas_core.training.loop import train
from fednas_core.training.settings import TrainSettings


def train_subnet(order: Order, params: TrainSettings, site: Site, until: float) -> Work[Trained]:
    """Train the order's network for its epochs (see `Task`)."""
    tensors, own = completed(order, site)
    module = network(site.space, order.arch, tensors, site.device)
    precision = precision_of(params.precision, site.device)
    outcome = train(module, epochs_of(params, order.seed, site), params, precision, until)
    trained = dict(module.named_parameters())
    keep(own, trained, order, site)
    macs = TRAINING_FACTOR * outcome.images * site.space.cost(order.arch).macs
    return Work(Trained(outcome.loss, outcome.accuracy), macs, shared(trained, order))


def shared(trained: Mapping[str, Tensor], order: Order) -> dict[str, Tensors]:
    """Return those of the trained tensors that go back: the order's, one after the other in memory."""
    mine = {name: trained[name] for name in order.weights}
    return {WEIGHTS: unpack(pack(mine).cpu(), {name: tuple(tensor.shape) for name, tensor in mine.items()})}


TASK = Task(
    Schema(TrainSettings, Trained, weights_of, trained_weights, updates=(WEIGHTS,)),
    train_subnet,
    lambda order, params, site: to_train(order, params.batch, site),
    personal=True,
)
