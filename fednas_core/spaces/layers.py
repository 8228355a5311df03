"""The description that `build`, `plan` and `cost` all read: one frozen value per layer.

A layer knows its sizes and nothing else, and derives from them its module, its tensors' regions in the supernet and
its multiply-accumulates. That is why a network, its plan and its cost cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from fednas_core.values import Cost, NormKind, Plan, Region, region_shape

if TYPE_CHECKING:
    from torch import nn

NORMS: tuple[NormKind, ...] = get_args(NormKind)
CHANNELS_PER_GROUP = 8
"""Channels of one normalisation group: a divisor of every width, so that a slice cuts between groups, never in one."""
BYTES_PER_PARAMETER = 4


def first(size: int) -> slice:
    """Return the slice of the first `size` channels: narrower layers own a prefix of wider ones."""
    return slice(0, size)


@dataclass(frozen=True, slots=True)
class Conv:
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

    def regions(self) -> dict[str, Region]:
        """Return the region of ``weight``, shape (c_out, c_in, k, k)."""
        k = first(self.kernel)
        return {f"{self.name}.weight": (first(self.c_out), first(self.c_in), k, k)}

    def module(self) -> nn.Module:
        """Return the layer's `nn.Conv2d`."""
        from torch import nn

        return nn.Conv2d(self.c_in, self.c_out, self.kernel, self.stride, self.kernel // 2, bias=False)


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation of `channels` channels: none, group (8 channels a group) or batch."""

    name: str
    channels: int
    kind: NormKind

    @property
    def macs(self) -> int:
        """Zero: normalisation is counted as free, as the field does."""
        return 0

    def regions(self) -> dict[str, Region]:
        """Return the regions of ``weight`` and ``bias``, shape (channels,); none for kind ``none``."""
        if self.kind == "none":
            return {}
        return {f"{self.name}.weight": (first(self.channels),), f"{self.name}.bias": (first(self.channels),)}

    def module(self) -> nn.Module:
        """Return the layer's module; batch statistics are buffers of the extracted network, not of the supernet."""
        from torch import nn

        from fednas_core.spaces.modules import GroupNorm

        if self.kind == "group":
            return GroupNorm(self.channels // CHANNELS_PER_GROUP, self.channels)
        if self.kind == "batch":
            return nn.BatchNorm2d(self.channels)
        return nn.Identity()


@dataclass(frozen=True, slots=True)
class Linear:
    """A fully connected layer with bias."""

    name: str
    c_in: int
    c_out: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.c_in * self.c_out

    def regions(self) -> dict[str, Region]:
        """Return the regions of ``weight``, shape (c_out, c_in), and ``bias``, shape (c_out,)."""
        return {
            f"{self.name}.weight": (first(self.c_out), first(self.c_in)),
            f"{self.name}.bias": (first(self.c_out),),
        }

    def module(self) -> nn.Module:
        """Return the layer's `nn.Linear`."""
        from torch import nn

        return nn.Linear(self.c_in, self.c_out)


Layer = Conv | Norm | Linear


def plan_of(layers: Iterable[Layer]) -> Plan:
    """Return the plan of a network: every layer's regions, in order of the layers."""
    return {name: region for layer in layers for name, region in layer.regions().items()}


def cost_of(layers: Iterable[Layer]) -> Cost:
    """Return the cost of a network, from the same regions that its plan consists of."""
    macs = params = 0
    for layer in layers:
        macs += layer.macs
        for region in layer.regions().values():
            size = 1
            for side in region_shape(region):
                size *= side
            params += size
    return Cost(macs, params, params * BYTES_PER_PARAMETER)
