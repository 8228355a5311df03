"""What a mobile network consists of: the choices of a stage, the layers of a block and those of a whole network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fednas_core.spaces.layers import Conv, Depthwise, Layer, Linear, Norm, SqueezeExcite

Activation = Literal["relu", "h-swish"]


@dataclass(frozen=True)
class Stage:
    """What may vary in one stage: choices in rising order.

    `widths` are output channels, `depths` numbers of blocks, `kernels` sizes of the depthwise convolutions and
    `expansions` ratios of middle to input channels. The first block has the stage's `stride`.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    stride: int = 1
    kernels: tuple[int, ...] = (3,)
    expansions: tuple[float, ...] = (1.0,)
    activation: Activation = "relu"
    squeeze_excite: bool = False


@dataclass(frozen=True, slots=True)
class MobileBlockSpec:
    """The layers of one block. `adds` says whether it has a shortcut, which is an identity where `shortcut` is None."""

    expand: Conv | None
    expand_norm: Norm | None
    depthwise: Depthwise
    depthwise_norm: Norm
    squeeze: SqueezeExcite | None
    project: Conv
    project_norm: Norm
    shortcut: Conv | None
    adds: bool
    activation: Activation

    def layers(self) -> Iterator[Layer]:
        """Yield the block's layers in order of execution."""
        if self.expand is not None and self.expand_norm is not None:
            yield from (self.expand, self.expand_norm)
        yield from (self.depthwise, self.depthwise_norm)
        if self.squeeze is not None:
            yield self.squeeze
        yield from (self.project, self.project_norm)
        if self.shortcut is not None:
            yield self.shortcut


@dataclass(frozen=True, slots=True)
class MobileNetSpec:
    """The description of one network: what `build`, `plan` and `cost` are derived from."""

    resolution: int
    activation: Activation
    stem: Conv
    stem_norm: Norm
    stages: tuple[tuple[MobileBlockSpec, ...], ...]
    tail: Conv | None
    tail_norm: Norm | None
    mix: Linear | None
    head: Linear

    def layers(self) -> Iterator[Layer]:
        """Yield every layer in order of execution."""
        yield from (self.stem, self.stem_norm)
        for blocks in self.stages:
            for block in blocks:
                yield from block.layers()
        if self.tail is not None and self.tail_norm is not None and self.mix is not None:
            yield from (self.tail, self.tail_norm, self.mix)
        yield self.head
