"""Slicing: taking subnets out of a supernet against a plain copy of as many bytes.

    python benchmarks/slicing.py [--quick]

Eight subnets (seven drawn at random and the largest) are extracted into buffers that were used before, as the round
loop does; the floor copies eight flat tensors of their sizes. Prints one line of JSON: for each scale the megabytes,
the milliseconds (of CPU, one thread) of both and their ratio.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from common import copies, medians, options, show, space

from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.subnets.packing import extract, pack


def measure(space: ResNetSpace, repeats: int) -> dict[str, float]:
    supernet, rng = initial_weights(space, 0), np.random.default_rng(0)
    archs = [*(space.sample(rng) for _ in range(7)), space.largest]
    plans = [space.plan(arch) for arch in archs]
    flats = [pack(extract(supernet, plan)) for plan in plans]

    def slicing() -> None:
        for plan, flat in zip(plans, flats, strict=True):
            extract(supernet, plan, flat)

    copy_s, slice_s = medians([copies(flats), slicing], repeats, time.process_time)
    megabytes = sum(flat.numel() for flat in flats) * 4 / 1e6
    return {"mb": megabytes, "memcpy_ms": copy_s * 1e3, "extract_ms": slice_s * 1e3, "ratio": slice_s / copy_s}


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    scales = {
        name: measure(space(name), 5 if chosen.quick else repeats)
        for name, repeats in (("deepfednas-cifar", 15), ("cifar-quarter", 101))
    }
    show({"benchmark": "slicing", "ratio": scales["deepfednas-cifar"]["ratio"], "scales": scales})


if __name__ == "__main__":
    main()
