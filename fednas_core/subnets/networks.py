"""From tensors to a network that runs: loading a subnet's tensors, and calibrating its batch statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fednas_core.spaces.space import SearchSpace
from fednas_core.subnets.packing import shapes, unpack, views
from fednas_core.values import Arch


def network(
    space: SearchSpace, arch: Arch, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu"
) -> nn.Module:
    """Return the static network of `arch` holding a copy of `tensors`, consecutive in one flat buffer on `device`.

    Weights stay in their own order: for convolutions only the images need to be channels-last.
    """
    with torch.device("meta"):
        module = space.build(arch)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean = torch.zeros(child.num_features, device=device)
            child.running_var = torch.ones(child.num_features, device=device)
            child.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=device)
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors.values()]).to(device)
    copies = unpack(flat, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    module.load_state_dict({**dict(module.named_buffers()), **copies}, assign=True)
    return module


def subnet(
    space: SearchSpace, arch: Arch, supernet: Mapping[str, Tensor], device: torch.device | str = "cpu"
) -> nn.Module:
    """Return the static network of `arch` with its tensors extracted from the supernet."""
    return network(space, arch, views(supernet, space.plan(arch)), device)


def shapes_of(space: SearchSpace, arch: Arch, statistics: bool) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a subnet, in the order in which they travel.

    With `statistics` those of its batch statistics follow, if it has any: a network that is delivered for good brings
    them, one that is trained computes its own, and so does one that the client's own layers complete.
    """
    found = shapes(space.plan(arch))
    if statistics and not space.personal:
        with torch.device("meta"):
            module = space.build(arch)
        named = module.named_buffers()
        found |= {name: tuple(buffer.shape) for name, buffer in named if buffer.is_floating_point()}
    return found


@torch.no_grad()
def calibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of every batch norm to the mean over batches of normalised images.

    A subnet's statistics are not its supernet's: without this its accuracy collapses (once-for-all, ICLR 2020).
    """
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean instead of a moving one
    module.train()
    device = next(module.parameters()).device
    for x in batches:
        module(x.to(device, memory_format=torch.channels_last))
    module.eval()
