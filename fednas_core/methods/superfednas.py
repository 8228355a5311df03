"""SuperFedNAS (Khare et al., ECCV 2024, arXiv 2301.10879): MaxNet training with the tracking sandwich.

Of a round's cohort, whoever trained the largest network least often trains it now; of the others, whoever trained the
smallest least often trains that; everyone else trains a network drawn at random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fednas_core.methods.fedavg import Assignment
from fednas_core.protocol import ClientId
from fednas_core.values import Arch

Draw = Callable[[np.random.Generator], Arch]
"""A way to draw an architecture from a generator."""


class TrackingSandwich:
    """Sampler ``TS_all_random`` of SuperFedNAS; with draws from a Pareto path, ``TS_optimal_path`` of DeepFedNAS."""

    def __init__(self, largest: Arch, smallest: Draw, between: Draw) -> None:
        self._largest, self._smallest, self._between = largest, smallest, between
        self._largest_rounds: Counter[ClientId] = Counter()
        self._smallest_rounds: Counter[ClientId] = Counter()

    def assign(self, clients: Sequence[ClientId], rng: np.random.Generator) -> dict[ClientId, Assignment]:
        """See `ArchSampler.assign`: the largest first, then the smallest, then the rest in order of names."""
        smallest = self._smallest(rng)
        rest = sorted(clients)
        top = min(rest, key=lambda client: self._largest_rounds[client])
        rest.remove(top)
        chosen = {top: Assignment(self._largest, "largest")}
        if rest:
            bottom = min(rest, key=lambda client: self._smallest_rounds[client])
            rest.remove(bottom)
            chosen[bottom] = Assignment(smallest, "smallest")
        for client in rest:
            arch = self._between(rng)
            role = "largest" if arch == self._largest else "smallest" if arch == smallest else "between"
            chosen[client] = Assignment(arch, role)
        return chosen

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
