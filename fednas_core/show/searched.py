"""What a report says of networks that competed: the sentences on the search, and the table of its candidates."""

from __future__ import annotations

from collections.abc import Sequence

from fednas_core.base.metrics import Metric
from fednas_core.base.units import MISSING, count, macs
from fednas_core.runs.record import RoundEvent
from fednas_core.show.kinds import Words, words
from fednas_core.show.search import Candidate, effort, iterations_of, leaders, searches, tree_of
from fednas_core.show.tested import Table

MOST_ROWS = 60
"""Candidates in the table; of more, all that led and the first of the others."""
HEAD = ("Network", "Made from", "Shape", "What became of it", "MACs", "Clients", "Rounds")
TERMS = (
    "Clients and rounds: by how many it was trained, and for how long, while it competed. {title}: when it was last "
    "tested, over the images of the testing clients. SE: the standard error of how far it was behind the best."
)


def words_of(rounds: Sequence[RoundEvent]) -> Words:
    """Return in which words the search of a run is told."""
    return words(next((told.kind for _, told in searches(rounds)), ""))


def candidates(rounds: Sequence[RoundEvent], metric: Metric) -> Table | None:
    """Return the start and the candidates as a table, None of a run in which nothing competed."""
    rows, score = tree_of(rounds), words_of(rounds).score
    if not rows:
        return None
    first = [row for row in rows if row.outcome in ("start", "winner")]
    others = [row for row in rows if row not in first]
    shown = {row.network for row in [*first, *others][:MOST_ROWS]}
    head = (*HEAD, f"{metric.title} ± SE", *((score,) if score else ()))
    return Table(head, tuple(_cells(row, metric, bool(score)) for row in rows if row.network in shown), words=4)


def _cells(row: Candidate, metric: Metric, scored: bool) -> tuple[str, ...]:
    last = row.tests[-1] if row.tests else None
    value = metric.text(metric.of(last.metrics)) if last else MISSING
    error = f" ± {_error(last.se, metric)}" if last and last.se > 0 else ""
    trained = (str(len(row.clients)), str(row.rounds)) if row.rounds else (MISSING, MISSING)
    cells = (
        row.network,
        row.parent or MISSING,
        row.shape.replace(" ·", "\u00a0·") or MISSING,
        _became(row),
        count(row.macs),
        *trained,
        value + error,
    )
    if not scored:
        return cells
    return (*cells, MISSING if row.score is None else f"{row.score:.3g}")


def _error(error: float, metric: Metric) -> str:
    return f"{100 * error:.1f}" if metric.unit else f"{error:.2g}"


def _became(row: Candidate) -> str:
    words = {"start": "what all began with", "running": "competes", "winner": "won", "lost": "lost"}
    text = words.get(row.outcome) or f"dropped after round {row.ended}"
    if row.reason:
        text += f": {row.reason}"
    return text + (f"; trained on for {_number(row.finishing, 'round')}" if row.finishing else "")


def told(rounds: Sequence[RoundEvent]) -> str:
    """Return what a search amounted to, and what its plot shows."""
    took, shown = effort(rounds), words_of(rounds).shown
    if took is None:
        return shown
    text = (
        f"{_number(took.candidates, 'candidate')} in {_number(took.iterations, 'iteration')}; {took.spent:,} "
        "client-rounds of training where the straightforward design (every client trains every candidate in every "
        f"round) would have taken {took.straightforward:,}"
    )
    return f"{text}: {_times(took.saving)} times less. {shown}" if took.saving >= 1.05 else f"{text}. {shown}"


def terms(rounds: Sequence[RoundEvent], metric: Metric) -> str:
    """Return what the table of candidates means, and how much of it there is."""
    rows = len(tree_of(rounds))
    more = f" The table shows {MOST_ROWS} of {rows} networks; search.json has all." if rows > MOST_ROWS else ""
    return f"{words_of(rounds).won} {TERMS.format(title=metric.title)}{more}"


def made(rounds: Sequence[RoundEvent], method: str, how: str) -> str:
    """Return in a sentence which networks a finished search trained; `how` says for how long and over whom."""
    rows, path, words = tree_of(rounds), leaders(rounds), words_of(rounds)
    cost = {row.network: row.macs for row in rows}
    number = _number(iterations_of(rounds), "iteration")
    rest = f"it took {how}, who kept their images"
    if words.chained:
        return (
            f"A family of {_number(len(path), 'network')}, from {macs(cost[path[0]])} down to {macs(cost[path[-1]])}, "
            f"was made with {method}: {len(rows) - 1} candidates competed in {number}; {rest}."
        )
    return (
        f"A {words.first} of {macs(cost[path[0]])} was trained with {method}, and {len(rows) - 1} {words.others} "
        f"competed in {number}; {rest}."
    )


def kept(rounds: Sequence[RoundEvent]) -> str:
    """Return which networks a search left, as a caption of their values."""
    most = max((row.finishing for row in tree_of(rounds)), default=0)
    more = f"; those that are delivered trained on for {_number(most, 'round')}, the others did not" if most else ""
    return f"The start and {words_of(rounds).kept}{more}"


def _number(value: int, noun: str) -> str:
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
