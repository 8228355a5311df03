"""Taking subnets out of a supernet: `extract` copies, `views` does not; `pack` and `unpack` go to one flat array.

An extracted subnet lives in one flat buffer, in the order of its plan, so that packing it for the wire is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor

from fednas_core.base.values import Arch, Plan, Region, region_shape
from fednas_core.spaces.space import Space


def views(supernet: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Return the subnet's tensors as views into the supernet: with `functional_call`, gradients reach the supernet."""
    return {name: supernet[name][region] for name, region in plan.items()}


def subnets_of(space: Space, supernet: Mapping[str, Tensor]) -> Callable[[Arch], dict[str, Tensor]]:
    """Return how to get the shared tensors of an architecture's network: as views into the supernet."""
    return lambda arch: views(supernet, space.plan(arch))


def nested(plan: Plan, outer: Plan) -> Plan:
    """Return where the tensors of a subnet lie in those of a larger subnet, both given by their plans.

    ``views(views(supernet, outer), nested(plan, outer))`` are ``views(supernet, plan)``. Raises `ValueError` for a
    tensor that does not lie within the larger subnet's.
    """
    return {name: _relative(name, region, outer.get(name)) for name, region in plan.items()}


def _relative(name: str, region: Region, outer: Region | None) -> Region:
    if outer is None or any(p.start < o.start or p.stop > o.stop for p, o in zip(region, outer, strict=True)):
        raise ValueError(f"tensor '{name}' of the subnet does not lie within the network that should hold it")
    return tuple(slice(p.start - o.start, p.stop - o.start) for p, o in zip(region, outer, strict=True))


def extract(supernet: Mapping[str, Tensor], plan: Plan, out: Tensor | None = None) -> dict[str, Tensor]:
    """Return a copy of the subnet's tensors, consecutive in one flat buffer.

    `out` is an optional flat buffer of at least the subnet's size to reuse: above 32 MB the first touch of fresh memory
    costs more than the copy.
    """
    sources = views(supernet, plan)
    if not sources:
        return {}
    flat = next(iter(sources.values())).new_empty(sum(map(Tensor.numel, sources.values()))) if out is None else out
    return copy_into(flat, sources)


def copy_into(flat: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the tensors to the beginning of a flat buffer, one after the other; return them as views of it."""
    sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    copies = unpack(flat[: sum(map(prod, sizes.values()))], sizes)
    if copies:
        with torch.no_grad():
            torch._foreach_copy_(list(copies.values()), list(tensors.values()))
    return copies


def pack(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return all tensors of one dtype as one flat tensor, in the mapping's order; no copy if they lie so already.

    No tensors at all make an empty one of float32.
    """
    parts = list(tensors.values())
    if not parts:
        return torch.empty(0)
    first, expected = parts[0], parts[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for part in parts:
        adjacent = part.data_ptr() == expected and part.untyped_storage().data_ptr() == storage
        if not adjacent or not part.is_contiguous():
            return torch.cat([p.detach().reshape(-1) for p in parts])
        expected += part.numel() * part.element_size()
    return first.detach().as_strided((sum(part.numel() for part in parts),), (1,))


def unpack(flat: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return views of a flat tensor under the given names and shapes: the inverse of `pack`.

    Raises `ValueError` if the sizes do not add up.
    """
    sizes = [prod(shape) for shape in shapes.values()]
    if sum(sizes) != flat.numel():
        raise ValueError(f"{flat.numel()} values cannot fill shapes of {sum(sizes)} values in all")
    parts = torch.split(flat, sizes)
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a plan."""
    return {name: region_shape(region) for name, region in plan.items()}
