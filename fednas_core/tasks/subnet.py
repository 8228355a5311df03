"""Task ``subnet``: train the received network on the client's own images and return its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.values import TRAINING_FACTOR
from fednas_core.exchange.orders import TrainOrder
from fednas_core.subnets.networks import network
from fednas_core.subnets.packing import pack, unpack
from fednas_core.tasks.bench import device_of, ground_of, precision_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.images import epochs_of
from fednas_core.tasks.personal import completed, keep
from fednas_core.training.loop import train


@dataclass(frozen=True, slots=True)
class Work:
    """What a task leaves: tensors for the server, what training saw in its last epoch, its MACs, and figures."""

    tensors: Mapping[str, Tensor]
    loss: float
    accuracy: float
    macs: int
    figures: Mapping[str, float] = field(default_factory=dict)


def train_subnet(order: TrainOrder, config: RunConfig, index: int, home: Home, until: float) -> Work:
    """Train the order's network for its epochs; `until` is the deadline on the clock of `time.monotonic`."""
    ground, device = ground_of(config, index, home), device_of(config)
    tensors, own = completed(order, config, ground.space, home)
    module = network(ground.space, order.arch, tensors, device)
    precision = precision_of(order.settings.precision, device)
    outcome = train(module, epochs_of(order, ground, device), order.settings, precision, until)
    trained = dict(module.named_parameters())
    keep(own, trained, order, ground.space, home)
    return Work(
        tensors=shared(trained, order),
        loss=outcome.loss,
        accuracy=outcome.accuracy,
        macs=TRAINING_FACTOR * outcome.images * ground.space.cost(order.arch).macs,
    )


def shared(trained: Mapping[str, Tensor], order: TrainOrder) -> dict[str, Tensor]:
    """Return those of the trained tensors that go back: the order's, one after the other in memory."""
    mine = {name: trained[name] for name in order.tensors}
    return unpack(pack(mine).cpu(), {name: tuple(tensor.shape) for name, tensor in mine.items()})
