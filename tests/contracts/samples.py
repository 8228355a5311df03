"""Small spaces, tensors and reports that the tests of several rooms need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fednas_core.base.values import Plan
from fednas_core.exchange.orders import WEIGHTS, Answer, Order, Result
from fednas_core.exchange.results import Trained
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


def answer(order: Order, tensors: Mapping[str, Tensor] | None = None, **changes: Any) -> Answer:
    """A plausible answer to an order to train; its tensors are those of the order moved by a constant, unless given.

    `loss` and `accuracy` are those of its result, unless `result` is given.
    """
    mine = {name: tensor + 0.01 for name, tensor in order.weights.items()} if tensors is None else tensors
    values: dict[str, Any] = {
        "client": order.client,
        "round": order.round,
        "arch": order.arch,
        "channels": {WEIGHTS: mine},
        "result": Trained(changes.pop("loss", 1.5), changes.pop("accuracy", 0.5)),
        "examples": 50,
        "macs": 1000,
        "seconds": 0.1,
        "bytes_down": 400,
        "bytes_up": 400,
    }
    return Answer(**{**values, **changes})


def found(order: Order, result: Result, **changes: Any) -> Answer:
    """A plausible answer to an order from which no tensors return."""
    return answer(order, channels={}, result=result, **changes)


def with_result(report: Answer, **changes: Any) -> Answer:
    """An answer whose result has other fields."""
    return replace(report, result=replace(report.result, **changes))  # type: ignore[type-var]
