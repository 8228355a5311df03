"""The in-process backend: a fleet without a network, for tests, GPUs and quick runs.

With more than one worker, processes of one thread each train clients side by side; with one, everything happens in
this process. Either way the numbers are those of a run through Flower.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, multiprocessing

from fednas_core.base.config import RunConfig
from fednas_core.base.environment import prepare
from fednas_core.base.errors import FednasError, ReplyError, RoomError, RunError
from fednas_core.base.units import size
from fednas_core.base.values import ClientId
from fednas_core.devices.containers import available_cores
from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.orders import Answer, Failure, Order, Tensors
from fednas_core.exchange.schema import Channels
from fednas_core.exchange.wire import form_of, lossless, pack_order, read_answer, read_order
from fednas_core.subnets.networks import shapes_of
from fednas_core.subnets.packing import copy_into, unpack
from fednas_core.tasks.bench import device_of, space_of, split_of
from fednas_core.tasks.feedback import pack_with_feedback
from fednas_core.tasks.home import Home
from fednas_core.tasks.past import lost
from fednas_core.tasks.registry import FORMS, TASKS, clients_of, index_of, perform
from fednas_core.tasks.site import site_of
from fednas_core.tasks.store import VARIABLE

HEARD_S = 1.0
"""Seconds after which a process has heard what its workers heard with it."""
T = TypeVar("T")
Outcome = Answer | Failure


class LocalFleet:
    """A `Fleet` of every client of a run, in this process or in a pool of them.

    Tensors travel through slots of shared memory: an order's go in, the trained ones come out at the same place. One
    slot more than workers keeps the next order at hand while this process merges.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        prepare()
        workers = config.workers or (1 if device_of(config).type == "cuda" else available_cores())
        self._pool, self._slots = None, list[Tensor]()
        if workers > 1:
            space = space_of(config)
            most = sum(map(prod, shapes_of(space, space.supernet, statistics=True).values()))
            self._slots = _shared(workers + 1, most)
            context = multiprocessing.get_context("spawn")
            given = (config, self._slots)
            self._pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=given)
            with _uninterrupted():
                for _ in range(workers):  # they start and read the data while this process prepares
                    self._pool.submit(split_of, config)

    def clients(self) -> Sequence[ClientInfo]:
        """See `Fleet.clients`."""
        return clients_of(self._config)

    def train(self, orders: Mapping[ClientId, Order], more: deque[Order] | None = None) -> Iterator[Outcome]:
        """See `Fleet.train`; orders are started in the mapping's order."""
        waiting = deque() if more is None else more
        waiting.extendleft(reversed(list(orders.values())))
        _refuse_without_past(orders.values(), self._config)
        if self._pool is None:
            while waiting:
                yield _performed(waiting.popleft(), self._config)
        else:
            yield from self._through(self._pool, waiting)

    def _through(self, pool: ProcessPoolExecutor, waiting: deque[Order]) -> Iterator[Outcome]:
        free = list(range(len(self._slots)))
        running: dict[Future[Outcome], tuple[Order, int]] = {}

        def start() -> None:
            while waiting and free:
                order, slot = waiting.popleft(), free.pop()
                copy_into(self._slots[slot], _joined(order.channels))
                running[pool.submit(_there, replace(order, channels={}), slot)] = order, slot

        try:
            while running or waiting:
                start()
                done = wait(running, return_when=FIRST_COMPLETED).done
                answers = [self._received(future.result(), *running[future]) for future in done]
                free += [running.pop(future)[1] for future in done]
                start()
                yield from answers
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process of the in-process backend was killed (often: out of memory). The rounds before this "
                "one are safe; resume the run, with fewer 'workers' if memory is short"
            ) from error
        finally:
            wait(running)  # until then workers write to the slots

    def _received(self, outcome: Outcome, order: Order, slot: int) -> Outcome:
        if isinstance(outcome, Failure) or outcome.channels:
            return outcome
        wanted = form_of(FORMS, order.task).returns(order)
        if not wanted:
            return outcome
        return replace(outcome, channels=_channels(_front(self._slots[slot], wanted).clone(), wanted))

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Have Ctrl-C wait: here until the end of the block, in processes that are started here until they unblock it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shared(count: int, values: int) -> list[Tensor]:
    """Return flat float32 tensors in shared memory; raise `RunError` if there is too little of it."""
    needed, memory = 4 * count * values, Path("/dev/shm")
    free = shutil.disk_usage(memory).free if memory.is_dir() else needed
    if needed > free:
        raise RunError(
            f"{count - 1} workers need {size(needed)} of shared memory, {memory} has {size(free)}: set "
            "'workers' to 1, or give the machine more (a container: docker run --shm-size)"
        )
    return [torch.empty(values).share_memory_() for _ in range(count)]  # type: ignore[no-untyped-call]


_given: tuple[RunConfig, list[Tensor]] | None = None


def _start_worker(config: RunConfig, slots: list[Tensor]) -> None:
    global _given
    _given = config, slots
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end(number: int, frame: object) -> None:
    """End this worker on Ctrl-C without a traceback, after the process that started it has had the time to hear it.

    That one would else take it for a worker that was killed.
    """
    parent = multiprocessing.parent_process()
    wait_for([parent.sentinel] if parent else [], HEARD_S)
    os._exit(128 + number)


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone, however it ended: a pool does not see to that."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _there(order: Order, slot: int) -> Outcome:
    """In a worker: train what lies in the slot, leave what returns there, and return the answer without it."""
    assert _given is not None
    config, slots = _given
    try:
        form = form_of(FORMS, order.task)
    except ReplyError as error:
        return Failure(order.client, str(error))
    sent = form.sends(space_of(config), order.arch)
    order = replace(order, channels=_channels(_front(slots[slot], sent), sent))
    outcome = _performed(order, config)
    if isinstance(outcome, Failure):
        return outcome
    returned = form.returns(order)
    if _values(returned) > slots[slot].numel():
        return outcome  # it goes by the pool's own way
    copy_into(slots[slot], {name: _joined(outcome.channels)[name] for name in _joined(returned)})
    return replace(outcome, channels={})


def _joined(channels: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """Return what channels hold by ``channel/name``, one channel after the other."""
    found = {}
    for channel, items in channels.items():
        for name, item in items.items():
            found[f"{channel}/{name}"] = item
    return found


def _values(wanted: Channels) -> int:
    return sum(map(prod, _joined(wanted).values()))


def _front(slot: Tensor, wanted: Channels) -> Tensor:
    """Return the part of a slot that channels of these shapes fill."""
    return slot[: _values(wanted)]


def _channels(flat: Tensor, wanted: Channels) -> dict[str, Tensors]:
    """Return the channels that lie in a flat tensor."""
    found, tensors = dict[str, Tensors](), unpack(flat, _joined(wanted))
    for channel, shapes in wanted.items():
        found[channel] = {name: tensors[f"{channel}/{name}"] for name in shapes}
    return found


def _refuse_without_past(orders: Iterable[Order], config: RunConfig) -> None:
    """Raise `RunError`, before any client begins, if one lacks its private state, which is on this machine's disk."""
    for order in orders:
        task, site = TASKS.get(order.task), site_of(config, index_of(order.client), Home(), order.trains)
        if task and lost(order, task, config.wire.up, site):
            raise RunError(
                f"the private state that {order.client} had before round {order.round + 1} of run '{order.run}' is not "
                f"in {site.store.root}, and the run would go on with another history. Nothing was changed: name "
                f"the folder that has it in ${VARIABLE}, or restore it from a copy made together with that of the "
                "run's folder, then resume the run; or start a new one"
            )


def _performed(order: Order, config: RunConfig) -> Outcome:
    """Carry out an order; where the wire would lose something, what a network would bring is worked out here.

    Raises `RunError` where this machine, and not one client, cannot go on.
    """
    index, home, wire = index_of(order.client), Home(), config.wire
    try:
        if lossless(wire):
            return perform(order, config, index, home)
        form, site = form_of(FORMS, order.task), site_of(config, index, home, order.trains)
        received = read_order(pack_order(order, form, wire), FORMS, site.space, wire)
        reply = pack_with_feedback(perform(received, config, index, home), received, form, wire, site)
        return read_answer(reply, order, form, wire)
    except RunError:
        raise  # simulated clients keep their private state on one disk: a round that it spoils is lived again
    except RoomError as error:  # and share one memory: who else uses it must not decide who takes part
        raise RunError(
            f"this machine has too little memory for {order.client} in round {order.round + 1}: {error}. The rounds "
            "before this one are safe: make room or set fewer 'workers', then resume the run"
        ) from error
    except FednasError as error:
        return Failure(order.client, str(error).removeprefix(f"client {order.client}: "))
