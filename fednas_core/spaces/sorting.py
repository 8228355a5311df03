"""Putting channels in order of importance, without changing what a network computes: narrower ones own the first ones.

`sort_channels` is once-for-all's (ICLR 2020, section 3.3): before narrower networks are trained, the channels of the
supernet are put in order of the L1 norm of the next convolution's weights for them. `rank_filters` is NetAdapt's
(ECCV 2018, section 3.3): before a network's layers are shrunk, filters are put in order of their own L2 norm.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fednas_core.base.values import Arch
from fednas_core.spaces.channels import Channels
from fednas_core.spaces.space import Elastic


@torch.no_grad()
def sort_channels(space: Elastic, supernet: Mapping[str, Tensor], genes: Collection[str] = ("e", "w")) -> None:
    """Reorder channels in `supernet` (its tensors by name, the shared ones) in place, most important first.

    ``e`` in `genes` stands for the middle channels of blocks, ``w`` for the output channels of stages. Networks of
    full expansion and width compute the same as before, whatever their depth, kernels and resolution; with group
    normalisation whole groups move. Channels that a private tensor has to do with keep their order.
    """
    private = space.private(space.largest)
    for channels in space.movable(space.largest):
        if channels.gene in genes and not any(name in private for name, _ in channels.sides):
            importance = torch.stack([_strength(supernet[name], dim) for name, dim in channels.read]).sum(0)
            _reorder(channels, supernet, importance)


@torch.no_grad()
def rank_filters(space: Elastic, arch: Arch, tensors: Mapping[str, Tensor]) -> None:
    """Reorder the filters in `tensors` (those of the network `arch`, by name) in place, largest L2 norm first.

    The norms of all filters that make one channel are added up; what the network computes stays the same. With group
    normalisation whole groups move, and channels that a private tensor has to do with keep their order. In spaces
    that do not tell filters the largest network is sorted by `sort_channels`, and any other left as it is.
    """
    private, ranked = space.private(arch), [channels for channels in space.movable(arch) if channels.filters]
    if not ranked and arch == space.largest:
        sort_channels(space, tensors)
    for channels in ranked:
        if not any(name in private for name, _ in channels.sides):
            norms = [tensors[name].flatten(1).norm(dim=1) for name in channels.filters]
            _reorder(channels, tensors, torch.stack(norms).sum(0))


def _strength(weight: Tensor, dim: int) -> Tensor:
    """Return the L1 norm of each slice of a weight along one dimension."""
    return weight.abs().transpose(0, dim).flatten(1).sum(1)


def _reorder(channels: Channels, tensors: Mapping[str, Tensor], importance: Tensor) -> None:
    """Put the channels of all tensors in order, given the importance of each, shape (channels,)."""
    first = importance.view(-1, channels.group).sum(1).argsort(descending=True, stable=True) * channels.group
    order = (first[:, None] + torch.arange(channels.group, device=first.device)).flatten()
    for name, dim in channels.sides:
        tensors[name].copy_(tensors[name].index_select(dim, order))
