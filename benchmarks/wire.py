"""Fewer bytes: payload of a round and accuracy of the default job for each way of sending, side by side.

Every arm starts from the same weights and data of its seed and trains the same architectures; differences to fp32 are
paired by seed. The payload is that of the tensors as they are sent; `--speed` times encoding and decoding instead.

    python benchmarks/wire.py --rounds 40 --seeds 3 --out wire.jsonl     # trains, or trains on
    python benchmarks/wire.py --rounds 40 --out wire.jsonl --summary
    python benchmarks/wire.py --speed
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import collect, deviation, medians, read, show, stored

from fednas_core.base.seeding import derive
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import run_round
from fednas_core.exchange.codecs import codec, count
from fednas_core.methods.registry import make, path_of
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import subnets_of
from fednas_core.tasks.bench import space_of
from fednas_core.tasks.store import VARIABLE

ARMS: dict[str, dict[str, Any]] = {
    "fp32 / fp32": {},
    "fp16 / fp16": {"wire.down": "fp16", "wire.up": "fp16"},
    "int8 / int8": {"wire.down": "int8", "wire.up": "int8"},
    "fp16 / topk 10 %": {"wire.down": "fp16", "wire.up": "topk", "wire.keep": 0.1},
    "bf16 / bf16": {"wire.down": "bf16", "wire.up": "bf16"},
    "fp16 / topk 1 %": {"wire.down": "fp16", "wire.up": "topk", "wire.keep": 0.01},
}
"""Settings by name: down / up."""
BUDGETS = {"phone": 1_000_000, "tablet": 2_000_000}
"""MACs of the networks of the path that are tested, besides the largest."""


def run(arm: str, seed: int, rounds: int) -> dict[str, Any]:
    """Train one arm with one seed; return payload bytes a round and test accuracies in percent."""
    torch.set_num_threads(1)
    config = read({"seed": seed, "rounds": rounds, "workers": 1, "data.holdout": 0.0, **ARMS[arm]})
    space, supernet = space_of(config), initial_weights(space_of(config), derive(seed, "weights"))
    path = path_of(config, space, min(BUDGETS.values()))
    method, fleet = make(Setup(config, space, path, supernet)), LocalFleet(config)
    with tempfile.TemporaryDirectory() as state:
        os.environ[VARIABLE] = state
        events = [run_round(config, method, fleet, index) for index in range(rounds)]
    assert not any(event["failures"] for event in events)
    judge = Judge(config, subnets_of(space_of(config), supernet))
    archs = {name: [row.arch for row in path if row.cost.macs <= macs][-1] for name, macs in BUDGETS.items()}
    return {
        "arm": arm,
        "seed": seed,
        "rounds": rounds,
        "bytes_down": sum(event["bytes_down"] for event in events) / rounds,
        "bytes_up": sum(event["bytes_up"] for event in events) / rounds,
        "accuracy": {
            name: 100 * judge.test(arch).accuracy for name, arch in {**archs, "largest": space.largest}.items()
        },
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the result as Markdown."""
    by = {(row["arm"], row["seed"]): row for row in rows}
    plain = next(iter(ARMS))

    def mean(arm: str, seed: int) -> float:
        return statistics.mean(by[arm, seed]["accuracy"].values())

    def spread(values: list[float]) -> str:
        return f"{statistics.mean(values):.2f} ± {deviation(values):.2f}"

    lines = [
        f"{rows[0]['rounds']} rounds of 10 clients; test accuracy in %, mean ± SD over seeds; the difference is that "
        "of the mean of the three networks, paired by seed",
        "",
        "| down / up | seeds | MB down a round | MB up | share of fp32 | phone | tablet | largest | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        seeds = sorted(seed for name, seed in by if name == arm and (plain, seed) in by)
        if not seeds:
            continue
        mine = [by[arm, seed] for seed in seeds]
        down, up = (statistics.mean(row[key] for row in mine) for key in ("bytes_down", "bytes_up"))
        whole = [statistics.mean(by[plain, seed][key] for seed in seeds) for key in ("bytes_down", "bytes_up")]
        accuracy = [spread([row["accuracy"][name] for row in mine]) for name in (*BUDGETS, "largest")]
        gap = spread([mean(arm, seed) - mean(plain, seed) for seed in seeds]) if arm != plain else "–"
        shares = f"{down / whole[0]:.1%} / {up / whole[1]:.1%}"
        lines.append(
            f"| {arm} | {len(seeds)} | {down / 1e6:.3f} | {up / 1e6:.3f} | {shares} | {' | '.join(accuracy)} | {gap} |"
        )
    return "\n".join(lines)


def speed() -> None:
    """Print seconds to encode and decode 22 million parameters on one core, with each codec."""
    torch.set_num_threads(1)
    shapes = {f"{i}.{name}": shape for i in range(19) for name, shape in (("conv", (512, 256, 3, 3)), ("norm", (512,)))}
    flat = 0.01 * torch.randn(count(shapes), generator=torch.Generator().manual_seed(1))
    for name, keep in (("fp32", 1.0), ("fp16", 1.0), ("bf16", 1.0), ("int8", 1.0), ("topk", 0.1), ("topk", 0.01)):
        chosen = codec(name, keep)
        payload = chosen.encode(flat, shapes, 1)
        encode, decode = medians(
            [lambda c=chosen: c.encode(flat, shapes, 1), lambda c=chosen, p=payload: c.decode(p, shapes)], 7
        )  # fmt: skip
        share = len(payload) / (4 * count(shapes))
        show(
            {
                "codec": name,
                "keep": keep,
                "parameters": count(shapes),
                "share": share,
                "encode_s": encode,
                "decode_s": decode,
            }
        )


def main() -> None:
    """Train what is missing in the output file, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON lines, one per arm and seed")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--summary", action="store_true", help="only print the table of what is there")
    parser.add_argument("--speed", action="store_true", help="time the codecs instead")
    options = parser.parse_args()
    if options.speed:
        return speed()
    if options.out is None:
        parser.error("name a file with --out")
    rows = [row for row in stored(options.out) if row["rounds"] == options.rounds]
    done = {(row["arm"], row["seed"]) for row in rows}
    missing = [(arm, seed) for arm in ARMS for seed in range(1, options.seeds + 1) if (arm, seed) not in done]
    if not options.summary and missing:
        rows += collect(run, [(*job, options.rounds) for job in missing], options.out, options.jobs)
    print(summary(rows))


if __name__ == "__main__":
    main()
