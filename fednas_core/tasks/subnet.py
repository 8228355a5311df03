"""Task ``subnet``: train the received network on the client's own images and return its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fednas_core.config import RunConfig
from fednas_core.data.augment import augment, batches
from fednas_core.protocol import TrainOrder
from fednas_core.subnets.networks import network
from fednas_core.subnets.packing import pack, unpack
from fednas_core.tasks.bench import Ground, device_of, ground_of, precision_of
from fednas_core.tasks.home import Home
from fednas_core.training.loop import Batch, train

TRAINING_FACTOR = 3
"""MACs of training one image, in forward passes: one forward, two backward."""


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
    module = network(ground.space, order.arch, order.tensors, device)
    precision = precision_of(order.settings.precision, device)
    outcome = train(module, _epochs(order, ground, device), order.settings, precision, until)
    trained = dict(module.named_parameters())
    return Work(
        tensors=unpack(pack(trained).cpu(), {name: tuple(tensor.shape) for name, tensor in trained.items()}),
        loss=outcome.loss,
        accuracy=outcome.accuracy,
        macs=TRAINING_FACTOR * outcome.images * ground.space.cost(order.arch).macs,
    )


def _epochs(order: TrainOrder, ground: Ground, device: torch.device) -> Iterator[Iterator[Batch]]:
    x, y = ground.train.x.to(device), ground.train.y.to(device)
    generator = torch.Generator().manual_seed(order.seed)
    for _ in range(order.settings.epochs):
        yield (
            (ground.prepare(augment(x[rows], order.settings.augment, generator)), y[rows])
            for rows in batches(len(y), order.settings.batch, generator)
        )
