"""What an elastic ResNet consists of: the layers of a block and those of a whole network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fednas_core.spaces.channels import Channels
from fednas_core.spaces.layers import Conv, Layer, Linear, Norm


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """The layers of one residual block; `shortcut` is present in the first block of a stage and absent elsewhere."""

    conv1: Conv
    norm1: Norm
    conv2: Conv
    norm2: Norm
    shortcut: Conv | None
    shortcut_norm: Norm | None

    def layers(self) -> Iterator[Layer]:
        """Yield the block's layers in order of execution."""
        yield from (self.conv1, self.norm1, self.conv2, self.norm2)
        if self.shortcut is not None and self.shortcut_norm is not None:
            yield from (self.shortcut, self.shortcut_norm)


@dataclass(frozen=True, slots=True)
class ResNetSpec:
    """The description of one network: what `build`, `plan` and `cost` are derived from."""

    stem: Conv
    stem_norm: Norm
    stages: tuple[tuple[BlockSpec, ...], ...]
    head: Linear

    def layers(self) -> Iterator[Layer]:
        """Yield every layer in order of execution."""
        yield from (self.stem, self.stem_norm)
        for blocks in self.stages:
            for block in blocks:
                yield from block.layers()
        yield self.head

    def channels(self) -> Iterator[Channels]:
        """Yield the channels that can be put in another order."""
        stream = Channels("w", [("stem.weight", 0)])
        stream.normed(self.stem_norm)
        for j, blocks in enumerate(self.stages):
            out = Channels("w")
            for b, block in enumerate(blocks):
                name = f"stages.{j}.{b}"
                mid = Channels("e", [(f"{name}.conv1.weight", 0)], [(f"{name}.conv2.weight", 1)])
                mid.normed(block.norm1)
                yield mid
                (out if b else stream).read.append((f"{name}.conv1.weight", 1))
                out.made.append((f"{name}.conv2.weight", 0))
                out.normed(block.norm2)
                if block.shortcut:
                    stream.read.append((f"{name}.shortcut.weight", 1))
                    out.made.append((f"{name}.shortcut.weight", 0))
                    out.normed(block.shortcut_norm)
            yield stream
            stream = out
        stream.read.append(("head.weight", 1))
        yield stream
