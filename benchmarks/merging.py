"""Merging: the overlap aggregation of eight subnets into their supernet against a plain copy of as many bytes.

    python benchmarks/merging.py [--quick]

Eight replies (seven architectures drawn at random and the largest) are added with different weights and the round is
finished; the floor copies eight flat tensors of their sizes. What a reply costs before it is added, the check of
names, shapes and values, stands apart. Prints one line of JSON: for each scale the megabytes, the milliseconds (of CPU,
one thread) of all, and the ratios to the copy.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from common import copies, medians, options, show, space

from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.subnets.merge import Merge, check_tensors, largest_allowed
from fednas_core.subnets.packing import extract, pack


def measure(space: ResNetSpace, repeats: int) -> dict[str, float]:
    supernet, rng = initial_weights(space, 0), np.random.default_rng(0)
    archs = [*(space.sample(rng) for _ in range(7)), space.largest]
    plans = [space.plan(arch) for arch in archs]
    replies = [extract(supernet, plan) for plan in plans]
    flats = [pack(reply) for reply in replies]
    merge, limit = Merge(supernet), largest_allowed(supernet)

    def merging() -> None:
        for number, (plan, reply) in enumerate(zip(plans, replies, strict=True)):
            merge.add(plan, reply, 0.1 + 0.01 * number)
        merge.finish()

    def checking() -> None:
        for plan, reply in zip(plans, replies, strict=True):
            check_tensors("client", plan, reply, limit)

    copy_s, merge_s, check_s = medians([copies(flats), merging, checking], repeats, time.process_time)
    return {
        "mb": sum(flat.numel() for flat in flats) * 4 / 1e6,
        "memcpy_ms": copy_s * 1e3,
        "merge_ms": merge_s * 1e3,
        "check_ms": check_s * 1e3,
        "ratio": merge_s / copy_s,
        "check_ratio": check_s / copy_s,
    }


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    scales = {
        name: measure(space(name), 5 if chosen.quick else repeats)
        for name, repeats in (("deepfednas-cifar", 15), ("cifar-quarter", 101))
    }
    show({"benchmark": "merging", "ratio": scales["deepfednas-cifar"]["ratio"], "scales": scales})


if __name__ == "__main__":
    main()
