"""What tests of competing networks share: a search that does as it is told, clients that answer at once, one round."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from contracts.samples import answer, found

from fednas_core.base.seeding import stream
from fednas_core.base.values import Arch, State
from fednas_core.devices.info import ClientInfo, Limit
from fednas_core.exchange.orders import Answer, Failure, Order
from fednas_core.exchange.results import Kept, Tested
from fednas_core.methods.contest import Contest
from fednas_core.methods.host import START, Entrant, Rules
from fednas_core.search.dropping import Standing
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.merge import Merge
from fednas_core.subnets.packing import extract
from fednas_core.training.settings import TrainSettings

Accuracy = Callable[[Order], float]


class Told:
    """A host search that proposes given architectures, iteration by iteration, cut out of the start network."""

    def __init__(self, space: Elastic, fields: Sequence[Sequence[Arch]]) -> None:
        self.space, self.fields = space, fields
        self.iteration, self.family = 0, list[Entrant]()
        self.concluded: list[list[str]] = []

    def begin(self, start: Entrant, accuracy: float) -> None:
        self.family, self.accuracy = [start], accuracy

    def propose(self) -> list[Entrant]:
        if self.iteration == len(self.fields):
            return []
        start, archs = self.family[0], self.fields[self.iteration]
        return [
            Entrant(f"{self.iteration + 1}.{i}", arch, extract(start.tensors, self.space.plan(arch)), START)
            for i, arch in enumerate(archs, start=1)
        ]

    def conclude(self, entrants: Mapping[str, Entrant], standings: Sequence[Standing]) -> None:
        self.concluded.append([standing.label for standing in standings])
        self.family += [entrants[standing.label] for standing in standings if standing.label in entrants][:1]
        self.iteration += 1

    def finalists(self, limits: Sequence[Limit]) -> list[Entrant]:
        return self.family[1:]

    def story(self) -> dict[str, Any]:
        return {}

    def state(self) -> State:
        return State({}, {"iteration": self.iteration})

    def restore(self, state: State, family: list[Entrant]) -> None:
        self.iteration, self.family = state.data["iteration"], family


def contest_of(
    space: Elastic, start: dict[str, torch.Tensor], fields: Sequence[Sequence[Arch]], rounds: int = 2, **rules: Any
) -> Contest:
    """A contest over `fields`: one round of the start network, then `rounds` in each iteration, unless rules differ."""
    given: dict[str, Any] = {"rounds": 1, "contest": lambda iteration: rounds, "finish": 0, "seed": 7}
    given["settings"] = lambda *_: TrainSettings()
    return Contest(space, start, Told(space, fields), Rules(**{**given, **rules}), (), Merge)


def crowd(count: int, **changes: Any) -> tuple[ClientInfo, ...]:
    """Clients named by number, of 50 examples each: every fifth tests."""
    return tuple(ClientInfo(f"client-{i:03d}", **{"examples": 50, **changes}) for i in range(count))


def judged(request: Order, accuracy: float) -> Answer:
    """A client's answer to a request."""
    return found(request, Kept() if request.task == "teach" else Tested(1.5, accuracy, 10, False))


class Round:
    """One round of a method: what was ordered, requested and told."""

    def __init__(
        self,
        method: Any,
        round: int,
        clients: Sequence[ClientInfo],
        accuracy: Accuracy = lambda request: 0.5,
        missing: Sequence[str] = (),
    ) -> None:
        ask = method.ask(round, 0, clients, stream(3, round, "plan"))
        self.orders: dict[str, Order] = {order.client: order for order in ask.orders}
        self.rows = method.tell(ask, [answer(order) for name, order in self.orders.items() if name not in missing]).rows
        ask = method.ask(round, 1, clients, stream(3, round, "plan", 1))
        self.requests: list[Order] = list(ask.orders)
        answers = [judged(request, accuracy(request)) for request in self.requests if request.client not in missing]
        self.told: dict[str, Any] = dict(method.tell(ask, answers).story)["search"]
        assert method.ask(round, 2, clients, stream(3, round, "plan", 2)) is None

    @property
    def parts(self) -> dict[str, set[str]]:
        """Who trained which network, by label."""
        found: dict[str, set[str]] = {}
        for row in self.rows:
            found.setdefault(row["network"], set()).add(row["client"])
        return found

    @property
    def testers(self) -> set[str]:
        return {request.client for request in self.requests if request.task == "trial"}


def played(method: Any, clients: Sequence[ClientInfo], accuracy: Accuracy = lambda request: 0.5) -> list[Round]:
    """All rounds of a method until it is done."""
    rounds: list[Round] = []
    while not method.done(len(rounds)):
        rounds.append(Round(method, len(rounds), clients, accuracy))
        assert len(rounds) < 1000, "it never ends"
    return rounds


class Instant:
    """A fleet of clients that answer at once; `accuracy` says what testing clients find."""

    def __init__(self, clients: Sequence[ClientInfo], macs_of: Callable[[Order], int] | None = None) -> None:
        self.people, self.macs_of = clients, macs_of or (lambda order: 1000)
        self.seen: list[dict[str, Order]] = []

    def clients(self) -> Sequence[ClientInfo]:
        return self.people

    def train(self, orders: Mapping[str, Order], more: deque[Order] | None = None) -> Iterator[Answer | Failure]:
        self.seen.append(dict(orders))
        for order in orders.values():
            if order.task in ("trial", "teach"):
                yield replace(judged(order, 0.5), macs=0, bytes_down=0, bytes_up=0)
                continue
            size = sum(4 * tensor.numel() for tensor in order.weights.values())
            yield answer(order, dict(order.weights), macs=self.macs_of(order), bytes_down=size, bytes_up=size)

    def close(self) -> None: ...
