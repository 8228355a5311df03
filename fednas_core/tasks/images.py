"""A client's images on their way into a network: shuffled and augmented for training, in order for testing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from fednas_core.base.errors import DataError
from fednas_core.data.augment import Preprocessing, augment, batches
from fednas_core.data.sources import Images
from fednas_core.tasks.site import Site
from fednas_core.training.evaluate import EVAL_BATCH, Evaluation, evaluate
from fednas_core.training.loop import Batch
from fednas_core.training.settings import TrainSettings


def epochs_of(settings: TrainSettings, seed: int, site: Site) -> Iterator[Iterator[Batch]]:
    """Yield the epochs over the client's training images, as the seed shuffles and augments them."""
    x, y = site.train.x.to(site.device), site.train.y.to(site.device)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.epochs):
        yield (
            (site.prepare(augment(x[rows], settings.augment, generator, site.prepare.mean)), y[rows])
            for rows in batches(len(y), settings.batch, generator)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Images in order, in batches of normalised float32 with their labels; every iteration starts with the first."""

    images: Images
    prepare: Preprocessing

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, each prepared when it is asked for."""
        parts = zip(torch.split(self.images.x, EVAL_BATCH), torch.split(self.images.y, EVAL_BATCH), strict=True)
        for x, y in parts:
            yield self.prepare(x), y


def prepared(images: Images, prepare: Preprocessing, most: int | None = None) -> Prepared:
    """Return images, or `most` of them evenly spread, as batches for a network that is evaluated or calibrated.

    Data may be sorted by class: the first few would then be of one. Raises `DataError` if there are none.
    """
    if not len(images.y):
        raise DataError("evaluation or batch statistics: the split holds no image, at least one is needed")
    if most and most < len(images.y):
        rows = torch.arange(most) * len(images.y) // most
        images = Images(images.x[rows], images.y[rows])
    return Prepared(images, prepare)


def tested(module: nn.Module, images: Images, prepare: Preprocessing) -> Evaluation:
    """Evaluate a network on a client's images; with none there is nothing to find, and all numbers are 0.

    Whoever reads a report on no images knows by their number that loss and accuracy are unknown.
    """
    return evaluate(module, prepared(images, prepare)) if len(images.y) else Evaluation(0.0, 0.0, 0)
