"""The sandwich: a step of four networks that share their weights, against those four networks by themselves.

    python benchmarks/sandwich.py [--quick] [--spaces cifar-light,fedsup,mobilenet] [--norm group] [--batch 32]

A step trains the largest network, two random ones and the smallest, and includes all that it takes: drawing them,
making the networks, soft labels, clipping, SGD with momentum. The floor is the sum of four forward and backward passes
of plain static networks of the same architectures, with weights of their own, in the same precision. Steps and floors
take turns, each with two newly drawn networks, through which a batch has gone before, so that the library has kernels
for their shapes in both. Prints one line of JSON: for each space and precision the milliseconds (of CPU, one thread) of
both, medians over the turns, and the median of the turns' ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from common import options, show
from torch import nn
from torch.nn import functional

from fednas_core.devices.profile import native_bf16
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.registry import load
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.networks import subnet
from fednas_core.training.loop import Batch, autocast, to_images
from fednas_core.training.sandwich import Sandwich
from fednas_core.training.settings import TrainSettings

INNER = 2


def passes(networks: list[nn.Module], batch: Batch, precision: str) -> None:
    """One forward and backward pass of each network."""
    for module in networks:
        module.zero_grad()
        x = to_images(batch[0], torch.device("cpu"))
        with autocast(x.device, precision):
            logits = module(x)
        functional.cross_entropy(logits.float(), batch[1]).backward()


def measure(space: Elastic, batch: Batch, precision: str, turns: int) -> dict[str, float]:
    weights, rng = initial_weights(space, 0), np.random.default_rng(0)
    sandwich, archs = Sandwich(space, space.largest, weights), []
    ends = [subnet(space, arch, weights).train() for arch in (space.largest, space.smallest)]
    rows: list[tuple[float, float]] = []

    def taking_turns() -> Iterator[Batch]:
        for turn in range(turns + 2):
            archs[:] = [space.sample(rng) for _ in range(INNER)] + [space.smallest]
            networks = [*ends, *(subnet(space, arch, weights).train() for arch in archs[:-1])]
            passes(networks, batch, precision)
            seconds = [0.0, 0.0]
            for which in (0, 1) if turn % 2 else (1, 0):
                start = time.process_time()
                if which:
                    yield batch
                else:
                    passes(networks, batch, precision)
                seconds[which] = time.process_time() - start
            rows.append((seconds[0], seconds[1]))

    sandwich.train([taking_turns()], lambda: archs, TrainSettings(lr=1e-3, momentum=0.5, clip=10.0), precision)
    del rows[:2]
    floor, step = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "floor_ms": floor * 1e3,
        "step_ms": step * 1e3,
        "ratio": statistics.median(step / floor for floor, step in rows),
    }


def main() -> None:
    chosen = options(
        __doc__,
        spaces={"default": "cifar-light,fedsup,mobilenet"},
        norm={"default": "group"},
        batch={"type": int, "default": 32},
    )
    torch.set_num_threads(1)
    turns = 9 if chosen.quick else 41
    found = {}
    for name in chosen.spaces.split(","):
        of = load(name).with_norm(chosen.norm)
        x = torch.randn(chosen.batch, of.in_channels, of.image_size, of.image_size)
        y = torch.randint(0, of.classes, (chosen.batch,))
        for precision in ("fp32", "bf16") if native_bf16() else ("fp32",):
            found[f"{name}, {precision}"] = measure(of, (x, y), precision, turns)
    show({"benchmark": "sandwich", "ratio": max(row["ratio"] for row in found.values()), "spaces": found})


if __name__ == "__main__":
    main()
