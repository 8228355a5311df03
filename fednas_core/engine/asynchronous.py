"""The asynchronous loop: every reply is absorbed when it arrives, so that nobody waits for stragglers.

A reply that s others overtook moves the coordinates it covers by a share of its update:
``w ← w + rate·(1 + s)^(−power)·(w_k − w_sent)``. The weight is the polynomial one of FedAsync (Xie et al., arXiv
1903.03934); the update is added, as in FedBuff (Nguyen et al., AISTATS 2022), instead of mixing in the old weights.
Any `Method` can be used: it is given one report at a time, which holds what the weights are to become. What it weighs
clients with against each other has no effect here. Clients that have become free get new orders a few together, since
a method plans for a cohort.

A round of the event log is as many answers as the cohort has clients. Who overtakes whom depends on clocks: unlike the
synchronous loop, this one does not promise that a history repeats. Work that is under way when a run is stopped is
lost, and done anew when the run is resumed.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError, ReplyError
from fednas_core.base.seeding import derive, stream
from fednas_core.base.values import ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.collect import Outcome, collect, why
from fednas_core.engine.rounds import Model, event_of, everyone_of, longest_first
from fednas_core.exchange.orders import WEIGHTS, Answer, Failure, Fleet, Order
from fednas_core.exchange.processors.norms import ENOUGH, check_norm, clip_share, update_norm, usual_norm
from fednas_core.methods.method import Ask, Method
from fednas_core.methods.story import ClientRow
from fednas_core.runs.record import RoundEvent, Staleness
from fednas_core.subnets.merge import largest_allowed
from fednas_core.subnets.packing import views
from fednas_core.tasks.bench import space_of

SMALLEST_WAVE = 2
"""Clients that get new orders together at least, unless the settings say: a sandwich has two ends."""


def rounds(
    config: RunConfig,
    method: Method,
    fleet: Fleet,
    start: int,
    usual: float | None = None,
    run: str = "",
    model: Model | None = None,
) -> Iterator[RoundEvent]:
    """Conduct rounds from number `start` (from 0) on until the method is done, and yield the event of each.

    `usual` is the last event's `update_norm`, if there was one; `run` the run's id, which the orders carry. Methods
    that request anything besides training are not for this loop, so that no `model` is needed. Clients go on working
    while an event is looked at; what they still have in hand after the last one is dropped. Raises `ConfigError` for a
    merge that needs replies side by side, `RunError` if no client gives a usable answer.
    """
    if config.merge.rule != "overlap" or config.merge.opposed < 1:
        raise ConfigError(
            "settings 'merge.rule' and 'merge.opposed' compare the replies of a round, and loop 'async' absorbs them "
            "one by one: allowed there are rule overlap and opposed 1; merge.clip and merge.outlier hold there too"
        )
    work = _Work(config, method, fleet, usual, run)
    try:
        index = start
        while not method.done(index):
            work.open(index)
            while work.due > 0 and (outcome := work.next_outcome()):
                work.take(*outcome)
            index += 1
            yield work.event()
    finally:
        work.leave()


@dataclass(frozen=True, slots=True)
class _Job:
    """An order that is being carried out, and how many replies had been merged when it was given."""

    order: Order
    merges: int


@dataclass(frozen=True, slots=True)
class _Usable:
    """A reply that can be merged, the job it came of, and the norm of its update."""

    answer: Answer
    job: _Job
    norm: float


class _Work:
    """Who is at work, what has come in of the present round, and which norm is usual."""

    def __init__(self, config: RunConfig, method: Method, fleet: Fleet, usual: float | None, run: str) -> None:
        self._config, self._method, self._fleet, self._usual, self._run = config, method, fleet, usual, run
        self._space = space_of(config)
        self._norms: list[float] = []
        self._jobs: dict[ClientId, _Job] = {}
        self._infos: dict[ClientId, ClientInfo] = {}
        self._merges = 0
        self._more: deque[Order] = deque()
        self._outcomes: Iterator[tuple[Order, Outcome]] = iter(())

    def open(self, index: int) -> None:
        """Begin round number `index`: see who is there."""
        self._round, self._since, self._waves = index, time.monotonic(), 0
        self._everyone = everyone_of(self._fleet)
        self._size = self.due = min(self._config.cohort or len(self._everyone), len(self._everyone))
        self._limit = largest_allowed(self._method.weights())
        self._resting: set[ClientId] = set()  # who failed is not asked again before the next round
        self._failures: list[tuple[ClientId, str]] = []
        self._waiting: list[_Usable] = []
        self._merged: list[ClientRow] = []

    # -- who does what ---------------------------------------------------------------------------------------------

    def next_outcome(self) -> tuple[Order, Outcome] | None:
        """Return what comes next of an order, after giving some to those who are free; None if there is nobody left."""
        self._more.extend(self._wave())
        outcome = next(self._outcomes, None)
        if outcome is None and self._more:
            orders = list(self._more)
            self._more.clear()
            self._outcomes = collect(self._fleet, orders, self._infos, limit=lambda: self._limit, more=self._more)
            outcome = next(self._outcomes, None)
        return outcome

    def leave(self) -> None:
        """Drop whatever is still being done."""
        self._more.clear()
        if isinstance(self._outcomes, Generator):
            self._outcomes.close()

    def _wave(self) -> list[Order]:
        """Return orders for clients that are free, if there are enough of them or nobody is at work."""
        if self._method.done(self._round + 1) and len(self._jobs) >= self.due:
            return []  # enough is under way to end the run
        busy = self._jobs.keys() | {usable.answer.client for usable in self._waiting}
        free = [c for c in self._everyone if c.name not in busy | self._resting]
        count = min(self._size - len(busy), len(free))
        enough = min(self._size, self._config.stale.batch or max(SMALLEST_WAVE, -(-self._size // 4)))
        if count < (enough if self._jobs else 1):
            return []
        self._waves += 1
        drawn = stream(self._config.seed, self._round, "wave", self._waves).choice(len(free), count, replace=False)
        chosen = [free[i] for i in sorted(drawn)]
        rng = stream(self._config.seed, self._round, "plan", self._waves)
        ask = self._method.ask(self._round, 0, chosen, rng)
        if ask is None:
            return []
        self._infos |= {client.name: client for client in chosen}
        for client, reason in ask.left_out.items():
            self._fail(client, reason)
        snapshot = {name: tensor.clone() for name, tensor in self._method.weights().items()}
        given = []
        for order in longest_first(ask.orders, chosen, self._space, self._run):
            tensors = views(snapshot, self._space.plan(order.arch))
            seed = derive(order.seed, "wave", self._waves)
            given.append(replace(order, channels={WEIGHTS: tensors}, seed=seed))
        self._jobs |= {order.client: _Job(order, self._merges) for order in given}
        return given

    # -- what comes of it ------------------------------------------------------------------------------------------

    def take(self, order: Order, outcome: Outcome) -> None:
        """Take what came of an order and merge it, as soon as enough is there to tell which norm is usual."""
        job = self._jobs.pop(order.client)
        self.due -= 1
        if isinstance(outcome, Failure):
            self._fail(outcome.client, outcome.reason)
        else:
            norm = update_norm(outcome.weights, order.weights)
            self._waiting.append(_Usable(outcome, job, norm))
        enough = self._usual or len(self._norms) + len(self._waiting) >= ENOUGH
        if enough or not self._jobs or self.due <= 0:
            self._merge_waiting()

    def event(self) -> RoundEvent:
        """Return the event of the round."""
        rows = self._merged
        event = event_of(self._round, rows, self._failures, time.monotonic() - self._since)
        ages = [row.staleness or 0 for row in rows]
        stale = Staleness(mean=statistics.mean(ages), max=max(ages))
        return replace(event, update_norm=statistics.median_low(self._norms), staleness=stale)

    def _fail(self, client: ClientId, reason: str) -> None:
        self._failures.append((client, reason))
        self._resting.add(client)

    def _merge_waiting(self) -> None:
        usual = usual_norm([*self._norms, *(usable.norm for usable in self._waiting)], self._usual)
        for usable in self._waiting:
            try:
                self._merge(usable, usual)
            except ReplyError as error:
                self._fail(usable.answer.client, why(error, usable.answer.client))
        self._waiting.clear()

    def _merge(self, usable: _Usable, usual: float | None) -> None:
        """Move the weights by a share of the update; raise `ReplyError` if it is too old or too far out."""
        answer, job, stale = usable.answer, usable.job, self._config.stale
        age = self._merges - job.merges
        if stale.limit and age > stale.limit:
            raise ReplyError(f"{age} other replies overtook it, allowed are {stale.limit} (stale.limit)")
        check_norm(answer.client, usable.norm, usual, self._config.merge.outlier)
        share = stale.rate * (1 + age) ** -stale.power * clip_share(self._config.merge.clip, usable.norm, usual)
        moved = replace(answer, channels={WEIGHTS: self._moved(answer, job, share)})
        told = self._method.tell(Ask(job.order.round, (job.order,)), [moved])
        if told.rows:
            self._merges += 1
            self._norms = [*self._norms, usable.norm][-max(ENOUGH, self._size) :]
            self._merged.append(replace(told.rows[0], update_norm=usable.norm, staleness=age))

    def _moved(self, answer: Answer, job: _Job, share: float) -> dict[str, Tensor]:
        """Return what the weights become that the answer covers."""
        now = views(self._method.weights(), self._space.plan(answer.arch))
        moved = torch._foreach_sub([answer.weights[name] for name in now], [job.order.weights[name] for name in now])
        torch._foreach_mul_(moved, share)
        torch._foreach_add_(moved, list(now.values()))
        return dict(zip(now, moved, strict=True))
