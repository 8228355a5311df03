"""Evolution on measured accuracy: the search of once-for-all (Cai et al., ICLR 2020), and of SuperFedNAS (ECCV 2024).

The best quarter of all networks are parents. Of a generation, a fifth are mutants of one of them, each gene drawn anew
with probability 0.1, and the others crosses of two, each gene from either. What the device does not allow is drawn
again, as published; after `DRAWS` draws it is narrowed instead, so that a tight limit ends the search no later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from fednas_core.base.values import Arch
from fednas_core.devices.info import Limit
from fednas_core.search.within import within
from fednas_core.spaces.space import Elastic, Ints

PARENTS = 0.25
MUTANTS = 0.2
MUTATION = 0.1
DRAWS = 16
"""Draws until one keeps the limit; after that the last one is narrowed."""
ATTEMPTS = 4
"""Attempts for each network of a generation: a space may hold no more that are new and fit."""

Worth = tuple[float, ...]
"""What a network is worth: compared figure by figure, the higher the better."""


def most_accurate(
    space: Elastic,
    limit: Limit,
    measure: Callable[[Arch], Worth],
    population: int,
    generations: int,
    rng: np.random.Generator,
) -> tuple[Arch, ...]:
    """Return the best quarter of all networks that were measured, the best first; none if the limit allows nothing.

    There is a first generation of `population` networks and `generations` later ones. The first is random but for the
    largest network that the limit allows, which is ours: a supernet has trained that most. Every network keeps the
    limit and is measured once; a space that holds no more new ones ends the search early.
    """
    largest = within(space, space.largest, limit)
    if largest is None:
        return ()
    worth = {largest: measure(largest)}
    parents: Sequence[Arch] = [largest]
    for generation in range(generations + 1):
        breeders, count = (parents, population) if generation else ((), population - 1)
        children = _generation(space, limit, breeders, count, worth, rng)
        if not children:
            break
        worth |= {arch: measure(arch) for arch in children}
        parents = sorted(worth, key=worth.__getitem__, reverse=True)[: max(2, round(PARENTS * population))]
    return tuple(parents)


def _generation(
    space: Elastic,
    limit: Limit,
    parents: Sequence[Arch],
    count: int,
    known: Collection[Arch],
    rng: np.random.Generator,
) -> list[Arch]:
    """Return up to `count` different networks that keep the limit and are not known: mutants first, then crosses."""
    found: dict[Arch, None] = {}
    for _ in range(ATTEMPTS * count):
        if len(found) == count:
            break
        arch = _child(space, limit, parents, len(found) < round(MUTANTS * count), rng)
        if arch is not None and arch not in known:
            found[arch] = None
    return list(found)


def _child(
    space: Elastic, limit: Limit, parents: Sequence[Arch], mutant: bool, rng: np.random.Generator
) -> Arch | None:
    """Return the first network drawn that keeps the limit, or the last one narrowed; None if nothing fits."""
    for _ in range(DRAWS):
        arch = space.decode(_row(space, parents, mutant, rng))
        if limit.allows(arch):
            return arch
    return within(space, arch, limit)


def _row(space: Elastic, parents: Sequence[Arch], mutant: bool, rng: np.random.Generator) -> Ints:
    """Return the genes of a mutant or a cross of parents, or random ones where there are none."""
    genes = len(space.gene_choices)
    anew: Ints = rng.integers(0, space.gene_choices)
    if not parents:
        return anew
    first, second = (space.encode(parents[int(rng.integers(len(parents)))]) for _ in range(2))
    if mutant:
        return np.where(rng.random(genes) < MUTATION, anew, first)
    return np.where(rng.random(genes) < 0.5, first, second)
