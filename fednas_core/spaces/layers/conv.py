"""Convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fednas_core.base.values import Region
from fednas_core.spaces.layers.base import Charge, Layer, first

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Conv(Layer):
    """A k×k convolution without bias, "same" padding, square output of `size` × `size` pixels."""

    name: str
    c_in: int
    c_out: int
    kernel: int
    stride: int
    size: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.c_in * self.c_out * self.kernel**2 * self.size**2

    @property
    def outputs(self) -> int:
        """See `Layer.outputs`."""
        return self.c_out * self.size**2

    @property
    def charges(self) -> tuple[Charge, ...]:
        """By layer, multiply-accumulate, value put out and parameter."""
        weights = self.c_in * self.c_out * self.kernel**2
        return (
            ("layers", self.size, 1),
            ("macs", self.size, self.macs),
            ("activations", self.size, self.outputs),
            ("parameters", self.size, weights),
        )

    def regions(self) -> dict[str, Region]:
        """Return the region of ``weight``, shape (c_out, c_in, k, k)."""
        k = first(self.kernel)
        return {f"{self.name}.weight": (first(self.c_out), first(self.c_in), k, k)}

    def module(self) -> nn.Module:
        """Return the layer's `nn.Conv2d`."""
        from torch import nn

        return nn.Conv2d(self.c_in, self.c_out, self.kernel, self.stride, self.kernel // 2, bias=False)
