"""Local training: one plain loop, in bf16 and channels-last where the processor computes that natively."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.sgd import sgd

from fednas_core.base.errors import DataError, DeadlineError
from fednas_core.training.settings import TrainSettings

Batch = tuple[Tensor, Tensor]
"""Normalised images, float32 (n, channels, size, size), and labels, int64 (n,)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training saw: means over the images of the last epoch (`loss`, `accuracy` 0 to 1) and images in all.

    `loss` is the cross-entropy of the labels as they are, whatever the gradients follow (smoothed labels, a teacher):
    the same measure as that of `fednas_core.training.evaluate.Evaluation`.
    Without any epoch both means are NaN.
    """

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


class Sgd:
    """SGD as ``torch.optim.SGD(…, fused=True)`` computes it, to the last bit.

    The first use of an optimiser class of torch imports torch's compiler: a second for each process, which a device
    would pay in every round.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        self._parameters = list(parameters)
        self._momenta: dict[Tensor, Tensor | None] = dict.fromkeys(parameters)
        self._step = partial(
            sgd, fused=True, dampening=0.0, nesterov=False, maximize=False, lr=lr, momentum=momentum,
            weight_decay=weight_decay,
        )  # fmt: skip

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters that have a gradient; one that has its first one later begins with no momentum."""
        moved = [parameter for parameter in self._parameters if parameter.grad is not None]
        momenta = [self._momenta[parameter] for parameter in moved]
        if any(momentum is not None for momentum in momenta):
            pairs = zip(moved, momenta, strict=True)
            momenta = [torch.zeros_like(p) if momentum is None else momentum for p, momentum in pairs]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        self._step(moved, gradients, momenta)
        self._momenta.update(zip(moved, momenta, strict=True))


Gradients = Callable[[Tensor, Tensor], Tensor]
"""A way to leave the gradients of a batch, images and labels on the device, in the parameters; its logits, float32."""


def train(
    module: nn.Module,
    epochs: Iterable[Iterable[Batch]],
    settings: TrainSettings,
    precision: str = "fp32",
    until: float = float("inf"),
) -> Outcome:
    """Train `module` in place by SGD over `epochs` of batches, on the device where it lies.

    `until` is the deadline on the clock of `time.monotonic`: `DeadlineError` is raised by the first batch that starts
    after it. Raises `DataError` for an epoch without images.
    """
    module.train()

    def gradients(x: Tensor, y: Tensor) -> Tensor:
        with autocast(x.device, precision):
            logits: Tensor = module(x).float()
        loss = functional.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        return logits.detach()

    return descend([p for p in module.parameters() if p.requires_grad], gradients, epochs, settings, until)


def descend(
    parameters: Sequence[Tensor],
    gradients: Gradients,
    epochs: Iterable[Iterable[Batch]],
    settings: TrainSettings,
    until: float = float("inf"),
) -> Outcome:
    """Move `parameters` by SGD over `epochs` of batches, along what `gradients` finds; see `train` for the rest."""
    device = parameters[0].device
    optimiser = Sgd(parameters, settings.lr, settings.momentum, settings.weight_decay)
    images = 0
    loss = accuracy = math.nan
    for number, epoch in enumerate(epochs):
        loss_sum, correct, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for x, y in epoch:
            if time.monotonic() > until:
                raise DeadlineError(f"training was not done by its deadline, after {images + seen} images")
            y = y.to(device)
            optimiser.zero_grad()
            logits = gradients(to_images(x, device), y)
            clip(parameters, settings)
            optimiser.step()
            loss_sum = loss_sum + functional.cross_entropy(logits, y, reduction="sum")
            correct = correct + (logits.argmax(1) == y).sum()
            seen += len(y)
        if not seen:
            raise DataError(f"training: epoch {number + 1} holds no image, at least one is needed")
        loss, accuracy, images = float(loss_sum) / seen, float(correct) / seen, images + seen
    return Outcome(loss, accuracy, images)


def clip(parameters: Sequence[Tensor], settings: TrainSettings) -> None:
    """Bound the gradients as the settings say: first the size of every entry, then the norm of all together."""
    if settings.clip_value:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.clamp_(-settings.clip_value, settings.clip_value)  # torch's own takes two passes
    if settings.clip:
        nn.utils.clip_grad_norm_(parameters, settings.clip)
