"""What a phase through separate SuperNode processes costs in seconds and in bytes, over TLS with node keys.

tiny: seconds of a phase with a payload of some kilobytes on three nodes; with `--warm` 0 a process for each message.
large: the same with a subnet of 22 million parameters each way on one node.
bytes: what passes between one node and the SuperLink for each order and its reply, polling included, against the bytes
of the subnet's tensors, counted by a TCP proxy; for each encoding, over TLS and in plain text.

All processes share this machine. Each line is one measurement.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import options, show

sys.path.append(str(Path(__file__).parents[1] / "tests" / "deployment"))
from harness import Proxy, Site, site

WARM_UP = 2
"""Rounds that do not count: nodes fetch the app, and their polling has to find its rhythm."""
TINY_SPACE = (
    "stem = 8\nstages = [8, 16]\nstrides = [1, 2]\nwidths = [0.5, 1.0]\nexpansions = [0.5, 1.0]\nextra_blocks = 1\n"
)
LARGE_SPACE = (
    "stem = 64\nstages = [144, 288, 576, 1152]\nstrides = [1, 2, 2, 2]\nwidths = [0.5, 1.0]\n"
    "expansions = [0.1, 0.25]\nextra_blocks = 2\n"
)
SMALL_SPACE = (
    "stem = 16\nstages = [32, 64, 128]\nstrides = [1, 2, 2]\nwidths = [0.5, 1.0]\nexpansions = [0.25, 1.0]\n"
    "extra_blocks = 1\n"
)
"""Its largest network is that of the default job: 0.69 million parameters."""
DIGITS = "image_size = 8\nin_channels = 1\nclasses = 10\n"
WIRES = (
    (LARGE_SPACE, True, "fp32"),
    (LARGE_SPACE, True, "fp16"),
    (LARGE_SPACE, True, "int8"),
    (LARGE_SPACE, False, "fp32"),
    (SMALL_SPACE, True, "fp32"),
)
"""Space, whether over TLS, and the encoding both ways."""


def pairs(folder: Path, space: str, clients: int, rounds: int, **more: Any) -> dict[str, Any]:
    """Return the settings of a run of plain averaging of the largest network over digits, one epoch a round."""
    (folder / "space.toml").write_text(space + DIGITS)
    return {
        "method": "fedavg",
        "rounds": rounds,
        "evaluate-every": rounds,
        "budgets": "any=max",
        "install": False,
        "device": "cpu",
        "space.name": str(folder / "space.toml"),
        "data.examples": 40 * clients,
        "data.clients": clients,
        "data.holdout": 0.0,
        "data.partition": "iid",
        "train.epochs": 1,
        "train.batch": 36,
        "output": str(folder / "out"),
        **more,
    }


@contextmanager
def federation(nodes: int, warm: int, tls: bool = True, proxied: bool = False) -> Iterator[tuple[Site, Proxy | None]]:
    """Start a site with its nodes, the last of them behind a proxy if asked."""
    with tempfile.TemporaryDirectory() as name, site(Path(name), nodes=nodes, tls=tls) as made:
        proxy = Proxy(made.port) if proxied else None
        for number in range(nodes):
            made.start_node(number, f"warm={warm}", port=proxy.port if proxy else None)
        yield made, proxy
        if proxy:
            proxy.close()


def phase_seconds(nodes: int, warm: int, space: str, rounds: int) -> dict[str, Any]:
    """Return how long the rounds of a run took, and what its clients computed of that."""
    with federation(nodes, warm) as (made, _):
        settings = pairs(made.folder, space, nodes, WARM_UP + rounds)
        run = made.completed(made.submit(settings), made.folder / "out")
        events = run.events()[WARM_UP:]
    seconds = [event.seconds for event in events]
    return {
        "nodes": nodes,
        "warm": bool(warm),
        "bytes_each_way": events[0].bytes_down // nodes,
        "median_s": statistics.median(seconds),
        "seconds": seconds,
        "training_s": statistics.median(max(row.seconds for row in event.clients) for event in events),
        "failures": sum(len(event.failures) for event in events),
    }


def bytes_on_the_wire(space: str, tls: bool, encoding: str, rounds: int) -> dict[str, Any]:
    """Return the bytes of a round both ways, the medians over rounds, against those of the network's tensors."""
    with federation(1, 120, tls, proxied=True) as (made, proxy):
        assert proxy is not None
        settings = pairs(made.folder, space, 1, WARM_UP + rounds, **{"wire.down": encoding, "wire.up": encoding})
        job, marks = made.submit(settings), []
        events = made.folder / "out" / "latest" / "events.jsonl"
        for done in range(1, WARM_UP + rounds + 1):
            made.wait_for(f"round {done}", lambda done=done: lines(events) >= done, pause=0.01)
            marks.append((proxy.down, proxy.up))
        run = made.completed(job, made.folder / "out")
        event, model = run.events()[-1], run.read_json("result.json")["models"][0]
        idle = per_second(proxy)
    sizes = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in zip(marks, marks[1:], strict=False)]
    wire = [statistics.median(size[way] for size in sizes[WARM_UP - 1 :]) for way in (0, 1)]
    plan = int(model["bytes"])
    return {
        "tls": tls,
        "encoding": encoding,
        "plan_bytes": plan,
        "wire_down": wire[0],
        "wire_up": wire[1],
        "ratio_down": wire[0] / plan,
        "ratio_up": wire[1] / plan,
        "told_down": event.bytes_down,
        "told_up": event.bytes_up,
        "idle_bytes_per_s": idle,
    }


def lines(path: Path) -> int:
    """Return how many lines a file has, 0 if it is not there."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def per_second(proxy: Proxy, seconds: float = 6.0) -> float:
    """Return the bytes a second, both ways, of a node that has nothing to do."""
    before = proxy.up + proxy.down
    time.sleep(seconds)
    return (proxy.up + proxy.down - before) / seconds


def main() -> None:
    chosen = options(
        __doc__,
        only={"choices": ("tiny", "large", "bytes"), "help": "one part"},
        rounds={"type": int, "default": 7, "help": "rounds that count"},
        warm={"type": int, "default": 120, "help": "seconds a client process stays between messages (0: none does)"},
    )
    rounds = 2 if chosen.quick else chosen.rounds
    if chosen.only in (None, "tiny"):
        show({"benchmark": "deployment", "part": "tiny"} | phase_seconds(3, chosen.warm, TINY_SPACE, rounds))
    if chosen.only in (None, "large"):
        show({"benchmark": "deployment", "part": "large"} | phase_seconds(1, chosen.warm, LARGE_SPACE, rounds))
    if chosen.only in (None, "bytes"):
        for wire in WIRES:
            show({"benchmark": "deployment", "part": "bytes"} | bytes_on_the_wire(*wire, min(rounds, 3)))


if __name__ == "__main__":
    main()
