from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from contracts.fleet import FleetContract, orders_for, reports

from fednas_core.base.config import RunConfig
from fednas_core.base.environment import ENVIRONMENT
from fednas_core.base.errors import RunError
from fednas_core.base.settings import read
from fednas_core.engine import local
from fednas_core.engine.local import LocalFleet
from fednas_core.exchange.orders import WEIGHTS, Answer, Failure, Order
from fednas_core.tasks import registry
from fednas_core.tasks.bench import client_names, space_of
from fednas_core.training.settings import TrainSettings, train_settings


def orders_of(config: RunConfig) -> dict[str, Order]:
    space = space_of(config)
    archs = dict(zip(client_names(config), [space.largest, space.smallest] * 2, strict=True))
    like = Order("", 3, "subnet", space.largest, {WEIGHTS: {}}, train_settings(config.train), 0)
    return orders_for(archs, {client: space.plan(arch) for client, arch in archs.items()}, like)


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read(tiny_pairs)


@pytest.fixture
def orders(config: RunConfig) -> dict[str, Order]:
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
        self, fleet: LocalFleet, config: RunConfig, orders: dict[str, Order]
    ) -> None:
        here, there = reports(LocalFleet(config), orders), reports(fleet, orders)
        for name in orders:
            a, b = here[name], there[name]
            assert isinstance(a, Answer) and isinstance(b, Answer)
            assert a.result == b.result and all((a.weights[n] == b.weights[n]).all() for n in a.weights)

    @pytest.mark.parametrize(("name", "value"), ENVIRONMENT.items())
    def test_workers_start_in_the_environment_of_processes_that_compute(
        self, fleet: LocalFleet, name: str, value: str
    ) -> None:
        assert fleet._pool is not None
        assert fleet._pool.submit(os.getenv, name).result() == value

    def test_a_round_that_is_given_up_leaves_the_next_one_alone(
        self, fleet: LocalFleet, config: RunConfig, orders: dict[str, Order]
    ) -> None:
        wanted = reports(fleet, orders)
        for _ in fleet.train(orders):
            break
        for name, answer in reports(fleet, orders).items():
            before = wanted[name]
            assert isinstance(answer, Answer) and isinstance(before, Answer)
            assert all(torch.equal(answer.weights[n], before.weights[n]) for n in before.weights)


def test_too_little_shared_memory_is_said_with_advice(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(RunError, match=r"2 workers need .*B of shared memory.*set 'workers' to 1.*--shm-size"):
        LocalFleet(replace(config, workers=2))


class DyingPool:
    """A pool whose workers are killed at their second order."""

    def __init__(self) -> None:
        self.orders = 0

    def submit(self, work: Any, order: Order, slot: int) -> Future[Any]:
        future: Future[Any] = Future()
        self.orders += 1
        if self.orders == 1:
            future.set_result(Failure(order.client, "tired"))
        else:
            future.set_exception(BrokenProcessPool("killed"))
        return future

    def shutdown(self, cancel_futures: bool) -> None:
        pass


def test_a_worker_that_dies_ends_the_round_with_advice(config: RunConfig, orders: dict[str, Order]) -> None:
    fleet = LocalFleet(replace(config, workers=2))
    fleet.close()
    fleet._pool = DyingPool()  # type: ignore[assignment]
    with pytest.raises(RunError, match="a worker process .* was killed .*resume the run"):
        list(fleet.train(orders))


def test_too_little_shared_memory_is_said_before_it_is_taken(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig
) -> None:
    monkeypatch.setattr(local.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(RunError, match=r"7 workers need \S+ [kM]B of shared memory, .* has 1 kB: set 'workers' to 1"):
        LocalFleet(replace(config, workers=7))


def test_a_deadline_that_passes_is_a_failure(config: RunConfig, orders: dict[str, Order]) -> None:
    fleet = LocalFleet(replace(config, deadline=0.1))
    long = {name: replace(order, params=TrainSettings(epochs=10_000)) for name, order in orders.items()}
    name = next(iter(long))
    (answer,) = fleet.train({name: long[name]})
    assert isinstance(answer, Failure) and "not done by its deadline" in answer.reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no such shape"), "ValueError: no such shape"),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (KeyError("stem"), "KeyError: 'stem'"),
    ],
)
def test_what_one_clients_work_raises_is_its_failure_alone(
    config: RunConfig, orders: dict[str, Order], monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    task = registry.TASKS["subnet"]

    def faulty(order: Order, *given: Any) -> Any:
        if order.client == "client-01":
            raise error
        return task.perform(order, *given)

    monkeypatch.setattr(registry, "TASKS", {"subnet": replace(task, perform=faulty)})
    answers = reports(LocalFleet(config), orders)
    assert answers["client-01"] == Failure("client-01", reason)
    assert sum(isinstance(answer, Answer) for answer in answers.values()) == 3


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_here_ends_the_round_and_takes_no_client_out(
    config: RunConfig, orders: dict[str, Order], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Which clients a round had would be this machine's other work's choice."""

    def faulty(order: Order, *given: Any) -> Any:
        raise error

    monkeypatch.setattr(registry, "TASKS", {"subnet": replace(registry.TASKS["subnet"], perform=faulty)})
    told = r"too little memory for client-00 in round 4: memory ran out \(.*\d .?B are free now.*'workers', then resume"
    with pytest.raises(RunError, match=told):
        list(LocalFleet(config).train(orders))


def test_a_task_without_room_here_ends_the_round_before_it_begins(
    config: RunConfig, orders: dict[str, Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "available_memory", lambda: 0)
    told = r"takes about \S+ MB, \S+ MB more than the 0 B that are free.* rounds before this one are safe.*'workers'"
    with pytest.raises(RunError, match=told):
        list(LocalFleet(config).train(orders))


def test_a_disk_that_takes_no_private_state_ends_the_round(
    config: RunConfig, orders: dict[str, Order], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "file"))
    with pytest.raises(RunError, match="private state cannot be kept in .*file"):
        list(LocalFleet(replace(config, wire=replace(config.wire, up="topk"))).train(orders))


def test_one_worker_starts_no_process(config: RunConfig) -> None:
    assert LocalFleet(config)._pool is None


def test_zero_workers_are_one_for_each_core(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(local, "ProcessPoolExecutor", lambda n, *a, **k: started.append(n) or Mock())
    cores = len(os.sched_getaffinity(0))
    LocalFleet(replace(config, workers=0))
    assert started == ([cores] if cores > 1 else [])


def test_workers_know_nothing_but_the_settings() -> None:
    assert local._given is None and "fednas_core.engine.local" in sys.modules


def test_ctrl_c_while_workers_start_says_nothing_for_them(tiny_pairs: dict[str, Any], tmp_path: Path) -> None:
    """They have seconds to import; a terminal sends them the signal too."""
    given = [f"--set={key}={value}" for key, value in {**tiny_pairs, "workers": 2, "output": tmp_path}.items()]
    command = [sys.executable, "-c", "from fednas_core.cli import main; main()", "run", *given]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, process_group=0)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and len(children.read_text().split()) < 3:  # two workers and their tracker
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert "Traceback" not in process.communicate()[1] and process.returncode == 130
