"""The description that `build`, `plan` and `cost` all read: one frozen value per layer.

A layer knows its sizes and nothing else, and derives from them its module, its tensors' regions in the supernet and
its multiply-accumulates. That is why a network, its plan and its cost cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from fednas_core.base.values import Cost, NormKind, Plan, Region, region_shape

if TYPE_CHECKING:
    from torch import nn

NORMS: tuple[NormKind, ...] = get_args(NormKind)
CHANNELS_PER_GROUP = 8
"""Channels of one normalisation group: a divisor of every width, so that a slice cuts between groups, never in one."""
VECTORS: Mapping[NormKind, tuple[str, ...]] = {
    "none": (),
    "group": ("weight", "bias"),
    "batch": ("weight", "bias"),
    "parametric": ("weight", "bias", "alpha"),
    "parametric-sample": ("weight", "bias", "alpha"),
}
"""The trained vectors of each kind of normalisation, one value a channel."""
BYTES_PER_PARAMETER = 4


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
class Depthwise:
    """A k×k convolution of each channel by itself, without bias, "same" padding, output of `size` × `size` pixels.

    Its kernel is the centre of the largest of `kernels`, the choices in rising order. With `transforms` (once-for-all,
    ICLR 2020, section 3.2) it is the centre multiplied by a learned k²×k² matrix, step by step: 7 to 5, 5 to 3. Such a
    layer owns the centre of the second largest size and the matrices of the steps it takes; the layer of the largest
    kernel takes none, but owns them all, because the largest network is the supernet.
    """

    name: str
    channels: int
    kernel: int
    stride: int
    size: int
    kernels: tuple[int, ...]
    transforms: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image; those of the transforms do not depend on it and are not counted."""
        return self.channels * self.kernel**2 * self.size**2

    @property
    def steps(self) -> tuple[int, ...]:
        """Kernel sizes that the transforms lead to, in falling order down to `kernel`; none if that is the largest."""
        return tuple(k for k in self.kernels[-2::-1] if k >= self.kernel) if self.transforms else ()

    @property
    def matrices(self) -> tuple[int, ...]:
        """Kernel sizes of which the layer owns the matrix, in falling order."""
        return self.kernels[-2::-1] if self.transforms and self.kernel == self.kernels[-1] else self.steps

    @property
    def owned(self) -> int:
        """Height and width of the weight that the layer owns."""
        return self.steps[0] if self.steps else self.kernel

    def regions(self) -> dict[str, Region]:
        """Return the regions of ``weight``, shape (channels, 1, owned, owned), and of ``transform<k>``, (k², k²)."""
        side = centre(self.owned, self.kernels[-1])
        found: dict[str, Region] = {f"{self.name}.weight": (first(self.channels), first(1), side, side)}
        return found | {f"{self.name}.transform{k}": (first(k * k), first(k * k)) for k in self.matrices}

    def module(self) -> nn.Module:
        """Return the layer's module."""
        from fednas_core.spaces.modules import DepthwiseConv

        return DepthwiseConv(self)


@dataclass(frozen=True, slots=True)
class SqueezeExcite:
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

    def regions(self) -> dict[str, Region]:
        """Return the regions of both layers."""
        return {name: region for part in self.parts for name, region in part.regions().items()}

    def module(self) -> nn.Module:
        """Return the layer's module."""
        from fednas_core.spaces.modules import SqueezeExcitation

        return SqueezeExcitation(self)


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation of `channels` channels: none, group (8 channels a group), batch or parametric.

    A `silent` one starts with γ = 0, so that the block it ends starts as its shortcut.
    """

    name: str
    channels: int
    kind: NormKind
    silent: bool = False

    @property
    def macs(self) -> int:
        """Zero: normalisation is counted as free, as the field does."""
        return 0

    def regions(self) -> dict[str, Region]:
        """Return the regions of its vectors, each of shape (channels,)."""
        return {f"{self.name}.{vector}": (first(self.channels),) for vector in VECTORS[self.kind]}

    def module(self) -> nn.Module:
        """Return the layer's module; batch statistics are buffers of the extracted network, not of the supernet."""
        from torch import nn

        module = self._norm()
        gamma = getattr(module, "weight", None)
        if self.silent and gamma is not None:
            nn.init.zeros_(gamma)
        return module

    def _norm(self) -> nn.Module:
        from torch import nn

        from fednas_core.spaces.modules import BatchNorm, GroupNorm, ParametricNorm

        if self.kind == "group":
            return GroupNorm(self.channels // CHANNELS_PER_GROUP, self.channels)
        if self.kind == "batch":
            return BatchNorm(self.channels)
        if self.kind in ("parametric", "parametric-sample"):
            return ParametricNorm(self.channels, per_sample=self.kind == "parametric-sample")
        return nn.Identity()


@dataclass(frozen=True, slots=True)
class Linear:
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


Layer = Conv | Depthwise | SqueezeExcite | Norm | Linear
Make = Callable[[Layer], "nn.Module"]
"""What makes a module of a layer."""


def own_module(layer: Layer) -> nn.Module:
    """Return a layer's module, with weights of its own."""
    return layer.module()


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
