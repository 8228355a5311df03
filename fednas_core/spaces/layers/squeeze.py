"""Squeeze and excite: gates of channels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from fednas_core.base.values import Region
from fednas_core.spaces.layers.base import Charge, Layer
from fednas_core.spaces.layers.linear import Linear

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class SqueezeExcite(Layer):
    """Gates of `channels` channels computed from their means over `size` × `size` pixels (Hu et al., CVPR 2018)."""

    name: str
    channels: int
    reduced: int
    size: int

    @property
    def parts(self) -> tuple[Linear, Linear]:
        """The two fully connected layers."""
        inner = Linear(f"{self.name}.reduce", self.channels, self.reduced)
        return inner, Linear(f"{self.name}.expand", self.reduced, self.channels)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(part.macs for part in self.parts)

    @property
    def charges(self) -> tuple[Charge, ...]:
        """By layer and value put out."""
        return ("squeeze layers", self.size, 1), ("activations", self.size, self.channels * self.size**2)

    def regions(self) -> dict[str, Region]:
        """Return the regions of both layers."""
        return {name: region for part in self.parts for name, region in part.regions().items()}

    def module(self) -> nn.Module:
        """Return the layer's module."""
        return squeeze_excitation()(self)


@cache
def squeeze_excitation() -> type[nn.Module]:
    """Return the class of its modules: mean, fully connected, ReLU, fully connected, hard sigmoid (MobileNetV3)."""
    from torch import Tensor, nn
    from torch.nn import functional

    class SqueezeExcitation(nn.Module):
        def __init__(self, layer: SqueezeExcite) -> None:
            super().__init__()
            self.reduce, self.expand = (part.module() for part in layer.parts)

        def forward(self, x: Tensor) -> Tensor:
            """(batch, channels, s, s) to the same shape."""
            gates = functional.hardsigmoid(self.expand(functional.relu(self.reduce(x.mean((2, 3))))))
            return x * gates[:, :, None, None]

    return SqueezeExcitation
