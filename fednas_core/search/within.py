"""Making an architecture small enough for one device, whatever limits it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fednas_core.base.values import Arch
from fednas_core.devices.info import Limit
from fednas_core.spaces.space import Elastic, Ints

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]

_STEPS = 10
_GOLDEN = 0.618
"""Multiples of the golden ratio, less their whole parts, are spread evenly however many there are."""


def within(space: Elastic, arch: Arch, limit: Limit | None) -> Arch | None:
    """Return `arch` if the limit allows it, else a smaller one of about its proportions; None if nothing fits.

    On the line from the space's smallest architecture to `arch`, gene by gene, bisection finds the last one that fits:
    once rounded down, and once with roundings spread over the genes, for a gene of two choices is else at its smallest
    all the way. Then each gene in turn rises towards that of `arch` while the limit allows it, so that nothing between
    the result and `arch` fits. Of the two the dearer one is returned. Every architecture returned was itself allowed.
    """
    if limit is None or limit.allows(arch):
        return arch
    if not limit.allows(space.smallest):
        return None
    start, end = space.encode(space.smallest), space.encode(arch)
    spread = np.arange(len(end)) * _GOLDEN % 1
    found = [_risen(space, _narrowed(space, start, end, limit, phase), end, limit) for phase in (0 * spread, spread)]
    return max(found, key=lambda arch: space.cost(arch).macs)


def _narrowed(space: Elastic, start: Ints, end: Ints, limit: Limit, phase: Floats) -> Ints:
    """Return the last row on the line from `start` to `end` that fits; a gene rounds up from 1 − `phase` on."""
    row, low, high = start, 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        between = start + np.minimum(end - start, np.floor((end - start) * middle + phase)).astype(np.int64)
        if limit.allows(space.decode(between)):
            row, low = between, middle
        else:
            high = middle
    return row


def _risen(space: Elastic, row: Ints, end: Ints, limit: Limit) -> Arch:
    """Return the architecture of a row whose genes have risen towards `end` as long as anything fits."""
    rising = True
    while rising:
        rising = False
        for gene in np.flatnonzero(row < end):
            raised = row.copy()
            raised[gene] += 1
            if limit.allows(space.decode(raised)):
                row, rising = raised, True
    return space.decode(row)
