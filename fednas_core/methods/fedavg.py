"""Federated averaging over a supernet: the loop that every supernet method shares, and the method `fedavg` itself.

A method is this class with its own parts: a sampler that says which client trains which subnet, and a weighting that
says how much its reply counts. Federated averaging proper (McMahan et al., 2017) gives everybody the same network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.metrics import ACCURACY
from fednas_core.base.seeding import derive, stream
from fednas_core.base.values import Arch, ClientId, State
from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.orders import WEIGHTS, Answer, Order, Scalars
from fednas_core.exchange.results import Trained
from fednas_core.methods.method import NO_ROOM, Ask, Assignment, Catalogue, Told
from fednas_core.methods.story import ClientRow
from fednas_core.spaces.sorting import sort_channels
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.merge import Merge, Merging
from fednas_core.subnets.packing import views
from fednas_core.subnets.weightings import Weighting


class ArchSampler(Protocol):
    """Decides which subnet each client of a cohort trains."""

    def assign(self, round: int, clients: Sequence[ClientInfo], rng: np.random.Generator) -> dict[ClientId, Assignment]:
        """Return an assignment for each client of a round's cohort (sorted by name) that has room for one.

        What a client is given keeps its limit; a client for which nothing is small enough is left out.
        """
        ...

    def trained(self, client: ClientId, assignment: Assignment) -> None:
        """Take note that a client's reply was merged."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a later `restore` needs, as JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        ...


class Forgetful:
    """The part of an `ArchSampler` that remembers nothing from round to round."""

    __slots__ = ()

    def trained(self, client: ClientId, assignment: Assignment) -> None:
        """Nothing to remember."""

    def state(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to remember."""


@dataclass(frozen=True, slots=True)
class Everyone(Forgetful):
    """Every client trains the same network."""

    arch: Arch

    def assign(self, round: int, clients: Sequence[ClientInfo], rng: np.random.Generator) -> dict[ClientId, Assignment]:
        """See `ArchSampler.assign`."""
        able = [client.name for client in clients if client.limit is None or client.limit.allows(self.arch)]
        return dict.fromkeys(able, Assignment(self.arch, "largest"))


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long a method trains and how: number of rounds, the parameters of each (from 0), the run's seed.

    `task` is what clients do with their network, `cohort` how many are drawn for a round (0: all), `own` in which
    rounds a client comes by the architecture that it keeps to (None: it keeps to none). `sorts` says which genes become
    elastic in a round: the channels they are about are put in order of importance first.
    """

    rounds: int
    params: Callable[[int], Scalars]
    seed: int
    task: str = "subnet"
    cohort: int = 0
    own: Callable[[int], bool] | None = None
    sorts: Callable[[int], Collection[str]] | None = None


class SupernetAveraging:
    """Sample a subnet for each client, train it there, merge what comes back (a `Method`).

    Where the schedule says so, a client keeps to the first architecture it trained from then on, as long as that fits
    it; `own` says what that was.
    """

    def __init__(
        self,
        space: Elastic,
        supernet: dict[str, Tensor],
        sampler: ArchSampler,
        weighting: Weighting,
        schedule: Schedule,
        merge: Merging | None = None,
    ) -> None:
        self.space, self.sampler, self.weighting = space, sampler, weighting
        self._supernet, self._schedule = supernet, schedule
        self._merge = merge or Merge(supernet)
        self.own: dict[ClientId, Assignment] = {}
        self._open: dict[ClientId, tuple[int, Assignment, float]] = {}  # the round of an order, what it was, its weight

    def trains(self, client: ClientId) -> bool:
        """See `Method.trains`: every client does."""
        return True

    def ask(self, round: int, turn: int, clients: Sequence[ClientInfo], rng: np.random.Generator) -> Ask | None:
        """See `Method.ask`: each client of the cohort trains its subnet."""
        if turn:
            return None
        schedule = self._schedule
        if schedule.sorts and (opening := schedule.sorts(round)):
            sort_channels(self.space, self._supernet, opening)
        cohort = drawn(clients, schedule.cohort, round, schedule.seed)
        assignments = self._kept(cohort, self.sampler.assign(round, cohort, rng))
        largest = next((name for name, chosen in assignments.items() if chosen.role == "largest"), None)
        examples = {client.name: client.examples for client in cohort if client.name in assignments}
        weights = self.weighting.weights(round, examples, largest) if examples else {}
        self._open |= {name: (round, chosen, weights[name]) for name, chosen in assignments.items()}
        params, orders = schedule.params(round), []
        for client in cohort:
            if client.name in assignments:
                arch = assignments[client.name].arch
                tensors = views(self._supernet, self.space.plan(arch))
                seed = derive(schedule.seed, round, client.name, "train")
                order = Order(client.name, round, schedule.task, arch, {WEIGHTS: tensors}, params, seed, client.budget)
                orders.append(order)
        return Ask(round, tuple(orders), {client.name: NO_ROOM for client in cohort if client.name not in assignments})

    def _kept(self, clients: Sequence[ClientInfo], drawn: Mapping[ClientId, Assignment]) -> dict[ClientId, Assignment]:
        """Return assignments in which every client that has an architecture of its own gets that."""
        fits = {
            c.name for c in clients if c.name in self.own and (not c.limit or c.limit.allows(self.own[c.name].arch))
        }
        return {name: self.own[name] if name in fits else chosen for name, chosen in drawn.items()}

    def tell(self, ask: Ask, answers: Iterable[Answer]) -> Told:
        """See `Method.tell`; a client's second answer, and one of another round, is passed over."""
        rows = []
        for answer in answers:
            asked = self._open[answer.client][0] if answer.client in self._open else None
            if not asked == ask.round == answer.round:
                continue
            _, assignment, weight = self._open.pop(answer.client)
            self._merge.add(self.space.plan(assignment.arch), answer.weights, weight)
            self.sampler.trained(answer.client, assignment)
            if self._schedule.own and self._schedule.own(answer.round):
                self.own[answer.client] = assignment
            rows.append(row_of(answer, assignment, self.space))
        self._merge.finish()
        return Told(tuple(rows))

    def remind(self, round: int, clients: Sequence[ClientInfo]) -> Ask | None:
        """See `Method.remind`: nothing."""
        return None

    def done(self, round: int) -> bool:
        """See `Method.done`."""
        return round >= self._schedule.rounds

    def weights(self) -> Mapping[str, Tensor]:
        """See `Method.weights`."""
        return self._supernet

    def network(self, arch: Arch) -> Mapping[str, Tensor]:
        """See `Method.network`: views of the supernet."""
        return views(self._supernet, self.space.plan(arch))

    @property
    def catalogue(self) -> Catalogue:
        """See `Method.catalogue`: any subnet."""
        return Catalogue(own=self.own)

    def state(self) -> State:
        """See `Method.state`."""
        own = {client: [mine.arch.to_json(), mine.role, mine.tier] for client, mine in self.own.items()}
        return State(self._supernet, {"sampler": self.sampler.state(), "own": own})

    def restore(self, state: State) -> None:
        """See `Method.restore`; raise `RunError` for the state of another method or search space."""
        found = {name: tensor.shape for name, tensor in state.tensors.items()}
        try:
            if found != {name: tensor.shape for name, tensor in self._supernet.items()}:
                raise ValueError("its tensors are not those of the supernet")
            self.sampler.restore(state.data["sampler"])
            own = state.data.get("own", {}).items()
            self.own = {name: Assignment(self.space.arch(genes), role, tier) for name, (genes, role, tier) in own}
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"the checkpoint does not fit the settings ({error}): its method and search space must be those of the "
                "run that wrote it"
            ) from error
        for name, tensor in self._supernet.items():
            tensor.copy_(state.tensors[name])


def drawn(clients: Sequence[ClientInfo], cohort: int, round: int, seed: int) -> list[ClientInfo]:
    """Return the clients of a round's cohort, sorted by name: `cohort` of them drawn at random (0: all)."""
    everyone = sorted(clients, key=lambda client: client.name)
    if not cohort or cohort >= len(everyone):
        return everyone
    chosen = stream(seed, round, "cohort").choice(len(everyone), cohort, replace=False)
    return [everyone[place] for place in sorted(chosen)]


def row_of(answer: Answer, assignment: Assignment, space: Elastic, network: str | None = None) -> ClientRow:
    """Return what an event tells of one client: what it trained and what that took."""
    cost, result = space.cost(assignment.arch), answer.result
    assert isinstance(result, Trained), "a task whose weights are merged tells what its training saw"
    return ClientRow(
        client=answer.client,
        role=assignment.role,
        tier=assignment.tier,
        macs=cost.macs,
        params=cost.params,
        examples=answer.examples,
        loss=result.loss,
        metrics={ACCURACY.name: result.accuracy},
        client_macs=answer.macs,
        seconds=answer.seconds,
        bytes_up=answer.bytes_up,
        bytes_down=answer.bytes_down,
        network=network,
    )


def fixed_arch(config: RunConfig, space: Elastic) -> Arch:
    """Return the architecture of methods that train one only: setting ``sample.arch``, or the largest of the space."""
    if not config.sample.arch:
        return space.largest
    try:
        return space.arch(json.loads(config.sample.arch))
    except json.JSONDecodeError as error:
        raise ConfigError(f"setting 'sample.arch' is not JSON ({error}); an example: {space.smallest}") from error
