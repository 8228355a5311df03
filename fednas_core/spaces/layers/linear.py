"""Fully connected layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fednas_core.base.values import Region
from fednas_core.spaces.layers.base import Layer, first

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Linear(Layer):
    """A fully connected layer."""

    name: str
    c_in: int
    c_out: int
    bias: bool = True

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.c_in * self.c_out

    def regions(self) -> dict[str, Region]:
        """Return the regions of ``weight``, shape (c_out, c_in), and ``bias``, shape (c_out,)."""
        found: dict[str, Region] = {f"{self.name}.weight": (first(self.c_out), first(self.c_in))}
        return found | {f"{self.name}.bias": (first(self.c_out),)} if self.bias else found

    def module(self) -> nn.Module:
        """Return the layer's `nn.Linear`."""
        from torch import nn

        return nn.Linear(self.c_in, self.c_out, self.bias)
