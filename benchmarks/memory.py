"""Server memory: how much a round of many replies takes on top of the supernet.

    python benchmarks/memory.py [--quick]

The space is that of DeepFedNAS at half its width: a supernet of 18 million parameters. A fake fleet answers at once,
each reply in fresh memory. Every row is a process of its own, which runs two rounds: `mb` is the peak of its resident
memory during both, above what it held before the first (interpreter, libraries and the supernet; not the sums of the
merge). What lies in the system's page cache is not resident memory and does not count. Replies are subnets drawn at
random, or all of them the largest, which is the worst case.
Prints one line of JSON: for each row megabytes and supernets above the baseline, and milliseconds of CPU a reply.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import tomllib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import tomli_w
import torch
from common import options, read, show

from fednas_core.devices.info import ClientInfo
from fednas_core.engine.rounds import run_round
from fednas_core.exchange.orders import WEIGHTS, Answer, Order
from fednas_core.exchange.results import Trained
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.registry import presets
from fednas_core.subnets.packing import extract
from fednas_core.tasks.bench import space_of

ROUNDS = 2
RULES: dict[str, dict[str, Any]] = {
    "overlap": {},
    "overlap, clip": {"merge.clip": 1.0},
    "trimmed": {"merge.rule": "trimmed"},
}


class Instant:
    """Clients that answer at once: what they were sent, and a little more."""

    def __init__(self, replies: int, space: Any) -> None:
        self._names, self._space = [f"client-{i:04d}" for i in range(replies)], space
        self.seconds = 0.0

    def clients(self) -> Sequence[ClientInfo]:
        return [ClientInfo(name, 10) for name in self._names]

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Answer]:
        for number, order in enumerate(orders.values()):
            yield self._answer(order, number)

    def _answer(self, order: Order, number: int) -> Answer:
        start = time.process_time()
        tensors = extract({**order.weights}, {n: tuple(slice(0, s) for s in t.shape) for n, t in order.weights.items()})
        for tensor in tensors.values():
            tensor.add_(0.001 * (1 + number % 7))
        self.seconds += time.process_time() - start
        given = order.client, order.round, order.arch, {WEIGHTS: tensors}, Trained(1.0, 0.5)
        return Answer(*given, examples=10, macs=1, seconds=0.1)

    def close(self) -> None:
        pass


def half_width(folder: Path) -> str:
    """Return the path of the description of a space like DeepFedNAS's with half its channels."""
    space = tomllib.loads(presets()["deepfednas-cifar"].read_text())
    space |= {"stem": space["stem"] // 2, "stages": [channels // 2 for channels in space["stages"]]}
    path = folder / "half-width.toml"
    path.write_text(tomli_w.dumps(space))
    return str(path)


def resident(key: str) -> int:
    """Return bytes of resident memory: ``VmRSS``, of now, or ``VmHWM``, the most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure(space_name: str, method: str, rule: str, replies: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    config = read({"method": method, "space.name": space_name, "rounds": ROUNDS, "data.holdout": 0.0, **RULES[rule]})
    space = space_of(config)
    supernet = initial_weights(space, 0)
    size = sum(tensor.numel() * 4 for tensor in supernet.values())
    made, fleet = make(Setup(config, space, [], supernet)), Instant(replies, space)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before, start = resident("VmRSS"), time.process_time()
    for index in range(ROUNDS):
        run_round(config, made, fleet, index)
    seconds = time.process_time() - start - fleet.seconds
    above = resident("VmHWM") - before
    return {
        "replies": replies,
        "subnets": "largest" if method == "fedavg" else "random",
        "merge": rule,
        "mb": above / 1e6,
        "supernets": above / size,
        "ms_a_reply": 1e3 * seconds / (ROUNDS * replies),
        "supernet_mb": size / 1e6,
    }


def main() -> None:
    chosen = options(__doc__)
    counts = (20, 200)
    cases = [("superfednas", rule, n) for rule in RULES for n in counts] + [("fedavg", "overlap", n) for n in counts]
    if chosen.quick:
        cases = [("superfednas", "overlap", n) for n in counts]
    context = multiprocessing.get_context("spawn")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            with ProcessPoolExecutor(1, context) as pool:
                rows.append(pool.submit(measure, half_width(Path(folder)), *case).result())
    show({"benchmark": "memory", "supernet_mb": rows[0]["supernet_mb"], "rows": rows})


if __name__ == "__main__":
    main()
