"""Small spaces, tensors and reports that the tests of several rooms need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fednas_core.base.values import Plan
from fednas_core.exchange.orders import TrainOrder, TrainReport
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.subnets.packing import shapes

TINY: dict[str, Any] = {
    "method": "deepfednas",
    "rounds": 2,
    "budgets": "phone=30%,server=max",
    "evaluate-every": 1,
    "device": "cpu",
    "workers": 1,
    "data.examples": 200,
    "data.clients": 4,
    "data.holdout": 0.0,
    "train.epochs": 1,
    "train.precision": "fp32",
    "sample.budgets": 5,
    "sample.fitness-lambda": 0.0,
}
"""Settings of a run of seconds: 200 digits, four clients that hold none out; the space is fixture `tiny_space_file`."""


def toy_space(**changes: Any) -> ResNetSpace:
    """Two stages of one or two blocks for 6×6 images of two channels and three classes."""
    values: dict[str, Any] = {
        "name": "toy",
        "stem": 16,
        "stages": (16, 24),
        "strides": (1, 2),
        "widths": (0.5, 1.0),
        "expansions": (0.5, 1.0),
        "extra_blocks": 1,
        "image_size": 6,
        "in_channels": 2,
        "classes": 3,
    }
    return ResNetSpace(**{**values, **changes})


def random_tensors(plan: Plan, seed: int) -> dict[str, Tensor]:
    """Tensors of a plan's shapes with values around zero, drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes(plan).items()}


def supernet_of(space: ResNetSpace, seed: int = 0) -> dict[str, Tensor]:
    """A supernet of random values."""
    return random_tensors(space.plan(space.largest), seed)


def answer(order: TrainOrder, tensors: Mapping[str, Tensor] | None = None, **changes: Any) -> TrainReport:
    """A plausible report on an order; its tensors are those of the order moved by a constant, unless given."""
    values: dict[str, Any] = {
        "client": order.client,
        "round": order.round,
        "arch": order.arch,
        "tensors": {name: tensor + 0.01 for name, tensor in order.tensors.items()} if tensors is None else tensors,
        "examples": 50,
        "loss": 1.5,
        "accuracy": 0.5,
        "macs": 1000,
        "seconds": 0.1,
        "bytes_down": 400,
        "bytes_up": 400,
    }
    return TrainReport(**{**values, **changes})
