"""What server and clients both make of the settings: the data, its shares, the search space and the device.

Everything here is a pure function of `RunConfig` and kept for the life of the process, so that a client process that
serves many orders reads and splits its data once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from fednas_core.config import RunConfig
from fednas_core.data.augment import Preprocessing
from fednas_core.data.partitions import Split, split
from fednas_core.data.sources import Dataset, Images, load
from fednas_core.devices.profile import native_bf16
from fednas_core.errors import ConfigError
from fednas_core.protocol import ClientId
from fednas_core.spaces.registry import load as load_space
from fednas_core.spaces.resnet import ResNetSpace


def dataset_of(config: RunConfig) -> Dataset:
    """Return the run's data set."""
    return load(config.data)


def split_of(config: RunConfig) -> Split:
    """Return the server's validation part and each client's part of the training split."""
    return split(dataset_of(config), config.data, config.seed)


@lru_cache(maxsize=8)
def space_of(config: RunConfig) -> ResNetSpace:
    """Return the run's search space, fitted to its images and classes."""
    data = dataset_of(config)
    space = replace(load_space(config.space.name), norm=config.space.norm)
    return space.for_data(data.train.x.shape[-1], data.train.x.shape[1], len(data.classes))


def preprocessing_of(config: RunConfig) -> Preprocessing:
    """Return how 8-bit images become the network's input."""
    data = dataset_of(config)
    return Preprocessing(data.mean, data.std)


def client_names(config: RunConfig) -> list[ClientId]:
    """Return the names of the clients, one for each part of the data, in order: ``client-00``, ``client-01``, …"""
    count = len(split_of(config).clients)
    width = max(2, len(str(count - 1)))
    return [f"client-{index:0{width}d}" for index in range(count)]


@lru_cache(maxsize=64)
def client_images(config: RunConfig, index: int) -> Images:
    """Return the training images of client number `index`."""
    train = dataset_of(config).train
    mine = torch.from_numpy(split_of(config).clients[index])
    return Images(train.x[mine], train.y[mine])


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
