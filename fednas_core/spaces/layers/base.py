"""What a layer is: one frozen value, of which `build`, `plan` and `cost` are three readings.

A layer knows its sizes and nothing else, and derives from them its module, its tensors' regions in the supernet, its
multiply-accumulates and what a device is charged for it. That is why a network, its plan and its cost cannot disagree.
Layers are read without torch: what needs it, a module and its class, is made when it is first asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fednas_core.base.values import Cost, Plan, Region, region_shape

if TYPE_CHECKING:
    from torch import nn

BYTES_PER_PARAMETER = 4

Charge = tuple[str, int, int]
"""What a device's latency model counts, the size of the feature maps where it is, and how much of it there is."""


class Layer(ABC):
    """A base of frozen dataclasses with a `name`, that of the module in its network."""

    __slots__ = ()
    name: str

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image; zero by default: normalisation is counted as free, as the field does."""
        return 0

    @property
    def outputs(self) -> int:
        """Values of the feature maps that it makes of one image and training keeps; zero where it makes none."""
        return 0

    @property
    def charges(self) -> tuple[Charge, ...]:
        """What it takes time by; none where it is alike in all networks or goes with the layer before."""
        return ()

    @abstractmethod
    def regions(self) -> dict[str, Region]:
        """Return the region of the supernet that each of its tensors owns, in the order of the module's parameters."""

    @abstractmethod
    def module(self) -> nn.Module:
        """Return its module, with weights of its own."""


Make = Callable[[Layer], "nn.Module"]
"""What makes a module of a layer."""


def own_module(layer: Layer) -> nn.Module:
    """Return a layer's module, with weights of its own."""
    return layer.module()


def first(size: int) -> slice:
    """Return the slice of the first `size` channels: narrower layers own a prefix of wider ones."""
    return slice(0, size)


def centre(size: int, of: int) -> slice:
    """Return the slice of the middle `size` of `of` rows: a smaller kernel owns the centre of a larger one."""
    start = (of - size) // 2
    return slice(start, start + size)


def stride_at(size: int, stride: int) -> int:
    """Return the stride that convolutions and poolings take over feature maps of `size` × `size` pixels.

    A single pixel has nothing to halve: there stride 2 and "same" padding are stride 1, to the value, and stride 1 is
    what networks compute. In bf16 torch's weight gradient of the other one is uninitialised memory on processors with
    AVX512-BF16 (`benchmarks/geometry.py` looks for such).
    """
    return stride if size > 1 else 1


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
