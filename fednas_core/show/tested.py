"""What clients found who tested networks on images of their own: the worst tenth beside the mean, by tier and network.

Everything here reads rows of ``event["evaluation"]``, of which those that clients tested hold ``clients``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fednas_core.base.units import MISSING, count, percent

Row = Mapping[str, Any]

MOST_TIERS = 8
"""Tiers that are told apart; of more, devices have budgets of their own rather than tiers."""
PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9}
FIGURES = ("Clients", "Mean", "Worst tenth", "Worst", "Best", "Spread, points")
TRAINED_ON = "on training images"
"""What stands beside an accuracy that was found on images that the network was trained on."""
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


def spread_of(accuracies: Sequence[float]) -> dict[str, Any]:
    """Return how accuracies (0 to 1, one a client, at least one) spread.

    Keys: clients, mean, std (of a population), worst, worst_decile (mean of the worst tenth, rounded up), best.
    """
    worst = sorted(accuracies)[: math.ceil(len(accuracies) / 10)]
    return {
        "clients": len(accuracies),
        "mean": statistics.fmean(accuracies),
        "std": statistics.pstdev(accuracies),
        "worst": worst[0],
        "worst_decile": statistics.fmean(worst),
        "best": max(accuracies),
    }


def tested(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of clients whose accuracy is known: the others had no image to test on."""
    return [row for row in rows if row.get("accuracy") is not None]


def by_tier(pairs: Iterable[tuple[str, float]]) -> dict[str, dict[str, Any]]:
    """Return the spread within each tier of (tier, accuracy) pairs, the poorest tier first."""
    found: dict[str, list[float]] = {}
    for tier, accuracy in pairs:
        found.setdefault(tier, []).append(accuracy)
    return {tier: spread_of(found[tier]) for tier in in_order(found)}


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


def by_clients(row: Row) -> bool:
    """Whether a row's accuracy is the clients' mean, because nobody else could test that network."""
    return bool(row.get("clients")) and row["accuracy"] == row["clients"]["mean"]


def brief(rows: Sequence[Row]) -> list[str]:
    """Return the rows of an evaluation for a line of the terminal; the first that clients tested says what is what."""
    told, short = [], False
    for row in rows:
        text, clients = f"{row['name']} {row['accuracy']:.1%}", row.get("clients")
        if clients:
            mean = "" if by_clients(row) else f"{'' if short else 'clients '}{clients['mean']:.1%}, "
            where = "" if clients.get("held_out", True) else f" {TRAINED_ON}"
            text += f" ({mean}{'' if short else 'worst tenth '}{clients['worst_decile']:.1%}{where})"
            short = True
        told.append(text)
    return told


# -- the report --------------------------------------------------------------------------------------------------------


def last(rounds: Sequence[Row]) -> tuple[int, tuple[Row, ...]]:
    """Return the last round in which clients tested networks and its rows of those; ``(0, ())`` if there was none."""
    for event in reversed(rounds):
        rows = tuple(row for row in event.get("evaluation") or () if row.get("clients"))
        if rows:
            return event["round"], rows
    return 0, ()


def singles(rows: Sequence[Row]) -> dict[str, Row]:
    """Return for each client what it found of the largest network that it tested, by its name."""
    ranked = sorted(rows, key=lambda row: row.get("macs") or 0)
    return {str(one["client"]): one for row in ranked for one in row["clients"].get("each", ())}


def tiers_of(found: Iterable[Row]) -> list[str]:
    """Return the tiers of clients in order, none where they cannot be told apart: fewer than two or too many."""
    tiers = in_order({str(one.get("tier") or "") for one in found})
    return tiers if 1 < len(tiers) <= MOST_TIERS else []


def images(rows: Sequence[Row]) -> str:
    """Return in words how many clients tested on which images."""
    found = singles(rows).values()
    least, most = min(one["tested"] for one in found), max(one["tested"] for one in found)
    which = "never train on" if all(row["clients"]["held_out"] for row in rows) else "also trained on"
    span = f"{least}" if least == most else f"{least} to {most}"
    return f"on images of their own that they {which} ({span} each)"


def history(rounds: Sequence[Row]) -> Table | None:
    """Return every evaluation as a table, None if there was none: with a line a network where clients tested."""
    events = [event for event in rounds if event.get("evaluation")]
    if not events:
        return None
    if not last(events)[1]:
        names = tuple(dict.fromkeys(str(row["name"]) for event in events for row in event["evaluation"]))
        found = [{str(row["name"]): percent(row["accuracy"]) for row in event["evaluation"]} for event in events]
        cells = (tuple(accuracies.get(name, MISSING) for name in names) for accuracies in found)
        lines = tuple((str(event["round"]), *row) for event, row in zip(events, cells, strict=True))
        return Table(("Round", *names), lines, words=0)
    pairs = [(event["round"], row) for event in events for row in event["evaluation"]]
    server = any(not by_clients(row) for _, row in pairs)
    head = ("Round", "Network", *(("Server's validation",) if server else ()), *FIGURES)
    shown = []
    for number, row in pairs:
        seen = ((MISSING if by_clients(row) else percent(row["accuracy"])),) if server else ()
        shown.append((str(number), str(row["name"]), *seen, *_figures(row.get("clients"))))
    return Table(head, tuple(shown), words=2)


def by_network(rows: Sequence[Row]) -> Table:
    """Return how the networks of one evaluation do over all clients and over those of each tier."""
    tiers = bool(tiers_of(singles(rows).values()))
    lines: list[tuple[str, ...]] = []
    for row in rows:
        own = (str(row["name"]), count(row["macs"]) if row.get("macs") else MISSING)
        found = row["clients"].get("tiers", {}) if tiers else {}
        only = list(found) if len(found) == 1 else ["all"]
        lines.append((own[0], *(only if tiers else ()), own[1], *_figures(row["clients"])))
        lines += [("", tier, "", *_figures(found[tier])) for tier in in_order(found) if len(found) > 1]
    return Table(("Network", *(("Tier",) if tiers else ()), "MACs", *FIGURES), tuple(lines), words=1 + tiers)


def _figures(found: Row | None) -> tuple[str, ...]:
    if not found:
        return (MISSING,) * len(FIGURES)
    shares = (percent(found[key]) for key in ("mean", "worst_decile", "worst", "best"))
    return str(found["clients"]), *shares, f"{100 * found['std']:.1f}"
