"""NetAdapt (Yang et al., ECCV 2018), the host search of FedNAS (arXiv 2002.06352): shrink one thing at a time.

Each iteration has to save a little of a resource. Every candidate saves all of it in one place, a layer's filters or
whatever else a gene of the space decides; the most accurate candidate is the next iteration's start. A resource is any
function of an architecture: MACs, bytes, or milliseconds by a device's own latency model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from fednas_core.base.values import Arch
from fednas_core.spaces.space import Elastic, Ints

Resource = Callable[[Arch], float]
"""What an architecture takes, in whatever unit; at least zero."""


def step_size(initial: float, step: float, decay: float, iteration: int) -> float:
    """Return ``ΔR_i = step · initial · decay^i``: what iteration i, from 0, has to save of the resource.

    `initial` is what the first network takes, `step` a share of it, e.g. 0.03, and `decay` of 0 to 1, e.g. 0.96.
    """
    return step * initial * decay**iteration


def proposals(
    space: Elastic, base: Arch, resource: Resource, target: float, positions: Collection[int] | None = None
) -> tuple[Arch, ...]:
    """Return the architectures that differ from `base` in one gene, lowered just enough to take at most `target`.

    `positions` are those of genes in an encoded architecture (none given: all). Where even the smallest choice takes
    more, nothing is proposed, and nothing where a gene has no effect on the network. In order of position, each once.
    """
    row = space.encode(base)
    chosen = range(len(row)) if positions is None else sorted(positions)
    found = (_lowered(space, row, position, resource, target) for position in chosen)
    return tuple(dict.fromkeys(arch for arch in found if arch is not None and arch != base))


def _lowered(space: Elastic, row: Ints, position: int, resource: Resource, target: float) -> Arch | None:
    """Return the architecture of the largest lower choice that meets the target: measured costs may not be monotone."""
    for choice in range(int(row[position]) - 1, -1, -1):
        lower = row.copy()
        lower[position] = choice
        arch = space.decode(lower)
        if resource(arch) <= target:
            return arch
    return None
