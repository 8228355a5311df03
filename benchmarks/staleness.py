"""Stragglers: the synchronous loop against the asynchronous one, 2 of 10 clients taking 10 times as long.

    python benchmarks/staleness.py [--quick] [--rounds 8] [--seeds 1]

The default job (digits, method deepfednas), two local epochs at a constant learning rate. Time is simulated: a client
is a device of its own, whose training takes its MACs divided by its speed; server and network take none. So a
synchronous round lasts as long as its slowest client, whatever the machine that runs this does. Each asynchronous
loop (weight (1 + s)^(−a), a = 0, 0.5 and 1) goes on until it has taken as long as the synchronous rounds.
Prints one line of JSON: accuracies in percent on the test images, mean of the smallest, the middle and the largest
network of the path, after a quarter, half and all of that time; the share of the time in which an arm reached what the
synchronous loop reached in the end; and the clients' work, in multiples of that of the synchronous loop.
"""

from __future__ import annotations

import heapq
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from common import options, read, show

from fednas_core.base.config import RunConfig
from fednas_core.base.seeding import derive
from fednas_core.base.values import ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.engine import asynchronous, rounds
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.local import LocalFleet
from fednas_core.exchange.orders import Answer, Failure, Order
from fednas_core.methods.registry import make, path_of
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import subnets_of
from fednas_core.tasks.bench import space_of
from fednas_core.training.settings import TrainSettings

SLOW, SLOWER = 5, 10.0
"""Every fifth client is a straggler, and takes so many times as long."""
SPEED = 1e9
"""MACs of training a second of a client that is none."""
ARMS: dict[str, dict[str, Any]] = {
    "sync": {},
    "async, a = 0": {"loop": "async", "stale.power": 0.0},
    "async, a = 0.5": {"loop": "async", "stale.power": 0.5},
    "async, a = 1": {"loop": "async", "stale.power": 1.0},
}
Point = tuple[float, float]
"""A time in simulated seconds and the accuracy then, in percent."""


class Devices:
    """A fleet of devices that work at the same time, on a clock of their own: orders are carried out as they end."""

    def __init__(self, config: RunConfig) -> None:
        self._config, self._inner = config, LocalFleet(config)
        self._examples = {client.name: client.examples for client in self._inner.clients()}
        self.clock, self.macs = 0.0, 0

    def clients(self) -> Sequence[ClientInfo]:
        return self._inner.clients()

    def train(self, orders: Mapping[ClientId, Order], more: deque[Order] | None = None) -> Iterator[Answer | Failure]:
        waiting = deque[Order]() if more is None else more
        waiting.extendleft(reversed(list(orders.values())))
        running: list[tuple[float, ClientId, Order]] = []
        while running or waiting:
            while waiting:
                order = waiting.popleft()
                heapq.heappush(running, (self.clock + self._seconds(order), order.client, order))
            self.clock, client, order = heapq.heappop(running)
            (answer,) = self._inner.train({client: order})
            self.macs += answer.macs if isinstance(answer, Answer) else 0
            yield answer

    def close(self) -> None:
        self._inner.close()

    def _seconds(self, order: Order) -> float:
        assert isinstance(order.params, TrainSettings)
        macs = 3 * space_of(self._config).cost(order.arch).macs * self._examples[order.client] * order.params.epochs
        number = int(order.client.rsplit("-", 1)[1])
        return macs / SPEED * (SLOWER if number % SLOW == 0 else 1.0)


def train(arm: str, seed: int, count: int, until: float) -> tuple[list[Point], int]:
    """Train one arm for `count` rounds or `until` a time; return its course and the MACs of its clients."""
    pairs = {"seed": seed, "workers": 1, "train.epochs": 2, "train.schedule": "constant", "rounds": count, **ARMS[arm]}
    config = read({**pairs, "data.holdout": 0.0})
    space, supernet = space_of(config), initial_weights(space_of(config), derive(seed, "weights"))
    path = path_of(config, space, 1_000_000)
    method, devices, judge = (
        make(Setup(config, space, path, supernet)),
        Devices(config),
        Judge(config, subnets_of(space, supernet)),
    )
    loop = asynchronous.rounds if config.loop == "async" else rounds.rounds
    course: list[Point] = [(0.0, 10.0)]
    for _ in loop(config, method, devices, 0):
        archs = [path[0].arch, path[len(path) // 2].arch, path[-1].arch]
        course.append((devices.clock, 100 * statistics.mean(judge.test(arch).accuracy for arch in archs)))
        if devices.clock >= until:
            break
    return course, devices.macs


def at(course: Sequence[Point], time: float) -> float:
    """Return the accuracy that was reached by a time: that of the last event before it."""
    return [accuracy for when, accuracy in course if when <= time * 1.0001][-1]


def compare(seed: int, count: int) -> dict[str, dict[str, float]]:
    """Return what each arm reached with one seed."""
    sync, work = train("sync", seed, count, float("inf"))
    end, reached = sync[-1]
    found = {}
    for arm in ARMS:
        course, macs = (sync, work) if arm == "sync" else train(arm, seed, 100 * count, end)
        there = [when / end for when, accuracy in course if accuracy >= reached]
        found[arm] = {
            "quarter": at(course, end / 4),
            "half": at(course, end / 2),
            "end": at(course, end),
            "time_to_sync_end": there[0] if there else float("nan"),
            "client_work": macs / work,
        }
    return found


def main() -> None:
    chosen = options(__doc__, rounds={"type": int, "default": 8}, seeds={"type": int, "default": 1})
    torch.set_num_threads(1)
    count = 3 if chosen.quick else chosen.rounds
    runs = [compare(seed, count) for seed in range(1, chosen.seeds + 1)]
    arms = {arm: {key: statistics.mean(run[arm][key] for run in runs) for key in runs[0][arm]} for arm in ARMS}
    show({"benchmark": "staleness", "rounds": count, "seeds": chosen.seeds, "arms": arms})


if __name__ == "__main__":
    main()
