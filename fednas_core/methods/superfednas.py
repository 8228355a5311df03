"""SuperFedNAS (Khare et al., ECCV 2024, arXiv 2301.10879): MaxNet training with the tracking sandwich.

Of a round's cohort, whoever trained the largest network least often trains it now; of the others, whoever trained the
smallest least often trains that; everyone else trains a network drawn at random. After training, networks are found by
evolution on measured accuracy (`fednas_core.search.measured`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.info import ClientInfo, Limit
from fednas_core.methods.method import Assignment

Draw = Callable[[np.random.Generator], Arch]
"""A way to draw an architecture from a generator."""
Narrow = Callable[[Arch, Limit], Arch | None]
"""A way to make an architecture small enough for a device; None if nothing is."""

DRAWS = 64
"""Draws until one fits a client's budget; after that the last one is narrowed."""


class TrackingSandwich:
    """Sampler ``TS_all_random`` of SuperFedNAS; with draws from a Pareto path, ``TS_optimal_path`` of DeepFedNAS.

    Where devices have budgets, the largest network goes to a client that can hold it (if none can, narrowed, to one
    that cannot), the others draw until a network fits, and no client is ever given more than its budget.
    """

    def __init__(self, largest: Arch, smallest: Draw, between: Draw, narrow: Narrow) -> None:
        self._largest, self._smallest, self._between, self._narrow = largest, smallest, between, narrow
        self._largest_rounds: Counter[ClientId] = Counter()
        self._smallest_rounds: Counter[ClientId] = Counter()

    def assign(self, round: int, clients: Sequence[ClientInfo], rng: np.random.Generator) -> dict[ClientId, Assignment]:
        """See `ArchSampler.assign`: the largest first, then the smallest, then the rest in order of names."""
        smallest = self._smallest(rng)
        rest = sorted(clients, key=lambda client: client.name)
        wanted: dict[ClientId, tuple[Arch | None, str]] = {}
        for arch, role, rounds in (
            (self._largest, "largest", self._largest_rounds),
            (smallest, "smallest", self._smallest_rounds),
        ):
            able = [client for client in rest if client.limit is None or client.limit.allows(arch)] or rest
            if able:
                chosen = min(able, key=lambda client: rounds[client.name])
                rest.remove(chosen)
                wanted[chosen.name] = self._fitted(arch, chosen.limit), role
        for client in rest:
            drawn = self._drawn(client.limit, rng)
            role = "largest" if drawn == self._largest else "smallest" if drawn == smallest else "between"
            wanted[client.name] = drawn, role
        return {name: Assignment(arch, role) for name, (arch, role) in wanted.items() if arch}

    def _fitted(self, arch: Arch, limit: Limit | None) -> Arch | None:
        return arch if limit is None or limit.allows(arch) else self._narrow(arch, limit)

    def _drawn(self, limit: Limit | None, rng: np.random.Generator) -> Arch | None:
        arch = self._between(rng)
        if limit is None:
            return arch
        for _ in range(DRAWS):
            if limit.allows(arch):
                return arch
            arch = self._between(rng)
        return self._fitted(arch, limit)

    def trained(self, client: ClientId, assignment: Assignment) -> None:
        """Count it: a random draw that happens to be the largest or smallest counts as well."""
        if assignment.role == "largest":
            self._largest_rounds[client] += 1
        elif assignment.role == "smallest":
            self._smallest_rounds[client] += 1

    def state(self) -> dict[str, Any]:
        """See `ArchSampler.state`."""
        return {"largest_rounds": dict(self._largest_rounds), "smallest_rounds": dict(self._smallest_rounds)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `ArchSampler.restore`."""
        self._largest_rounds = Counter(state["largest_rounds"])
        self._smallest_rounds = Counter(state["smallest_rounds"])
