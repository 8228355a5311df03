"""What a report says of networks that competed: the sentences on the search, and the table of its candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fednas_core.base.units import MISSING, count, macs, percent
from fednas_core.show.search import Candidate, effort, iterations_of, leaders, searches, tree_of
from fednas_core.show.tested import Table

Event = Mapping[str, Any]

MOST_ROWS = 60
"""Candidates in the table; of more, all that led and the first of the others."""
HEAD = ("Network", "Made from", "Shape", "What became of it", "MACs", "Clients", "Rounds", "Accuracy ± SE")
SCORES = {"evolution": "Score", "ddc": "Reward"}
PATH = "Networks that won are joined by the bold line and named with their MACs."
FANS = (
    "The lines of an iteration's candidates begin at the winner that they are made of, and end where they were dropped."
)
TERMS = (
    "Clients and rounds: by how many it was trained, and for how long, while it competed. Accuracy: when it was last "
    "tested, over the images of the testing clients. SE: the standard error of how far it was behind the best."
)
WON = {
    "netadapt": "Won: the most accurate of its iteration, from which the next one's candidates are made.",
    "evolution": "Won: accuracy and cost together score higher than those of any network before.",
    "ddc": "Won: the highest reward of all students so far, or the highest of those that a budget allows.",
}


def kind(rounds: Sequence[Event]) -> str:
    """Return how candidates were made, by what the events tell: netadapt, evolution, ddc; '' if there is no search."""
    told = {key for _, told in searches(rounds) for key in told}
    marks = {"rewards": "ddc", "score": "evolution"}
    return next((name for mark, name in marks.items() if mark in told), "netadapt") if told else ""


def candidates(rounds: Sequence[Event]) -> Table | None:
    """Return the start and the candidates as a table, None of a run in which nothing competed."""
    rows = tree_of(rounds)
    if not rows:
        return None
    first = [row for row in rows if row.outcome in ("start", "winner")]
    others = [row for row in rows if row not in first]
    shown = {row.network for row in [*first, *others][:MOST_ROWS]}
    scored = any(row.score is not None for row in rows)
    head = HEAD + ((SCORES[kind(rounds)],) if scored else ())
    return Table(head, tuple(_cells(row, scored) for row in rows if row.network in shown), words=4)


def _cells(row: Candidate, scored: bool) -> tuple[str, ...]:
    last = row.tests[-1] if row.tests else None
    accuracy = percent(last["accuracy"]) if last else MISSING
    error = f" ± {100 * last['se']:.1f}" if last and last["se"] > 0 else ""
    trained = (str(len(row.clients)), str(row.rounds)) if row.rounds else (MISSING, MISSING)
    return (
        row.network,
        row.parent or MISSING,
        row.shape.replace(" ·", "\u00a0·") or MISSING,
        _became(row),
        count(row.macs),
        *trained,
        accuracy + error,
        *((MISSING if row.score is None else f"{row.score:.3g}",) if scored else ()),
    )


def _became(row: Candidate) -> str:
    words = {"start": "what all began with", "running": "competes", "winner": "won", "lost": "lost"}
    text = words.get(row.outcome) or f"dropped after round {row.ended}"
    if row.reason:
        text += f": {row.reason}"
    return text + (f"; trained on for {_number(row.finishing, 'round')}" if row.finishing else "")


def told(rounds: Sequence[Event]) -> str:
    """Return what a search amounted to, and what its plot shows."""
    took, shown = effort(rounds), f"{PATH} {FANS}" if kind(rounds) == "netadapt" else PATH
    if took is None:
        return shown
    text = (
        f"{_number(took.candidates, 'candidate')} in {_number(took.iterations, 'iteration')}; {took.spent:,} "
        "client-rounds of training where the straightforward design (every client trains every candidate in every "
        f"round) would have taken {took.straightforward:,}"
    )
    return f"{text}: {_times(took.saving)} times less. {shown}" if took.saving >= 1.05 else f"{text}. {shown}"


def terms(rounds: Sequence[Event]) -> str:
    """Return what the table of candidates means, and how much of it there is."""
    rows = len(tree_of(rounds))
    more = f" The table shows {MOST_ROWS} of {rows} networks; search.json has all." if rows > MOST_ROWS else ""
    return f"{WON[kind(rounds)]} {TERMS}{more}"


def made(rounds: Sequence[Event], method: str, how: str) -> str:
    """Return in a sentence which networks a finished search trained; `how` says for how long and over whom."""
    rows, path = tree_of(rounds), leaders(rounds)
    cost = {row.network: row.macs for row in rows}
    number = _number(iterations_of(rounds), "iteration")
    rest = f"it took {how}, who kept their images"
    if kind(rounds) == "netadapt":
        return (
            f"A family of {_number(len(path), 'network')}, from {macs(cost[path[0]])} down to {macs(cost[path[-1]])}, "
            f"was made with {method}: {len(rows) - 1} candidates competed in {number}; {rest}."
        )
    first, others = ("teacher", "students with fewer layers") if kind(rounds) == "ddc" else ("network", "smaller ones")
    return (
        f"A {first} of {macs(cost[path[0]])} was trained with {method}, and {len(rows) - 1} {others} competed in "
        f"{number}; {rest}."
    )


def kept(rounds: Sequence[Event]) -> str:
    """Return which networks a search left, as a caption of their accuracies."""
    what = "the winner of each iteration" if kind(rounds) == "netadapt" else "the networks that the search kept"
    most = max((row.finishing for row in tree_of(rounds)), default=0)
    more = f"; those that are delivered trained on for {_number(most, 'round')}, the others did not" if most else ""
    return f"The start and {what}{more}"


def _number(value: int, noun: str) -> str:
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
