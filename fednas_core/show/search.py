"""The search tree of a run whose networks compete: which candidates there were, and what became of each.

Everything here reads ``event["search"]``, which methods like fednas and ddc write, and of ``event["clients"]`` who
trained which network. Networks go by their labels, ``<iteration>.<number>``, and ``start``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fednas_core.base.units import count, macs, milliseconds, size

Event = Mapping[str, Any]

START = "start"
"""The network that all others are made from."""
UNTESTED = "no client trained and tested it"
"""Why nothing is known of a candidate that is left when its iteration is over."""
AMOUNTS: Mapping[str, Callable[[float], str]] = {
    "macs": macs,
    "params": lambda value: f"{count(value)} params",
    "bytes": size,
    "ms": milliseconds,
}
"""How an amount of each resource is written."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One network of the search.

    `rounds` are those in which clients trained it to compete (the start: at all), `finishing` those in which they
    trained it to be delivered; `clients` and what they spent are of both. Each of `tests` has the run's round,
    accuracy (0 to 1), gap to the best and its standard error. `score` is what the search ranks it by (evolution's
    score, DDC's reward), None where that is accuracy alone. `outcome` is one of start, running, winner, dropped, lost;
    `ended` is the run's round that decided it. Of a start that the events do not describe, shape and arch are unknown.
    """

    network: str
    parent: str
    iteration: int
    shape: str
    arch: Mapping[str, Any] | None
    macs: int
    params: int
    bytes: int | None
    rounds: int
    finishing: int
    clients: tuple[str, ...]
    client_macs: int
    client_bytes: int
    client_seconds: float
    tests: tuple[Mapping[str, Any], ...]
    score: float | None
    outcome: str
    ended: int | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as JSON."""
        return asdict(self) | {"clients": list(self.clients), "tests": [dict(test) for test in self.tests]}


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

    rounds: int = 0
    finishing: int = 0
    clients: dict[str, None] = field(default_factory=dict)
    macs: int = 0
    bytes: int = 0
    seconds: float = 0.0
    network: Mapping[str, Any] = field(default_factory=dict)


def searches(events: Iterable[Event]) -> list[tuple[Event, Mapping[str, Any]]]:
    """Return the events that tell of a search, each with what it tells; none of a run of other methods."""
    return [(event, event["search"]) for event in events if event.get("search")]


def tree(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return the candidates as JSON: the content of ``search.json``."""
    return [candidate.to_json() for candidate in tree_of(events)]


def tree_of(events: Iterable[Event]) -> list[Candidate]:
    """Return the start and all candidates in the order in which they were made; nothing where nothing competes."""
    found = searches(events)
    if not found:
        return []
    trained, tests, fates = _trained(found), _tests(found), _fates(found)
    scores = {label: float(score) for _, told in found for label, score in told.get("scores", {}).items()}
    first = trained.get(START, _Trained()).network
    start = {"network": START, "parent": "", "macs": first.get("macs", 0), "params": first.get("params", 0)}
    described = [start | next((told["start"] for _, told in found if told.get("start")), {})]
    described += [one for _, told in found for one in told.get("candidates", ())]
    rows = []
    for one in described:
        label = str(one["network"])
        work = trained.get(label, _Trained())
        outcome, ended, reason = fates.get(label, ("start" if label == START else "running", None, ""))
        rows.append(
            Candidate(
                network=label,
                parent=str(one["parent"]),
                iteration=iteration_of(label),
                shape=str(one.get("shape", "")),
                arch=one.get("arch"),
                macs=int(one["macs"]),
                params=int(one["params"]),
                bytes=one.get("bytes"),
                rounds=work.rounds,
                finishing=work.finishing,
                clients=tuple(work.clients),
                client_macs=work.macs,
                client_bytes=work.bytes,
                client_seconds=work.seconds,
                tests=tuple(tests.get(label, ())),
                score=scores.get(label),
                outcome=outcome,
                ended=ended,
                reason=reason,
            )
        )
    return rows


def iteration_of(label: str) -> int:
    """Return the iteration that a network was made for, from 1; 0 of the start."""
    head = label.partition(".")[0]
    return int(head) if head.isdecimal() else 0


def leaders(events: Iterable[Event]) -> list[str]:
    """Return which network led from when on: the start, then each that took the lead."""
    path = [START]
    for _, told in searches(events):
        if "winner" in told and (leader := _kept(told)[-1]) != path[-1]:
            path.append(leader)
    return path


def iterations_of(events: Iterable[Event]) -> int:
    """Return how many iterations are over, those counted in which no candidate was new."""
    found = searches(events)
    competed = [told["iteration"] for _, told in found if "winner" in told]
    return max([*competed, *(row["iteration"] for _, told in found for row in told.get("rewards", ()))], default=0)


def effort(events: Sequence[Event]) -> Effort | None:
    """Return what the iterations that are over took; None as long as there is none."""
    found = searches(events)
    over = {told["iteration"]: told for _, told in found if "winner" in told}
    if not over:
        return None
    ran = [event for event, told in found if told["stage"] == "compete" and told["iteration"] in over]
    candidates = [
        one for _, told in found for one in told.get("candidates", ()) if iteration_of(one["network"]) in over
    ]
    trainers = {row["client"] for event, _ in found for row in event["clients"]}
    return Effort(
        candidates=len(candidates),
        iterations=iterations_of(events),
        spent=sum(len(event["clients"]) for event in ran),
        straightforward=len(candidates) * max(int(told["of"]) for told in over.values()) * len(trainers),
    )


def rewards(events: Iterable[Event]) -> list[Mapping[str, Any]]:
    """Return the rewards of each iteration, as DDC tells them: iteration, mean, best, new."""
    return [row for _, told in searches(events) for row in told.get("rewards", ())]


def going_on(event: Event) -> str:
    """Return in a few words what a round was to the search, e.g. ``iteration 2, round 1/3: 5 candidates``."""
    told = event.get("search")
    if not told:
        return ""
    stage, where = told["stage"], f"{told['round']}/{told['of']}"
    if stage == "finish":
        return f"finish {told['finishing']} {where}"
    if stage == "start":
        return f"start {where}" + "".join(f", {test['accuracy']:.1%} where tested" for test in told.get("tests", ()))
    iteration, alive = f"iteration {told['iteration']}", told["alive"]
    if "winner" in told:
        return f"{iteration}: {_result(told)}"
    if told.get("dropped"):
        return f"{iteration}, round {where}: {len(told['dropped'])} of {len(alive)} dropped"
    trained = {row["network"] for row in event["clients"]} & set(alive)
    if len(trained) < len(alive):
        which = next(iter(trained)) if len(trained) == 1 else str(len(trained))
        return f"{iteration}, {where} rounds done: {which} of {len(alive)} trained"
    return f"{iteration}, round {where}: {len(alive)} candidate{'s' * (len(alive) != 1)}"


def _result(told: Mapping[str, Any]) -> str:
    """Return what came of an iteration, in the terms of its method."""
    if told["winner"] is None:
        return "no candidate was trained and tested"
    if told.get("rewards"):
        last = told["rewards"][-1]
        return f"reward mean {last['mean']:.2g} best {last['best']:.2g}"
    leader = _kept(told)[-1]
    if "score" in told:
        return f"leader {leader}, score {told['score']:.3f}"
    takes = f" at {AMOUNTS[told['resource']](told['takes'])}" if "takes" in told else ""
    return f"winner {leader}{takes}"


def _kept(told: Mapping[str, Any]) -> list[str]:
    """Return which networks are kept at the end of an iteration, the leading one last."""
    return told.get("family") or [told.get("leader") or told["winner"]]


def _trained(found: Sequence[tuple[Event, Mapping[str, Any]]]) -> dict[str, _Trained]:
    works: dict[str, _Trained] = {}
    for event, told in found:
        for row in event["clients"]:
            work = works.setdefault(str(row["network"]), _Trained(network=row))
            work.clients[str(row["client"])] = None
            work.macs += row["client_macs"]
            work.bytes += row["bytes_up"] + row["bytes_down"]
            work.seconds += row["seconds"]
        for label in {str(row["network"]) for row in event["clients"]}:
            works[label].finishing += told["stage"] == "finish"
            works[label].rounds += told["stage"] != "finish"
    return works


def _tests(found: Sequence[tuple[Event, Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    tests: dict[str, list[dict[str, Any]]] = {}
    for event, told in found:
        for test in told.get("tests", ()):
            row = {"round": event["round"], **{key: test[key] for key in ("accuracy", "gap", "se")}}
            tests.setdefault(test["network"], []).append(row)
    return tests


def _fates(found: Sequence[tuple[Event, Mapping[str, Any]]]) -> dict[str, tuple[str, int, str]]:
    """Return of each network whose race is over the outcome, the run's round and the reason."""
    fates: dict[str, tuple[str, int, str]] = {}
    for event, told in found:
        number = event["round"]
        fates |= {one["network"]: ("dropped", number, one["reason"]) for one in told.get("dropped", ())}
        if "winner" not in told:
            continue
        kept, by_accuracy = _kept(told), not {"rewards", "score"} & told.keys()
        behind = {test["network"]: test for test in told["tests"]}
        for label in (label for label in told["alive"] if label not in fates):
            reason = _behind(behind[label], told["winner"]) if by_accuracy and label in behind else ""
            reason = reason if label in behind else UNTESTED
            fates[label] = ("winner", number, "") if label in kept else ("lost", number, reason)
    return fates


def _behind(test: Mapping[str, Any], winner: str) -> str:
    if test["gap"] <= 0:
        return f"as accurate as {winner}, which costs no more"
    return f"{100 * test['gap']:.1f} points behind {winner} (SE {100 * test['se']:.1f})"
