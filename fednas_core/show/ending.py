"""What a run says in the terminal at its end: tables of the chosen models and of the clients' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fednas_core.base.units import few, share
from fednas_core.show.story import spent
from fednas_core.show.tested import MOST_TIERS, TRAINED_ON, by_tier, spread_of, tested


def table(models: Sequence[Mapping[str, Any]]) -> str:
    """Return the chosen models as a table for the terminal."""
    head = ("device", "budget", "MACs", "parameters", "size", "latency", "validation", "test", "export error")
    rows = [
        (
            str(m["device"]),
            str(m["budget"]),
            f"{m['macs'] / 1e6:.2f} M",
            f"{m['params'] / 1e6:.3f} M",
            f"{m['bytes'] / 1e6:.2f} MB",
            f"{m['latency_ms']:.2f} ms",
            share(m["validation_accuracy"]),
            share(m["test_accuracy"]),
            f"{m['export_max_abs_error']:.0e}",
        )
        for m in models
    ]
    return _aligned(head, rows)


def clients_table(rows: Sequence[Mapping[str, Any]], most: int = 20) -> str:
    """Return each client's own model and how it does there; of more than `most` clients, the first."""
    head = ("client", "budget", "MACs", "size", "latency there", "accuracy there", "")
    cells = [
        (
            str(row["client"]),
            str(row["budget"]),
            *(
                ("–", "–", "–", "–", str(row["reason"]))
                if row["reason"]
                else (
                    f"{row['macs'] / 1e6:.2f} M",
                    f"{row['bytes'] / 1e6:.2f} MB",
                    f"{row['latency_ms']:.2f} ms",
                    share(row["accuracy"]),
                    _where(row) + (", stored" if row["stored"] else "") + _no_larger(row),
                )
            ),
        )
        for row in rows[:most]
    ]
    more = f"\n… and {len(rows) - most} more in result.json" if len(rows) > most else ""
    return _aligned(head, cells) + more + _spread(rows)


def _spread(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how the clients' own models do: a line over all of them, and one for each budget if there are several."""
    handed = [row for row in rows if not row["reason"]]
    if not handed:
        return "\n\nno client runs a model"
    known = tested(handed)
    if not known:
        return f"\n\n{len(handed)} of {len(rows)} clients run a model; none had an image to test it on"
    tiers = by_tier((str(row["budget"]), row["accuracy"]) for row in known)
    who = f"{len(handed)} of {len(rows)} clients run a model" + ("" if known == handed else f", {len(known)} tested it")
    told = {who: spread_of([row["accuracy"] for row in known])}
    if 1 < len(tiers) <= MOST_TIERS:
        told |= {f"  {tier}: {found['clients']}": found for tier, found in tiers.items()}
    width = max(map(len, told))
    where = "" if all(row["held_out"] for row in known) else f"  ({TRAINED_ON})"
    return "\n" + "".join(
        f"\n{name.ljust(width)}  mean {found['mean']:6.1%}  worst tenth {found['worst_decile']:6.1%}  "
        f"spread {100 * found['std']:4.1f} points{where}"
        for name, found in told.items()
    )


def _where(row: Mapping[str, Any]) -> str:
    """Return on which images a client's model was tested."""
    if not row["tested"]:
        return "no image to spare for a test"
    images = f"{row['tested']} image" + ("s" if row["tested"] > 1 else "")
    return f"on {images} held out" if row["held_out"] else f"on {images} that it trained on"


def _no_larger(row: Mapping[str, Any]) -> str:
    """Return why a client has no larger model although its budget has room for one, '' if it has the largest."""
    if row.get("larger_accuracy") is None:
        return ""
    if row["larger_accuracy"] == row["validation_accuracy"]:
        return "; larger ones are as accurate on the validation images"
    return (
        f"; larger ones reach {share(row['larger_accuracy'])} on the validation images, this one "
        f"{share(row['validation_accuracy'])}"
    )


def ending(result: Mapping[str, Any]) -> str:
    """Return what a run left, from its result: the chosen models or why there are none, and the clients' own."""
    told = []
    if result["models"]:
        told.append(table(result["models"]))
    elif result.get("personal"):
        told.append(f"\n{kept(result['personal'])}")
    if result.get("clients"):
        told.append(clients_table(result["clients"]))
    told.append(f"\ntime  {spent(result['seconds'])}")
    return "\n".join(told)


def lacking(result: Mapping[str, Any]) -> str:
    """Return which clients have no model that should have one, and why; '' if none."""
    failed = [f"{row['client']} ({row['reason']})" for row in result.get("clients") or () if row.get("failed")]
    return f"without the model that it should have: {few(failed)}" if failed else ""


def kept(parts: Sequence[str]) -> str:
    """Return why the server has no model where `parts` of the networks are the clients' own, and where models are."""
    return (
        f"The server has no complete network: {few(parts)} never left the clients. Each completes its own, and a "
        "device whose node configuration names a folder 'models' keeps it there"
    )


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first two columns are text and whose others are figures."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def cell(i: int, text: str) -> str:
        return text.ljust(widths[i]) if i < 2 or i == len(head) - 1 and not head[i] else text.rjust(widths[i])

    lines = ["  ".join(cell(i, text) for i, text in enumerate(row)).rstrip() for row in [head, *rows]]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n" + "\n".join(lines)
