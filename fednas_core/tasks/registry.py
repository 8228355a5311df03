"""What a client can be asked to do: one function per task, named in the order."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from safetensors import SafetensorError

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError, ReplyError, RoomError, TaskError
from fednas_core.base.units import size
from fednas_core.base.values import ClientId
from fednas_core.devices.budgets import budget_of
from fednas_core.devices.containers import memory_limit
from fednas_core.devices.info import ClientInfo
from fednas_core.devices.profile import available_memory
from fednas_core.exchange.orders import Answer, Order, Tensors
from fednas_core.exchange.wire import Form
from fednas_core.tasks import distil, install, moments, sandwich, subnet, teach, trial
from fednas_core.tasks.bench import client_names, examples_of, held_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.past import lost
from fednas_core.tasks.site import Site, labels_of, site_of
from fednas_core.tasks.task import AnyTask

TASKS: Mapping[str, AnyTask] = {
    "subnet": subnet.TASK,
    "sandwich": sandwich.TASK,
    "moments": moments.TASK,
    "trial": trial.TASK,
    "teach": teach.TASK,
    "distil": distil.TASK,
    "install": install.TASK,
}
FORMS: Mapping[str, Form] = {name: task.schema for name, task in TASKS.items()}
FAULTS = (
    ArithmeticError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What a client's images, disk and memory may raise, and the libraries that compute: a failure of that client alone."""


def perform(order: Order, config: RunConfig, index: int, home: Home = Home()) -> Answer:  # noqa: B008
    """Carry out an order with the data of client number `index`, on the device that `home` describes, and answer.

    Raises `DeadlineError` when the client's deadline passes, `ConfigError` for a task that does not exist,
    `ReplyError` for a network beyond the device's budget, `RoomError` where memory is short, `TaskError` for any other
    of `FAULTS`.
    """
    if order.task not in TASKS:
        raise ConfigError(f"task '{order.task}' is not known here: allowed are {', '.join(TASKS)}")
    try:
        return _performed(order, TASKS[order.task], config, index, home)
    except FAULTS as error:
        if _out_of_memory(error):
            free = available_memory()
            there = "" if free is None else f"; {size(free)} are free now"
            raise RoomError(f"memory ran out ({type(error).__name__}: {error}){there}") from error
        raise TaskError(f"{type(error).__name__}: {error}") from error


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch raises a plain `RuntimeError` where the allocator of the CPU fails."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _performed(order: Order, task: AnyTask, config: RunConfig, index: int, home: Home) -> Answer:
    site = site_of(config, index, home, order.trains)
    _refuse_too_large(order, site)
    _refuse_without_room(order, task, site)
    torch.set_num_threads(home.threads)  # two processes of one thread are 1.2 to 1.5 times faster than one of two
    start, fresh = time.monotonic(), lost(order, task, config.wire.up, site)
    work = task.perform(order, order.params, site, start + config.deadline)
    return Answer(
        client=order.client,
        round=order.round,
        arch=order.arch,
        channels=work.channels,
        result=work.result,
        examples=len(site.train.y),
        macs=work.macs,
        seconds=time.monotonic() - start,
        bytes_down=_size(order.channels),
        bytes_up=_size(work.channels),
        fresh=fresh,
    )


def _refuse_too_large(order: Order, site: Site) -> None:
    """Raise `ReplyError` if the network exceeds the device's own budget: the device has the last word."""
    for text in filter(None, (site.home.budget, order.budget)):
        budget, cost = budget_of(text, site.budgets, site.space), site.space.cost(order.arch)
        if not budget.allows(cost):
            raise ReplyError(
                f"refused: a network of {cost.macs:,} MACs, {cost.params:,} parameters, {cost.bytes:,} bytes exceeds "
                f"this device's budget of {budget}"
            )


def _refuse_without_room(order: Order, task: AnyTask, site: Site) -> None:
    """Raise `RoomError` if the task would take more memory than there is, before anything is computed."""
    if site.device.type != "cpu":
        return
    free, (needed, what) = available_memory(), task.memory(order, order.params, site)
    if free is not None and needed > free:
        limit = memory_limit()
        of = f", of {size(limit)} that its container may use" if limit else ""
        raise RoomError(
            f"of a network of {site.space.cost(order.arch).params:,} parameters, {what} takes about {size(needed)}, "
            f"{size(needed - free)} more than the {size(free)} that are free{of}"
        )


def clients_of(config: RunConfig) -> list[ClientInfo]:
    """Return every client of a simulated run that has something to train on."""
    return [
        ClientInfo(name, examples, labels=labels_of(config, index), held_out=held_of(config, index))
        for index, name in enumerate(client_names(config))
        if (examples := examples_of(config, index))
    ]


def index_of(client: ClientId) -> int:
    """Return the number of a client of a simulated run from its name."""
    return int(client.rsplit("-", 1)[1])


def _size(channels: Mapping[str, Tensors]) -> int:
    tensors = [tensor for channel in channels.values() for tensor in channel.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
