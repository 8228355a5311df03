"""The in-process backend: a round against its floor, the clients' training alone spread perfectly over the cores.

    python benchmarks/engine.py [--quick] [--workers 2] [--device cpu] [--norm group] [--examples 400]

A cohort of 20 clients trains subnets of a quarter of DeepFedNAS's space: one the largest, one the smallest, the rest
drawn at random; on average about 0.85 s each on one core. A round is everything from planning to the merged supernet.
The floor: as many bare processes train the same clients and nothing else, each with its networks at hand; the sum of
their seconds divided by their number, as if the work could be split without remainder. Rounds and floors take turns.
With ``--device cuda`` there is one worker and the floor is the same training in this process.
Prints one line of JSON: median seconds of both, clients per second, and the median ratio.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import CLIENTS, cohort, npz, options, read, show

from fednas_core.base.config import RunConfig
from fednas_core.base.seeding import stream
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import run_round
from fednas_core.exchange.orders import WEIGHTS, Order
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import extract
from fednas_core.tasks.bench import space_of
from fednas_core.tasks.registry import index_of, perform


def bare(config: RunConfig, orders: Sequence[Order]) -> float:
    """Return the seconds of training these orders one after the other, their networks extracted before."""
    supernet, space = initial_weights(space_of(config), 0), space_of(config)
    ready = [replace(order, channels={WEIGHTS: extract(supernet, space.plan(order.arch))}) for order in orders]
    start = time.perf_counter()
    for order in ready:
        perform(order, config, index_of(order.client))
    if config.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def shares(config: RunConfig, orders: Sequence[Order], count: int) -> list[list[Order]]:
    """Return the orders in `count` shares of about the same work."""
    space, sums = space_of(config), [0] * count
    parts: list[list[Order]] = [[] for _ in range(count)]
    for order in sorted(orders, key=lambda order: -space.cost(order.arch).macs):
        least = sums.index(min(sums))
        parts[least].append(replace(order, channels={}))
        sums[least] += space.cost(order.arch).macs
    return parts


def measure(config: RunConfig, turns: int) -> dict[str, Any]:
    space = space_of(config)
    method = make(Setup(config, space, [], initial_weights(space, 0)))
    times: dict[str, list[float]] = {"round": [], "floor": [], "client": []}
    context = multiprocessing.get_context("spawn")
    with closing(LocalFleet(config)) as fleet, ProcessPoolExecutor(config.workers, context) as pool:
        everyone = fleet.clients()
        for turn in range(turns + 1):
            number = max(0, turn - 1)  # the first is a warm-up: its clients are those of the second
            fresh = make(Setup(config, space, [], initial_weights(space, 0)))
            ask = fresh.ask(number, 0, everyone, stream(config.seed, number, "plan"))
            assert ask is not None
            start = time.perf_counter()
            event = run_round(config, method, fleet, number)
            seconds = time.perf_counter() - start
            if config.workers == 1:
                alone = [bare(config, shares(config, ask.orders, 1)[0])]
            else:
                parts = shares(config, ask.orders, config.workers)
                alone = list(pool.map(bare, [config] * config.workers, parts))
            if turn:
                times["round"].append(seconds)
                times["floor"].append(sum(alone) / config.workers)
                times["client"].append(sum(row["seconds"] for row in event["clients"]) / config.workers)
    ratios = [a / b for a, b in zip(times["round"], times["floor"], strict=True)]
    seconds = statistics.median(times["round"])
    return {
        "round_s": seconds,
        "floor_s": statistics.median(times["floor"]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ratio_to_own_training": statistics.median(a / b for a, b in zip(times["round"], times["client"], strict=True)),
        "clients_per_second": CLIENTS / seconds,
        "seconds_per_client": statistics.median(times["floor"]) * config.workers / CLIENTS,
    }


def main() -> None:
    chosen = options(
        __doc__,
        workers={"type": int, "default": 2},
        device={"default": "cpu", "choices": ("cpu", "cuda")},
        norm={"default": "group"},
        examples={"type": int, "default": 400, "help": "images of a client"},
    )
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data, source = npz(Path(folder))
        workers = 1 if chosen.device == "cuda" else chosen.workers
        pairs = cohort(data, chosen.norm, chosen.examples)
        config = read({**pairs, "rounds": 1000, "workers": workers, "device": chosen.device})
        result = measure(config, 2 if chosen.quick else 7)
    show({"benchmark": "engine", "device": chosen.device, "workers": config.workers, "data": source, **result})


if __name__ == "__main__":
    main()
