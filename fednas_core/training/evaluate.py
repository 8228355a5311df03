"""Evaluation: each network once, in low precision where that is native, batch norm folded into the convolutions."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fednas_core.base.errors import DataError
from fednas_core.training.loop import to_images

EVAL_BATCH = 32
"""Images a forward pass: activations of 32 images stay in the processor's caches."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean cross-entropy and accuracy (0 to 1) over `images` images."""

    loss: float
    accuracy: float
    images: int


@torch.inference_mode()
def evaluate(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str = "fp32") -> Evaluation:
    """Evaluate a network on normalised float32 images and labels; the network itself is not changed.

    `precision` ``bf16`` evaluates a copy with bf16 weights. Raises `DataError` if the batches hold no image: no
    accuracy is true of nothing.
    """
    device = next(module.parameters()).device
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network = folded(module).to(dtype).to(memory_format=torch.channels_last)
    loss = correct = torch.zeros((), device=device)
    images = 0
    for x, y in batches:
        y = y.to(device)
        logits = network(to_images(x, device).to(dtype)).float()
        loss = loss + functional.cross_entropy(logits, y, reduction="sum")
        correct = correct + (logits.argmax(1) == y).sum()
        images += len(y)
    if not images:
        raise DataError(
            "evaluation: the batches hold no image, at least one is needed (an iterator once read has none left)"
        )
    return Evaluation(float(loss) / images, float(correct) / images, images)


def folded(module: nn.Module) -> nn.Module:
    """Return a copy for inference in which every batch norm that directly follows its convolution is part of it.

    Convolution and norm are siblings named alike, ``conv1`` and ``norm1`` or ``shortcut`` and ``shortcut_norm``.
    """
    network = copy.deepcopy(module).eval()
    for parent in network.modules():
        children = dict(parent.named_children())
        for name, norm in children.items():
            conv = children.get(name.replace("norm", "conv")) or children.get(name.removesuffix("_norm"))
            if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d):
                key = next(key for key, child in children.items() if child is conv)
                setattr(parent, key, fuse_conv_bn_eval(conv, norm))
                setattr(parent, name, nn.Identity())
    return network
