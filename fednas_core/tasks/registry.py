"""What a client can be asked to do: one function per task, named in the order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from safetensors import SafetensorError

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError, ReplyError, RoomError, TaskError
from fednas_core.base.units import size
from fednas_core.base.values import ClientId
from fednas_core.devices.budgets import budget_of
from fednas_core.devices.containers import memory_limit
from fednas_core.devices.footprint import inference_bytes, training_bytes
from fednas_core.devices.info import ClientInfo
from fednas_core.devices.profile import available_memory
from fednas_core.exchange.orders import TrainOrder, TrainReport
from fednas_core.tasks.bench import client_names, device_of, examples_of, ground_of, held_of, labels_of
from fednas_core.tasks.distil import distil
from fednas_core.tasks.home import Home
from fednas_core.tasks.install import install
from fednas_core.tasks.moments import send_moments
from fednas_core.tasks.past import lost
from fednas_core.tasks.sandwich import train_sandwich
from fednas_core.tasks.subnet import Work, train_subnet
from fednas_core.tasks.teach import teach
from fednas_core.tasks.trial import trial
from fednas_core.training.evaluate import EVAL_BATCH

EXPORT_BYTES = 50_000_000
"""What the libraries that write and check an exported model take."""
Task = Callable[[TrainOrder, RunConfig, int, Home, float], Work]
"""Order, settings, number of the client, its device, deadline on the clock of `time.monotonic`."""
TASKS: Mapping[str, Task] = {
    "subnet": train_subnet,
    "sandwich": train_sandwich,
    "moments": send_moments,
    "trial": trial,
    "teach": teach,
    "distil": distil,
    "install": install,
}
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


def perform(order: TrainOrder, config: RunConfig, index: int, home: Home = Home()) -> TrainReport:  # noqa: B008
    """Carry out an order with the data of client number `index`, on the device that `home` describes, and report.

    Raises `DeadlineError` when the client's deadline passes, `ConfigError` for a task that does not exist,
    `ReplyError` for a network beyond the device's budget, `RoomError` where memory is short, `TaskError` for any other
    of `FAULTS`.
    """
    if order.task not in TASKS:
        raise ConfigError(f"task '{order.task}' is not known here: allowed are {', '.join(TASKS)}")
    try:
        return _performed(order, config, index, home)
    except FAULTS as error:
        if _out_of_memory(error):
            free = available_memory()
            there = "" if free is None else f"; {size(free)} are free now"
            raise RoomError(f"memory ran out ({type(error).__name__}: {error}){there}") from error
        raise TaskError(f"{type(error).__name__}: {error}") from error


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch raises a plain `RuntimeError` where the allocator of the CPU fails."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _performed(order: TrainOrder, config: RunConfig, index: int, home: Home) -> TrainReport:
    _refuse_too_large(order, config, index, home)
    _refuse_without_room(order, config, index, home)
    torch.set_num_threads(home.threads)  # two processes of one thread are 1.2 to 1.5 times faster than one of two
    start, fresh = time.monotonic(), lost(order, config, home)
    work = TASKS[order.task](order, config, index, home, start + config.deadline)
    return TrainReport(
        client=order.client,
        round=order.round,
        arch=order.arch,
        tensors=work.tensors,
        examples=len(ground_of(config, index, home, order.trains).train.y),
        loss=work.loss,
        accuracy=work.accuracy,
        macs=work.macs,
        seconds=time.monotonic() - start,
        bytes_down=_size(order.tensors),
        bytes_up=_size(work.tensors),
        figures={**work.figures, "fresh": 1.0} if fresh else work.figures,
    )


def _refuse_too_large(order: TrainOrder, config: RunConfig, index: int, home: Home) -> None:
    """Raise `ReplyError` if the network exceeds the device's own budget: the device has the last word."""
    space = ground_of(config, index, home).space
    for text in filter(None, (home.budget, order.budget)):
        budget, cost = budget_of(text, config.budgets, space), space.cost(order.arch)
        if not budget.allows(cost):
            raise ReplyError(
                f"refused: a network of {cost.macs:,} MACs, {cost.params:,} parameters, {cost.bytes:,} bytes exceeds "
                f"this device's budget of {budget}"
            )


def _refuse_without_room(order: TrainOrder, config: RunConfig, index: int, home: Home) -> None:
    """Raise `RoomError` if the task would take more memory than there is, before anything is computed."""
    if device_of(config).type != "cpu":
        return
    space, free = ground_of(config, index, home).space, available_memory()
    if order.returns == "weights":
        what = f"training it in batches of {order.settings.batch}"
        needed = training_bytes(space, order.arch, order.settings.batch)
    else:
        what, needed = "using it", inference_bytes(space, order.arch, EVAL_BATCH)
        if order.task == "install" and home.models:
            what, needed = "testing and exporting it", needed + EXPORT_BYTES
    if free is not None and needed > free:
        limit = memory_limit()
        of = f", of {size(limit)} that its container may use" if limit else ""
        raise RoomError(
            f"of a network of {space.cost(order.arch).params:,} parameters, {what} takes about {size(needed)}, "
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


def _size(tensors: Mapping[str, torch.Tensor]) -> int:
    flat = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return int(flat)
