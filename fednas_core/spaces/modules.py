"""The networks that descriptions turn into. Only this file of the room needs torch: cost and search do without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from fednas_core.spaces.resnet import BlockSpec, ResNetSpec
    from fednas_core.spaces.space import SearchSpace


class GroupNorm(nn.GroupNorm):
    """Group normalisation computed in float32: under bf16 torch's own backward pass is four times slower on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, s, s) to the same shape and dtype."""
        weight, bias = self.weight.float(), self.bias.float()
        return functional.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class Block(nn.Module):
    """conv–norm–ReLU–conv–norm plus shortcut, then ReLU; a strided shortcut averages before it projects."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.stride = spec.conv1.stride
        self.conv1, self.norm1 = spec.conv1.module(), spec.norm1.module()
        self.conv2, self.norm2 = spec.conv2.module(), spec.norm2.module()
        self.shortcut = spec.shortcut.module() if spec.shortcut else nn.Identity()
        self.shortcut_norm = spec.shortcut_norm.module() if spec.shortcut_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c_in, s, s) to (batch, c_out, ⌈s/stride⌉, ⌈s/stride⌉)."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride > 1:
            x = functional.avg_pool2d(x, self.stride, ceil_mode=True)
        return functional.relu(y + self.shortcut_norm(self.shortcut(x)))


class ResNet(nn.Module):
    """A static network of the space: tensor names are the supernet's."""

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.stem, self.stem_norm = spec.stem.module(), spec.stem_norm.module()
        self.stages = nn.ModuleList(nn.Sequential(*map(Block, blocks)) for blocks in spec.stages)
        self.head = spec.head.module()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, size, size) to logits (batch, classes)."""
        x = functional.relu(self.stem_norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def initial_weights(space: SearchSpace, seed: int) -> dict[str, Tensor]:
    """Return the supernet's tensors at their initial values, drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parameters = dict(space.build(space.largest).named_parameters())
    return {name: parameter.detach() for name, parameter in parameters.items()}
