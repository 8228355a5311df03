"""What server and clients both make of the settings: the data, its shares, the search space and the device.

Everything here is a pure function of `RunConfig` and kept for the life of the process, so that a client process that
serves many orders reads and splits its data once.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError
from fednas_core.base.seeding import derive, stream
from fednas_core.base.values import ClientId
from fednas_core.data.augment import Preprocessing
from fednas_core.data.partitions import Indices, Split, split
from fednas_core.data.sources import Dataset, Facts, Images, draw, facts, load
from fednas_core.devices.profile import native_bf16
from fednas_core.methods.catalogue import METHODS
from fednas_core.spaces.capabilities import elastic
from fednas_core.spaces.registry import load as load_space
from fednas_core.spaces.space import Elastic, Signature

MOST_TESTERS = 100
"""Clients that test networks at an evaluation where layers are personal and the settings do not say how many."""


def dataset_of(config: RunConfig) -> Dataset:
    """Return the run's data set."""
    return load(config.data)


def digest_of(config: RunConfig) -> str:
    """Return what stands for all training images of the data set, whatever the classes that count: a hash of them."""
    data = dataset_of(config)
    images = (data.origin.whole if data.origin else data).train
    digest = hashlib.sha256(images.x.permute(0, 2, 3, 1).contiguous().numpy().data)
    digest.update(images.y.numpy().data)
    return digest.hexdigest()


def split_of(config: RunConfig) -> Split:
    """Return the server's validation part and each client's part of the training split."""
    return split(dataset_of(config), config.data, config.seed)


def facts_of(config: RunConfig) -> Facts:
    """Return what is true of the run's images."""
    return facts(dataset_of(config))


@lru_cache(maxsize=8)
def space_of(config: RunConfig, told: Facts | None = None) -> Elastic:
    """Return the run's search space, fitted to its images and classes, or to those of which the server has told."""
    known = told or facts_of(config)
    name = METHODS[config.method].space if config.space.name == "auto" else config.space.name
    space = elastic(load_space(name)).with_norm(config.space.norm)
    space = space.for_data(Signature((known.channels, known.size, known.size), len(known.classes)))
    return space.with_personal(personal_parts(config, space)) if is_personal(config) else space


def refuse_batches_of_one(config: RunConfig) -> None:
    """Raise `ConfigError` where batch norm could take no statistics: of single images, whose last maps are one pixel.

    A client with a single image is no reason: it says so itself, and the others train.
    """
    space = space_of(config)
    every = (layer for arch in (space.smallest, space.largest) for layer in space.layers(arch))
    pixels = min(size for layer in every for _, size, _ in layer.charges)
    if space.norm != "batch" or pixels > 1:
        return
    judges = not is_personal(config) and len(validation_images(config).y) == 1
    for wrong, setting, allowed in (
        (config.train.batch == 1, "train.batch = 1", "2 or more"),
        (judges, f"data.validation = {config.data.validation} leaves the server a single image", "a larger share"),
    ):
        if wrong:
            raise ConfigError(
                f"setting {setting}: with space.norm = 'batch' and images of {space.signature.inputs[-1]} pixels the "
                f"last feature maps are single pixels, and a batch of one image has no variance; allowed is {allowed}, "
                "larger images or another space.norm, e.g. group"
            )


def is_personal(config: RunConfig) -> bool:
    """Whether some layers stay on the clients."""
    return bool(config.personal.blocks or _layers(config))


def testers(config: RunConfig) -> int:
    """Return how many clients test networks at an evaluation."""
    return config.evaluate_clients or (MOST_TESTERS if is_personal(config) else 0)


def personal_parts(config: RunConfig, space: Elastic) -> tuple[str, ...]:
    """Return the parts of a network that stay on the clients: the layers that are named, and the last blocks."""
    blocks = space.blocks[-config.personal.blocks :] if config.personal.blocks else ()
    return tuple(part.strip() for part in _layers(config).split(",") if part.strip()) + blocks


def _layers(config: RunConfig) -> str:
    named = config.personal.layers
    return METHODS[config.method].personal if named == "auto" else named.strip()


def preprocessing_of(config: RunConfig) -> Preprocessing:
    """Return how 8-bit images become the network's input."""
    data = dataset_of(config)
    return Preprocessing(data.mean, data.std)


def client_names(config: RunConfig) -> list[ClientId]:
    """Return the names of the clients, one for each part of the data, in order: ``client-00``, ``client-01``, …

    A client whose part has nothing to train on takes no part in the run, and keeps its number.
    """
    count = len(split_of(config).clients)
    width = max(2, len(str(count - 1)))
    return [f"client-{index:0{width}d}" for index in range(count)]


def spared(config: RunConfig, count: int) -> int:
    """Return how many of its `count` images a client does not train on: ``data.holdout`` of them.

    That is at least one, or two where clients choose networks, for these are to be tested and chosen by different
    images; but one image is always left to train on.
    """
    share, least = config.data.holdout, 2 if chooses(config) else 1
    return min(max(least, round(share * count)), count - 1) if share else 0


def chooses(config: RunConfig) -> bool:
    """Whether clients test what is followed and chosen, or choose a model of their own."""
    return bool(testers(config) or config.contest.own)


def parted(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """Return images in two parts: the second holds `count` of them, of each class in proportion."""
    chosen = torch.from_numpy(_drawn(images.y.numpy(), count, seed))
    return Images(images.x[~chosen], images.y[~chosen]), Images(images.x[chosen], images.y[chosen])


def _drawn(y: Indices, count: int, seed: int) -> NDArray[np.bool_]:
    """Return which `count` of the images labelled `y` are drawn (n,), of each class in proportion."""
    chosen = np.zeros(len(y), dtype=bool)
    chosen[draw(y, count, stream(seed, "draw"))] = True
    return chosen


def shares_of(config: RunConfig, index: int) -> tuple[Images, Images | None]:
    """Return the images of the run's that a client trains on and those to test on, None if it holds none out."""
    train = dataset_of(config).train
    mine, kept = (Images(train.x[at], train.y[at]) for at in map(torch.from_numpy, parts_of(config, index)))
    return mine, kept if config.data.holdout else None


def parts_of(config: RunConfig, index: int) -> tuple[Indices, Indices]:
    """Return the sorted positions in the training split of what a client trains on and of what it holds out.

    With ``data.only`` they are those of the run on all classes, as far as they are of the classes that count.
    """
    data = dataset_of(config)
    whole, choice = (data.origin.whole, replace(config.data, only="")) if data.origin else (data, config.data)
    mine = split(whole, choice, config.seed).clients[index]
    labels, seed = whole.train.y.numpy()[mine], derive(config.seed, "data.holdout", index)
    held = _drawn(labels, spared(config, len(mine)), seed)
    within = data.origin.within if data.origin else np.asarray
    return within(mine[~held]), within(mine[held])


@lru_cache(maxsize=64)
def client_images(config: RunConfig, index: int) -> Images:
    """Return all images of client number `index` in the run's data set."""
    train = dataset_of(config).train
    mine = torch.from_numpy(split_of(config).clients[index])
    return Images(train.x[mine], train.y[mine])


def examples_of(config: RunConfig, index: int) -> int:
    """Return how many images client number `index` of the run's data set trains on; none of them, it takes no part."""
    if config.data.only.strip():
        return len(parts_of(config, index)[0])
    count = len(split_of(config).clients[index])
    return count - spared(config, count)


def held_of(config: RunConfig, index: int) -> int:
    """Return how many images client number `index` of the run's data set holds out."""
    return len(split_of(config).clients[index]) - examples_of(config, index)


@lru_cache(maxsize=8)
def validation_images(config: RunConfig) -> Images:
    """Return the server's validation images: never a client's, never the test set's."""
    train = dataset_of(config).train
    kept = torch.from_numpy(split_of(config).validation)
    return Images(train.x[kept], train.y[kept])


def device_of(config: RunConfig) -> torch.device:
    """Return where networks run; raise `ConfigError` if that is not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("setting 'device' = 'cuda', but this machine has no usable GPU: allowed are auto and cpu")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def precision_of(precision: str, device: torch.device) -> str:
    """Return ``bf16`` or ``fp32``: ``auto`` means bf16 where `device` computes it natively."""
    if precision == "auto":
        return "bf16" if native_bf16(device) else "fp32"
    return precision
