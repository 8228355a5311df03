"""How much memory a network takes where it is trained or used, estimated from its layers."""

from __future__ import annotations

from dataclasses import dataclass

from fednas_core.base.values import Arch
from fednas_core.spaces.space import Space

VALUE_BYTES = 4
"""Of a float32: what bf16 saves is not counted on."""
KEPT = 2
"""Maps that training keeps of each convolution for the backward pass: its output, and what is made of it."""
COPIES = 4
"""Copies of the parameters in training: as they came, as they are, their gradient and their momentum."""


@dataclass(frozen=True, slots=True)
class Room:
    """The memory of a device, in bytes, and the images of a training step there."""

    bytes: int
    batch: int

    def holds(self, space: Space, arch: Arch) -> bool:
        """Whether an architecture can be trained there."""
        return training_bytes(space, arch, self.batch) <= self.bytes


def training_bytes(space: Space, arch: Arch, batch: int) -> int:
    """Return about how many bytes a training step of `batch` images takes, all that comes back included."""
    maps = KEPT * batch * sum(layer.outputs for layer in space.layers(arch))
    return VALUE_BYTES * (maps + COPIES * space.cost(arch).params)


def inference_bytes(space: Space, arch: Arch, batch: int) -> int:
    """Return about how many bytes a forward pass of `batch` images takes: two maps at a time, and the network twice."""
    maps = 2 * batch * max((layer.outputs for layer in space.layers(arch)), default=0)
    return VALUE_BYTES * (maps + 2 * space.cost(arch).params)
