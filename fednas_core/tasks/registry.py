"""What a client can be asked to do: one function per task, named in the order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from fednas_core.config import RunConfig
from fednas_core.errors import ConfigError
from fednas_core.protocol import ClientId, ClientInfo, TrainOrder, TrainReport
from fednas_core.tasks.bench import client_images, client_names, split_of
from fednas_core.tasks.subnet import Work, train_subnet

TASKS: Mapping[str, Callable[[TrainOrder, RunConfig, int, float], Work]] = {"subnet": train_subnet}


def perform(order: TrainOrder, config: RunConfig, index: int) -> TrainReport:
    """Carry out an order with the data of client number `index` and report on it.

    Raises `DeadlineError` when the client's deadline passes, `ConfigError` for a task that does not exist.
    """
    if order.task not in TASKS:
        raise ConfigError(f"task '{order.task}' is not known here: allowed are {', '.join(TASKS)}")
    torch.set_num_threads(1)  # two processes of one thread train 1.2 to 1.5 times faster than one of two
    start = time.monotonic()
    work = TASKS[order.task](order, config, index, start + config.deadline)
    return TrainReport(
        client=order.client,
        round=order.round,
        arch=order.arch,
        tensors=work.tensors,
        examples=len(client_images(config, index).y),
        loss=work.loss,
        accuracy=work.accuracy,
        macs=work.macs,
        seconds=time.monotonic() - start,
        bytes_down=_size(order.tensors),
        bytes_up=_size(work.tensors),
    )


def clients_of(config: RunConfig) -> list[ClientInfo]:
    """Return every client of a simulated run."""
    parts = split_of(config).clients
    return [ClientInfo(name, len(part)) for name, part in zip(client_names(config), parts, strict=True)]


def index_of(client: ClientId) -> int:
    """Return the number of a client of a simulated run from its name."""
    return int(client.rsplit("-", 1)[1])


def _size(tensors: Mapping[str, torch.Tensor]) -> int:
    flat = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return int(flat)
