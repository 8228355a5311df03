"""A client's images on their way into a network: shuffled and augmented for training, in order for testing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fednas_core.data.augment import Preprocessing, augment, batches
from fednas_core.data.sources import Images
from fednas_core.protocol import TrainOrder
from fednas_core.tasks.bench import Ground
from fednas_core.training.evaluate import EVAL_BATCH, Evaluation, evaluate
from fednas_core.training.loop import Batch


def epochs_of(order: TrainOrder, ground: Ground, device: torch.device) -> Iterator[Iterator[Batch]]:
    """Yield the order's epochs over the client's training images, as its seed shuffles and augments them."""
    x, y = ground.train.x.to(device), ground.train.y.to(device)
    generator = torch.Generator().manual_seed(order.seed)
    for _ in range(order.settings.epochs):
        yield (
            (ground.prepare(augment(x[rows], order.settings.augment, generator, ground.prepare.mean)), y[rows])
            for rows in batches(len(y), order.settings.batch, generator)
        )


def prepared(images: Images, prepare: Preprocessing, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images in order, or `most` of them evenly spread, in batches of normalised float32, with their labels.

    Data may be sorted by class: the first few would then be of one.
    """
    step = max(1, len(images.y) // most) if most else 1
    x, y = images.x[::step][:most], images.y[::step][:most]
    for part, labels in zip(torch.split(x, EVAL_BATCH), torch.split(y, EVAL_BATCH), strict=True):
        yield prepare(part), labels


def tested(module: nn.Module, images: Images, prepare: Preprocessing) -> Evaluation:
    """Evaluate a network on a client's images; with none there is nothing to find, and all numbers are 0.

    Whoever reads a report on no images knows by their number that loss and accuracy are unknown.
    """
    return evaluate(module, prepared(images, prepare)) if len(images.y) else Evaluation(0.0, 0.0, 0)
