"""Networks that compete on the clients: the federated loop of FedNAS (Yuan et al., arXiv 2002.06352), shared by DDC.

The search is the server's affair (a `Host`), training and testing are the devices'. After the start network is trained
by federated averaging, iteration by iteration:

1. the host proposes candidates, which have weights of their own;
2. each is trained by a group of clients of its own, groups being drawn anew every round (partial clients);
3. clients that never train test those that are left, and the worst are dropped (early dropping);
4. after the iteration's rounds the host takes the results and makes of them what it will.

At last all clients train what will be delivered. One candidate and one group is federated averaging, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from fednas_core.base.errors import ArchError, RunError
from fednas_core.base.metrics import ACCURACY
from fednas_core.base.seeding import derive
from fednas_core.base.values import Arch, ClientId, Plan, State
from fednas_core.devices.info import ClientInfo, Limit
from fednas_core.exchange.orders import Errand, TrainOrder, TrainReport
from fednas_core.methods.fedavg import Assignment, row_of, summary_of
from fednas_core.methods.host import HOST, STAGES, START, Entrant, Host, Rules, packed, unpacked
from fednas_core.methods.method import RoundSummary
from fednas_core.methods.sides import Sides, able
from fednas_core.methods.story import Described, Dropped, Outcome, Ranked, Story
from fednas_core.search.dropping import Standing, keep
from fednas_core.search.groups import groups
from fednas_core.spaces.space import SearchSpace
from fednas_core.subnets.merge import Merging
from fednas_core.subnets.weightings import ByExamples
from fednas_core.training.settings import TrainSettings


class Contest:
    """A `Method` whose networks compete; `limits` are those for which a network is delivered."""

    own: Mapping[ClientId, Assignment] = {}

    def __init__(
        self,
        space: SearchSpace,
        start: dict[str, Tensor],
        host: Host,
        rules: Rules,
        limits: Sequence[Limit],
        merging: Callable[[dict[str, Tensor]], Merging],
    ) -> None:
        self.space, self._host, self._rules, self._limits, self._merging = space, host, rules, limits, merging
        self._start = Entrant(START, space.largest, start)
        self._stage, self._done = STAGES[0], 0
        self._field: dict[str, Entrant] = {}  # the candidates of this iteration that are left
        self._size = 0  # how many there were at its beginning
        self._waiting: list[str] = []  # those that are yet to train in this round of the iteration, or to finish
        self._last: dict[str, Standing] = {}  # what the last test of each candidate found
        self._trained: set[str] = set()  # those of which a reply was merged in this iteration
        self._sides = Sides(rules.testers, rules.sides)
        self._open: dict[ClientId, tuple[int, Entrant, float]] = {}
        self._running: list[str] = []
        self._teaching = False

    # -- a round ---------------------------------------------------------------------------------------------------

    def plan(
        self, round: int, clients: Sequence[ClientInfo], rng: np.random.Generator
    ) -> Mapping[ClientId, TrainOrder]:
        """See `Method.plan`."""
        self._sides.meet(clients)
        trainers = {client.name: client for client in self._sides.trainers(clients, self._rules.cohort, rng)}
        heat = self._heat(trainers, rng)
        self._open, self._running = {}, [entrant.label for entrant, _ in heat]
        budgets, settings = {client.name: client.budget for client in clients}, self._settings()
        orders = {}
        for entrant, members in ((entrant, members) for entrant, members in heat if members):
            weights = ByExamples().weights(round, {name: trainers[name].examples for name in members}, None)
            for name, weight in weights.items():
                self._open[name] = round, entrant, weight
                orders[name] = TrainOrder(
                    client=name,
                    round=round,
                    task=self._task(name),
                    arch=entrant.arch,
                    tensors=entrant.tensors,
                    settings=settings,
                    seed=derive(self._rules.seed, round, name, "train"),
                    budget=budgets[name],
                )
        return orders

    def _heat(
        self, trainers: Mapping[ClientId, ClientInfo], rng: np.random.Generator
    ) -> list[tuple[Entrant, tuple[ClientId, ...]]]:
        """Return who trains what in this round: a group of clients for each network whose turn it is."""
        if self._stage == STAGES[0] and not self._rules.rounds:
            return []
        if not trainers:
            raise RunError("no client that trains can be reached: start clients, then resume the run")
        everyone, entrants = self._stage != "compete" or self._rules.everyone, self._entrants()
        turn = [entrants[label] for label in self._waiting[: 1 if everyone else None]] or [self._start]
        there = [client for client in trainers.values() if not self._waits(client)]
        ready = {client.name: client for client in there if any(able(client, entrant.arch) for entrant in turn)}
        if there and not ready:
            raise RunError(f"no client that trains has room for network {turn[0].label}: raise the devices' budgets")
        if everyone or not ready:  # without any, all are taught once this round is over
            return [(turn[0], tuple(ready))] if ready else []
        count = min(len(turn) if self._rules.join else self._size, len(ready))
        turn = turn[:count]
        found = groups(
            {name: client.examples for name, client in ready.items()},
            {name: client.labels for name, client in ready.items() if client.labels},
            count,
            rng,
            lambda name, group: group >= len(turn) or able(ready[name], turn[group].arch),
        )
        return list(zip(turn, found, strict=False))

    def absorb(self, round: int, reports: Iterable[TrainReport]) -> RoundSummary:
        """See `Method.absorb`; a client's second report, and one of another round, is passed over."""
        merges, rows = dict[str, Merging](), []
        for report in reports:
            asked = self._open[report.client][0] if report.client in self._open else None
            if not asked == round == report.round:
                continue
            _, entrant, weight = self._open.pop(report.client)
            if entrant.label not in merges:
                merges[entrant.label] = self._merging(entrant.tensors)
            merges[entrant.label].add(_whole(entrant.tensors), report.tensors, weight)
            rows.append(row_of(report, Assignment(entrant.arch, "candidate"), self.space, entrant.label))
        for merge in merges.values():
            merge.finish()
        self._trained |= set(merges)
        self._sides.missed(self._open)
        self._open = {}
        if self._stage == "compete":
            self._waiting = [label for label in self._waiting if label not in self._running]
        if self._stage != "compete" or not self._waiting:
            self._done += 1
        return summary_of(round, rows)

    # -- what follows a round --------------------------------------------------------------------------------------

    def ask(self, round: int, clients: Sequence[ClientInfo]) -> Sequence[Errand]:
        """See `Method.ask`: testing clients test, and clients that are new get to know the teacher."""
        self._sides.meet(clients)
        everyone = sorted(clients, key=lambda client: client.name)
        errands = []
        if self._due():
            tested = list(self._field.values()) or [self._start]
            judges = [client for client in everyone if self._sides.tests(client.name)]
            errands += [Errand(c.name, "trial", e.arch) for c in judges for e in tested if able(c, e.arch)]
        if self._rules.teaches and (self._stage != STAGES[0] or self._done == self._length()):
            new = (c for c in everyone if self._sides.trains(c.name) and not self._sides.taught(c.name))
            errands += [Errand(c.name, "teach", self._start.arch) for c in new if able(c, self._start.arch)]
        self._teaching = any(errand.task == "teach" for errand in errands)
        return errands

    def remind(self, clients: Sequence[ClientInfo]) -> Sequence[Errand]:
        """See `Method.remind`: whoever was taught is taught again, for devices may have lost what they kept."""
        taught = (client.name for client in clients if self._sides.taught(client.name))
        return [Errand(name, "teach", self._start.arch) for name in sorted(taught)]

    def hear(self, round: int, reports: Sequence[TrainReport]) -> Story:
        """See `Method.hear`: drop losers, begin the next iteration; `RunError` if nobody tested or was taught."""
        self._sides.learn(reports)
        if self._teaching and not self._sides.somebody_taught:
            raise RunError(
                "no client could keep the teacher, so that nobody can learn from it: see that devices have room where "
                "their private state lies, then resume the run"
            )
        final = self._done == self._length()
        told = Story(
            kind=self._host.kind,
            stage=self._stage,
            iteration=self._host.iteration + (self._stage == "compete"),
            round=self._done,
            of=self._length(),
            alive=tuple(self._field),
            over=False,
        )
        if self._due():
            told = self._judge(reports, final, told)
        if self._stage == "compete" and not self._waiting:
            self._waiting = list(self._field)
        if self._stage == "finish":
            told = replace(told, finishing=self._waiting[0])
        if final:
            told = self._next(told)
        return replace(told, over=self._stage == "over")

    def _judge(self, reports: Sequence[TrainReport], final: bool, told: Story) -> Story:
        """Take the findings of a test: they rank the candidates; before the iteration's end the worst are dropped.

        Returns the story with what came of it.

        What was found of a candidate that nobody trained says nothing of it, and counts as not tested.
        """
        tested = self._field or {START: self._start}
        cheapest_first = sorted(tested.values(), key=lambda entrant: self.space.cost(entrant.arch))
        results = self._sides.results(reports, {entrant.arch: entrant.label for entrant in cheapest_first})
        if not any(results.values()):
            raise RunError(
                "no testing client gave a usable answer, so that nobody knows which network is better: start clients "
                "that test and hold images of the run's classes, then resume the run; with data.only, begin a run that "
                "names classes which they hold"
            )
        results |= {label: {} for label in self._field if label not in self._trained}
        verdict = keep(results, 0.0 if final else self._rules.drop, self._rules.margin)
        ranking = {standing.label: standing for standing in verdict.ranking}
        self._last |= ranking
        told = replace(
            told,
            tests=tuple(_test(standing) for standing in verdict.ranking if standing.images),
            dropped=tuple(Dropped(network=label, reason=reason) for label, reason in verdict.dropped.items()),
        )
        if self._stage == STAGES[0]:
            self._host.begin(self._start, ranking[START].accuracy)
            told = replace(told, start=self._described(self._start))
        elif final:
            dropped = (s for label, s in self._last.items() if label not in ranking)
            left = [s for s in verdict.ranking if s.images]
            standings = [*left, *sorted((s for s in dropped if s.images), key=lambda s: -s.accuracy)]
            self._host.conclude({s.label: self._field[s.label] for s in left}, standings)
            family = tuple(entrant.label for entrant in self._host.family)
            told = replace(told, outcome=Outcome(winner=left[0].label if left else None, family=family))
        self._field = {label: entrant for label, entrant in self._field.items() if label in verdict.kept}
        return told

    def _next(self, told: Story) -> Story:
        """Begin what comes after the start, an iteration, or the last round of one that is to finish; tell of it."""
        self._done, self._last, self._trained = 0, {}, set()
        if self._stage in ("start", "compete"):
            entrants = self._host.propose()
            told = replace(told, own=self._host.story())
            self._field = {entrant.label: entrant for entrant in entrants}
            self._size, self._waiting = len(entrants), list(self._field)
            if entrants:
                self._stage = "compete"
                return replace(told, candidates=tuple(self._described(entrant) for entrant in entrants))
            finalists = self._host.finalists(self._limits) if self._rules.finish else []
            self._stage, self._waiting = "finish", [entrant.label for entrant in finalists]
        else:
            self._waiting = self._waiting[1:]
        if not self._waiting:
            self._stage = "over"
        return told

    # -- clients ---------------------------------------------------------------------------------------------------

    def _waits(self, client: ClientInfo) -> bool:
        """Whether a client is to be taught before it trains what learns from the start network."""
        due = self._rules.teaches and self._stage != STAGES[0]
        return due and able(client, self._start.arch) and not self._sides.taught(client.name)

    def _task(self, client: ClientId) -> str:
        """Return what a client does; one that has no room for the teacher learns from labels alone."""
        untaught = self._rules.teaches and not self._sides.taught(client)
        return "subnet" if self._stage == STAGES[0] or untaught else self._rules.task

    # -- where the contest stands ----------------------------------------------------------------------------------

    def _length(self) -> int:
        """Return how many rounds what goes on now takes."""
        if self._stage == "compete":
            return self._rules.contest(self._host.iteration)
        return max(1, self._rules.rounds) if self._stage == STAGES[0] else self._rules.finish

    def _due(self) -> bool:
        """Whether networks are to be tested after the round that was absorbed."""
        if self._stage not in ("start", "compete") or self._waiting:
            return False
        drops = self._rules.drop > 0 and self._stage == "compete" and len(self._field) > 1
        return self._done == self._length() or (drops and self._done % self._rules.every == 0)

    def _settings(self) -> TrainSettings:
        return self._rules.settings(self._stage, self._done, self._length())

    def _described(self, entrant: Entrant) -> Described:
        cost = self.space.cost(entrant.arch)
        return Described(
            network=entrant.label,
            parent=entrant.parent,
            arch=entrant.arch.to_json(),
            shape=self.space.describe(entrant.arch),
            macs=cost.macs,
            params=cost.params,
            bytes=cost.bytes,
        )

    @property
    def sides(self) -> Mapping[ClientId, bool]:
        """Whether each client tests, of those that were met."""
        return self._sides.settled

    def trains(self, client: ClientId) -> bool:
        """See `Method.trains`; one that was not met yet may."""
        return client not in self.sides or self._sides.trains(client)

    def done(self, round: int) -> bool:
        """See `Method.done`."""
        return self._stage == "over"

    # -- networks and state ----------------------------------------------------------------------------------------

    def _entrants(self) -> dict[str, Entrant]:
        return {e.label: e for e in (self._start, *self._host.family, *self._field.values())}

    def weights(self) -> Mapping[str, Tensor]:
        """See `Method.weights`: the start network."""
        return self._start.tensors

    def network(self, arch: Arch) -> Mapping[str, Tensor]:
        """See `Method.network`; raise `RunError` for one that does not take part."""
        for entrant in reversed(self._entrants().values()):
            if entrant.arch == arch:
                return entrant.tensors
        raise RunError(f"the network {arch} is none of this run's: {', '.join(self._entrants())} are")

    @property
    def networks(self) -> tuple[Arch, ...] | None:
        """See `Method.networks`: the family, the leading network first, and the start."""
        return tuple(dict.fromkeys(e.arch for e in (*reversed(self._host.family), self._start)))

    def state(self) -> State:
        """See `Method.state`."""
        host, (tensors, described) = self._host.state(), packed(self._entrants().values())
        data = {
            "entrants": described,
            "family": [entrant.label for entrant in self._host.family],
            "field": list(self._field),
            "size": self._size,
            "waiting": list(self._waiting),
            "stage": self._stage,
            "done": self._done,
            "trained": sorted(self._trained),
            "last": {label: [s.accuracy, s.gap, s.se, s.images] for label, s in self._last.items()},
            "sides": self._sides.state(),
            "host": dict(host.data),
        }
        return State({**tensors, **{f"{HOST}/{name}": tensor for name, tensor in host.tensors.items()}}, data)

    def restore(self, state: State) -> None:
        """See `Method.restore`; raise `RunError` for the state of another method or search space."""
        try:
            self._restore(state)
        except (ArchError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"the checkpoint does not fit the settings ({error!r}): its method and search space must be those of "
                "the run that wrote it"
            ) from error

    def _restore(self, state: State) -> None:
        data, entrants = state.data, unpacked(self.space, state.tensors, state.data["entrants"])
        self._start = entrants[START]
        own = {name.removeprefix(f"{HOST}/"): t for name, t in state.tensors.items() if name.startswith(f"{HOST}/")}
        self._host.restore(State(own, data["host"]), [entrants[label] for label in data["family"]])
        self._field = {label: entrants[label] for label in data["field"]}
        self._size, self._waiting = int(data["size"]), list(data["waiting"])
        self._stage, self._done = STAGES[STAGES.index(data["stage"])], int(data["done"])
        self._last = {label: Standing(label, *found) for label, found in data["last"].items()}
        self._trained = set(data["trained"])
        self._sides.restore(data["sides"])
        self._open = {}


def _test(standing: Standing) -> Ranked:
    found = {ACCURACY.name: standing.accuracy}
    return Ranked(network=standing.label, metrics=found, gap=standing.gap, se=standing.se)


def _whole(tensors: Mapping[str, Tensor]) -> Plan:
    """Return the plan of a network that is all there is: every tensor whole."""
    return {name: tuple(slice(0, side) for side in tensor.shape) for name, tensor in tensors.items()}
