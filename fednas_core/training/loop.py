"""Local training: one plain loop, in bf16 and channels-last where the processor computes that natively."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fednas_core.errors import DeadlineError
from fednas_core.protocol import TrainSettings

Batch = tuple[Tensor, Tensor]
"""Normalised images, float32 (n, channels, size, size), and labels, int64 (n,)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training saw: means over the images of the last epoch (`loss`, `accuracy` 0 to 1) and images in all."""

    loss: float
    accuracy: float
    images: int


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context for ``bf16`` or, doing nothing, for ``fp32``."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def to_images(x: Tensor, device: torch.device) -> Tensor:
    """Return images on `device` in channels-last order: 1.3 to 1.5 times faster convolutions."""
    return x.to(device, memory_format=torch.channels_last)


def train(
    module: nn.Module,
    epochs: Iterable[Iterable[Batch]],
    settings: TrainSettings,
    precision: str = "fp32",
    until: float = float("inf"),
) -> Outcome:
    """Train `module` in place by SGD over `epochs` of batches, on the device where it lies.

    `until` is the deadline on the clock of `time.monotonic`: `DeadlineError` is raised by the first batch that starts
    after it.
    """
    device = next(module.parameters()).device
    module.train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(
        parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=True
    )
    images = 0
    loss_sum = correct = torch.zeros((), device=device)
    seen = 0
    for epoch in epochs:
        loss_sum, correct, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for x, y in epoch:
            if time.monotonic() > until:
                raise DeadlineError(f"training was not done by its deadline, after {images} images")
            y = y.to(device)
            with autocast(device, precision):
                logits = module(to_images(x, device))
            loss = functional.cross_entropy(logits.float(), y, label_smoothing=settings.label_smoothing)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if settings.clip:
                nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimiser.step()
            loss_sum = loss_sum + loss.detach() * len(y)
            correct = correct + (logits.detach().argmax(1) == y).sum()
            seen += len(y)
            images += len(y)
    return Outcome(float(loss_sum) / max(1, seen), float(correct) / max(1, seen), images)
