"""Augmentation and normalisation of 32 × 32 colour images: a pipeline of PIL transforms against ours, one thread.

    python benchmarks/augmentation.py [--batch 64] [--repeats 41]

Both start from the same 8-bit images in memory and end with the same thing, a normalised float32 batch: random crop
with a border of 4, random flip, cutout of 16 × 16. The pipeline does it as published training code does: image by
image through PIL, transforms of torchvision, the cutout of DeVries and Taylor, then a stack. The two take turns, so
that a busy machine slows both. Prints one line of JSON: median microseconds per image of each, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from fednas_core.data.augment import Preprocessing, augment
from fednas_core.data.sources import STATISTICS


class Cutout:
    """The published transform: zeroes a square of `side` pixels of a normalised image (channels, height, width)."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[1:]
        mask = np.ones((height, width), np.float32)
        y, x = np.random.randint(height), np.random.randint(width)
        top, bottom = np.clip((y - self.side // 2, y + self.side // 2), 0, height)
        left, right = np.clip((x - self.side // 2, x + self.side // 2), 0, width)
        mask[top:bottom, left:right] = 0.0
        return image * torch.from_numpy(mask).expand_as(image)


def seconds(work: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--repeats", type=int, default=41, help="batches timed of each")
    options = parser.parse_args()
    torch.set_num_threads(1)

    mean, std = STATISTICS["cifar10"]
    pixels = np.random.default_rng(0).integers(0, 256, (options.batch, 32, 32, 3), dtype=np.uint8)
    images, preprocessing = torch.from_numpy(pixels).permute(0, 3, 1, 2), Preprocessing(mean, std)
    generator = torch.Generator().manual_seed(0)
    pipeline = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
            Cutout(16),
        ]
    )

    def theirs() -> torch.Tensor:
        return torch.stack([pipeline(Image.fromarray(image)) for image in pixels])

    def ours() -> torch.Tensor:
        return preprocessing(augment(images, "crop-flip-cutout", generator, mean))

    theirs(), ours()
    times = [(seconds(theirs), seconds(ours)) for _ in range(options.repeats)]
    slow, fast = (statistics.median(column) / options.batch * 1e6 for column in zip(*times, strict=True))
    result = {"pil_us_per_image": slow, "fednas_us_per_image": fast, "ratio": slow / fast}
    print(json.dumps({"batch": options.batch, **{key: round(value, 2) for key, value in result.items()}}))


if __name__ == "__main__":
    main()
