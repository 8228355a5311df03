"""FedNAS (Yuan et al., arXiv 2002.06352): candidates are made on the server, trained briefly and tested on devices.

Server, from a trained network on: propose candidates; let each be trained by a group of clients of its own; let other
clients test them, and drop the losers early; give later iterations, whose candidates are more alike, more rounds; the
winner is the next iteration's start. That loop is `fednas_core.methods.contest`; here is what it searches with:
`NetAdapt` leaves a family of networks of falling cost, `Evolution` looks for the best trade of accuracy for cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.seeding import stream
from fednas_core.base.values import Arch, State
from fednas_core.devices.info import Limit
from fednas_core.methods.contest import Contest
from fednas_core.methods.host import Entrant, Rules
from fednas_core.methods.setup import Setup, annealed, merging, resource_of, scheduled
from fednas_core.search.dropping import Standing
from fednas_core.search.ledger import dynamic_rounds
from fednas_core.search.mnas import children, score
from fednas_core.search.netadapt import Resource, proposals, step_size
from fednas_core.spaces.sorting import rank_filters
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.packing import extract, nested
from fednas_core.training.settings import TrainSettings, train_settings

ITERATIONS = 12
LEAST_STEP = 1e-4
"""Share of the start's resource below which nothing is worth an iteration."""
CHILDREN = 8
"""Candidates of an iteration of evolution."""
POPULATION = 16
"""How many of the youngest have children."""


def fednas(setup: Setup) -> Contest:
    """Return the method that the settings describe."""
    config, given = setup.config, setup.config.fednas
    iterations = config.contest.iterations or ITERATIONS
    resource = resource_of(setup, given.resource)
    search = Evolution if given.search == "evolution" else NetAdapt
    rounds = dynamic_rounds(given.rounds_min, max(given.rounds_min, given.rounds_max), iterations)
    rules = Rules(
        rounds=0 if config.contest.start else config.rounds,
        contest=lambda iteration: rounds[min(iteration, iterations - 1)],
        finish=config.contest.finish,
        settings=_settings(config),
        seed=config.seed,
        cohort=config.cohort,
        everyone=config.contest.clients == "all",
        testers=round(1 / config.contest.testers),
        sides=setup.sides,
        every=given.drop_every,
        drop=given.drop,
        margin=given.margin,
        join=given.freed == "join",
    )
    host = search(setup, resource, iterations)
    return Contest(setup.space, setup.weights, host, rules, setup.limits, lambda tensors: merging(config, tensors))


def _settings(config: RunConfig) -> Any:
    """Return how clients train: candidates at a constant low rate, what is delivered from the full one to nothing."""
    start = scheduled(config)

    def settings(stage: str, index: int, of: int) -> TrainSettings:
        if stage == "start":
            return start(index)
        if stage == "finish":
            return annealed(train_settings(config.train), index, of)
        return replace(train_settings(config.train), lr=config.fednas.lr * config.train.lr)

    return settings


class NetAdapt:
    """The host search (Yang et al., ECCV 2018): one candidate for each layer group, and the best is the next start."""

    def __init__(self, setup: Setup, resource: Resource, iterations: int) -> None:
        self._space, self._resource, self._given = setup.space, resource, setup.config.fednas
        self._iterations, self._most = iterations, setup.config.contest.candidates
        self._unmet = [limit for limit in setup.limits if not limit.allows(setup.space.largest)]
        self.iteration = 0
        self.family: list[Entrant] = []

    def begin(self, start: Entrant, accuracy: float) -> None:
        """See `Host.begin`."""
        self.family = [start]

    def propose(self) -> Sequence[Entrant]:
        """See `Host.propose`: every network that saves this iteration's share of the resource in one place.

        Where no single place can save so much, half of it will do, and so on.
        """
        base, full = self.family[-1], self._resource(self._space.largest)
        if self.iteration >= self._iterations or self._met(base.arch):
            return ()
        archs, step = tuple[Arch, ...](), step_size(full, self._given.step, self._given.decay, self.iteration)
        while not archs and step > LEAST_STEP * full:
            wanted = max(self._resource(base.arch) - step, self._given.target * full)
            archs = proposals(self._space, base.arch, self._resource, wanted, self._space.shrinkable)
            step /= 2
        nearest = sorted(archs, key=lambda arch: -self._resource(arch))[: self._most or None]
        rank_filters(self._space, base.arch, base.tensors)
        return inheriting(self._space, base, [arch for arch in archs if arch in nearest], self.iteration + 1)

    def _met(self, arch: Arch) -> bool:
        """Whether a network takes so little that the search is over."""
        if self._given.target:
            return self._resource(arch) <= self._given.target * self._resource(self._space.largest)
        return bool(self._unmet) and all(limit.allows(arch) for limit in self._unmet)

    def conclude(self, entrants: Mapping[str, Entrant], standings: Sequence[Standing]) -> None:
        """See `Host.conclude`: the most accurate candidate, of equals the cheapest, is the next iteration's start.

        Without any that is known, the last start is.
        """
        self.family += [entrants[one.label] for one in standings if one.label in entrants][:1]
        self.iteration += 1

    def finalists(self, limits: Sequence[Limit]) -> Sequence[Entrant]:
        """See `Host.finalists`."""
        return delivered(self._space, self.family, limits)

    def story(self) -> dict[str, Any]:
        """See `Host.story`: what the leading network takes."""
        return {"resource": self._given.resource, "takes": self._resource(self.family[-1].arch)}

    def state(self) -> State:
        """See `Host.state`."""
        return State({}, {"iteration": self.iteration})

    def restore(self, state: State, family: list[Entrant]) -> None:
        """See `Host.restore`."""
        self.iteration, self.family = int(state.data["iteration"]), family


class Evolution:
    """The second host search: MnasNet-style evolution of the score accuracy·(resource/T)^w (Tan et al., CVPR 2019).

    T is ``fednas.target`` of what the start takes, half of it if that is 0. Candidates inherit from the start network.
    """

    def __init__(self, setup: Setup, resource: Resource, iterations: int) -> None:
        self._space, self._resource, self._given = setup.space, resource, setup.config.fednas
        self._iterations, self._seed = iterations, setup.config.seed
        self._count = setup.config.contest.candidates or CHILDREN
        self._judged: dict[Arch, float] = {}
        self._proposed: dict[str, Arch] = {}  # by label: those that were dropped are scored as well
        self._scores: dict[str, float] = {}
        self.iteration = 0
        self.family: list[Entrant] = []

    def begin(self, start: Entrant, accuracy: float) -> None:
        """See `Host.begin`."""
        rank_filters(self._space, start.arch, start.tensors)
        self.family = [start]
        self._judged = {start.arch: self._score(start.arch, accuracy)}

    def propose(self) -> Sequence[Entrant]:
        """See `Host.propose`: children of the best of the youngest."""
        if self.iteration >= self._iterations:
            return ()
        young = list(self._judged.items())[-POPULATION:] if self.iteration else []
        rng = stream(self._seed, self.iteration, "evolution")
        found = children(self._space, young, self._count, rng, lambda arch: True, self._judged)
        start = next(entrant for entrant in self.family if entrant.arch == self._space.largest)
        entrants = inheriting(self._space, start, [child.arch for child in found], self.iteration + 1)
        self._proposed = {entrant.label: entrant.arch for entrant in entrants}
        return entrants

    def conclude(self, entrants: Mapping[str, Entrant], standings: Sequence[Standing]) -> None:
        """See `Host.conclude`: all are scored; the start is kept, and whoever else scores better than any before.

        A child of which nothing is known may be proposed again.
        """
        best = max(self._judged[entrant.arch] for entrant in self.family)
        self._scores = {one.label: self._score(self._proposed[one.label], one.accuracy) for one in standings}
        self._judged |= {self._proposed[label]: score for label, score in self._scores.items()}
        better = [entrant for entrant in entrants.values() if self._judged[entrant.arch] > best]
        better.sort(key=lambda entrant: (-self._judged[entrant.arch], self._space.cost(entrant.arch)))
        self.family += better[:1]
        self.iteration += 1

    def _score(self, arch: Arch, accuracy: float) -> float:
        target = (self._given.target or 0.5) * self._resource(self._space.largest)
        return score(accuracy, self._resource(arch), target, self._given.exponent)

    def finalists(self, limits: Sequence[Limit]) -> Sequence[Entrant]:
        """See `Host.finalists`."""
        return delivered(self._space, self.family, limits)

    def story(self) -> dict[str, Any]:
        """See `Host.story`: the best score so far, and those of the last candidates."""
        scores, self._scores = self._scores, {}
        return {"score": self._judged[self.family[-1].arch], "scores": scores}

    def state(self) -> State:
        """See `Host.state`."""
        judged = [[arch.to_json(), value] for arch, value in self._judged.items()]
        proposed = {label: arch.to_json() for label, arch in self._proposed.items()}
        return State({}, {"iteration": self.iteration, "judged": judged, "proposed": proposed})

    def restore(self, state: State, family: list[Entrant]) -> None:
        """See `Host.restore`."""
        self.iteration, self.family = int(state.data["iteration"]), family
        self._judged = {self._space.arch(genes): float(value) for genes, value in state.data["judged"]}
        self._proposed = {label: self._space.arch(genes) for label, genes in state.data["proposed"].items()}


def inheriting(space: Elastic, parent: Entrant, archs: Sequence[Arch], iteration: int) -> list[Entrant]:
    """Return entrants ``<iteration>.<number>`` that inherit the first, most important filters of their parent."""
    whole = space.plan(parent.arch)

    def inherited(arch: Arch) -> dict[str, Tensor]:
        return extract(parent.tensors, nested(space.plan(arch), whole))

    return [
        Entrant(f"{iteration}.{number}", arch, inherited(arch), parent.label)
        for number, arch in enumerate(archs, start=1)
    ]


def delivered(space: Elastic, family: Sequence[Entrant], limits: Sequence[Limit]) -> list[Entrant]:
    """Return of a family, for each limit, the dearest network that it allows, and the leader; not the start."""
    dearest = sorted(family, key=lambda entrant: -space.cost(entrant.arch).macs)
    fitting = (next((e for e in dearest if limit.allows(e.arch)), None) for limit in limits)
    return [e for e in dict.fromkeys([*fitting, family[-1]]) if e is not None and e.parent]
