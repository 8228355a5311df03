"""Putting channels in order of importance, without changing what a network computes: narrower ones own the first ones.

`sort_channels` is once-for-all's (ICLR 2020, section 3.3): before narrower networks are trained, the channels of the
supernet are put in order of the L1 norm of the next convolution's weights for them. `rank_filters` is NetAdapt's
(ECCV 2018, section 3.3): before a network's layers are shrunk, filters are put in order of their own L2 norm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fednas_core.base.values import Arch
from fednas_core.spaces.chain import ChainSpace
from fednas_core.spaces.layers import CHANNELS_PER_GROUP, Conv, Norm
from fednas_core.spaces.mobilenet import MobileNetSpace
from fednas_core.spaces.mobilespec import MobileBlockSpec
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.spaces.space import SearchSpace

Side = tuple[str, int]
"""A dimension of a tensor."""


@dataclass
class Channels:
    """Channels that keep one order: the sides that they make up, and those of the weights that read them.

    `gene` is the gene that says how many of them a network has; `group` of them move together. `filters` are the
    weights of which each makes one channel, where these are told from other sides.
    """

    gene: str
    made: list[Side] = field(default_factory=list)
    read: list[Side] = field(default_factory=list)
    group: int = 1
    filters: list[str] = field(default_factory=list)

    @property
    def sides(self) -> list[Side]:
        """All sides that have the channels' order."""
        return self.made + self.read

    def normed(self, norm: Norm | None) -> None:
        """Add the vectors of a normalisation."""
        if norm is not None:
            self.made += [(vector, 0) for vector in norm.regions()]
            self.group = CHANNELS_PER_GROUP if norm.kind == "group" else 1

    def filtered(self, conv: Conv, norm: Norm) -> None:
        """Add the filters of a convolution, and its normalisation."""
        self.made.append((f"{conv.name}.weight", 0))
        self.filters.append(f"{conv.name}.weight")
        self.normed(norm)

    def reorder(self, tensors: Mapping[str, Tensor], importance: Tensor) -> None:
        """Put the channels of all tensors in order, given the importance of each, shape (channels,)."""
        first = importance.view(-1, self.group).sum(1).argsort(descending=True, stable=True) * self.group
        order = (first[:, None] + torch.arange(self.group, device=first.device)).flatten()
        for name, dim in self.sides:
            tensors[name].copy_(tensors[name].index_select(dim, order))


@torch.no_grad()
def sort_channels(space: SearchSpace, supernet: Mapping[str, Tensor], genes: Collection[str] = ("e", "w")) -> None:
    """Reorder channels in `supernet` (its tensors by name, the shared ones) in place, most important first.

    ``e`` in `genes` stands for the middle channels of blocks, ``w`` for the output channels of stages. Networks of
    full expansion and width compute the same as before, whatever their depth, kernels and resolution; with group
    normalisation whole groups move. Channels that a private tensor has to do with keep their order.
    """
    private = space.private(space.largest)
    for channels in _sets(space):
        if channels.gene in genes and not any(name in private for name, _ in channels.sides):
            importance = torch.stack([_strength(supernet[name], dim) for name, dim in channels.read]).sum(0)
            channels.reorder(supernet, importance)


@torch.no_grad()
def rank_filters(space: SearchSpace, arch: Arch, tensors: Mapping[str, Tensor]) -> None:
    """Reorder the filters in `tensors` (those of the network `arch`, by name) in place, largest L2 norm first.

    The norms of all filters that make one channel are added up; what the network computes stays the same. With group
    normalisation whole groups move, and channels that a private tensor has to do with keep their order. In spaces
    other than chains the largest network is sorted by `sort_channels`, and any other left as it is.
    """
    if not isinstance(space, ChainSpace):
        if arch == space.largest:
            sort_channels(space, tensors)
        return
    private = space.private(arch)
    for channels in _of_chain(space, arch):
        if not any(name in private for name, _ in channels.sides):
            norms = [tensors[name].flatten(1).norm(dim=1) for name in channels.filters]
            channels.reorder(tensors, torch.stack(norms).sum(0))


def _strength(weight: Tensor, dim: int) -> Tensor:
    """Return the L1 norm of each slice of a weight along one dimension."""
    return weight.abs().transpose(0, dim).flatten(1).sum(1)


def _sets(space: SearchSpace) -> Iterator[Channels]:
    """Yield the channels of the largest network that can be put in another order."""
    if isinstance(space, ResNetSpace):
        yield from _of_resnet(space)
    elif isinstance(space, MobileNetSpace):
        yield from _of_mobilenet(space)
    elif isinstance(space, ChainSpace):
        yield from _of_chain(space, space.largest)


def _of_resnet(space: ResNetSpace) -> Iterator[Channels]:
    spec = space.spec(space.largest)
    stream = Channels("w", [("stem.weight", 0)])
    stream.normed(spec.stem_norm)
    for j, blocks in enumerate(spec.stages):
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


def _of_mobilenet(space: MobileNetSpace) -> Iterator[Channels]:
    spec = space.spec(space.largest)
    stream = Channels("w", [("stem.weight", 0)])
    stream.normed(spec.stem_norm)
    for j, blocks in enumerate(spec.stages):
        for b, block in enumerate(blocks):
            name = f"stages.{j}.{b}"
            mid = Channels("e") if block.expand else stream
            if block.expand:
                stream.read.append((f"{name}.expand.weight", 1))
                mid.made.append((f"{name}.expand.weight", 0))
                mid.normed(block.expand_norm)
            yield from _middle(name, block, mid)
            if block.shortcut:
                stream.read.append((f"{name}.shortcut.weight", 1))
            if b == 0 and not (block.adds and block.shortcut is None):
                before, stream = stream, Channels("w")
                yield before
            stream.made.append((f"{name}.project.weight", 0))
            stream.normed(block.project_norm)
            if block.shortcut:
                stream.made.append((f"{name}.shortcut.weight", 0))
    stream.read.append(("tail.weight" if spec.tail else "head.weight", 1))
    yield stream


def _middle(name: str, block: MobileBlockSpec, mid: Channels) -> Iterator[Channels]:
    """Add what a block does with its middle channels to `mid`; yield those of its own, which are all complete."""
    mid.made.append((f"{name}.depthwise.weight", 0))
    mid.normed(block.depthwise_norm)
    if block.squeeze:
        reduce, expand = f"{name}.squeeze.reduce", f"{name}.squeeze.expand"
        mid.made += [(f"{reduce}.weight", 1), (f"{expand}.weight", 0), (f"{expand}.bias", 0)]
        yield Channels("e", [(f"{reduce}.weight", 0), (f"{reduce}.bias", 0)], [(f"{expand}.weight", 1)])
    mid.read.append((f"{name}.project.weight", 1))
    if block.expand:
        yield mid


def _of_chain(space: ChainSpace, arch: Arch) -> list[Channels]:
    """Return the channels of a network of a chain; layers around a removed one share theirs."""
    spec, found = space.spec(arch), []

    def fresh() -> Channels:
        found.append(Channels("w"))
        return found[-1]

    stream = Channels("w")  # of the images, whose order is given
    for unit in spec.units:
        here = after = stream
        if unit.shortcut is not None:
            stream.read.append((f"{unit.shortcut[0].name}.weight", 1))
            after = fresh()
            after.filtered(*unit.shortcut)
        for step, (layer, norm) in enumerate(unit.steps, start=1):
            if isinstance(layer, Conv):
                here.read.append((f"{layer.name}.weight", 1))
                here = after if unit.adds and step == len(unit.steps) else fresh()
                here.filtered(layer, norm)
            else:
                here.made.append((f"{layer.name}.weight", 0))
                here.normed(norm)
        stream = after if unit.adds else here
    stream.read.append((f"{spec.head.name}.weight", 1))
    return found
