"""Progressive shrinking (once-for-all, ICLR 2020, section 3.3) as a curriculum by rounds, for any supernet method.

Genes become elastic one after the other, from the largest choice down: first every network is the largest, then
kernels may be smaller, then there may be fewer blocks, and so on, so that small networks start from large ones that
know something.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fednas_core.base.errors import ConfigError
from fednas_core.base.values import Arch
from fednas_core.devices.info import Limit
from fednas_core.spaces.space import Elastic, Ints

AT_ONCE = ("k", "r")
"""Genes all of whose choices open together, as published: kernels and resolution."""


@dataclass(frozen=True)
class Curriculum:
    """Which choices a round has: `order` names genes of the space in the order in which they become elastic.

    In the first phase the named genes are at their largest. In each phase after it the next gene may be one choice
    smaller (those in `AT_ONCE`: any choice), until in the last all are open. The others share the first `closed` rounds
    evenly; there should be one for each at least (see `phases`). Genes that are not named are elastic from the start,
    so that a curriculum of none changes nothing. Raises `ConfigError` for a gene that the space does not have or that
    is named twice.
    """

    space: Elastic
    order: tuple[str, ...]
    closed: int

    def __post_init__(self) -> None:
        """Refuse genes that are none."""
        for number, gene in enumerate(self.order):
            if gene not in self._places or gene in self.order[:number]:
                found = "is named twice" if gene in self._places else f"is none of space '{self.space.name}'"
                raise ConfigError(
                    f"setting 'sample.shrink' = {','.join(self.order)!r}: gene {gene!r} {found}, allowed are "
                    f"{', '.join(self._places)}, each once"
                )

    @cached_property
    def _places(self) -> dict[str, slice]:
        return places(self.space)

    @cached_property
    def _steps(self) -> tuple[tuple[str, int], ...]:
        """Return the genes in order, each with the number of phases in which it opens."""
        most = {gene: int(self.space.gene_choices[self._places[gene]].max()) - 1 for gene in self.order}
        return tuple((gene, min(n, 1) if gene in AT_ONCE else n) for gene, n in most.items())

    @property
    def phases(self) -> int:
        """Number of phases, with the last, in which all is open."""
        return 1 + sum(steps for _, steps in self._steps)

    def _opened(self, round: int) -> list[int]:
        """Return in how many phases each gene of the order has opened so far, by a round counted from 0."""
        passed = self.phases - 1
        if round < self.closed:
            passed = passed * round // self.closed
        opened = []
        for _, steps in self._steps:
            opened.append(min(passed, steps))
            passed -= opened[-1]
        return opened

    def floor(self, round: int) -> Ints:
        """Return the least that each entry of an encoded architecture may be in a round, counted from 0."""
        least = np.zeros_like(self.space.gene_choices)
        for (gene, steps), opened in zip(self._steps, self._opened(round), strict=True):
            if not (gene in AT_ONCE and opened == steps):
                place = self._places[gene]
                least[place] = np.maximum(self.space.gene_choices[place] - 1 - opened, 0)
        return least

    def complete(self, round: int) -> bool:
        """Whether every choice is open in this round."""
        return not self.floor(round).any()

    def opening(self, round: int) -> tuple[str, ...]:
        """Return the genes that become elastic in this round."""
        if round == 0:
            return ()
        pairs = zip(self._opened(round - 1), self._opened(round), strict=True)
        return tuple(gene for gene, (before, now) in zip(self.order, pairs, strict=True) if before == 0 < now)

    def raised(self, arch: Arch, round: int, limit: Limit | None = None) -> Arch:
        """Return the architecture raised to the round's floor, or as it is where the limit does not allow that."""
        higher = self.space.decode(np.maximum(self.space.encode(arch), self.floor(round)))
        return higher if limit is None or limit.allows(higher) else arch


def parse_order(text: str) -> tuple[str, ...]:
    """Return the genes that setting ``sample.shrink`` names, e.g. ``k,d,e``; none for an empty text."""
    return tuple(gene.strip() for gene in text.split(",")) if text.strip() else ()


def places(space: Elastic) -> dict[str, slice]:
    """Return where the entries of each gene are in an encoded architecture."""
    found, start = {}, 0
    for gene, values in space.largest.genes:
        found[gene] = slice(start, start + len(values))
        start += len(values)
    return found
