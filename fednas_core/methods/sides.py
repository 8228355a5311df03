"""Who of the clients trains and who tests, what they have been taught, and how much they have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fednas_core.aggregation.weightings import credible
from fednas_core.devices.limits import number_of
from fednas_core.protocol import ClientId, ClientInfo, TrainReport
from fednas_core.values import Arch


class Sides:
    """The clients that train and those that only test, settled once and for all when a client is first seen.

    Every `every`-th client tests, by the number at the end of its name or else in order of appearance, and at least one
    of two; a client all alone does both.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._tests: dict[ClientId, bool] = {}
        self._examples: dict[ClientId, int] = {}
        self._taught: set[ClientId] = set()

    def meet(self, clients: Sequence[ClientInfo]) -> None:
        """Settle on which side clients are that are new, and take note of their numbers of examples."""
        new = sorted((client for client in clients if client.name not in self._tests), key=lambda c: c.name)
        for position, client in enumerate(new, start=len(self._tests)):
            self._tests[client.name] = number_of(client.name, position) % self._every == self._every - 1
        if new and len(self._tests) > 1 and not any(self._tests.values()):
            self._tests[new[-1].name] = True
        self._examples |= {client.name: client.examples for client in clients}

    def trainers(self, clients: Sequence[ClientInfo], cohort: int, rng: np.random.Generator) -> list[ClientInfo]:
        """Return the clients that train, sorted by name, or `cohort` of them drawn at random (0: all)."""
        there = sorted((client for client in clients if self.trains(client.name)), key=lambda client: client.name)
        if not cohort or cohort >= len(there):
            return there
        return [there[i] for i in sorted(rng.choice(len(there), cohort, replace=False))]

    def trains(self, client: ClientId) -> bool:
        """Whether a client trains."""
        return not self._tests[client] or all(self._tests.values())

    def tests(self, client: ClientId) -> bool:
        """Whether a client tests networks."""
        return self._tests[client] or not any(self._tests.values())

    def taught(self, client: ClientId) -> bool:
        """Whether a client has the teacher."""
        return client in self._taught

    @property
    def somebody_taught(self) -> bool:
        """Whether any client has the teacher."""
        return bool(self._taught)

    def learn(self, reports: Sequence[TrainReport]) -> None:
        """Take note of the clients that answered that they keep the teacher."""
        self._taught |= {report.client for report in reports if "kept" in report.figures}

    def missed(self, clients: Collection[ClientId]) -> None:
        """Take note of clients that gave no answer: they may have lost what they were taught."""
        self._taught -= set(clients)

    def results(
        self, reports: Sequence[TrainReport], labels: Mapping[Arch, str]
    ) -> dict[str, dict[ClientId, tuple[int, float]]]:
        """Return by network what each testing client found: images and accuracy, 0 to 1.

        Images are those that the server knows the client to have, not those that it claims to have tested.
        """
        counted = credible(self._examples)
        found: dict[str, dict[ClientId, tuple[int, float]]] = {label: {} for label in labels.values()}
        for report in reports:
            if report.figures.get("tested") and report.arch in labels:
                found[labels[report.arch]][report.client] = counted[report.client], report.accuracy
        return found

    def state(self) -> dict[str, Any]:
        """Return everything that a later `restore` needs, as JSON."""
        return {"tests": dict(self._tests), "examples": dict(self._examples), "taught": sorted(self._taught)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        self._tests, self._examples = dict(state["tests"]), dict(state["examples"])
        self._taught = set(state["taught"])


def able(client: ClientInfo, arch: Arch) -> bool:
    """Whether a client's device has room for a network."""
    return client.limit is None or client.limit.allows(arch)
