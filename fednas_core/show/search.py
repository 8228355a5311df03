"""The search tree of a run whose networks compete: which candidates there were, and what became of each.

Everything here reads the stories that methods whose networks compete tell, and who trained which network. Networks go
by their labels, ``<iteration>.<number>``, and ``start``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fednas_core.base.metrics import Metrics
from fednas_core.base.typed import measured, object_of
from fednas_core.methods.story import ClientRow, Described, Genes, Ranked, Rewards, Story
from fednas_core.runs.record import RoundEvent
from fednas_core.show.kinds import words

START = "start"
"""The network that all others are made from."""
UNTESTED = "no client trained and tested it"
"""Why nothing is known of a candidate that is left when its iteration is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedAt:
    """A test of a network after a round of the run: its metrics, the gap to the best and that gap's standard error."""

    round: int
    metrics: Metrics = field(metadata=measured(""))
    gap: float
    se: float


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a network (start, running, winner, dropped or lost), and the round of the run that decided it."""

    outcome: str
    ended: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One network of the search.

    `rounds` are those in which clients trained it to compete (the start: at all), `finishing` those in which they
    trained it to be delivered; `clients` and what they spent are of both. `score` is what the search ranks it by
    (evolution's score, DDC's reward), None where that is the run's metric alone. `outcome`, `ended` and `reason` are
    those of its `Fate`. Of a start that the events do not describe, shape and arch are unknown.
    """

    network: str
    parent: str
    iteration: int
    shape: str
    arch: Genes | None
    macs: int
    params: int
    bytes: int | None
    rounds: int
    finishing: int
    clients: tuple[str, ...]
    client_macs: int
    client_bytes: int
    client_seconds: float
    tests: tuple[RankedAt, ...]
    score: float | None
    outcome: str
    ended: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Effort:
    """Client-rounds of the iterations that are over, and what they would have been without savings.

    An iteration without new candidates, as DDC has them, counts as one. `straightforward` is
    ``candidates·rounds·clients``: every training client trains every candidate, for the most rounds of any iteration.
    """

    candidates: int
    iterations: int
    spent: int
    straightforward: int

    @property
    def saving(self) -> float:
        """How many times less work was done."""
        return self.straightforward / self.spent if self.spent else 0.0


@dataclass(slots=True)
class _Trained:
    """What clients' rows say of one network."""

    row: ClientRow
    rounds: int = 0
    finishing: int = 0
    clients: dict[str, None] = field(default_factory=dict)
    macs: int = 0
    bytes: int = 0
    seconds: float = 0.0


Found = Sequence[tuple[RoundEvent, Story]]


def searches(events: Iterable[RoundEvent]) -> list[tuple[RoundEvent, Story]]:
    """Return the events that tell of a search, each with what it tells; none of a run of other methods."""
    return [(event, event.search) for event in events if event.search]


def tree(events: Iterable[RoundEvent]) -> list[dict[str, object]]:
    """Return the candidates as JSON: the content of ``search.json``."""
    return [object_of(candidate) for candidate in tree_of(events)]


def tree_of(events: Iterable[RoundEvent]) -> list[Candidate]:
    """Return the start and all candidates in the order in which they were made; nothing where nothing competes."""
    found = searches(events)
    if not found:
        return []
    trained, tests, fates = _trained(found), _tests(found), _fates(found)
    scores: dict[str, float] = {}
    for _, told in found:
        scores |= told.scores
    rows = []
    for one in _described(found, trained):
        label = one.network
        work, fate = trained.get(label), fates.get(label, Fate("start" if label == START else "running"))
        rows.append(
            Candidate(
                network=label,
                parent=one.parent,
                iteration=iteration_of(label),
                shape=one.shape,
                arch=one.arch,
                macs=one.macs,
                params=one.params,
                bytes=one.bytes,
                rounds=work.rounds if work else 0,
                finishing=work.finishing if work else 0,
                clients=tuple(work.clients) if work else (),
                client_macs=work.macs if work else 0,
                client_bytes=work.bytes if work else 0,
                client_seconds=work.seconds if work else 0.0,
                tests=tuple(tests.get(label, ())),
                score=scores.get(label),
                outcome=fate.outcome,
                ended=fate.ended,
                reason=fate.reason,
            )
        )
    return rows


def _described(found: Found, trained: Mapping[str, _Trained]) -> list[Described]:
    """Return the start and all candidates; where the events do not say what the start is, its clients' rows tell."""
    start = next((told.start for _, told in found if told.start), None)
    if start is None:
        row = trained[START].row if START in trained else None
        cost = (row.macs, row.params) if row else (0, 0)
        start = Described(network=START, parent="", arch=None, shape="", macs=cost[0], params=cost[1], bytes=None)
    rows = [start]
    for _, told in found:
        rows += told.candidates
    return rows


def iteration_of(label: str) -> int:
    """Return the iteration that a network was made for, from 1; 0 of the start."""
    head = label.partition(".")[0]
    return int(head) if head.isdecimal() else 0


def leaders(events: Iterable[RoundEvent]) -> list[str]:
    """Return which network led from when on: the start, then each that took the lead."""
    path = [START]
    for _, told in searches(events):
        leader = told.outcome.leader if told.outcome else ""
        if leader and leader != path[-1]:
            path.append(leader)
    return path


def iterations_of(events: Iterable[RoundEvent]) -> int:
    """Return how many iterations are over, those counted in which no candidate was new."""
    found, over = searches(events), [0]
    for _, told in found:
        over += [told.iteration] if told.outcome else []
        over += [row.iteration for row in told.rewards]
    return max(over)


def effort(events: Sequence[RoundEvent]) -> Effort | None:
    """Return what the iterations that are over took; None as long as there is none."""
    found = searches(events)
    over = {told.iteration: told for _, told in found if told.outcome}
    if not over:
        return None
    candidates, spent, trainers = 0, 0, set()
    for event, told in found:
        candidates += sum(iteration_of(one.network) in over for one in told.candidates)
        spent += len(event.clients) if told.stage == "compete" and told.iteration in over else 0
        trainers |= {row.client for row in event.clients}
    return Effort(
        candidates=candidates,
        iterations=iterations_of(events),
        spent=spent,
        straightforward=candidates * max(told.of for told in over.values()) * len(trainers),
    )


def rewards(events: Iterable[RoundEvent]) -> list[Rewards]:
    """Return the rewards of each iteration, of a policy that learns from them."""
    rows: list[Rewards] = []
    for _, told in searches(events):
        rows += told.rewards
    return rows


def _trained(found: Found) -> dict[str, _Trained]:
    works: dict[str, _Trained] = {}
    for event, told in found:
        labels = set()
        for row in event.clients:
            label = str(row.network)
            work = works.setdefault(label, _Trained(row))
            work.clients[row.client] = None
            work.macs += row.client_macs
            work.bytes += row.bytes_up + row.bytes_down
            work.seconds += row.seconds
            labels.add(label)
        for label in labels:
            works[label].finishing += told.stage == "finish"
            works[label].rounds += told.stage != "finish"
    return works


def _tests(found: Found) -> dict[str, list[RankedAt]]:
    tests: dict[str, list[RankedAt]] = {}
    for event, told in found:
        for test in told.tests or ():
            point = RankedAt(round=event.round, metrics=test.metrics, gap=test.gap, se=test.se)
            tests.setdefault(test.network, []).append(point)
    return tests


def _fates(found: Found) -> dict[str, Fate]:
    """Return of each network whose race is over what became of it."""
    fates: dict[str, Fate] = {}
    for event, told in found:
        for one in told.dropped or ():
            fates[one.network] = Fate("dropped", event.round, one.reason)
        if told.outcome is None:
            continue
        tests = {test.network: test for test in told.tests or ()}
        for label in told.alive:
            if label not in fates:
                fates[label] = _fate(label, told, tests.get(label), event.round)
    return fates


def _fate(label: str, told: Story, test: Ranked | None, number: int) -> Fate:
    """Return what became of a candidate that was there to the end of its iteration."""
    if told.outcome and label in told.outcome.family:
        return Fate("winner", number)
    if test is None:
        return Fate("lost", number, UNTESTED)
    by_metric = not words(told.kind).score
    return Fate("lost", number, _behind(test, str(told.outcome and told.outcome.winner)) if by_metric else "")


def _behind(test: Ranked, winner: str) -> str:
    if test.gap <= 0:
        return f"as good as {winner}, which costs no more"
    return f"{100 * test.gap:.1f} points behind {winner} (SE {100 * test.se:.1f})"
