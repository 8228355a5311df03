"""Evaluation of a network: `fednas_core.training.evaluate` against a plain pass in float32, NCHW, batches of 256.

    python benchmarks/evaluation.py [--quick] [--space cifar-quarter] [--norms batch,group,none]

Both see the same normalised float32 images and compute loss and accuracy; batch norm is calibrated first. They take
turns, on one thread, timed in CPU-seconds. Prints one line of JSON: for each normalisation and size the images per
second of both and their ratio, the greatest difference in accuracy, and the geometric means of the ratios.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from common import MEAN, STD, medians, options, pixels, show, space, three_sizes
from torch.nn import functional

from fednas_core.data.augment import Preprocessing
from fednas_core.devices.profile import native_bf16
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.networks import calibrate, subnet
from fednas_core.training.evaluate import EVAL_BATCH, evaluate

PLAIN_BATCH = 256


@torch.no_grad()
def plain(module: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    module.eval()
    loss = correct = 0.0
    for x, y in batches:
        logits = module(x)
        loss += functional.cross_entropy(logits, y, reduction="sum").item()
        correct += (logits.argmax(1) == y).sum().item()
    images = sum(len(y) for _, y in batches)
    return loss / images, correct / images


def main() -> None:
    chosen = options(__doc__, space={"default": "cifar-quarter"}, norms={"default": "batch,group,none"})
    torch.set_num_threads(1)
    x8, y8, source = pixels(256 if chosen.quick else 1024)
    x = Preprocessing(MEAN, STD)(torch.from_numpy(x8).permute(0, 3, 1, 2))
    y = torch.from_numpy(y8)
    big = [(part.contiguous(), labels) for part, labels in zip(x.split(PLAIN_BATCH), y.split(PLAIN_BATCH), strict=True)]
    small = list(zip(x.split(EVAL_BATCH), y.split(EVAL_BATCH), strict=True))
    precision, rows, means = "bf16" if native_bf16() else "fp32", {}, {}
    for norm in chosen.norms.split(","):
        ratios: list[float] = []
        for size, arch in three_sizes(family := space(chosen.space, norm)).items():
            network = subnet(family, arch, initial_weights(family, 0))
            calibrate(network, [images for images, _ in small])
            theirs = subnet(family, arch, initial_weights(family, 0)).to(memory_format=torch.contiguous_format)
            theirs.load_state_dict(network.state_dict())
            found: dict[str, Any] = {}

            def slow(module: torch.nn.Module = theirs, found: dict[str, Any] = found) -> None:
                found["plain"] = plain(module, big)

            def fast(module: torch.nn.Module = network, found: dict[str, Any] = found) -> None:
                found["fednas"] = evaluate(module, small, precision)

            slow_s, fast_s = medians([slow, fast], 3 if chosen.quick else 9, time.process_time)
            ratios.append(slow_s / fast_s)
            rows[f"{norm}, {size} ({family.cost(arch).macs / 1e6:.1f} M MACs)"] = {
                "plain": len(y) / slow_s,
                "fednas": len(y) / fast_s,
                "ratio": slow_s / fast_s,
                "accuracy_difference": abs(found["plain"][1] - found["fednas"].accuracy),
            }
        means[norm] = statistics.geometric_mean(ratios)
    show({"benchmark": "evaluation", "data": source, "ratio": means, "images_per_cpu_second": rows})


if __name__ == "__main__":
    main()
