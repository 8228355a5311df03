"""How a client trains: the settings that travel with an order."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fednas_core.base.config import TrainConfig


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a client trains: `epochs` passes in batches of `batch`, SGD with these rates.

    `clip` is the largest gradient norm and `clip_value` the largest size of a gradient's entry (0: unclipped);
    `precision` is fp32, bf16 or auto (bf16 where the processor computes it natively); `augment` names a recipe of
    `fednas_core.data.augment`.
    """

    epochs: int = 1
    batch: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 5e-4
    clip: float = 10.0
    clip_value: float = 0.0
    label_smoothing: float = 0.0
    precision: str = "auto"
    augment: str = "none"


@dataclass(frozen=True, slots=True)
class SandwichSettings:
    """How a client trains the networks inside the one that it receives (FedSup, arXiv 2206.01366, algorithm 1).

    Each step trains `inner` random ones, with `ends` the largest and the smallest too; with `distill` the largest
    teaches the others. `floor` is the least that each entry of an encoded architecture may be (none: 0).
    """

    train: TrainSettings
    inner: int
    ends: bool
    distill: bool
    floor: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DistilSettings:
    """How a client trains a student: λ, `soft`, is the weight of the teacher's answers at this `temperature`."""

    train: TrainSettings
    soft: float
    temperature: float


def train_settings(config: TrainConfig) -> TrainSettings:
    """Return the settings that travel with an order, at the full learning rate."""
    return TrainSettings(**{item.name: getattr(config, item.name) for item in fields(TrainSettings)})
