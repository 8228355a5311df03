"""Random networks of a given size, with bounded effort: no loop waits for a draw that may never come."""

from __future__ import annotations

import numpy as np

from fednas_core.base.values import Arch
from fednas_core.devices.info import Limit
from fednas_core.spaces.space import Elastic

DRAWS = 32
"""Draws until one has the size; after that the largest below it is raised."""


def sized(space: Elastic, low: float, high: float, limit: Limit | None, rng: np.random.Generator) -> Arch | None:
    """Return a random network of `low` to `high` parameters that the limit allows.

    If none of `DRAWS` draws is one, genes of the largest draw below are raised in random order until it is; where that
    ends below `low`, so does the result. None if not even the smallest network fits.
    """

    def fits(arch: Arch) -> bool:
        return space.cost(arch).params <= high and (limit is None or limit.allows(arch))

    best = None
    for _ in range(DRAWS):
        arch = space.sample(rng)
        if fits(arch):
            best = max(best or arch, arch, key=lambda arch: space.cost(arch).params)
            if space.cost(best).params >= low:
                break
    best = best or space.smallest
    if not fits(best):
        return None
    row = space.encode(best)
    for gene in rng.permutation(np.repeat(np.arange(len(row)), space.gene_choices - 1 - row)):
        if space.cost(space.decode(row)).params >= low:
            break
        row[gene] += 1
        if not fits(space.decode(row)):
            row[gene] -= 1
    return space.decode(row)
