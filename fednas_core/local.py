"""The in-process backend: a fleet without a network, for tests, GPUs and quick runs.

With more than one worker, processes of one thread each train clients side by side; with one, everything happens in
this process. Either way the numbers are those of a run through Flower.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fednas_core.config import RunConfig
from fednas_core.errors import FednasError, RunError
from fednas_core.protocol import ClientId, ClientInfo, Failure, TrainOrder, TrainReport
from fednas_core.subnets.packing import pack, shapes, unpack
from fednas_core.tasks.bench import device_of, space_of
from fednas_core.tasks.registry import clients_of, index_of, perform


class LocalFleet:
    """A `Fleet` of every client of a run, in this process or in a pool of them."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        workers = config.workers or (1 if device_of(config).type == "cuda" else len(os.sched_getaffinity(0)))
        self._pool = None
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(config,))

    def clients(self) -> Sequence[ClientInfo]:
        """See `Fleet.clients`."""
        return clients_of(self._config)

    def train(self, orders: Mapping[ClientId, TrainOrder]) -> Iterator[TrainReport | Failure]:
        """See `Fleet.train`; orders are started in the mapping's order."""
        if self._pool is None:
            yield from (self._here(order) for order in orders.values())
            return
        futures: dict[Future[Any], TrainOrder] = {}
        try:
            for order in orders.values():
                flat = pack(order.tensors).numpy()
                futures[self._pool.submit(_there, replace(order, tensors={}), flat)] = order
            for future in as_completed(futures):
                yield self._report(futures.pop(future), future)
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process of the in-process backend was killed (often: out of memory). The rounds before this "
                "one are safe; resume the run, with fewer 'workers' if memory is short"
            ) from error

    def _here(self, order: TrainOrder) -> TrainReport | Failure:
        try:
            return perform(order, self._config, index_of(order.client))
        except FednasError as error:
            return Failure(order.client, str(error))

    def _report(self, order: TrainOrder, future: Future[Any]) -> TrainReport | Failure:
        answer, flat = future.result()
        if isinstance(answer, Failure):
            return answer
        wanted = shapes(space_of(self._config).plan(order.arch))
        return replace(answer, tensors=unpack(torch.from_numpy(flat), wanted))  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_config: RunConfig | None = None


def _start_worker(config: RunConfig) -> None:
    global _config
    _config = config
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, lambda number, frame: sys.exit(128 + number))  # Ctrl-C: end without a traceback


def _there(order: TrainOrder, flat: np.ndarray[Any, Any]) -> tuple[TrainReport | Failure, Any]:
    """In a worker: train, and return the report with its tensors packed."""
    assert _config is not None
    wanted = shapes(space_of(_config).plan(order.arch))
    order = replace(order, tensors=unpack(torch.from_numpy(flat), wanted))
    try:
        report = perform(order, _config, index_of(order.client))
    except FednasError as error:
        return Failure(order.client, str(error)), None
    return replace(report, tensors={}), pack(report.tensors).numpy()
