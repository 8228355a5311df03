"""From tensors to a network that runs: loading a subnet's tensors, and calibrating its batch statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fednas_core.base.errors import DataError
from fednas_core.base.values import Arch
from fednas_core.spaces.space import Space
from fednas_core.subnets.packing import shapes, unpack, views


def network(space: Space, arch: Arch, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> nn.Module:
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


def subnet(space: Space, arch: Arch, supernet: Mapping[str, Tensor], device: torch.device | str = "cpu") -> nn.Module:
    """Return the static network of `arch` with its tensors extracted from the supernet."""
    return network(space, arch, views(supernet, space.plan(arch)), device)


def shapes_of(space: Space, arch: Arch, statistics: bool) -> dict[str, tuple[int, ...]]:
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
    """Set the running statistics of every batch norm to those of all normalised images, (n, channels, size, size).

    A subnet's statistics are not its supernet's: without this its accuracy collapses (once-for-all, ICLR 2020). Every
    batch is normalised by its own, as in training. A channel's mean and (population) variance over all batches are
    exact, whatever their sizes: batches weigh by their images, and how far their means lie apart counts as variance.
    Raises `DataError` if there are no images, or one that batch norm alone can do nothing with.
    """
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    if not norms:
        return
    totals = dict[nn.Module, Tensor]()
    for norm in norms:
        totals[norm] = torch.zeros(2, norm.num_features, dtype=torch.float64)
    images, device = 0, next(module.parameters()).device
    with _leaving_statistics(norms, totals):
        for x in none_alone(batches):
            module.train()(x.to(device, memory_format=torch.channels_last))
            images += len(x)
    module.eval()
    if not images:
        raise DataError(
            "batch statistics: the batches hold no image, at least one is needed (an iterator once read has none left)"
        )
    for norm in norms:
        sums, squares = totals[norm]
        mean = sums / images
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_((squares / images - mean**2).clamp_(min=0))


@contextmanager
def _leaving_statistics(norms: Iterable[nn.BatchNorm2d], totals: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Add each batch's Σ x and Σ x² over its images, means over their positions, to the `totals` of every norm."""

    def add(norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        count, images = inputs[0].numel() / inputs[0].shape[1], len(inputs[0])
        mean, unbiased = (norm.get_buffer(name).double().cpu() for name in ("running_mean", "running_var"))
        totals[norm][0] += images * mean
        totals[norm][1] += images * (unbiased * (count - 1) / count + mean**2)

    momenta = {norm: norm.momentum for norm in norms}
    handles = [norm.register_forward_hook(add) for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # a batch leaves its own statistics
    try:
        yield
    finally:
        for handle, (norm, momentum) in zip(handles, momenta.items(), strict=True):
            handle.remove()
            norm.momentum = momentum


def none_alone(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield batches of images, of which a last single one joins the batch before: alone it has no batch statistics."""
    before: Tensor | None = None
    for x in batches:
        if before is not None and len(x) == 1:
            x = torch.cat((before, x))
        elif before is not None:
            yield before
        before = x
    if before is not None:
        yield before
