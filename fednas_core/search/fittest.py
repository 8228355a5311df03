"""The network to train or judge at a budget, in any space: the fittest where fitness has a closed form, else a ladder.

The fitness of DeepFedNAS is defined for the elastic ResNet. Elsewhere the largest network is narrowed until it fits,
all genes in proportion, as compound scaling does (Tan and Le, ICML 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fednas_core.base.errors import InfeasibleError
from fednas_core.base.values import Arch
from fednas_core.search.exact import exact_search
from fednas_core.search.fitness import PUBLISHED, Fitness, Ints, evaluate
from fednas_core.search.within import within
from fednas_core.spaces.capabilities import staged
from fednas_core.spaces.space import Elastic


@dataclass(frozen=True, slots=True)
class MacLimit:
    """At most so many MACs (implements `fednas_core.exchange.orders.Limit`)."""

    space: Elastic
    macs: int

    def allows(self, arch: Arch) -> bool:
        """See `Limit.allows`."""
        return self.space.cost(arch).macs <= self.macs


def fittest(space: Elastic, budgets: Sequence[int], constants: Fitness = PUBLISHED) -> tuple[Arch, ...]:
    """Return for each MAC budget the network to use there, in the given order; raise `InfeasibleError` if none fits."""
    closed = staged(space)
    if closed:
        return exact_search(closed, budgets, constants)
    return tuple(_rung(space, macs) for macs in budgets)


def fitness_of(space: Elastic, archs: Sequence[Arch], constants: Fitness = PUBLISHED) -> list[float]:
    """Return the fitness of each architecture; NaN in a space for which it is not defined."""
    closed = staged(space)
    if closed is None or not archs:
        return [math.nan] * len(archs)
    found = evaluate(closed, np.stack([space.encode(arch) for arch in archs])).fitness(constants)
    return [float(value) for value in found]


def macs_of(space: Elastic, population: Ints) -> Ints:
    """Return the MACs of encoded architectures, shape (n, genes) to (n,)."""
    closed = staged(space)
    if closed:
        return evaluate(closed, population).macs
    return np.array([space.cost(space.decode(row)).macs for row in population], dtype=np.int64)


def _rung(space: Elastic, macs: int) -> Arch:
    found = within(space, space.largest, MacLimit(space, macs))
    if found is None:
        raise InfeasibleError(
            f"a budget of {macs:,} MACs is below the smallest network of space '{space.name}', which takes "
            f"{space.cost(space.smallest).macs:,}"
        )
    return found
