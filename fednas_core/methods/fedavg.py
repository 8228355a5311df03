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
from fednas_core.base.metrics import ACCURACY, Metrics
from fednas_core.base.seeding import derive
from fednas_core.base.values import Arch, ClientId, State
from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.orders import Errand, TrainOrder, TrainReport
from fednas_core.methods.method import RoundSummary
from fednas_core.methods.story import ClientRow
from fednas_core.spaces.sorting import sort_channels
from fednas_core.spaces.space import SearchSpace
from fednas_core.subnets.merge import Merge, Merging
from fednas_core.subnets.packing import views
from fednas_core.subnets.weightings import Weighting
from fednas_core.training.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one client trains in one round, and as what: ``largest``, ``smallest`` or ``between``.

    `tier` names the class of devices for which it was chosen, '' if the method has none.
    """

    arch: Arch
    role: str
    tier: str = ""


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
    """How long a method trains and how: number of rounds, the settings of each (from 0), the run's seed.

    `task` is what clients do with their network, `own` in which rounds a client comes by the architecture that it keeps
    to (None: it keeps to none). `sorts` says which genes become elastic in a round: the channels they are about are put
    in order of importance first.
    """

    rounds: int
    settings: Callable[[int], TrainSettings]
    seed: int
    task: str = "subnet"
    own: Callable[[int], bool] | None = None
    sorts: Callable[[int], Collection[str]] | None = None


class SupernetAveraging:
    """Sample a subnet for each client, train it there, merge what comes back (a `Method`).

    Where the schedule says so, a client keeps to the first architecture it trained from then on, as long as that fits
    it; `own` says what that was.
    """

    def __init__(
        self,
        space: SearchSpace,
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

    def plan(
        self, round: int, clients: Sequence[ClientInfo], rng: np.random.Generator
    ) -> Mapping[ClientId, TrainOrder]:
        """See `Method.plan`."""
        if self._schedule.sorts and (opening := self._schedule.sorts(round)):
            sort_channels(self.space, self._supernet, opening)
        assignments = self.sampler.assign(round, clients, rng)
        assignments = self._kept(clients, assignments)
        largest = next((name for name, chosen in assignments.items() if chosen.role == "largest"), None)
        examples = {client.name: client.examples for client in clients if client.name in assignments}
        weights = self.weighting.weights(round, examples, largest) if examples else {}
        self._open |= {name: (round, chosen, weights[name]) for name, chosen in assignments.items()}
        settings = self._schedule.settings(round)
        budgets = {client.name: client.budget for client in clients}
        return {
            name: TrainOrder(
                client=name,
                round=round,
                task=self._schedule.task,
                arch=chosen.arch,
                tensors=views(self._supernet, self.space.plan(chosen.arch)),
                settings=settings,
                seed=derive(self._schedule.seed, round, name, "train"),
                budget=budgets[name],
            )
            for name, chosen in assignments.items()
        }

    def _kept(self, clients: Sequence[ClientInfo], drawn: Mapping[ClientId, Assignment]) -> dict[ClientId, Assignment]:
        """Return assignments in which every client that has an architecture of its own gets that."""
        fits = {
            c.name for c in clients if c.name in self.own and (not c.limit or c.limit.allows(self.own[c.name].arch))
        }
        return {name: self.own[name] if name in fits else chosen for name, chosen in drawn.items()}

    def absorb(self, round: int, reports: Iterable[TrainReport]) -> RoundSummary:
        """See `Method.absorb`; a client's second report, and one of another round, is passed over."""
        clients = []
        for report in reports:
            asked = self._open[report.client][0] if report.client in self._open else None
            if not asked == round == report.round:
                continue
            _, assignment, weight = self._open.pop(report.client)
            self._merge.add(self.space.plan(assignment.arch), report.tensors, weight)
            self.sampler.trained(report.client, assignment)
            if self._schedule.own and self._schedule.own(round):
                self.own[report.client] = assignment
            clients.append(row_of(report, assignment, self.space))
        self._merge.finish()
        return summary_of(round, clients)

    def ask(self, round: int, clients: Sequence[ClientInfo]) -> Sequence[Errand]:
        """See `Method.ask`: nothing."""
        return ()

    def remind(self, clients: Sequence[ClientInfo]) -> Sequence[Errand]:
        """See `Method.remind`: nothing."""
        return ()

    def hear(self, round: int, reports: Sequence[TrainReport]) -> None:
        """See `Method.hear`: nothing to tell."""

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
    def networks(self) -> tuple[Arch, ...] | None:
        """See `Method.networks`: any subnet."""
        return None

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


def summary_of(round: int, clients: Sequence[ClientRow]) -> RoundSummary:
    """Return what became of a round from the rows of its clients."""
    rows = sorted(clients, key=lambda row: row.client)
    return RoundSummary(
        round=round,
        loss=mean_of(rows, lambda row: row.loss),
        metrics=means_of(rows),
        bytes_up=sum(row.bytes_up for row in rows),
        bytes_down=sum(row.bytes_down for row in rows),
        client_macs=sum(row.client_macs for row in rows),
        clients=tuple(rows),
    )


def mean_of(clients: Sequence[ClientRow], value: Callable[[ClientRow], float]) -> float | None:
    """Return the mean of one figure over the rows of a round's clients, weighted by examples; None without any."""
    examples = sum(row.examples for row in clients)
    return float(sum(value(row) * row.examples for row in clients)) / examples if examples else None


def means_of(clients: Sequence[ClientRow]) -> Metrics:
    """Return the means of the metrics over the rows of a round's clients, weighted by examples."""
    return {ACCURACY.name: mean_of(clients, lambda row: row.metrics[ACCURACY.name] or 0.0)}


def row_of(report: TrainReport, assignment: Assignment, space: SearchSpace, network: str | None = None) -> ClientRow:
    """Return what an event tells of one client: what it trained and what that took."""
    cost = space.cost(assignment.arch)
    return ClientRow(
        client=report.client,
        role=assignment.role,
        tier=assignment.tier,
        macs=cost.macs,
        params=cost.params,
        examples=report.examples,
        loss=report.loss,
        metrics={ACCURACY.name: report.accuracy},
        client_macs=report.macs,
        seconds=report.seconds,
        bytes_up=report.bytes_up,
        bytes_down=report.bytes_down,
        network=network,
    )


def fixed_arch(config: RunConfig, space: SearchSpace) -> Arch:
    """Return the architecture of methods that train one only: setting ``sample.arch``, or the largest of the space."""
    if not config.sample.arch:
        return space.largest
    try:
        return space.arch(json.loads(config.sample.arch))
    except json.JSONDecodeError as error:
        raise ConfigError(f"setting 'sample.arch' is not JSON ({error}); an example: {space.smallest}") from error
