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
from fednas_core.exchange.orders import WEIGHTS, Answer, Order
from fednas_core.methods.fedavg import row_of
from fednas_core.methods.host import HOST, STAGES, START, Entrant, Host, Rules, packed, unpacked
from fednas_core.methods.method import NO_ROOM, Ask, Assignment, Catalogue, Told, request
from fednas_core.methods.sides import Sides, able
from fednas_core.methods.story import Described, Dropped, Outcome, Ranked, Story
from fednas_core.search.dropping import Standing, keep
from fednas_core.search.groups import groups
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.merge import Merging
from fednas_core.subnets.weightings import ByExamples
from fednas_core.training.settings import TrainSettings


class Contest:
    """A `Method` whose networks compete; `limits` are those for which a network is delivered."""

    def __init__(
        self,
        space: Elastic,
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

    def ask(self, round: int, turn: int, clients: Sequence[ClientInfo], rng: np.random.Generator) -> Ask | None:
        """See `Method.ask`: networks are trained, then what is left to do is done with them as they are."""
        if turn > 1:
            return None
        return self._follow_up(round, clients) if turn else self._training(round, clients, rng)

    def _training(self, round: int, clients: Sequence[ClientInfo], rng: np.random.Generator) -> Ask:
        self._sides.meet(clients)
        trainers = {client.name: client for client in self._sides.trainers(clients, self._rules.cohort, rng)}
        heat = self._heat(trainers, rng)
        self._open, self._running = {}, [entrant.label for entrant, _ in heat]
        settings, orders = self._settings(), dict[ClientId, Order]()
        for entrant, members in heat:
            examples = {name: trainers[name].examples for name in members}
            for name, weight in (ByExamples().weights(round, examples, None) if members else {}).items():
                self._open[name] = round, entrant, weight
                task, seed = self._task(name), derive(self._rules.seed, round, name, "train")
                params = self._rules.params(settings) if task == self._rules.task else settings
                channels = {WEIGHTS: entrant.tensors}
                orders[name] = Order(name, round, task, entrant.arch, channels, params, seed, trainers[name].budget)
        archs = [entrant.arch for entrant, members in heat if members]
        out = [client for client in clients if archs and not any(able(client, arch) for arch in archs)]
        return Ask(round, tuple(orders.values()), {client.name: NO_ROOM for client in out})

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

    def tell(self, ask: Ask, answers: Iterable[Answer]) -> Told:
        """See `Method.tell`: merge what was trained, or take what was found and begin what comes next."""
        return Told(story=self._hear(list(answers))) if ask.requests else self._merge(ask, answers)

    def _merge(self, ask: Ask, answers: Iterable[Answer]) -> Told:
        """Merge what was trained; a client's second answer, and one of another round, is passed over."""
        merges, rows = dict[str, Merging](), []
        for answer in answers:
            asked = self._open[answer.client][0] if answer.client in self._open else None
            if not asked == ask.round == answer.round:
                continue
            _, entrant, weight = self._open.pop(answer.client)
            if entrant.label not in merges:
                merges[entrant.label] = self._merging(entrant.tensors)
            merges[entrant.label].add(_whole(entrant.tensors), answer.weights, weight)
            rows.append(row_of(answer, Assignment(entrant.arch, "candidate"), self.space, entrant.label))
        for merge in merges.values():
            merge.finish()
        self._trained |= set(merges)
        self._sides.missed(self._open)
        self._open = {}
        if self._stage == "compete":
            self._waiting = [label for label in self._waiting if label not in self._running]
        if self._stage != "compete" or not self._waiting:
            self._done += 1
        return Told(tuple(rows))

    # -- what follows a round --------------------------------------------------------------------------------------

    def _follow_up(self, round: int, clients: Sequence[ClientInfo]) -> Ask:
        """Let testing clients test, and clients that are new get to know the teacher."""
        self._sides.meet(clients)
        everyone, orders = sorted(clients, key=lambda client: client.name), list[Order]()
        if self._due():
            tested = list(self._field.values()) or [self._start]
            for client in everyone:
                if self._sides.tests(client.name):
                    able_to = [entrant.arch for entrant in tested if able(client, entrant.arch)]
                    orders += [request(round, client.name, "trial", arch) for arch in able_to]
        if self._rules.teaches and (self._stage != STAGES[0] or self._done == self._length()):
            for client in everyone:
                new = self._sides.trains(client.name) and not self._sides.taught(client.name)
                if new and able(client, self._start.arch):
                    orders.append(request(round, client.name, "teach", self._start.arch))
        self._teaching = any(order.task == "teach" for order in orders)
        return Ask(round, tuple(orders), requests=True)

    def remind(self, round: int, clients: Sequence[ClientInfo]) -> Ask | None:
        """See `Method.remind`: whoever was taught is taught again, for devices may have lost what they kept."""
        taught = sorted(client.name for client in clients if self._sides.taught(client.name))
        return Ask(round, tuple(request(round, name, "teach", self._start.arch) for name in taught), requests=True)

    def _hear(self, answers: Sequence[Answer]) -> Story:
        """Drop losers, begin the next iteration; raise `RunError` if nobody tested or was taught."""
        self._sides.learn(answers)
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
            told = self._judge(answers, final, told)
        if self._stage == "compete" and not self._waiting:
            self._waiting = list(self._field)
        if self._stage == "finish":
            told = replace(told, finishing=self._waiting[0])
        if final:
            told = self._next(told)
        return replace(told, over=self._stage == "over")

    def _judge(self, answers: Sequence[Answer], final: bool, told: Story) -> Story:
        """Take the findings of a test: they rank the candidates; before the iteration's end the worst are dropped.

        Returns the story with what came of it.

        What was found of a candidate that nobody trained says nothing of it, and counts as not tested.
        """
        tested = self._field or {START: self._start}
        cheapest_first = sorted(tested.values(), key=lambda entrant: self.space.cost(entrant.arch))
        results = self._sides.results(answers, {entrant.arch: entrant.label for entrant in cheapest_first})
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
        """Whether networks are to be tested after the training that was merged."""
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

    def trains(self, client: ClientId) -> bool:
        """See `Method.trains`; one that was not met yet may."""
        return client not in self._sides.settled or self._sides.trains(client)

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
    def catalogue(self) -> Catalogue:
        """See `Method.catalogue`: the family, the leading network first, and the start."""
        return Catalogue(tuple(dict.fromkeys(e.arch for e in (*reversed(self._host.family), self._start))))

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
