"""What clients found who tested networks on images of their own: the worst tenth beside the mean, by tier and network.

Everything here reads the evaluations of rounds, of which those that clients tested hold what these found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fednas_core.base.metrics import Metric
from fednas_core.base.units import MISSING, count
from fednas_core.runs.record import Evaluated, RoundEvent, Single, Spread

MOST_TIERS = 8
"""Tiers that are told apart; of more, devices have budgets of their own rather than tiers."""
PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9}
FIGURES = ("Clients", "Mean", "Worst tenth", "Worst", "Best", "Spread, points")
TRAINED_ON = "on training images"
"""What stands beside a value that was found on images that the network was trained on."""
TERMS = (
    "Each client counts once. Worst tenth: the mean over the tenth of the clients that fare worst. Spread: the "
    "standard deviation over the clients."
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table as text; its first `words` columns are words, the others figures."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


def by_tier(pairs: Iterable[tuple[str, float]], metric: Metric) -> dict[str, Spread]:
    """Return the spread within each tier of (tier, value) pairs, the poorest tier first."""
    found: dict[str, list[float]] = {}
    for tier, value in pairs:
        found.setdefault(tier, []).append(value)
    return {tier: Spread.of(found[tier], metric) for tier in in_order(found)}


def in_order(tiers: Iterable[str]) -> list[str]:
    """Return tiers from poor to rich as far as their names tell: ``min, 500k, 2M, max``; those that do not, last."""

    def key(tier: str) -> tuple[float, str]:
        if tier in ("min", "max"):
            return (-math.inf if tier == "min" else math.inf), tier
        digits = tier[: len(tier) - len(tier.lstrip("0123456789."))]
        try:
            return float(digits) * PREFIXES.get(tier[len(digits) :].strip()[:1], 1.0), tier
        except ValueError:
            return math.inf, tier

    return sorted(tiers, key=key)


def by_clients(row: Evaluated, metric: Metric) -> bool:
    """Whether a row's value is the clients' mean, because nobody else could test that network."""
    return row.clients is not None and metric.of(row.metrics) == row.clients.spread.mean


def brief(rows: Sequence[Evaluated], metric: Metric) -> list[str]:
    """Return the rows of an evaluation for a line of the terminal; the first that clients tested says what is what."""
    told, short = [], False
    for row in rows:
        text = f"{row.name} {metric.brief(metric.of(row.metrics))}"
        if row.clients:
            found = row.clients.spread
            mean = "" if by_clients(row, metric) else f"{'' if short else 'clients '}{metric.brief(found.mean)}, "
            where = "" if row.clients.held_out else f" {TRAINED_ON}"
            text += f" ({mean}{'' if short else 'worst tenth '}{metric.brief(found.worst_decile)}{where})"
            short = True
        told.append(text)
    return told


# -- the report --------------------------------------------------------------------------------------------------------


def last(rounds: Sequence[RoundEvent]) -> tuple[int, tuple[Evaluated, ...]]:
    """Return the last round in which clients tested networks and its rows of those; ``(0, ())`` if there was none."""
    for event in reversed(rounds):
        rows = tuple(row for row in event.evaluation or () if row.clients)
        if rows:
            return event.round, rows
    return 0, ()


def singles(rows: Sequence[Evaluated]) -> dict[str, Single]:
    """Return for each client what it found of the largest network that it tested, by its name."""
    found: dict[str, Single] = {}
    for row in sorted(rows, key=lambda row: row.macs or 0):
        if row.clients:
            found |= {one.client: one for one in row.clients.each}
    return found


def tiers_of(found: Iterable[Single]) -> list[str]:
    """Return the tiers of clients in order, none where they cannot be told apart: fewer than two or too many."""
    tiers = in_order({one.tier for one in found})
    return tiers if 1 < len(tiers) <= MOST_TIERS else []


def images(rows: Sequence[Evaluated]) -> str:
    """Return in words how many clients tested on which images."""
    found = [one.tested for one in singles(rows).values()]
    least, most = min(found), max(found)
    which = "never train on" if all(row.clients.held_out for row in rows if row.clients) else "also trained on"
    span = f"{least}" if least == most else f"{least} to {most}"
    return f"on images of their own that they {which} ({span} each)"


def history(rounds: Sequence[RoundEvent], metric: Metric) -> Table | None:
    """Return every evaluation as a table, None if there was none: with a line a network where clients tested."""
    events = [event for event in rounds if event.evaluation]
    if not events:
        return None
    if last(events)[1]:
        return _by_round_and_network(events, metric)
    names: dict[str, None] = {}
    for event in events:
        names |= dict.fromkeys(row.name for row in event.evaluation or ())
    lines = []
    for event in events:
        found = {row.name: metric.text(metric.of(row.metrics)) for row in event.evaluation or ()}
        lines.append((str(event.round), *(found.get(name, MISSING) for name in names)))
    return Table(("Round", *names), tuple(lines), words=0)


def _by_round_and_network(events: Sequence[RoundEvent], metric: Metric) -> Table:
    pairs: list[tuple[int, Evaluated]] = []
    for event in events:
        pairs += [(event.round, row) for row in event.evaluation or ()]
    server = any(not by_clients(row, metric) for _, row in pairs)
    lines = []
    for number, row in pairs:
        cells = [str(number), row.name]
        if server:
            cells.append(MISSING if by_clients(row, metric) else metric.text(metric.of(row.metrics)))
        lines.append((*cells, *_figures(row.clients.spread if row.clients else None, metric)))
    return Table(("Round", "Network", *(("Server's validation",) if server else ()), *FIGURES), tuple(lines), words=2)


def by_network(rows: Sequence[Evaluated], metric: Metric) -> Table:
    """Return how the networks of one evaluation do over all clients and over those of each tier."""
    tiers = bool(tiers_of(singles(rows).values()))
    lines: list[tuple[str, ...]] = []
    for row in rows:
        if row.clients is None:
            continue
        found: Mapping[str, Spread] = row.clients.tiers if tiers else {}
        only = list(found) if len(found) == 1 else ["all"]
        cost = count(row.macs) if row.macs else MISSING
        lines.append((row.name, *(only if tiers else ()), cost, *_figures(row.clients.spread, metric)))
        if len(found) > 1:
            lines += [("", tier, "", *_figures(found[tier], metric)) for tier in in_order(found)]
    return Table(("Network", *(("Tier",) if tiers else ()), "MACs", *FIGURES), tuple(lines), words=1 + tiers)


def _figures(found: Spread | None, metric: Metric) -> tuple[str, ...]:
    if not found:
        return (MISSING,) * len(FIGURES)
    values = (metric.text(value) for value in (found.mean, found.worst_decile, found.worst, found.best))
    return str(found.clients), *values, deviation(found, metric)


def deviation(found: Spread, metric: Metric) -> str:
    """Return the standard deviation over the clients, of shares in points."""
    return f"{100 * found.std:.1f}" if metric.unit else f"{found.std:.2g}"
