"""What a mobile network consists of: the choices of a stage, the layers of a block and those of a whole network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fednas_core.spaces.channels import Channels
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

    def middle(self, name: str, mid: Channels) -> Iterator[Channels]:
        """Add what the block does with its middle channels to `mid`; yield those of its own, which are all complete."""
        mid.made.append((f"{name}.depthwise.weight", 0))
        mid.normed(self.depthwise_norm)
        if self.squeeze:
            reduce, expand = f"{name}.squeeze.reduce", f"{name}.squeeze.expand"
            mid.made += [(f"{reduce}.weight", 1), (f"{expand}.weight", 0), (f"{expand}.bias", 0)]
            yield Channels("e", [(f"{reduce}.weight", 0), (f"{reduce}.bias", 0)], [(f"{expand}.weight", 1)])
        mid.read.append((f"{name}.project.weight", 1))
        if self.expand:
            yield mid


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

    def channels(self) -> Iterator[Channels]:
        """Yield the channels that can be put in another order."""
        stream = Channels("w", [("stem.weight", 0)])
        stream.normed(self.stem_norm)
        for j, blocks in enumerate(self.stages):
            for b, block in enumerate(blocks):
                name = f"stages.{j}.{b}"
                mid = Channels("e") if block.expand else stream
                if block.expand:
                    stream.read.append((f"{name}.expand.weight", 1))
                    mid.made.append((f"{name}.expand.weight", 0))
                    mid.normed(block.expand_norm)
                yield from block.middle(name, mid)
                if block.shortcut:
                    stream.read.append((f"{name}.shortcut.weight", 1))
                if b == 0 and not (block.adds and block.shortcut is None):
                    before, stream = stream, Channels("w")
                    yield before
                stream.made.append((f"{name}.project.weight", 0))
                stream.normed(block.project_norm)
                if block.shortcut:
                    stream.made.append((f"{name}.shortcut.weight", 0))
        stream.read.append(("tail.weight" if self.tail else "head.weight", 1))
        yield stream
