"""Who of the clients trains and who tests, what they have been taught, and how much they have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.devices.limits import number_of
from fednas_core.exchange.orders import Answer
from fednas_core.exchange.results import Kept, Tested
from fednas_core.subnets.weightings import credible


class Sides:
    """The clients that train and those that only test, settled once and for all when a client is first seen.

    Every `every`-th client tests, by the number at the end of its name or else in order of appearance. Of two or more
    at least one trains and one tests; a client all alone does both, and trains on when others come. `known` are those
    whose side was settled before, in the run that this one starts from: whether they test.
    """

    def __init__(self, every: int, known: Mapping[ClientId, bool] | None = None) -> None:
        self._every = every
        self._tests: dict[ClientId, bool] = dict(known or {})
        self._images: dict[ClientId, tuple[int, int]] = {}  # those it may train on, and those it holds out
        self._taught: set[ClientId] = set()

    def meet(self, clients: Sequence[ClientInfo]) -> None:
        """Settle on which side clients are that are new, and take note of their numbers of images."""
        new = sorted((client for client in clients if client.name not in self._tests), key=lambda c: c.name)
        for position, client in enumerate(new, start=len(self._tests)):
            self._tests[client.name] = number_of(client.name, position) % self._every == self._every - 1
        if new and all(self._tests.values()):
            self._tests[new[0].name] = False
        if new and len(self._tests) > 1 and not any(self._tests.values()):
            self._tests[new[-1].name] = True
        self._images |= {client.name: (client.examples, client.held_out) for client in clients}

    def trainers(self, clients: Sequence[ClientInfo], cohort: int, rng: np.random.Generator) -> list[ClientInfo]:
        """Return the clients that train, sorted by name, or `cohort` of them drawn at random (0: all)."""
        there = sorted((client for client in clients if self.trains(client.name)), key=lambda client: client.name)
        if not cohort or cohort >= len(there):
            return there
        return [there[i] for i in sorted(rng.choice(len(there), cohort, replace=False))]

    def trains(self, client: ClientId) -> bool:
        """Whether a client trains."""
        return not self._tests[client]

    def tests(self, client: ClientId) -> bool:
        """Whether a client tests networks."""
        return self._tests[client] or not any(self._tests.values())

    @property
    def settled(self) -> Mapping[ClientId, bool]:
        """Whether each client tests, of those that were met."""
        return self._tests

    def taught(self, client: ClientId) -> bool:
        """Whether a client has the teacher."""
        return client in self._taught

    @property
    def somebody_taught(self) -> bool:
        """Whether any client has the teacher."""
        return bool(self._taught)

    def learn(self, answers: Sequence[Answer]) -> None:
        """Take note of the clients that answered that they keep the teacher."""
        self._taught |= {answer.client for answer in answers if isinstance(answer.result, Kept)}

    def missed(self, clients: Collection[ClientId]) -> None:
        """Take note of clients that gave no answer: they may have lost what they were taught."""
        self._taught -= set(clients)

    def results(
        self, answers: Sequence[Answer], labels: Mapping[Arch, str]
    ) -> dict[str, dict[ClientId, tuple[int, float]]]:
        """Return by network what each testing client found: images and accuracy, 0 to 1.

        Images are those that the server knows the client to have, not those that it claims to have tested: all of them
        if it never trains, else those that it holds out, if any.
        """
        counted = credible({name: self._tested(name) for name in self._images})
        found: dict[str, dict[ClientId, tuple[int, float]]] = {label: {} for label in labels.values()}
        for answer in answers:
            result = answer.result
            if isinstance(result, Tested) and result.tested and answer.arch in labels:
                found[labels[answer.arch]][answer.client] = counted[answer.client], result.accuracy
        return found

    def _tested(self, client: ClientId) -> int:
        examples, held_out = self._images[client]
        return (held_out or examples) if self.trains(client) else examples + held_out

    def state(self) -> dict[str, Any]:
        """Return everything that a later `restore` needs, as JSON."""
        images = {client: list(counts) for client, counts in self._images.items()}
        return {"tests": dict(self._tests), "images": images, "taught": sorted(self._taught)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        self._tests = dict(state["tests"])
        self._images = {client: (int(own), int(held)) for client, (own, held) in state["images"].items()}
        self._taught = set(state["taught"])


def able(client: ClientInfo, arch: Arch) -> bool:
    """Whether a client's device has room for a network."""
    return client.limit is None or client.limit.allows(arch)
