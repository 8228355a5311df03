"""Local training: our loop against the published one, in images per CPU-second on one thread.

    python benchmarks/training.py [--quick] [--space cifar-quarter] [--norms none,group,batch]

The published loop (SuperFedNAS, DeepFedNAS) is written here from its description: float32, NCHW, a `DataLoader` in the
process with PIL transforms (crop, flip, cutout), SGD with lr 0.1, weight decay 5e-4 and no momentum, gradients clipped
at 10, batches of 64. Ours is `fednas_core.training.loop.train` on `fednas_core.data.augment`. Both train the same
networks from the same weights and take turns. Prints one line of JSON: for each normalisation and size the images per
CPU-second of both with and without the data pipeline, their ratios, and the geometric means of the ratios.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from augmentation import Cutout
from common import MEAN, STD, Work, medians, options, pixels, show, space, three_sizes
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fednas_core.base.values import Arch
from fednas_core.data.augment import Preprocessing, augment, batches
from fednas_core.devices.profile import native_bf16
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.subnets.networks import subnet
from fednas_core.training.loop import train
from fednas_core.training.settings import TrainSettings

BATCH = 64


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images that go one by one through PIL and the published transforms."""

    def __init__(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
        self.x, self.y = x, y
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                Cutout(16),
            ]
        )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.x[index])), int(self.y[index])


def published(module: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], lr: float = 0.1) -> None:
    """One epoch of the published loop, on the device where the module lies."""
    module.train()
    device = next(module.parameters()).device
    optimiser = torch.optim.SGD(module.parameters(), lr=lr, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()
    losses = []
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        module.zero_grad()
        loss = criterion(module(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 10)
        optimiser.step()
        losses.append(loss.item())


def works(space: ResNetSpace, arch: Arch, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> dict[str, Work]:
    """Return one epoch of either loop, with the data pipeline and on one batch prepared before."""
    weights = initial_weights(space, 0)
    theirs = subnet(space, arch, weights).to(memory_format=torch.contiguous_format)
    ours = subnet(space, arch, weights)
    loader = DataLoader(Pictures(x, y), BATCH, shuffle=True, num_workers=0)
    images, labels = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)
    prepare, generator = Preprocessing(MEAN, STD), torch.Generator().manual_seed(0)
    settings, precision = TrainSettings(batch=BATCH), "bf16" if native_bf16() else "fp32"
    ready = [(prepare(images[:BATCH]), labels[:BATCH])] * (len(x) // BATCH)
    plain = [(pair[0].contiguous(), pair[1]) for pair in ready]

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in batches(len(labels), BATCH, generator):
            yield prepare(augment(images[rows], "crop-flip-cutout", generator, MEAN)), labels[rows]

    return {
        "published": lambda: published(theirs, loader),
        "fednas": lambda: train(ours, [epoch()], settings, precision),
        "published, no data": lambda: published(theirs, plain),
        "fednas, no data": lambda: train(ours, [ready], settings, precision),
    }


def main() -> None:
    chosen = options(__doc__, space={"default": "cifar-quarter"}, norms={"default": "none,group,batch"})
    torch.set_num_threads(1)
    repeats, ratios = (2, []) if chosen.quick else (7, [])
    rows: dict[str, Any] = {}
    for norm in chosen.norms.split(","):
        for size, arch in three_sizes(chosen_space := space(chosen.space, norm)).items():
            macs = chosen_space.cost(arch).macs
            count = BATCH * max(2, min(16, int(300e6 / macs)))
            x, y, source = pixels(count)
            both = works(chosen_space, arch, x, y)
            rates = [count / seconds for seconds in medians(list(both.values()), repeats, time.process_time)]
            row = dict(zip(both, rates, strict=True))
            row["ratio"], row["ratio, no data"] = rates[1] / rates[0], rates[3] / rates[2]
            rows[f"{norm}, {size} ({macs / 1e6:.1f} M MACs)"] = row
            ratios.append((norm, row))
    means = {
        norm: {
            key: math.exp(np.mean([math.log(row[key]) for kind, row in ratios if kind == norm]))
            for key in ("ratio", "ratio, no data")
        }
        for norm in chosen.norms.split(",")
    }
    overall = math.exp(np.mean([math.log(row["ratio"]) for _, row in ratios]))
    show({"benchmark": "training", "data": source, "ratio": overall, "means": means, "images_per_cpu_second": rows})


if __name__ == "__main__":
    main()
