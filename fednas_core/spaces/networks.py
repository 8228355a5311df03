"""The networks that descriptions turn into; only they, `sorting` and the modules of layers need torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from fednas_core.base.values import Arch
    from fednas_core.spaces.chainspec import ChainSpec, UnitSpec
    from fednas_core.spaces.layers import Layer, Make
    from fednas_core.spaces.mobilespec import MobileBlockSpec, MobileNetSpec
    from fednas_core.spaces.resnetspec import BlockSpec, ResNetSpec
    from fednas_core.spaces.space import Space

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "h-swish": functional.hardswish}
"""Activation functions by name: ReLU, and h-swish of MobileNetV3 (arXiv 1905.02244)."""


class Block(nn.Module):
    """conv–norm–ReLU–conv–norm plus shortcut, then ReLU; a strided shortcut averages before it projects."""

    def __init__(self, spec: BlockSpec, make: Make) -> None:
        super().__init__()
        self.stride = spec.conv1.stride
        self.conv1, self.norm1 = make(spec.conv1), make(spec.norm1)
        self.conv2, self.norm2 = make(spec.conv2), make(spec.norm2)
        self.shortcut = make(spec.shortcut) if spec.shortcut else nn.Identity()
        self.shortcut_norm = make(spec.shortcut_norm) if spec.shortcut_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c_in, s, s) to (batch, c_out, ⌈s/stride⌉, ⌈s/stride⌉)."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride > 1:
            x = functional.avg_pool2d(x, self.stride, ceil_mode=True)
        return functional.relu(y + self.shortcut_norm(self.shortcut(x)))


class ResNet(nn.Module):
    """A static network of the space: tensor names are the supernet's."""

    def __init__(self, spec: ResNetSpec, make: Make) -> None:
        super().__init__()
        self.stem, self.stem_norm = make(spec.stem), make(spec.stem_norm)
        self.stages = nn.ModuleList(nn.Sequential(*(Block(block, make) for block in blocks)) for blocks in spec.stages)
        self.head = make(spec.head)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, size, size) to logits (batch, classes)."""
        x = functional.relu(self.stem_norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class MobileBlock(nn.Module):
    """An inverted residual block (see `fednas_core.spaces.mobilenet`); a strided shortcut averages first."""

    def __init__(self, spec: MobileBlockSpec, make: Make) -> None:
        super().__init__()
        self.expands, self.adds = spec.expand is not None, spec.adds
        self.stride, self.act = spec.depthwise.stride, ACTIVATIONS[spec.activation]
        if spec.expand and spec.expand_norm:
            self.expand, self.expand_norm = make(spec.expand), make(spec.expand_norm)
        self.depthwise, self.depthwise_norm = make(spec.depthwise), make(spec.depthwise_norm)
        self.squeeze = make(spec.squeeze) if spec.squeeze else nn.Identity()
        self.project, self.project_norm = make(spec.project), make(spec.project_norm)
        self.shortcut = make(spec.shortcut) if spec.shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c_in, s, s) to (batch, c_out, ⌈s/stride⌉, ⌈s/stride⌉)."""
        y = self.act(self.expand_norm(self.expand(x))) if self.expands else x
        y = self.squeeze(self.act(self.depthwise_norm(self.depthwise(y))))
        y = self.project_norm(self.project(y))
        if not self.adds:
            return y  # type: ignore[no-any-return]
        if self.stride > 1:
            x = functional.avg_pool2d(x, self.stride, ceil_mode=True)
        return y + self.shortcut(x)  # type: ignore[no-any-return]


class MobileNet(nn.Module):
    """A static network of the space: tensor names are the supernet's. It brings images to its resolution itself."""

    def __init__(self, spec: MobileNetSpec, make: Make) -> None:
        super().__init__()
        self.resolution, self.act = spec.resolution, ACTIVATIONS[spec.activation]
        self.stem, self.stem_norm = make(spec.stem), make(spec.stem_norm)
        self.stages = nn.ModuleList(
            nn.Sequential(*(MobileBlock(block, make) for block in blocks)) for blocks in spec.stages
        )
        self.has_tail = spec.tail is not None
        if spec.tail and spec.tail_norm and spec.mix:
            self.tail, self.tail_norm, self.mix = make(spec.tail), make(spec.tail_norm), make(spec.mix)
        self.head = make(spec.head)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, size, size) to logits (batch, classes)."""
        if x.shape[-1] != self.resolution:
            x = functional.interpolate(x, (self.resolution, self.resolution), mode="bilinear", align_corners=False)
        x = self.act(self.stem_norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        if self.has_tail:
            x = self.act(self.tail_norm(self.tail(x)))
        x = x.mean((2, 3))
        if self.has_tail:
            x = self.act(self.mix(x))
        logits: Tensor = self.head(x)
        return logits


class ChainUnit(nn.Module):
    """A unit of a chain (see `fednas_core.spaces.chainspec`); a strided shortcut averages first."""

    def __init__(self, spec: UnitSpec, make: Make) -> None:
        super().__init__()
        self.adds, self.stride, self.pools = spec.adds, spec.stride, spec.pool
        self.steps = [(_part(layer), _part(norm)) for layer, norm in spec.steps]
        for layer in itertools.chain(*spec.steps):
            self.add_module(_part(layer), make(layer))
        self.shortcut = make(spec.shortcut[0]) if spec.shortcut else nn.Identity()
        self.shortcut_norm = make(spec.shortcut[1]) if spec.shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c_in, s, s) to (batch, c_out, ⌈s/stride⌉, ⌈s/stride⌉), halved once more by pooling."""
        y = x
        for number, (layer, norm) in enumerate(self.steps, start=1):
            y = getattr(self, norm)(getattr(self, layer)(y))
            if not self.adds or number < len(self.steps):
                y = functional.relu(y)
        if self.adds:
            if self.stride > 1:
                x = functional.avg_pool2d(x, self.stride, ceil_mode=True)
            x = self.shortcut_norm(self.shortcut(x))
            y = functional.relu(y + x if self.steps else x)
        return functional.max_pool2d(y, 2, ceil_mode=True) if self.pools else y


def _part(layer: Layer) -> str:
    """Return the name of a layer within its block."""
    return layer.name.rpartition(".")[2]


class Chain(nn.Module):
    """A static network of the space: tensor names are the supernet's. Units without layers hand on what they get."""

    def __init__(self, spec: ChainSpec, make: Make) -> None:
        super().__init__()
        self.units = nn.Sequential(*(ChainUnit(unit, make) for unit in spec.units))
        self.head = make(spec.head)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, size, size) to logits (batch, classes)."""
        logits: Tensor = self.head(self.units(x).mean((2, 3)))
        return logits


def initial_weights(space: Space, seed: int, arch: Arch | None = None) -> dict[str, Tensor]:
    """Return the tensors of a network, of the supernet if none is named, at initial values drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parameters = dict(space.build(arch or space.supernet).named_parameters())
    return {name: parameter.detach() for name, parameter in parameters.items()}
