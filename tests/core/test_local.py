from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import pytest
from contracts.fleet import FleetContract, orders_for, reports

from fednas_core import local
from fednas_core.config import RunConfig, read
from fednas_core.errors import RunError
from fednas_core.local import LocalFleet
from fednas_core.protocol import Failure, TrainOrder, TrainReport, TrainSettings
from fednas_core.tasks.bench import client_names, space_of


def orders_of(config: RunConfig) -> dict[str, TrainOrder]:
    space = space_of(config)
    archs = dict(zip(client_names(config), [space.largest, space.smallest, space.largest], strict=False))
    like = TrainOrder("", 3, "subnet", space.largest, {}, config.train.settings(), 0)
    return orders_for(archs, {client: space.plan(arch) for client, arch in archs.items()}, like)


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read(tiny_pairs)


@pytest.fixture
def orders(config: RunConfig) -> dict[str, TrainOrder]:
    return orders_of(config)


class TestInThisProcess(FleetContract):
    @pytest.fixture
    def fleet(self, config: RunConfig) -> Iterator[LocalFleet]:
        fleet = LocalFleet(config)
        yield fleet
        fleet.close()


class TestInAPool(FleetContract):
    @pytest.fixture
    def fleet(self, pool: LocalFleet) -> LocalFleet:
        return pool

    def test_the_pool_trains_what_this_process_trains(
        self, fleet: LocalFleet, config: RunConfig, orders: dict[str, TrainOrder]
    ) -> None:
        here, there = reports(LocalFleet(config), orders), reports(fleet, orders)
        for name in orders:
            a, b = here[name], there[name]
            assert isinstance(a, TrainReport) and isinstance(b, TrainReport)
            assert a.loss == b.loss and all((a.tensors[n] == b.tensors[n]).all() for n in a.tensors)


class DyingPool:
    """A pool whose workers are killed at their second order."""

    def __init__(self, fleet: LocalFleet) -> None:
        self.fleet, self.orders = fleet, 0

    def submit(self, work: Any, order: TrainOrder, flat: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.orders += 1
        if self.orders == 1:
            future.set_result((Failure(order.client, "tired"), None))
        else:
            future.set_exception(BrokenProcessPool("killed"))
        return future

    def shutdown(self, cancel_futures: bool) -> None:
        pass


def test_a_worker_that_dies_ends_the_round_with_advice(config: RunConfig, orders: dict[str, TrainOrder]) -> None:
    fleet = LocalFleet(config)
    fleet._pool = DyingPool(fleet)  # type: ignore[assignment]
    with pytest.raises(RunError, match="a worker process .* was killed .*resume the run"):
        list(fleet.train(orders))
    fleet.close()


def test_a_deadline_that_passes_is_a_failure(config: RunConfig, orders: dict[str, TrainOrder]) -> None:
    fleet = LocalFleet(replace(config, deadline=0.1))
    long = {name: replace(order, settings=TrainSettings(epochs=10_000)) for name, order in orders.items()}
    name = next(iter(long))
    (answer,) = fleet.train({name: long[name]})
    assert isinstance(answer, Failure) and "not done by its deadline" in answer.reason


def test_one_worker_starts_no_process(config: RunConfig) -> None:
    assert LocalFleet(config)._pool is None


def test_zero_workers_are_one_for_each_core(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(local, "ProcessPoolExecutor", lambda n, *a, **k: started.append(n))
    cores = len(os.sched_getaffinity(0))
    LocalFleet(replace(config, workers=0))
    assert started == ([cores] if cores > 1 else [])


def test_workers_know_nothing_but_the_settings() -> None:
    assert local._config is None and "fednas_core.local" in sys.modules
