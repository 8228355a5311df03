"""Putting subnets back: the weighted mean of every coordinate over whoever covered it.

A sum and nothing else is kept, so memory stays that of one supernet however many replies come; coverage is counted per
region, not per coordinate, and divided out a few rows at a time, while they are in the cache. The round loop hands
replies over in a fixed order, so sums are the same to the last bit.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from fednas_core.base.errors import ReplyError
from fednas_core.base.values import Plan
from fednas_core.subnets.packing import pack, shapes, views

HEADROOM = 100.0
"""A reply may hold values up to this many times the supernet's largest; beyond that a client has diverged or lies."""

CACHED = 1 << 17
"""Coordinates that are divided, written and zeroed together: half a megabyte stays in the processor's cache."""

Bounds = tuple[tuple[int, int], ...]


class Merging(Protocol):
    """A way to put replies together into one supernet: `add` one by one, then `finish`, round after round."""

    def add(self, plan: Plan, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Add one reply that `check_tensors` accepts, with a weight above zero."""
        ...

    def finish(self) -> None:
        """Write what came of the replies into the supernet, in place, and be ready for the next round."""
        ...


class Merge:
    """A streaming merge of replies into `supernet`: `add` one by one, then `finish`, round after round.

    ``w ← Σ_k a_k·1[k covers it]·w_k / Σ_k a_k·1[k covers it]`` (SuperFedNAS, overlap aggregation); coordinates that
    nobody covers keep their value.
    """

    def __init__(self, supernet: Mapping[str, Tensor]) -> None:
        self._supernet = supernet
        self._sums = {name: torch.zeros_like(tensor) for name, tensor in supernet.items()}
        self._weights: dict[str, Counter[Bounds]] = {name: Counter() for name in supernet}
        self._total = 0.0

    def add(self, plan: Plan, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Add one reply that `check_tensors` accepts, with a weight above zero."""
        if not 0 < weight < math.inf:
            raise ValueError(f"weight {weight}: the weight of a reply is a number above zero")
        self._total += weight
        for name, region in plan.items():
            self._weights[name][tuple((part.start, part.stop) for part in region)] += weight  # type: ignore[assignment]
        if plan:
            torch._foreach_add_(list(views(self._sums, plan).values()), [tensors[name] for name in plan], alpha=weight)

    def finish(self) -> None:
        """Write the means into the supernet, in place, and be ready for the next round."""
        for name, target in self._supernet.items():
            for start, stop, cover in _runs(target, self._weights[name]):
                write, rows = self._writing(cover), max(1, CACHED // cover.numel())
                blocks = (torch.split(tensor[start:stop], rows) for tensor in (self._sums[name], target))
                for sums, target_rows in zip(*blocks, strict=True):
                    write(sums, target_rows)
                    sums.zero_()
            self._weights[name].clear()
        self._total = 0.0

    def _writing(self, cover: Tensor) -> Callable[[Tensor, Tensor], object]:
        """Return how sums become new values, in place, where the replies' weights add up to `cover`."""
        covered = cover > 0
        if covered.all():
            return lambda sums, target: torch.div(sums, cover, out=target)
        return lambda sums, target: torch.where(covered, sums.div_(cover), target, out=target)


class DampedMerge(Merge):
    """The merge that FedSup published (arXiv 2206.01366): the mean of whole supernets, of which each changed a part.

    ``w ← w + Σ_k a_k·1[k covers it]·(w_k − w)`` with weights a_k that add up to one over all replies: what few clients
    trained is drawn back to its old value by the others. Where everybody covers everything it is the plain mean.
    """

    def _writing(self, cover: Tensor) -> Callable[[Tensor, Tensor], object]:
        kept, total = 1 - cover / self._total, self._total
        return lambda sums, target: target.mul_(kept).add_(sums.div_(total))


def _runs(target: Tensor, weights: Mapping[Bounds, float]) -> Iterator[tuple[int, int, Tensor]]:
    """Yield runs of rows that the same replies cover: first row, end, and the total weight per coordinate of a row."""
    edges = sorted({edge for bounds in weights for edge in bounds[0]})
    for start, stop in itertools.pairwise(edges):
        cover = target.new_zeros(target.shape[1:])
        for (rows, *others), weight in weights.items():
            if rows[0] <= start < rows[1]:
                cover[tuple(slice(*side) for side in others)] += weight
        yield start, stop, cover


def largest_allowed(supernet: Mapping[str, Tensor]) -> float:
    """Return the largest absolute value that a reply may hold, for `check_tensors`."""
    return HEADROOM * max([1.0, *map(_largest, supernet.values())])


def check_tensors(client: str, plan: Plan, tensors: Mapping[str, Tensor], limit: float = math.inf) -> None:
    """Raise `ReplyError`, naming client, tensor, found and allowed, unless `tensors` are those of `plan`.

    Names, shapes and dtype (float32) must match and every value be finite and at most `limit` in size.
    """
    check_values(client, shapes(plan), tensors, limit)


def check_values(
    client: str, wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], limit: float = math.inf
) -> None:
    """Raise `ReplyError`, as `check_tensors` does, unless `tensors` have these names and shapes."""

    def refuse(name: str, found: object, allowed: object) -> None:
        raise ReplyError(f"client {client}: tensor '{name}': found {found}, allowed {allowed}")

    for name in tensors:
        if name not in wanted:
            refuse(str(name)[:80], "a tensor that its architecture does not have", "the tensors of its order")
    for name, shape in wanted.items():
        if name not in tensors:
            refuse(name, "no such tensor", f"shape {shape}")
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            refuse(name, f"shape {tuple(tensor.shape)}", f"shape {shape}")
        if tensor.dtype != torch.float32:
            refuse(name, str(tensor.dtype), "torch.float32")
    size = _largest(pack(tensors))
    if not math.isfinite(size) or size > limit:
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                refuse(name, "values that are not finite", "finite values")
            if _largest(tensor) > limit:
                refuse(name, f"values up to {_largest(tensor):.3g}", f"values up to {limit:.3g}")


def _largest(tensor: Tensor) -> float:
    """Return the largest absolute value, 0 of no values; NaN if any value is."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor)
    return max(-float(low), float(high)) if float(low) == float(low) else math.nan
