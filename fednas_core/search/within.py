"""Making an architecture small enough for one device, whatever limits it."""

from __future__ import annotations

import numpy as np

from fednas_core.protocol import Limit
from fednas_core.spaces.space import SearchSpace
from fednas_core.values import Arch

_STEPS = 10


def within(space: SearchSpace, arch: Arch, limit: Limit | None) -> Arch | None:
    """Return `arch` if the limit allows it, else a smaller one of about its proportions; None if nothing fits.

    Bisection finds the last one that fits on the line from the space's smallest architecture to `arch`, gene by gene,
    rounded down; then each gene in turn rises towards that of `arch` while the limit allows it, so that nothing
    between the result and `arch` fits. Every architecture returned was itself allowed.
    """
    if limit is None or limit.allows(arch):
        return arch
    if not limit.allows(space.smallest):
        return None
    start, end = space.encode(space.smallest), space.encode(arch)
    row, low, high = start, 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        between = start + np.floor((end - start) * middle).astype(np.int64)
        if limit.allows(space.decode(between)):
            row, low = between, middle
        else:
            high = middle
    rising = True
    while rising:
        rising = False
        for gene in np.flatnonzero(row < end):
            raised = row.copy()
            raised[gene] += 1
            if limit.allows(space.decode(raised)):
                row, rising = raised, True
    return space.decode(row)
